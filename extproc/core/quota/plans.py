"""Plan requests: what binds one caller's requests for one model stays the same until a window ends.

A plan is computed once and found again by the next request of its caller, as long as the tenant's policy is the
same object and no window, day or top-up has ended.
"""

from datetime import datetime
from typing import Final

from msgspec import Struct

from extproc.core.quota.binding import Binding, Policy, bind_request, needs_model
from extproc.core.quota.costs import Weights
from extproc.core.quota.limits import Bucket, Mode, Subject, Unit, Window, interval_at, local_date
from extproc.core.quota.reservation import Suspended, Unnamed
from extproc.core.quota.routes import Route
from extproc.core.request.body import UNNAMED
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity

# So many callers and models are remembered: about 2 kB each.
_AT_MOST: Final = 2048


class Plan(Struct, frozen=True):
    """Hold what binds the requests of one caller for one model, from `since` to `until` (seconds since the epoch).

    Requests hold `identity` and `model` of their plan: else each open stream would have texts of its own.
    `strict`: a limit in mode strict binds tokens, be it a shadow. `refuses_unbounded`: one that is no shadow does.
    `date` is the tenant's calendar date. `weights` are the tenant's own.
    """

    policy: Policy
    identity: Identity
    model: str
    route: Route
    since: float
    until: float
    buckets: tuple[Bucket, ...]
    refusal: Suspended | Unnamed | None
    date: str
    strict: bool
    refuses_unbounded: bool
    weights: Weights | None


_Key = tuple[Identity, Endpoint, str, str]


class Plans:
    """Remember the plans of the latest callers."""

    def __init__(self) -> None:
        self._known: dict[_Key, Plan] = {}

    def of(
        self, policy: Policy, identity: Identity, *, endpoint: Endpoint, model: str, route: Route, now: datetime
    ) -> Plan:
        """Return the plan of a request at `now`."""
        instant = now.timestamp()
        key = (identity, endpoint, model, route.name)
        plan = self._known.get(key)
        if (
            plan is not None
            and plan.policy is policy
            and (plan.route is route or plan.route == route)
            and plan.since <= instant < plan.until
        ):
            return plan
        plan = _plan(policy, identity, Subject(model, endpoint), route, now)
        self._known.pop(key, None)
        if len(self._known) >= _AT_MOST:
            del self._known[next(iter(self._known))]
        self._known[key] = plan
        return plan

    def latest(self) -> list[Plan]:
        """Return the remembered plans, the newest first. Some of them may be out of date."""
        return [*reversed(self._known.values())]


def refusal_of(binding: Binding) -> Suspended | None:
    """Return the refusal that a binding means; None if its caller is not suspended."""
    return Suspended(binding.suspended) if binding.suspended is not None else None


def _plan(policy: Policy, identity: Identity, subject: Subject, route: Route, now: datetime) -> Plan:
    instant = now.timestamp()
    binding = bind_request(policy, identity, now, subject)
    refusal: Suspended | Unnamed | None = refusal_of(binding)
    buckets = binding.buckets
    if refusal is None and subject.model == UNNAMED and needs_model(policy, identity, now, subject):
        refusal = Unnamed()
    if refusal is None:
        buckets = (*buckets, *route.buckets(identity, now, policy.zone))
    strict = [b.limit for b in buckets if b.limit.mode is Mode.STRICT and b.limit.unit is not Unit.REQUESTS]
    windows = [interval_at(Window.DAY, now, policy.zone), *(bucket.interval for bucket in buckets)]
    ends = [top_up.until for top_up in policy.top_ups if top_up.until > instant]
    return Plan(
        policy=policy,
        identity=identity,
        model=subject.model or "",
        route=route,
        since=max(window.start for window in windows),
        until=min([*(window.end for window in windows), *ends]),
        buckets=buckets,
        refusal=refusal,
        date=local_date(now, policy.zone),
        strict=bool(strict),
        refuses_unbounded=not all(limit.shadow for limit in strict),
        weights=binding.weights,
    )
