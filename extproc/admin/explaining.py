"""Explain what binds a caller now, and whether a request of a given size would be admitted.

The verdict is made by the functions that admit requests (`bind_request`, `decide`), on the counters as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from extproc.admin.errors import AdminError
from extproc.admin.names import client_ip as address
from extproc.admin.names import named, tenant_id
from extproc.admin.request_story import RequestStory, story_of
from extproc.admin.views import policy_of
from extproc.core.quota.binding import Policy, StoreFailure, bind_request
from extproc.core.quota.costs import Bound, Cost
from extproc.core.quota.insight import Insight
from extproc.core.quota.limits import Limit, Mode, Subject, Unit, local_date
from extproc.core.quota.models import Models
from extproc.core.quota.policies import Defaults
from extproc.core.quota.reservation import Admitted, BucketState, Count, Denied, Reservation, ReservationId, decide
from extproc.core.quota.settlement import Outcome
from extproc.core.request.addresses import IPV6_PREFIX, UNKNOWN_IP
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, ServiceAccount
from extproc.metering.quota_view import insight_into
from extproc.ports.base import StoreError
from extproc.ports.counters import Counters
from extproc.ports.requests import RequestFilter, RequestRecords
from extproc.ports.tenants import TenantStore

MAX_TOKENS: Final = 1_000_000_000
_LAST: Final = 5
# Older denials explain nothing of now, and would be long to look for.
_LAST_WITHIN: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Hold the limits that bind an identity now, and their counts. `known`: the tenant has limits of its own.

    `topped_up` has for each limit of the insight how much of its amount comes from top-ups.
    """

    insight: Insight
    known: bool
    problem: str | None
    on_store_failure: StoreFailure
    topped_up: tuple[int, ...] = ()

    @property
    def identity(self) -> Identity:
        return self.insight.identity

    @property
    def states(self) -> tuple[BucketState, ...]:
        """Return the buckets. Leaves out limits that need a model, endpoint or address that was not named."""
        return tuple(state for _, state in self.insight.limits if state is not None)


@dataclass(frozen=True, slots=True)
class Size:
    """Say how many tokens a request needs: `prompt` and `output`, both 0 to `MAX_TOKENS`."""

    prompt: int
    output: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= each <= MAX_TOKENS for each in (self.prompt, self.output)):
            raise AdminError(f"the tokens must be from 0 to {MAX_TOKENS}")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Name the limit that a request does not fit in, in the limit's unit.

    `retry_after_s` is None if waiting does not help: the request needs more than the whole limit.
    """

    scope: str
    unit: str
    window: str
    model: str | None
    endpoints: tuple[str, ...]
    amount: int
    topped_up: int
    used: int
    held: int
    needed: int
    resets_at: datetime
    retry_after_s: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say whether a request would be admitted now, and in one sentence why.

    `output_bound` is what a strict limit would leave of the output, if it is less than was asked for.
    `provisional`: it may depend on further limits, which count by a model, endpoint or address that was not named.
    """

    passes: bool
    told: str
    obstacle: Obstacle | None = None
    output_bound: int | None = None
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """Hold an explanation, the verdict on a request if one was asked for, and the last denials of the caller.

    `denials` are those of the last 7 days, the latest first, 5 at the most; None if they could not be read.
    """

    explanation: Explanation
    verdict: Verdict | None
    denials: tuple[RequestStory, ...] | None


