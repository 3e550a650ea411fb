"""Reserve -> settle | release | expire: the only caller of the ports.

`reserve` is the one round trip before the upstream. `close` never waits: it queues, and two background queues
carry the end of a reservation to the counters and from there to the ledger.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from extproc.core.events import Ask
from extproc.core.ledger import Entry, closed_entry, denied_entry, expiry
from extproc.core.limits import local_date
from extproc.core.quota import (
    Admitted,
    Costing,
    Decision,
    Denied,
    Reservation,
    ReservationId,
    Unavailable,
    bind,
    cost_of,
)
from extproc.core.settlement import Outcome, Settlement, released
from extproc.observe.metrics import Metrics
from extproc.outbox import Outbox, OutboxOptions
from extproc.ports import Clock, Closing, Counters, Ledger, Limits, StoreError

_log = logging.getLogger(__name__)

_EXPIRE_AT_ONCE = 500
_UNDONE_AT_MOST = 10_000


@dataclass(frozen=True, slots=True)
class AccountingOptions:
    """Durations in seconds. A decision takes at most `decision_timeout_s`, whatever the counters do."""

    decision_timeout_s: float = 0.1
    reservation_ttl_s: float = 900.0
    expiry_interval_s: float = 5.0
    ledger_linger_s: float = 0.1
    record_denied: bool = True


class Accounting:
    """Holds, ends and records reservations."""

    def __init__(
        self,
        *,
        counters: Counters,
        ledger: Ledger,
        limits: Limits,
        clock: Clock,
        new_id: Callable[[], ReservationId],
        costing: Costing,
        metrics: Metrics,
        options: AccountingOptions,
    ) -> None:
        self._counters = counters
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._costing = costing
        self._metrics = metrics
        self._options = options
        self._closings: Outbox[_End] = Outbox(OutboxOptions("closings"), self._carry_out, metrics.lost)
        self._entries: Outbox[Entry] = Outbox(
            OutboxOptions("ledger", linger_s=options.ledger_linger_s), ledger.append, metrics.lost
        )
        self._answering = True
        metrics.watch_queue("closings", self._closings.__len__)
        metrics.watch_queue("ledger", self._entries.__len__)

    async def reserve(self, ask: Ask) -> Decision:
        """Decides, and holds the cost where it fits. Raises nothing of the counters'; may be cancelled.

        Where no answer comes in time, nothing stays held: a release follows, which also stops a reservation
        that the counters have not seen yet.
        """
        reservation = self._reservation(ask)
        try:
            async with asyncio.timeout(self._options.decision_timeout_s):
                with self._metrics.reserving():
                    decision = await self._counters.reserve(reservation)
        except (StoreError, TimeoutError) as error:
            self._undo(reservation)
            self._metrics.decided("unavailable", "store")
            self._tell(answering=False, error=_named(error))
            return Unavailable()
        except BaseException:  # the stream was cancelled, or a fault: nothing may stay held
            self._undo(reservation)
            raise
        self._tell(answering=True)
        self._count(reservation, decision)
        return decision

    def close(self, reservation: Reservation, settlement: Settlement) -> None:
        """Ends a reservation, exactly once on the counters however often it is called. Returns at once."""
        self._closings.put(_End(reservation, settlement, recorded=True))

    async def run(self) -> None:
        """Carries out what is queued and expires what nobody ended, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._closings.run())
            group.create_task(self._entries.run())
            group.create_task(self._expire())

    async def drain(self, timeout_s: float) -> bool:
        """Waits until all that was closed is counted and recorded; False where the time did not suffice."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._closings.drained()
                await self._entries.drained()
        except TimeoutError:
            _log.error(
                "not everything was recorded in time",
                extra={"closings": len(self._closings), "ledger": len(self._entries)},
            )
            return False
        return True

    async def expire_overdue(self) -> int:
        """Ends reservations whose deadline has passed, of any replica; charged as held. Raises `StoreError`."""
        overdue = await self._counters.overdue(self._clock.now(), _EXPIRE_AT_ONCE)
        for reservation in overdue:
            self._closings.put(_End(reservation, expiry(reservation), recorded=True))
        return len(overdue)

    def _reservation(self, ask: Ask) -> Reservation:
        now = self._clock.now()
        policy = self._limits.policy(ask.identity.tenant)
        return Reservation(
            id=self._new_id(),
            request_id=ask.request_id,
            identity=ask.identity,
            endpoint=ask.endpoint,
            model=ask.facts.model,
            stream=ask.facts.stream,
            cost=cost_of(ask.facts, self._costing),
            buckets=bind(policy, ask.identity, now),
            admitted_at=now,
            date=local_date(now, policy.zone),
            deadline=now.timestamp() + self._options.reservation_ttl_s,
        )

    def _count(self, reservation: Reservation, decision: Admitted | Denied) -> None:
        if isinstance(decision, Admitted):
            self._metrics.decided("admitted", "")
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("admitted", extra={"reservation": reservation.id, "held": reservation.cost.total})
            return
        scope = decision.state.bucket.limit.scope
        self._metrics.decided("denied", scope)
        _log.debug("denied", extra={"reservation": reservation.id, "scope": scope})
        if self._options.record_denied:
            self._entries.put(denied_entry(reservation, scope))

    def _undo(self, reservation: Reservation) -> None:
        # In a long outage these must not take the room of reservations that are really held. One that is left out
        # and was made all the same expires.
        if len(self._closings) < _UNDONE_AT_MOST:
            self._closings.put(_End(reservation, released("undecided"), recorded=False))

    def _tell(self, *, answering: bool, error: str = "") -> None:
        """Logs when the counters fall silent and when they answer again: a line an outage, not a request."""
        if answering is self._answering:
            return
        self._answering = answering
        if answering:
            _log.warning("decisions again")
        else:
            _log.error("no decisions: requests are answered with 503", extra={"error": error})

    async def _carry_out(self, ends: Sequence["_End"]) -> None:
        stands = await self._counters.close(
            [Closing(e.reservation, e.settlement.outcome, e.settlement.charge) for e in ends]
        )
        now = self._clock.now()
        for end, outcome in zip(ends, stands, strict=True):
            if not end.recorded:
                continue
            settlement = end.settlement
            if outcome is not settlement.outcome:
                if outcome is not Outcome.EXPIRED:
                    continue  # ended before, in another way: recorded then
                # It expired first, by whichever replica: the ledger keeps one entry per reservation.
                settlement = expiry(end.reservation)
            self._metrics.closed(settlement)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("closed", extra=_told(end.reservation, settlement))
            self._entries.put(closed_entry(end.reservation, settlement, now))

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(self._options.expiry_interval_s)
            try:
                expired = await self.expire_overdue()
            except StoreError as error:
                _log.warning("overdue reservations could not be read", extra={"error": str(error)})
                continue
            if expired:
                _log.warning("reservations expired: charged as held", extra={"reservations": expired})


@dataclass(frozen=True, slots=True)
class _End:
    reservation: Reservation
    settlement: Settlement
    recorded: bool


def _told(reservation: Reservation, settlement: Settlement) -> dict[str, object]:
    return {
        "request_id": reservation.request_id,
        "reservation": reservation.id,
        "outcome": settlement.outcome,
        "reason": settlement.reason,
        "charge": settlement.charge,
    }


def _named(error: BaseException) -> str:
    return str(error) or type(error).__name__
