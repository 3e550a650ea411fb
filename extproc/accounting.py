"""Reserve -> settle | release | expire: the only caller of the ports.

`reserve` is the one round trip before the upstream. `close` never waits: it queues, and two background queues
carry the end of a reservation to the counters and from there to the ledger.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from extproc.core.alerting import Alert
from extproc.core.binding import Policy, bind
from extproc.core.costs import NO_COST
from extproc.core.endpoints import Endpoint
from extproc.core.events import Ask
from extproc.core.hits import Hit
from extproc.core.identity import Identity
from extproc.core.insight import Insight
from extproc.core.ledger import Entry, closed_entry, denied_entry
from extproc.core.limits import Bucket, Mode, Subject, Unit, Window, local_date
from extproc.core.models import Models
from extproc.core.quota import (
    Admitted,
    Decision,
    Denied,
    HitDecision,
    Reservation,
    ReservationId,
    Suspended,
    Unavailable,
    Unbounded,
)
from extproc.core.routes import NO_ROUTE, Route
from extproc.core.settlement import Outcome, Settlement, charges, expiry, released
from extproc.core.usage import NO_USAGE
from extproc.estimator import Estimator
from extproc.held import Held, Open
from extproc.insights import insight_into
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
    refuse_unbounded: bool = True
    thresholds: tuple[int, ...] = ()
    alert_windows: frozenset[Window] = frozenset(Window)


class AlertSink(Protocol):
    """Takes alerts. Returns at once and raises nothing."""

    def put(self, alert: Alert) -> None: ...


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
        models: Models,
        estimator: Estimator,
        alerts: AlertSink,
        metrics: Metrics,
        options: AccountingOptions,
    ) -> None:
        self._counters = counters
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._models = models
        self._estimator = estimator
        self._alerts = alerts
        self._metrics = metrics
        self._options = options
        self._held = Held(counters, clock, options.reservation_ttl_s, metrics.lost)
        self._closings: Outbox[_End] = Outbox(OutboxOptions("closings"), self._carry_out, metrics.lost)
        self._entries: Outbox[Entry] = Outbox(
            OutboxOptions("ledger", linger_s=options.ledger_linger_s), ledger.append, metrics.lost
        )
        self._answering = True
        metrics.watch_queue("closings", self._closings.__len__)
        metrics.watch_queue("ledger", self._entries.__len__)
        metrics.watch_queue("renewals", lambda: self._held.waiting)

    async def reserve(self, ask: Ask) -> Decision:
        """Decides, and holds the cost where it fits. Raises nothing of the counters'; may be cancelled.

        Where no answer comes in time, nothing stays held: a release follows, which also stops a reservation
        that the counters have not seen yet.
        """
        now = self._clock.now()
        policy = self._limits.policy(ask.identity.tenant)
        suspended = policy.suspension(ask.identity)
        if suspended is not None:
            self._not_admitted(self._uncounted(policy, ask, now), "suspended")
            return Suspended(suspended)
        buckets = (
            *bind(policy, ask.identity, now, Subject(ask.facts.model, ask.endpoint)),
            *ask.route.buckets(ask.identity, now, policy.zone),
        )
        # A limit on requests needs no bound, and working one out goes through the whole prompt.
        strict = any(b.limit.mode is Mode.STRICT and b.limit.unit is not Unit.REQUESTS for b in buckets)
        if strict and ask.facts.unbounded_prompt and self._options.refuse_unbounded and _needs_bound(buckets):
            self._not_admitted(self._uncounted(policy, ask, now), "unbounded_prompt")
            return Unbounded()
        estimate = await self._estimator.estimate(
            ask.endpoint, ask.facts, strict=strict, min_output_tokens=policy.min_output_tokens
        )
        reservation = replace(
            self._uncounted(policy, ask, now),
            cost=estimate.cost,
            buckets=buckets,
            weights=policy.weights_for(ask.facts.model, estimate.weights),
            bound=estimate.bound,
        )
        decision = await self._decide(reservation)
        if isinstance(decision, Admitted):
            shadow = tuple(state.bucket.limit.kind for state in decision.shadowed)
            self._held.add(Open(decision.reservation, estimate.lesson, shadow))
        elif isinstance(decision, Denied) and self._options.record_denied:
            self._entries.put(denied_entry(reservation, decision.state.bucket.limit.scope))
        return decision

    async def hit(self, hit: Hit) -> HitDecision:
        """Decides on a request that only counts as one, and counts it where it fits. As `reserve` otherwise."""
        now = self._clock.now()
        policy = self._limits.policy(hit.identity.tenant)
        suspended = policy.suspension(hit.identity)
        if suspended is not None:
            self._metrics.decided("denied", "suspended")
            return Suspended(suspended)
        subject = Subject(hit.model, Endpoint.ROUTE)
        buckets = [b for b in bind(policy, hit.identity, now, subject) if b.limit.unit is Unit.REQUESTS]
        buckets += [limit.bucket(now, policy.zone) for limit in hit.extra]
        reservation = Reservation(
            id=self._new_id(),
            request_id="",
            identity=hit.identity,
            endpoint=Endpoint.ROUTE,
            model=hit.model or "",
            stream=False,
            cost=NO_COST,
            buckets=tuple(buckets),
            admitted_at=now,
            date=local_date(now, policy.zone),
            deadline=now.timestamp() + self._options.reservation_ttl_s,
            requests=hit.hits,
        )
        if not buckets:
            self._metrics.decided("admitted", "")
            return Admitted(reservation, ())
        decision = await self._decide(reservation)
        if isinstance(decision, Admitted):
            counted = Settlement(Outcome.SETTLED, NO_USAGE, 0, "request")
            self._closings.put(_End(Open(decision.reservation), counted, recorded=False))
        return decision

    async def inspect(
        self, identity: Identity, subject: Subject, route: Route = NO_ROUTE
    ) -> Insight | Unavailable:
        """What binds an identity now, with the counts. Holds nothing; raises nothing of the counters'."""
        now = self._clock.now()
        policy = self._limits.policy(identity.tenant)
        try:
            async with asyncio.timeout(self._options.decision_timeout_s):
                return await insight_into(self._counters, policy, identity, now, subject, route=route)
        except (StoreError, TimeoutError):
            return Unavailable()

    def grow(self, reservation: Reservation) -> None:
        """Holds what the reservation says now, which is more than before. Returns at once."""
        self._held.grow(reservation)

    def close(self, reservation: Reservation, settlement: Settlement) -> None:
        """Ends a reservation, exactly once on the counters however often it is called. Returns at once."""
        self._closings.put(_End(self._held.end(reservation), settlement, recorded=True))

    async def run(self) -> None:
        """Carries out what is queued and expires what nobody ended, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._closings.run())
            group.create_task(self._entries.run())
            group.create_task(self._expire())
            group.create_task(self._held.run())

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
            recorded = reservation.endpoint is not Endpoint.ROUTE  # hits are not in the ledger
            self._closings.put(_End(Open(reservation), expiry(reservation), recorded))
        return len(overdue)

    async def _decide(self, reservation: Reservation) -> Admitted | Denied | Unavailable:
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

    def _uncounted(self, policy: Policy, ask: Ask, now: datetime) -> Reservation:
        """What is known of a request before anything is said of its cost."""
        return Reservation(
            id=self._new_id(),
            request_id=ask.request_id,
            identity=ask.identity,
            endpoint=ask.endpoint,
            model=ask.facts.model,
            stream=ask.facts.stream,
            cost=NO_COST,
            buckets=(),
            admitted_at=now,
            date=local_date(now, policy.zone),
            deadline=now.timestamp() + self._options.reservation_ttl_s,
        )

    def _not_admitted(self, reservation: Reservation, reason: str) -> None:
        """Counts and records a denial that no bucket was asked about."""
        self._metrics.decided("denied", reason)
        if self._options.record_denied:
            self._entries.put(denied_entry(reservation, reason))

    def _count(self, reservation: Reservation, decision: Admitted | Denied) -> None:
        if isinstance(decision, Admitted):
            self._metrics.decided("admitted", "")
            for state in decision.shadowed:
                self._metrics.shadowed(state.bucket.limit.scope)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("admitted", extra={"reservation": reservation.id, "held": decision.reservation.held})
            return
        scope = decision.state.bucket.limit.scope
        self._metrics.decided("denied", scope)
        _log.debug("denied", extra={"reservation": reservation.id, "scope": scope})

    def _undo(self, reservation: Reservation) -> None:
        # In a long outage these must not take the room of reservations that are really held. One that is left out
        # and was made all the same expires.
        if len(self._closings) < _UNDONE_AT_MOST:
            undone = released("undecided", forwarded=False)
            self._closings.put(_End(Open(reservation), undone, recorded=False))

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
        stands = await self._counters.close([self._closing(end) for end in ends], self._options.thresholds)
        now = self._clock.now()
        for end, closed in zip(ends, stands, strict=True):
            reservation = end.opened.reservation
            for crossed in closed.crossed:
                alert = Alert(reservation.identity.tenant, crossed.bucket, crossed.used, crossed.threshold, now)
                self._alerts.put(alert)
            if end.recorded:
                self._record(end, closed.outcome, now)

    def _closing(self, end: "_End") -> Closing:
        reservation = end.opened.reservation
        watched = tuple(self._watched(bucket) for bucket in reservation.buckets)
        return Closing(reservation, end.settlement.outcome, charges(reservation, end.settlement), watched)

    def _watched(self, bucket: Bucket) -> bool:
        return bucket.limit.window in self._options.alert_windows and not bucket.limit.shadow

    def _record(self, end: "_End", outcome: Outcome, now: datetime) -> None:
        settlement, reservation = end.settlement, end.opened.reservation
        if outcome is not settlement.outcome:
            if outcome is not Outcome.EXPIRED:
                return  # ended before, in another way: recorded then
            # It expired first, by whichever replica: the ledger keeps one entry per reservation.
            settlement = expiry(reservation)
        else:
            self._estimator.learn(end.opened.lesson, settlement, bounded=reservation.output_bound is not None)
        self._metrics.closed(settlement)
        self._metrics.used(reservation.identity.tenant, reservation.model, settlement.usage)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("closed", extra=_told(reservation, settlement))
        price = self._models.profile(reservation.model).prices.of(settlement.usage)
        self._entries.put(closed_entry(reservation, settlement, now, shadow=end.opened.shadow, price=price))

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


def _needs_bound(buckets: Sequence[Bucket]) -> bool:
    """Whether a strict limit binds that counts more than requests."""
    strict = (b.limit for b in buckets if b.limit.mode is Mode.STRICT and not b.limit.shadow)
    return any(limit.unit is not Unit.REQUESTS for limit in strict)


@dataclass(frozen=True, slots=True)
class _End:
    opened: Open
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
