"""A decision: asks the counters, and says what happens where they don't answer. Always in time."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.reservation import Admitted, Denied, Reservation, ReservationId, Unavailable
from extproc.metering.circuit_breaker import Breakers
from extproc.metering.local_admission import LocalAdmission
from extproc.metering.shards import Part, part_of
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError, UnreadyError
from extproc.ports.counters import Counters

_log = logging.getLogger(__name__)

# Of the time that a decision may take, so much is the counters'. The rest is for saying no, or for writing down
# what is admitted without them.
_FOR_ASKING = 0.9
_FOR_ASKING_WITH_STANDBY = 0.7


@dataclass(frozen=True, slots=True)
class Deciding:
    """What decides with the counters, and without them."""

    counters: Counters
    breakers: Breakers
    standby: LocalAdmission


class Admission:
    """Makes decisions within `timeout_s` seconds."""

    def __init__(
        self,
        parts: Deciding,
        *,
        new_id: Callable[[], ReservationId],
        undo: Callable[[Reservation], None],
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        """`undo` is given what may be held though nobody knows."""
        self._counters = parts.counters
        self._breakers = parts.breakers
        self._standby = parts.standby
        self._new_id = new_id
        self._undo = undo
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._asked: dict[ReservationId, Reservation] = {}
        self._silent: set[Part] = set()  # the parts of the counters that no decisions come from
        self._restored = 0
        self.on_unready: Callable[[], None] = lambda: None

    def asked(self) -> list[Reservation]:
        """What the counters are being asked for: it may be held already."""
        return list(self._asked.values())

    def restoring(self) -> None:
        """What is being asked for is restored in a new life of the counters, whatever the answer will be."""
        self._restored += 1

    async def decide(self, reservation: Reservation, on_failure: StoreFailure) -> Admitted | Denied | Unavailable:
        """Raises nothing of the counters'; may be cancelled. What stays unknown is undone."""
        part = part_of(self._counters, reservation.identity.tenant)
        if not self._breakers.of(part).is_open:
            decision = await self._ask(reservation, on_failure, part)
            if decision is not None:
                return decision
        if on_failure is StoreFailure.ALLOW:
            admitted = await self._without(reservation)
            if admitted is not None:
                return admitted
        self._metrics.decided("unavailable", "store")
        return Unavailable()

    async def _ask(
        self, reservation: Reservation, on_failure: StoreFailure, part: Part
    ) -> Admitted | Denied | None:
        share = _FOR_ASKING_WITH_STANDBY if on_failure is StoreFailure.ALLOW else _FOR_ASKING
        before = self._restored
        self._asked[reservation.id] = reservation
        try:
            async with asyncio.timeout(self._timeout_s * share):
                with self._metrics.reserving():
                    decision = await self._counters.reserve(reservation)
        except UnreadyError as error:
            self._undo_if(before, reservation)
            self._tell(part, str(error))
            self.on_unready()
            return None
        except (StoreError, TimeoutError) as error:
            self._undo(reservation)
            if not isinstance(error, StoreError) or error.transient:
                self._breakers.of(part).failed()
            self._tell(part, _named(error))
            return None
        except BaseException:  # the stream was cancelled, or a fault: nothing may stay held
            self._undo(reservation)
            raise
        finally:
            del self._asked[reservation.id]
        if isinstance(decision, Denied):
            self._undo_if(before, reservation)
        self._breakers.of(part).worked()
        self._tell(part, "")
        return decision

    async def _without(self, reservation: Reservation) -> Admitted | None:
        # Under another name: the one that was asked for may be held, and is being undone.
        renamed = replace(reservation, id=self._new_id())
        try:
            async with asyncio.timeout(self._timeout_s * (1 - _FOR_ASKING_WITH_STANDBY)):
                return await self._standby.admit(renamed)
        except TimeoutError:
            return None

    def _undo_if(self, before: int, reservation: Reservation) -> None:
        """Nothing was held; unless a new life began meanwhile, in which it was restored to be on the safe side."""
        if before != self._restored:
            self._undo(reservation)

    def _tell(self, part: Part, why: str) -> None:
        """Logs when the counters fall silent and when they answer again: a line an outage, not a request."""
        if bool(why) is (part in self._silent):
            return
        of: dict[str, object] = {} if part is None else {"partition": part}
        if why:
            self._silent.add(part)
            _log.error("no decisions: each tenant's on_store_failure counts", extra={"error": why} | of)
        else:
            self._silent.discard(part)
            _log.warning("decisions again", extra=of)


def _named(error: BaseException) -> str:
    return str(error) or type(error).__name__
