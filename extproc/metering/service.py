"""Reserve -> settle | release | expire: the only caller of the ports.

`reserve` is the one round trip before the upstream (deciding.py). `close` never waits: it queues, and what ended
is carried to the counters and the ledger from there (books.py).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from extproc.core.events import Ask
from extproc.core.quota.binding import Policy, bind
from extproc.core.quota.costs import NO_COST
from extproc.core.quota.hits import Hit
from extproc.core.quota.insight import Insight
from extproc.core.quota.ledger import denied_entry
from extproc.core.quota.limits import Bucket, Mode, Subject, Unit, local_date
from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import (
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
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.quota.settlement import Outcome, Settlement, expiry, released
from extproc.core.quota.usage import NO_USAGE
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.metering.admission import Admission, Deciding
from extproc.metering.circuit_breaker import Breakers, CircuitBreakerOptions
from extproc.metering.estimator import Estimator
from extproc.metering.leases import Lease, Leases
from extproc.metering.local_admission import LocalAdmission
from extproc.metering.quota_view import insight_into
from extproc.metering.settler import Settler, is_recorded
from extproc.metering.shards import Part, parts_of
from extproc.metering.stored import Stored
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError
from extproc.ports.tenants import Limits

_log = logging.getLogger(__name__)

_EXPIRE_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class MeteringOptions:
    """Durations in seconds. A decision takes at most `decision_timeout_s`, whatever the counters do.

    When the counters are back from an outage, nothing is overdue before every replica has had `renewed_within_s`
    to renew what it holds. When their clock was set, nothing is before every replica has had `stepped_within_s`
    to notice, and to renew.
    """

    decision_timeout_s: float = 0.1
    reservation_ttl_s: float = 900.0
    expiry_interval_s: float = 5.0
    record_denied: bool = True
    refuse_unbounded: bool = True
    allow_share: float = 0.1
    keep_after_s: float = 1.0
    renewed_within_s: float = 10.0
    stepped_within_s: float = 30.0
    breaker: CircuitBreakerOptions = field(default_factory=CircuitBreakerOptions)


class MeteringService:
    """Holds, ends and records reservations."""

    def __init__(
        self,
        *,
        stored: Stored,
        books: Settler,
        limits: Limits,
        clock: Clock,
        new_id: Callable[[], ReservationId],
        estimator: Estimator,
        metrics: Metrics,
        options: MeteringOptions,
        replica: str = "",
    ) -> None:
        self._stored = stored
        self._books = books
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._replica = replica
        self._estimator = estimator
        self._metrics = metrics
        self._options = options
        self._parts = parts_of(stored.counters)
        self._expiring_from = dict.fromkeys(self._parts, 0.0)
        self._held = Leases(stored.counters, clock, options.reservation_ttl_s, metrics.lost)
        self._breakers = Breakers(self._parts, self._probe, options.breaker, self._reached)
        standby = LocalAdmission(options.allow_share, stored.spool)
        books.on_end(standby.ended)
        self.decider = Admission(
            Deciding(stored.counters, self._breakers, standby),
            new_id=new_id,
            undo=self._undo,
            metrics=metrics,
            timeout_s=options.decision_timeout_s,
        )
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
        decision = await self._decide(reservation, policy)
        if isinstance(decision, Admitted):
            shadow = tuple(state.bucket.limit.kind for state in decision.shadowed)
            self._held.add(Lease(decision.reservation, estimate.lesson, shadow))
        elif isinstance(decision, Denied) and self._options.record_denied:
            self._books.deny(denied_entry(reservation, decision.state.bucket.limit.scope))
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
            replica=self._replica,
        )
        if not buckets:
            self._metrics.decided("admitted", "")
            return Admitted(reservation, ())
        decision = await self._decide(reservation, policy)
        if isinstance(decision, Admitted):
            counted = Settlement(Outcome.SETTLED, NO_USAGE, 0, "request")
            self._books.end(Lease(decision.reservation), counted, recorded=False)
        return decision

    async def inspect(
        self, identity: Identity, subject: Subject, route: Route = NO_ROUTE
    ) -> Insight | Unavailable:
        """What binds an identity now, with the counts. Holds nothing; raises nothing of the counters'."""
        now = self._clock.now()
        policy = self._limits.policy(identity.tenant)
        try:
            async with asyncio.timeout(self._options.decision_timeout_s):
                return await insight_into(self._stored.counters, policy, identity, now, subject, route=route)
        except (StoreError, TimeoutError):
            return Unavailable()

    def grow(self, reservation: Reservation) -> None:
        """Holds what the reservation says now, which is more than before. Returns at once."""
        self._held.grow(reservation)

    def close(self, reservation: Reservation, settlement: Settlement) -> None:
        """Ends a reservation, exactly once on the counters however often it is called. Returns at once."""
        self._books.end(self._held.end(reservation), settlement, recorded=True)

    # ------------------------------------------------ what other lives of the counters have to know

    def to_restore(self, partition: int) -> list[Reservation]:
        """All that this process holds or may hold in a partition, also what ended and is not known to have.

        It has to be restored in the counters' new life.
        """
        found = {r.id: r for r in (*self.decider.asked(), *self._held, *self._books.unended())}
        self.decider.restoring()
        return [r for r in found.values() if partition_of(r.identity.tenant) == partition]

    def tell_again(self, partition: int) -> None:
        """Has the counters hold what this process holds in a partition as it is now."""
        self._held.tell_again(partition)

    async def keep(self) -> None:
        """Keeps what has been held for a while in the records, should both this process and the counters be lost.

        Raises `StoreError`.
        """
        before = self._clock.now() - timedelta(seconds=self._options.keep_after_s)
        unkept = [*self._held.unkept(before), *self._books.unkept(before)]
        if unkept:
            await self._stored.records.keep(unkept)
            self._held.kept(unkept)
            known = {r.id for r in self._held} | self._books.ids()
            self._books.kept(r.id for r in unkept if r.id in known)
            over = [r.id for r in unkept if r.id not in known]  # in the ledger by now
            if over:
                await self._stored.records.drop(over)

    def retry(self) -> None:
        """The stores may be back: what waits for its next try is tried now."""
        self._books.retry()
        self._held.retry()

    # ------------------------------------------------ life

    async def run(self) -> None:
        """Delivers, renews and expires until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._books.run())
            group.create_task(self._held.run())
            group.create_task(self._breakers.run())
            for part in self._parts:
                group.create_task(self._expire(part))

    def clock_stepped(self) -> None:
        """The clock was set: what seems to be overdue by it need not be."""
        wait_until = asyncio.get_running_loop().time() + self._options.stepped_within_s
        for part in self._parts:
            self._expiring_from[part] = max(self._expiring_from[part], wait_until)
        self._held.renew_due()

    async def drain(self, timeout_s: float) -> bool:
        """Delivers what is queued; False where something of it is lost."""
        return await self._books.drain(timeout_s)

    async def expire_overdue(self, part: Part = None) -> int:
        """Ends reservations whose deadline has passed, of any replica; charged as held. Raises `StoreError`."""
        overdue = await self._stored.counters.overdue(self._clock.now(), _EXPIRE_AT_ONCE, part)
        for reservation in overdue:
            self._books.end(Lease(reservation), expiry(reservation), recorded=is_recorded(reservation))
        return len(overdue)

    async def _decide(self, reservation: Reservation, policy: Policy) -> Admitted | Denied | Unavailable:
        decision = await self.decider.decide(reservation, policy.on_store_failure)
        if not isinstance(decision, Unavailable):
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
            replica=self._replica,
        )

    def _not_admitted(self, reservation: Reservation, reason: str) -> None:
        """Counts and records a denial that no bucket was asked about."""
        self._metrics.decided("denied", reason)
        if self._options.record_denied:
            self._books.deny(denied_entry(reservation, reason))

    def _count(self, reservation: Reservation, decision: Admitted | Denied) -> None:
        if isinstance(decision, Admitted):
            self._metrics.decided("admitted", "standby" if decision.reservation.local else "")
            for state in decision.shadowed:
                self._metrics.shadowed(state.bucket.limit.scope)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("admitted", extra={"reservation": reservation.id, "held": decision.reservation.held})
            return
        scope = decision.state.bucket.limit.scope
        self._metrics.decided("denied", scope)
        _log.debug("denied", extra={"reservation": reservation.id, "scope": scope})

    def _undo(self, reservation: Reservation) -> None:
        self._books.undo(Lease(reservation), released("undecided", forwarded=False))

    async def _probe(self, part: Part) -> None:
        await self._stored.counters.ping(part)

    def _reached(self, part: Part, is_open: bool) -> None:
        self._metrics.breaker(is_open=self._breakers.open > 0)
        self._wait_for_renewals(part)
        if not is_open:
            self.retry()

    def _wait_for_renewals(self, part: Part) -> None:
        renewed_at = asyncio.get_running_loop().time() + self._options.renewed_within_s
        self._expiring_from[part] = max(self._expiring_from[part], renewed_at)

    async def _expire(self, part: Part) -> None:
        while True:
            await asyncio.sleep(self._options.expiry_interval_s)
            now = asyncio.get_running_loop().time()
            if self._breakers.of(part).is_open or now < self._expiring_from[part]:
                continue
            try:
                expired = await self.expire_overdue(part)
            except StoreError as error:
                self._wait_for_renewals(part)
                _log.warning("overdue reservations could not be read", extra={"error": str(error)})
                continue
            if expired:
                _log.warning("reservations expired: charged as held", extra={"reservations": expired})


def _needs_bound(buckets: Sequence[Bucket]) -> bool:
    """Whether a strict limit binds that counts more than requests."""
    strict = (b.limit for b in buckets if b.limit.mode is Mode.STRICT and not b.limit.shadow)
    return any(limit.unit is not Unit.REQUESTS for limit in strict)