class Explainer:
    """Run the use case. Stateless."""

    def __init__(
        self,
        tenants: TenantStore,
        counters: Counters,
        requests: RequestRecords,
        *,
        defaults: Defaults,
        models: Models,
        now: Callable[[], datetime],
        ipv6_prefix: int = IPV6_PREFIX,
    ) -> None:
        self._tenants = tenants
        self._counters = counters
        self._requests = requests
        self._defaults = defaults
        self._models = models
        self._now = now
        self._ipv6_prefix = ipv6_prefix

    async def explain(
        self,
        tenant: str,
        service_account: str,
        client_ip: str | None = None,
        *,
        model: str | None = None,
        endpoint: Endpoint | None = None,
        size: Size | None = None,
    ) -> Explained:
        """Explain what binds a caller now; with a `size`, whether a request of that size would be admitted.

        Without an address, model or endpoint, limits that count by it have no counts. Raise `AdminError` for names
        that can't be, `StoreError` if limits or counters can't be read.
        """
        identity = identity_of(tenant, service_account, client_ip, self._ipv6_prefix)
        subject = Subject(named("model", model) if model is not None else None, endpoint)
        now = self._now()
        document = await self._tenants.document(identity.tenant)
        policy, problem = policy_of(document, identity.tenant, self._defaults)
        explanation = await explanation_of(
            self._counters, policy, identity, now, subject, problem=problem, addressed=client_ip is not None
        )
        verdict = self._verdict(policy, explanation, subject, now, size) if size is not None else None
        return Explained(explanation, verdict, await self._denials(identity, now, addressed=client_ip is not None))

    def _verdict(
        self, policy: Policy, explanation: Explanation, subject: Subject, now: datetime, size: Size
    ) -> Verdict:
        binding = bind_request(policy, explanation.identity, now, subject)
        if binding.suspended is not None:
            told = f"It would be refused: the caller is suspended ({binding.suspended})."
            return Verdict(passes=False, told=told)
        counts = {state.bucket: state.count for state in explanation.states}
        buckets = tuple(bucket for bucket in binding.buckets if bucket in counts)
        decided = {bucket.limit for bucket in buckets}
        provisional = any(limit not in decided for limit, _ in explanation.insight.limits if not limit.shadow)
        profile = self._models.profile(subject.model or "")
        wanted = policy.min_output_tokens or profile.costing.min_output_tokens
        strict = any(bucket.limit.mode is Mode.STRICT for bucket in buckets)
        reservation = Reservation(
            id=ReservationId(""),
            request_id="",
            identity=explanation.identity,
            endpoint=subject.endpoint or Endpoint.CHAT_COMPLETIONS,
            model=subject.model or "",
            stream=False,
            cost=Cost(size.prompt, size.output),
            buckets=buckets,
            admitted_at=now,
            date=local_date(now, policy.zone),
            deadline=now.timestamp(),
            weights=binding.weights or profile.weights,
            bound=Bound(size.prompt, size.output, min(wanted, size.output)) if strict else None,
        )
        decision = decide(reservation, [counts[bucket] for bucket in buckets])
        if isinstance(decision, Admitted):
            return _admitted(decision, size, provisional=provisional)
        return _denied(decision, explanation, now)

    async def _denials(
        self, identity: Identity, now: datetime, *, addressed: bool
    ) -> tuple[RequestStory, ...] | None:
        wanted = RequestFilter(
            outcome=Outcome.DENIED,
            tenant=identity.tenant,
            service_account=identity.service_account,
            client_ip=identity.client_ip if addressed else None,
            since=now - _LAST_WITHIN,
        )
        try:
            return tuple(map(story_of, await self._requests.newest(wanted, _LAST)))
        except StoreError:  # the rest is worth an answer without them
            return None


def identity_of(
    tenant: str, service_account: str, client_ip: str | None, ipv6_prefix: int = IPV6_PREFIX
) -> Identity:
    """Return the identity of these names. Raise `AdminError`."""
    account = ServiceAccount(named("service account", service_account))
    ip = address(client_ip, ipv6_prefix) if client_ip is not None else UNKNOWN_IP
    return Identity(tenant_id(tenant), account, ip)


async def explanation_of(
    counters: Counters,
    policy: Policy,
    identity: Identity,
    now: datetime,
    subject: Subject,
    *,
    problem: str | None,
    addressed: bool,
) -> Explanation:
    """Return the limits that bind an identity now. Raise `StoreError`.

    Unless it is `addressed`, limits that count by client IP have no counts: which bucket they mean is not known.
    """
    insight = await insight_into(counters, policy, identity, now, subject)
    limits = insight.limits
    if not addressed:
        limits = tuple((limit, None if "client_ip" in limit.scope.names else state) for limit, state in limits)
    topped_up = tuple(_topped_up(policy, limit, identity, now) for limit, _ in limits)
    known = Insight(identity, limits, insight.suspended)
    return Explanation(known, policy.known, problem, policy.on_store_failure, topped_up)


