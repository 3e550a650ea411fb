"""Show how much of the tenants' limits is used, as metrics: of a bounded number of tenants, read now and then.

A tenant's own buckets (scope `tenant`) are always read. Of the other scopes, those are read that the latest
requests of this replica counted in. Buckets of one tenant, scope, window and unit are shown as one: the bucket of
which the greatest part is used. So no service account, client IP or model becomes a label. Shadow limits deny
nothing, and are not shown.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from extproc.core.quota.binding import Policy, limits_of
from extproc.core.quota.limits import Bucket, Scope, interval_at
from extproc.core.quota.partitions import partition_of
from extproc.core.quota.plans import Plan
from extproc.core.quota.reservation import BucketState
from extproc.core.request.addresses import UNKNOWN_IP
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from extproc.observe.metrics import LimitLabels, Metrics
from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Counters
from extproc.ports.tenants import Limits
from extproc.timing.periodic import periodically

# So many buckets of callers are read: those of the latest requests. At 15 s, that is 70 a second.
_CALLERS_BUCKETS: Final = 1000
_READ_AT_ONCE: Final = 50
_PLANS_AT_ONCE: Final = 50
_READ_S: Final = 1.0
_JITTER: Final = 0.1


@dataclass(frozen=True, slots=True)
class LimitGaugesOptions:
    """Show at most `tenants` tenants (0: none), and read their counts every `every_s` seconds."""

    tenants: int = 200
    every_s: float = 15.0


_Buckets = dict[str, Bucket]
_States = dict[LimitLabels, BucketState]


class LimitGauges:
    """Read the counts of limits, and set the metrics that show them."""

    def __init__(
        self,
        counters: Counters,
        limits: Limits,
        latest: Callable[[], Sequence[Plan]],
        *,
        clock: Clock,
        metrics: Metrics,
        options: LimitGaugesOptions,
    ) -> None:
        """Take what binds the latest requests from `latest`, the newest first."""
        self._counters = counters
        self._limits = limits
        self._latest = latest
        self._clock = clock
        self._metrics = metrics
        self._options = options
        self._shown: dict[TenantId, _States] = {}

    async def run(self) -> None:
        """Show until cancelled."""
        if not self._options.tenants:
            return
        await periodically(
            self.show, self._options.every_s, expected=StoreError, on_failure=lambda _: None, jitter=_JITTER
        )

    async def show(self) -> None:
        """Read all counts once, and show them.

        A place is given first to tenants whose requests came here, of these first to those that have one; then to
        all others that somebody configured. Of tenants whose counters do not answer, the last counts stay until
        their windows end.
        """
        now, at_most = self._clock.now(), self._options.tenants
        of_callers = await self._of_callers(now)
        configured = self._limits.tenants()
        seen = sorted(of_callers, key=lambda tenant: tenant not in self._shown)
        shown: dict[TenantId, _States] = {}
        silent: set[int] = set()
        unknown = left_out = 0
        for tenant in (*seen, *(tenant for tenant in configured if tenant not in of_callers)):
            policy = self._limits.policy(tenant)
            if len(shown) == at_most or (not policy.known and unknown >= at_most // 2):
                left_out += 1
                continue
            buckets = _own_buckets(policy, now) | of_callers.get(tenant, {})
            states = await self._states(tenant, [*buckets.values()], silent)
            # A tenant that nobody configured has a place once it has used anything: a name alone costs nothing.
            if states and (policy.known or any(state.count.used for state in states.values())):
                shown[tenant] = states
                unknown += not policy.known
        self._shown = shown
        every = {labels: state for states in shown.values() for labels, state in states.items()}
        self._metrics.limits_used(every, left_out)

    def shown(self) -> list[tuple[TenantId, BucketState]]:
        """Return what is shown now, as it was read last."""
        return [(tenant, state) for tenant, states in self._shown.items() for state in states.values()]

    async def _of_callers(self, now: datetime) -> dict[TenantId, _Buckets]:
        """Return the buckets of the latest requests, but for the tenants' own. The others are asked meanwhile.

        What was planned by limits that have changed since is left out: its caller's next request is planned anew.
        """
        found: dict[TenantId, _Buckets] = {}
        holds: dict[int, bool] = {}
        instant, buckets = now.timestamp(), 0
        for number, plan in enumerate(self._latest()):
            if number % _PLANS_AT_ONCE == 0:
                await asyncio.sleep(0)
            tenant, planned_by = plan.identity.tenant, id(plan.policy)
            if planned_by not in holds:
                policy = self._limits.policy(tenant)
                holds[planned_by] = policy is plan.policy or policy == plan.policy
            if not holds[planned_by]:
                continue
            of_tenant = found.setdefault(tenant, {})
            for bucket in plan.buckets:
                if buckets == _CALLERS_BUCKETS:
                    break
                if not bucket.limit.shadow and bucket.parts and bucket.interval.end > instant:
                    buckets += bucket.key not in of_tenant
                    of_tenant[bucket.key] = bucket
        return found

    async def _states(self, tenant: TenantId, buckets: list[Bucket], silent: set[int]) -> _States:
        """Return the states to show for a tenant. Note in `silent` which part of the counters does not answer."""
        part = partition_of(tenant) if self._counters.independent else 0
        found: _States = {}
        try:
            if part in silent:
                return self._last(tenant)
            for start in range(0, len(buckets), _READ_AT_ONCE):
                some = buckets[start : start + _READ_AT_ONCE]
                async with asyncio.timeout(_READ_S):
                    counts = await self._counters.read(tenant, some)
                for bucket, count in zip(some, counts, strict=True):
                    _keep_tightest(found, tenant, BucketState(bucket, count))
        except (StoreError, TimeoutError):
            silent.add(part)
            return self._last(tenant)
        return found

    def _last(self, tenant: TenantId) -> _States:
        now = self._clock.now().timestamp()
        last = self._shown.get(tenant, {})
        return {labels: state for labels, state in last.items() if state.bucket.interval.end > now}


def _own_buckets(policy: Policy, now: datetime) -> _Buckets:
    """Return the buckets that count all of a tenant's callers together."""
    nobody = Identity(policy.tenant, ServiceAccount(""), UNKNOWN_IP)
    limits = [
        limit for limit in limits_of(policy, nobody, now) if limit.scope is Scope.TENANT and not limit.shadow
    ]
    buckets = [Bucket(limit, (), interval_at(limit.window, now, policy.zone)) for limit in limits]
    return {bucket.key: bucket for bucket in buckets}


def _keep_tightest(states: _States, tenant: TenantId, state: BucketState) -> None:
    """Keep of two states with the same labels the one of which the greater part is used."""
    limit = state.bucket.limit
    labels = (tenant, limit.scope.value, limit.window.value, limit.unit.value)
    other = states.get(labels)
    if other is None or (state.used_ratio, -state.remaining) > (other.used_ratio, -other.remaining):
        states[labels] = state
