"""Hold tokens for requests, and end the holds: the door that the transport calls.

`reserve` makes one round trip to the counters, before the upstream. `grow` and `close` return at once: queues
carry out what they start.
"""

import asyncio
from collections.abc import Callable

from extproc.core.quota.binding import Policy
from extproc.core.quota.drafting import Ask, Caller, Draft, Drafter
from extproc.core.quota.hits import Hit
from extproc.core.quota.insight import Insight
from extproc.core.quota.limits import Subject
from extproc.core.quota.reservation import (
    Admitted,
    Decision,
    Denied,
    HitDecision,
    Reservation,
    ReservationId,
    Suspended,
    Unavailable,
)
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import NO_USAGE
from extproc.core.request.identity import Identity
from extproc.metering.denial_alerts import DenialAlerts
from extproc.metering.denial_writer import DenialWriter
from extproc.metering.estimator import Estimator
from extproc.metering.exhausted import Exhausted
from extproc.metering.leases import Lease
from extproc.metering.quota_view import insight_into
from extproc.metering.shards import Shards
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Counters
from extproc.ports.tenants import Limits

_HIT = Settlement(Outcome.SETTLED, NO_USAGE, 0, "request")


class MeteringService:
    """Serve the requests of one replica."""

    def __init__(
        self,
        limits: Limits,
        drafter: Drafter,
        estimator: Estimator,
        shards: Shards,
        denials: DenialWriter,
        *,
        denial_alerts: DenialAlerts,
        counters: Counters,
        clock: Clock,
        new_id: Callable[[], ReservationId],
        metrics: Metrics,
        record_denied: bool,
        view_timeout_s: float,
    ) -> None:
        """Record denied requests in the ledger too, with `record_denied`. A quota view takes `view_timeout_s`."""
        self._limits = limits
        self._drafter = drafter
        self._estimator = estimator
        self._shards = shards
        self._denials = denials
        self._denial_alerts = denial_alerts
        self._counters = counters
        self._clock = clock
        self._new_id = new_id
        self._metrics = metrics
        self._record_denied = record_denied
        self._exhausted = Exhausted()
        self._view_timeout_s = view_timeout_s

    async def reserve(self, ask: Ask) -> Decision:
        """Decide on a request, and hold its cost if it fits. Raise nothing of the counters'; may be cancelled.

        If no answer comes in time, nothing stays held: a release follows. It also stops a reservation that the
        counters have not seen yet.
        """
        policy = self._limits.policy(ask.identity.tenant)
        draft = self._drafter.draft(ask, policy, self._clock.now(), self._new_id())
        if draft.refusal is None:
            return await self._decide(draft, ask, policy)
        self._count("denied", draft.refused_for, policy)
        if isinstance(draft.refusal, Suspended):
            self._denial_alerts.suspended(ask.identity, policy)
        self._record_denial(draft.reservation, draft.refused_for, ask.identity.service_account)
        return draft.refusal

    def screen(self, caller: Caller) -> Suspended | Denied | None:
        """Refuse a request whose body was not read: its caller is suspended, or known to have used up a limit.

        Ask no store. Return None for any other request, which is then read and decided as usual.
        """
        now = self._clock.now()
        policy = self._limits.policy(caller.identity.tenant)
        draft = self._drafter.draft_unread(caller, policy, now, self._new_id())
        if isinstance(draft.refusal, Suspended):
            self._count("denied", draft.refused_for, policy)
            self._denial_alerts.suspended(caller.identity, policy)
            self._record_denial(draft.reservation, draft.refused_for, caller.identity.service_account)
            return draft.refusal
        state = self._exhausted.among(draft.reservation.buckets, now.timestamp())
        if state is None:
            return None
        denied = Denied(state, 1)
        self._count("denied", state.bucket.limit.scope, policy)
        self._record_denial_by(denied, draft.reservation)
        return denied

    async def _decide(self, draft: Draft, ask: Ask, policy: Policy) -> Admitted | Denied | Unavailable:
        shard = self._shards.of(ask.identity.tenant)
        shard.admission.drafted(draft.reservation)
        try:
            estimate = await self._estimator.estimate(
                ask.identity.tenant,
                ask.endpoint,
                ask.facts,
                strict=draft.strict,
                min_output_tokens=policy.min_output_tokens,
            )
            reservation = draft.priced(estimate.cost, estimate.bound, estimate.weights)
            decision = await shard.admission.decide(reservation, policy.on_store_failure)
            if isinstance(decision, Admitted):
                shadow = tuple(state.bucket.limit.kind for state in decision.shadowed)
                shard.leases.add(Lease(decision.reservation, estimate.lesson, shadow))
        finally:
            shard.admission.decided(draft.reservation)
        self._metrics.decided_for(policy.tenant, _outcome(decision), known=policy.known)
        if isinstance(decision, Denied):
            self._exhausted.note(decision.state, self._clock.now().timestamp())
            self._record_denial_by(decision, reservation)
        return decision

    async def hit(self, hit: Hit) -> HitDecision:
        """Decide on a request that counts only as requests, and count it if it fits. Otherwise as `reserve`."""
        policy = self._limits.policy(hit.identity.tenant)
        draft = self._drafter.draft_hit(hit, policy, self._clock.now(), self._new_id())
        if isinstance(draft.refusal, Suspended):
            self._count("denied", draft.refused_for, policy)
            return draft.refusal
        if not draft.reservation.buckets:
            self._count("admitted", "", policy)
            return Admitted(draft.reservation, ())
        shard = self._shards.of(hit.identity.tenant)
        decision = await shard.admission.decide(draft.reservation, policy.on_store_failure)
        self._metrics.decided_for(policy.tenant, _outcome(decision), known=policy.known)
        if isinstance(decision, Admitted):
            shard.settler.end(Lease(decision.reservation), _HIT, recorded=False)
        elif isinstance(decision, Denied):
            self._denial_alerts.denied(hit.identity.tenant, decision)
        return decision

    async def inspect(
        self, identity: Identity, subject: Subject, route: Route = NO_ROUTE
    ) -> Insight | Unavailable:
        """Return the limits that bind an identity now, with their counts. Hold nothing; raise nothing."""
        policy = self._limits.policy(identity.tenant)
        try:
            async with asyncio.timeout(self._view_timeout_s):
                return await insight_into(
                    self._counters, policy, identity, self._clock.now(), subject, route=route
                )
        except (StoreError, TimeoutError):
            return Unavailable()

    def grow(self, reservation: Reservation) -> None:
        """Hold more for a reservation: as much as it says now. Return at once."""
        self._shards.of(reservation.identity.tenant).leases.grow(reservation)

    def close(self, reservation: Reservation, settlement: Settlement) -> None:
        """End a reservation, exactly once on the counters however often this is called. Return at once."""
        self._shards.of(reservation.identity.tenant).close(reservation, settlement)

    def _count(self, outcome: str, reason: str, policy: Policy) -> None:
        """Count a decision that no counters were asked for."""
        self._metrics.decided(outcome, reason)
        self._metrics.decided_for(policy.tenant, outcome, known=policy.known)

    def _record_denial_by(self, denied: Denied, reservation: Reservation) -> None:
        self._denial_alerts.denied(reservation.identity.tenant, denied)
        if self._record_denied:
            bucket = denied.state.bucket
            self._denials.deny(reservation, bucket.limit.scope, bucket.key, denied)

    def _record_denial(self, reservation: Reservation, reason: str, bucket: str) -> None:
        if self._record_denied:
            self._denials.deny(reservation, reason, bucket)


def _outcome(decision: Admitted | Denied | Unavailable) -> str:
    if isinstance(decision, Admitted):
        return "admitted"
    return "denied" if isinstance(decision, Denied) else "unavailable"