def document_of(explained: Explained) -> dict[str, object]:
    """Describe it for programs: the same in the command's JSON and in the API."""
    found = explained.explanation
    who = found.identity
    pairs = zip(found.insight.limits, found.topped_up, strict=True)
    return {
        "tenant": who.tenant,
        "service_account": who.service_account,
        "client_ip": who.client_ip,
        "limits_of_its_own": found.known,
        "problem": found.problem,
        "suspended": found.insight.suspended,
        "on_store_failure": found.on_store_failure.value,
        "limits": [limit_row(limit, state, topped_up) for (limit, state), topped_up in pairs],
        "verdict": explained.verdict,
        "denials": explained.denials,
    }


def limit_row(limit: Limit, state: BucketState | None, topped_up: int) -> dict[str, object]:
    """Describe one limit; its `amount` is without top-ups. Counts are null if they are not known."""
    return {
        "limit": limit.scope.value,
        "window": limit.window.value,
        "amount": limit.amount - topped_up,
        "topped_up": topped_up,
        "used": state.count.used if state is not None else None,
        "held": state.count.held if state is not None else None,
        "remaining": state.remaining if state is not None else None,
        "resets_at": _end(state) if state is not None else None,
        "unit": limit.unit.value,
        "mode": limit.mode.value,
        "shadow": limit.shadow,
        "model": limit.model,
        "endpoints": list(limit.endpoints),
    }


def _admitted(decision: Admitted, size: Size, *, provisional: bool) -> Verdict:
    bound = decision.reservation.output_bound
    lowered = bound if bound is not None and bound < size.output else None
    told = "It would pass."
    if lowered is not None:
        told = f"It would pass, with at most {lowered} tokens of output: a strict limit has no room for more."
    if decision.shadowed:
        kinds = ", ".join(sorted({state.bucket.limit.kind for state in decision.shadowed}))
        told += f" Shadow limits would deny it: {kinds}."
    return Verdict(passes=True, told=told, output_bound=lowered, provisional=provisional)


def _denied(decision: Denied, explanation: Explanation, now: datetime) -> Verdict:
    state = decision.state
    limit, end = state.bucket.limit, state.bucket.interval.end
    in_vain = limit.unit is not Unit.REQUESTS and not BucketState(state.bucket, Count(0, 0)).admits(decision.need)
    rows = zip(explanation.insight.limits, explanation.topped_up, strict=True)
    topped_up = next(more for (each, _), more in rows if each is limit or each == limit)
    obstacle = Obstacle(
        scope=limit.scope.value,
        unit=limit.unit.value,
        window=limit.window.value,
        model=limit.model,
        endpoints=tuple(endpoint.value for endpoint in limit.endpoints),
        amount=limit.amount - topped_up,
        topped_up=topped_up,
        used=state.count.used,
        held=state.count.held,
        needed=decision.need,
        resets_at=datetime.fromtimestamp(end, UTC),
        retry_after_s=None if in_vain else max(1, end - int(now.timestamp())),
    )
    return Verdict(passes=False, told=_told(obstacle), obstacle=obstacle)


def _told(obstacle: Obstacle) -> str:
    unit = obstacle.unit.replace("_", " ")
    more = f" and {obstacle.topped_up} by top-ups" if obstacle.topped_up else ""
    then = (
        f"retry after {obstacle.retry_after_s} s"
        if obstacle.retry_after_s is not None
        else "waiting does not help: it needs more than the whole limit"
    )
    return (
        f"It would be denied by the limit {obstacle.scope}/{obstacle.window}: {obstacle.amount}{more} {unit}, "
        f"{obstacle.used} used, {obstacle.held} held, {obstacle.needed} needed. "
        f"It resets at {obstacle.resets_at:%Y-%m-%dT%H:%M:%SZ}; {then}."
    )


def _topped_up(policy: Policy, limit: Limit, identity: Identity, now: datetime) -> int:
    raising = (top_up.amount for top_up in policy.top_ups if top_up.raises(limit, identity, now.timestamp()))
    return min(limit.amount, sum(raising))


def _end(state: BucketState) -> str:
    return f"{datetime.fromtimestamp(state.bucket.interval.end, UTC):%Y-%m-%dT%H:%M:%SZ}"
