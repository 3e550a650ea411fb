"""Decide on a request in time: ask the counters, and fall back to local admission where they do not answer."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from time import perf_counter
from typing import Final

from msgspec.structs import replace

from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.reservation import Admitted, Denied, Reservation, ReservationId, Unavailable
from extproc.metering.circuit_breaker import CircuitBreaker
from extproc.metering.local_admission import LocalAdmission
from extproc.metering.settler import Settler
from extproc.observe.metrics import Metrics
from extproc.ports.base import ShardId, StoreError, UnreadyError
from extproc.ports.counters import Counters
from extproc.timing.patient_timeout import PatientTimeouts

_log = logging.getLogger(__name__)

# The counters get this part of a decision's time. The rest is for the refusal, or for local admission, which
# writes to disk.
_FOR_ASKING: Final = 0.9
_FOR_ASKING_BEFORE_LOCAL: Final = 0.7


class Admission:
    """Make each decision of one shard within `timeout_s` seconds."""

    def __init__(
        self,
        counters: Counters,
        shard_id: ShardId,
        breaker: CircuitBreaker,
        local: LocalAdmission,
        settler: Settler,
        *,
        new_id: Callable[[], ReservationId],
        metrics: Metrics,
        timeout_s: float,
        unready: asyncio.Event,
    ) -> None:
        """Set `unready` whenever the counters refuse a decision because they are being rebuilt."""
        self._counters = counters
        self._shard_id = shard_id
        self._breaker = breaker
        self._local = local
        self._settler = settler
        self._new_id = new_id
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._asking = PatientTimeouts(timeout_s * _FOR_ASKING)
        self._asking_before_local = PatientTimeouts(timeout_s * _FOR_ASKING_BEFORE_LOCAL)
        self._unready = unready
        self._undecided: dict[ReservationId, datetime] = {}
        self.asked = 0
        self._silent = False
        self._epochs_begun = 0

    def drafted(self, reservation: Reservation) -> None:
        """Remember a reservation until it is decided on: it may become a lease."""
        self.asked += 1
        self._undecided[reservation.id] = reservation.admitted_at

    def decided(self, reservation: Reservation) -> None:
        """Forget a reservation that was drafted: it is a lease now, or it never will be one."""
        del self._undecided[reservation.id]

    def undecided_since(self) -> datetime | None:
        """Return the earliest `admitted_at` among the reservations that are drafted and not decided on."""
        return min(self._undecided.values(), default=None)

    def epoch_begins(self) -> None:
        """Void the answers that are still to come: they are of an epoch whose counters are given up.

        What such an answer admits is held in no counters that count. It was not restored in the new epoch either:
        nobody knows it as admitted.
        """
        self._epochs_begun += 1

    async def decide(self, reservation: Reservation, on_failure: StoreFailure) -> Admitted | Denied | Unavailable:
        """Admit or deny, and count the decision. Raise nothing of the counters'; may be cancelled.

        A reservation whose answer does not come in time is undone, so nothing of it stays held.
        """
        decision: Admitted | Denied | None = None
        if not self._breaker.is_open:
            decision = await self._ask(reservation, on_failure)
        if decision is None and on_failure is StoreFailure.ALLOW:
            decision = await self._admit_locally(reservation)
        if decision is None:
            self._metrics.decided("unavailable", "store")
            return Unavailable()
        self._count(reservation, decision)
        return decision

    async def _ask(self, reservation: Reservation, on_failure: StoreFailure) -> Admitted | Denied | None:
        timeouts = self._asking_before_local if on_failure is StoreFailure.ALLOW else self._asking
        epochs_begun, begun = self._epochs_begun, perf_counter()
        try:
            with timeouts.wait():
                decision = await self._counters.reserve(reservation)
        except UnreadyError as error:
            self._report(str(error))
            self._unready.set()
            return None
        except (StoreError, TimeoutError) as error:
            self._undo(reservation)
            if not isinstance(error, StoreError) or error.transient:
                self._breaker.failed()
            self._report(str(error) or type(error).__name__)
            return None
        except BaseException:  # the stream was cancelled, or this is a bug: nothing may stay held
            self._undo(reservation)
            raise
        finally:
            self._metrics.reserved(perf_counter() - begun)
        self._breaker.worked()
        if isinstance(decision, Admitted) and epochs_begun != self._epochs_begun:
            self._undo(reservation)
            self._unready.set()
            return None
        self._report("")
        return decision

    async def _admit_locally(self, reservation: Reservation) -> Admitted | None:
        # Under a new id: the reservation that the counters were asked for may be held, and is being undone.
        renamed = replace(reservation, id=self._new_id())
        try:
            async with asyncio.timeout(self._timeout_s * (1 - _FOR_ASKING_BEFORE_LOCAL)):
                return await self._local.admit(renamed)
        except TimeoutError:
            return None

    def _undo(self, reservation: Reservation) -> None:
        self._settler.undo(reservation)

    def _count(self, reservation: Reservation, decision: Admitted | Denied) -> None:
        debug = _log.isEnabledFor(logging.DEBUG)
        if isinstance(decision, Denied):
            scope = decision.state.bucket.limit.scope
            self._metrics.decided("denied", scope)
            if debug:
                _log.debug("denied", extra={"reservation": reservation.id, "scope": scope})
            return
        self._metrics.decided("admitted", "standby" if decision.reservation.local else "")
        for state in decision.shadowed:
            self._metrics.shadowed(state.bucket.limit.scope)
        if debug:
            _log.debug("admitted", extra={"reservation": reservation.id, "held": decision.reservation.held})

    def _report(self, error: str) -> None:
        """Log when decisions stop and when they resume: one line an outage, not one a request."""
        if bool(error) is self._silent:
            return
        where: dict[str, object] = {} if self._shard_id is None else {"partition": self._shard_id}
        self._silent = bool(error)
        if error:
            _log.error("redis unavailable: on_store_failure applies", extra={"error": error} | where)
        else:
            _log.warning("redis available again: decisions resume", extra=where)
