"""Decide on a request in time: ask the counters, and fall back to local admission where they do not answer."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.reservation import Admitted, Denied, Reservation, ReservationId, Unavailable
from extproc.metering.circuit_breaker import CircuitBreaker
from extproc.metering.local_admission import LocalAdmission
from extproc.metering.settler import Settler
from extproc.metering.shards import Part, part_of
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError, UnreadyError
from extproc.ports.counters import Counters
from extproc.timing.patient_timeout import patient_timeout

_log = logging.getLogger(__name__)

# The counters get this part of a decision's time. The rest is for the refusal, or for local admission, which
# writes to disk.
_FOR_ASKING: Final = 0.9
_FOR_ASKING_BEFORE_LOCAL: Final = 0.7


class Admission:
    """Make each decision within `timeout_s` seconds."""

    def __init__(
        self,
        counters: Counters,
        breakers: Mapping[Part, CircuitBreaker],
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
        self._breakers = breakers
        self._local = local
        self._settler = settler
        self._new_id = new_id
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._unready = unready
        self._asked: dict[ReservationId, Reservation] = {}
        self._silent: set[Part] = set()
        self._restored = 0

    def asked(self) -> list[Reservation]:
        """Return the reservations that the counters are being asked for now: they may be held already."""
        return list(self._asked.values())

    def to_restore(self) -> list[Reservation]:
        """Return the same, to be restored as held in a new epoch of the counters.

        A reservation that turns out not to be admitted is undone after this call, since it was restored.
        """
        self._restored += 1
        return self.asked()

    async def decide(self, reservation: Reservation, on_failure: StoreFailure) -> Admitted | Denied | Unavailable:
        """Admit or deny, and count the decision. Raise nothing of the counters'; may be cancelled.

        A reservation whose answer does not come in time is undone, so nothing of it stays held.
        """
        part = part_of(self._counters, reservation.identity.tenant)
        decision: Admitted | Denied | None = None
        if not self._breakers[part].is_open:
            decision = await self._ask(reservation, on_failure, part)
        if decision is None and on_failure is StoreFailure.ALLOW:
            decision = await self._admit_locally(reservation)
        if decision is None:
            self._metrics.decided("unavailable", "store")
            return Unavailable()
        self._count(reservation, decision)
        return decision

    async def _ask(
        self, reservation: Reservation, on_failure: StoreFailure, part: Part
    ) -> Admitted | Denied | None:
        share = _FOR_ASKING_BEFORE_LOCAL if on_failure is StoreFailure.ALLOW else _FOR_ASKING
        restored_before = self._restored
        self._asked[reservation.id] = reservation
        try:
            async with patient_timeout(self._timeout_s * share):
                with self._metrics.reserving():
                    decision = await self._counters.reserve(reservation)
        except UnreadyError as error:
            self._undo_if_restored(restored_before, reservation)
            self._report(part, str(error))
            self._unready.set()
            return None
        except (StoreError, TimeoutError) as error:
            self._undo(reservation)
            if not isinstance(error, StoreError) or error.transient:
                self._breakers[part].failed()
            self._report(part, str(error) or type(error).__name__)
            return None
        except BaseException:  # the stream was cancelled, or this is a bug: nothing may stay held
            self._undo(reservation)
            raise
        finally:
            del self._asked[reservation.id]
        if isinstance(decision, Denied):
            self._undo_if_restored(restored_before, reservation)
        self._breakers[part].worked()
        self._report(part, "")
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

    def _undo_if_restored(self, restored_before: int, reservation: Reservation) -> None:
        """Undo a reservation that was not held, if a new epoch began meanwhile: there it was restored as held."""
        if restored_before != self._restored:
            self._undo(reservation)

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

    def _report(self, part: Part, error: str) -> None:
        """Log when decisions stop and when they resume: one line an outage, not one a request."""
        if bool(error) is (part in self._silent):
            return
        where: dict[str, object] = {} if part is None else {"partition": part}
        if error:
            self._silent.add(part)
            _log.error("redis unavailable: on_store_failure applies", extra={"error": error} | where)
        else:
            self._silent.discard(part)
            _log.warning("redis available again: decisions resume", extra=where)
