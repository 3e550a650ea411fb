"""Replay a ledger against proposed limits: report the denied callers, the times and the tokens.

The replay takes from the ledger when each request came and ended, its estimate, and its usage. A request that the
proposed limits deny uses nothing, so it leaves room for the next one; no client is assumed to retry. The ledger
lacks two facts. A strict limit is simulated with the larger of estimate and usage as the bound. The time at which
the hold of a long answer grew is unknown, so the hold stays as it was at admission. In both cases less is held
while requests are in flight; the charges are the same.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import Final, assert_never
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from extproc.core.quota.binding import Policy, bind
from extproc.core.quota.costs import THOUSAND, Bound, Cost, Weights
from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import Bucket, Interval, Limit, Mode, Subject, Unit, Window, interval_at
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.reservation import Count, Denied, Reservation, decide
from extproc.core.quota.settlement import Estimates, Outcome, Settlement, charges, expiry, released
from extproc.core.quota.simulation_report import Report, add_toll
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import TenantId

SUSPENDED: Final = "suspended"
# Windows and plans that are over are dropped once there are this many.
_MANY: Final = 100_000
_ENDPOINTS: Final = {endpoint.value: endpoint for endpoint in Endpoint}
_LAST: Final = (1, 0)  # behind every rank: windows end after 1970
_UNITS: Final = {unit: number for number, unit in enumerate(Unit)}
# The hold or charge of a request by unit, in the order of `Unit`.
_Units = tuple[int, int, int, int]
_PlanKey = tuple[str, str, str, str, str]
_TallyKey = tuple[TenantId, str, tuple[str, ...], int]
_Open = tuple[float, int, "tuple[_Tally, ...]", Sequence[int], Sequence[int]]


@dataclass(slots=True)
class _Tally:
    """Count the usage and holds of one bucket."""

    bucket: Bucket
    used: int = 0
    held: int = 0


@dataclass(slots=True)
class _Plan:
    """Hold the limits and buckets of one identity for one model and endpoint.

    The buckets are valid from `since` until `until`, the limits until `stale` (seconds since the epoch).
    """

    policy: Policy
    limits: tuple[tuple[Limit, tuple[str, ...]], ...]
    units: tuple[int, ...]
    weights: Weights
    suspended: bool
    strict: bool
    least_output: int
    stale: float
    since: float = 0.0
    until: float = 0.0
    tallies: tuple[_Tally, ...] = ()

    def refusing(self, held: _Units) -> str | None:
        """Return the kind of the limit that denies, if no limit is strict; None if the request fits.

        Follows the rule of `decide` without creating an object per check, which takes most of a replay's time.
        """
        kind, rank = None, _LAST
        for (limit, _), unit, tally in zip(self.limits, self.units, self.tallies, strict=True):
            fits = tally.used < limit.amount
            if limit.mode is not Mode.SOFT:
                fits = tally.used + tally.held + held[unit] <= limit.amount
            if fits or limit.shadow:
                continue
            own = (-tally.bucket.interval.end, max(0, limit.amount - tally.used - tally.held))
            if own < rank:
                kind, rank = limit.kind, own
        return kind

    def buckets(self) -> tuple[Bucket, ...]:
        """Return the buckets with the limits of this identity. A top-up may make them differ from another
        identity's.
        """
        pairs = zip(self.limits, self.tallies, strict=True)
        return tuple(Bucket(limit, parts, tally.bucket.interval) for (limit, parts), tally in pairs)


class Simulation:
    """Replay entries in the order of their admission. `policy` returns the proposed limits of a tenant.

    `models` has the weights of models that a tenant has no weights for. Memory is bounded by the buckets of
    windows that are not over, by the number of denied callers, and by the requests in flight at once.
    """

    def __init__(self, policy: Callable[[TenantId], Policy], models: Models | None = None) -> None:
        self._policy = policy
        self._models = models if models is not None else Models(ModelProfile())
        self._tallies: dict[_TallyKey, _Tally] = {}
        self._intervals: dict[tuple[Window, ZoneInfo], Interval] = {}
        self._tallies_at_most = _MANY
        self._plans: dict[_PlanKey, _Plan] = {}
        self._open: list[_Open] = []
        self._taken = 0
        self.report = Report()

    def take(self, entry: Entry) -> None:
        """Decide on one request anew, or on each of those that a denied entry counts. Never raise."""
        for each in _single(entry):
            self._take(each)

    def _take(self, entry: Entry) -> None:
        now = entry.admitted_at.timestamp()
        self._settle_until(now)
        self._taken += 1
        if entry.outcome is not Outcome.DENIED:
            self.report.requests += 1
            self.report.tokens += entry.charge
        plan = self._plan(entry, now)
        if plan.suspended:
            self._deny(entry, SUSPENDED)
            return
        if plan.strict:
            self._decide(entry, plan)
            return
        held = _held(entry.cost, plan.weights)
        if (refusing := plan.refusing(held)) is not None:
            self._deny(entry, refusing)
            return
        charged = _charged(entry, plan.weights)
        holds, charge = [held[unit] for unit in plan.units], [charged[unit] for unit in plan.units]
        self._admit(entry, plan.tallies, holds, charge)

    def finish(self) -> Report:
        """Settle all requests and return the report."""
        self._settle_until(float("inf"))
        return self.report

    def counts(self) -> dict[tuple[str, str], Count]:
        """Return the counts of the buckets that are still in memory, by tenant and key."""
        return {(key[0], tally.bucket.key): Count(tally.used, tally.held) for key, tally in self._tallies.items()}

    def _decide(self, entry: Entry, plan: _Plan) -> None:
        """Decide by the exact rule, which may lower an output bound."""
        reservation = _reservation(entry, plan)
        decision = decide(reservation, [Count(tally.used, tally.held) for tally in plan.tallies])
        if isinstance(decision, Denied):
            self._deny(entry, decision.state.bucket.limit.kind)
            return
        granted = decision.reservation
        holds = tuple(granted.hold(bucket.limit) for bucket in granted.buckets)
        if not granted.strict:
            granted = replace(granted, extra_output=_extra_output(entry, plan.weights))
        self._admit(entry, plan.tallies, holds, charges(granted, _settlement(entry, granted)))

    def _admit(
        self, entry: Entry, tallies: tuple[_Tally, ...], holds: Sequence[int], charged: Sequence[int]
    ) -> None:
        for tally, hold in zip(tallies, holds, strict=True):
            tally.held += hold
        if entry.outcome is Outcome.DENIED:
            self.report.newly_admitted += 1
            self.report.newly_admitted_tokens += entry.cost.total
        heapq.heappush(self._open, (entry.ended_at.timestamp(), self._taken, tallies, holds, charged))

    def _deny(self, entry: Entry, limit: str) -> None:
        if entry.outcome is Outcome.DENIED:
            return  # it was denied, and would be again
        self.report.denied += 1
        self.report.denied_tokens += entry.charge
        add_toll(self.report.tolls, entry, limit)

    def _settle_until(self, now: float) -> None:
        opened = self._open
        while opened and opened[0][0] <= now:
            _, _, tallies, holds, charged = heapq.heappop(opened)
            for tally, hold, charge in zip(tallies, holds, charged, strict=True):
                tally.held -= hold
                tally.used += charge

    def _plan(self, entry: Entry, now: float) -> _Plan:
        who = entry.identity
        key = (who.tenant, who.service_account, who.client_ip, entry.model, entry.endpoint)
        plan = self._plans.get(key)
        if plan is not None and plan.since <= now < plan.until:
            return plan
        if plan is None or now >= plan.stale:
            if len(self._plans) >= _MANY:
                self._plans.clear()
            plan = self._plans[key] = self._made(entry, now)
        self._roll(plan, entry, now)
        return plan

    def _made(self, entry: Entry, now: float) -> _Plan:
        who = entry.identity
        policy = self._policy(who.tenant)
        profile = self._models.profile(entry.model)
        least = policy.min_output_tokens
        buckets = bind(policy, who, entry.admitted_at, Subject(entry.model, _ENDPOINTS.get(entry.endpoint)))
        return _Plan(
            policy=policy,
            limits=tuple((bucket.limit, bucket.parts) for bucket in buckets),
            units=tuple(_UNITS[bucket.limit.unit] for bucket in buckets),
            weights=policy.own_weights(entry.model) or profile.weights,
            suspended=policy.suspension(who) is not None,
            strict=any(bucket.limit.mode is Mode.STRICT for bucket in buckets),
            least_output=max(1, profile.costing.min_output_tokens if least is None else least),
            stale=min((top_up.until for top_up in policy.top_ups if top_up.until > now), default=float("inf")),
        )

    def _roll(self, plan: _Plan, entry: Entry, now: float) -> None:
        """Replace the plan's buckets by those of the windows that contain `now`."""
        if len(self._tallies) >= self._tallies_at_most:
            self._forget(now)
        tallies: list[_Tally] = []
        plan.since, plan.until = now, plan.stale
        for limit, parts in plan.limits:
            interval = self._interval(limit.window, plan.policy.zone, entry.admitted_at, now)
            key = (entry.identity.tenant, limit.kind, parts, interval.start)
            tally = self._tallies.get(key)
            if tally is None:
                tally = self._tallies[key] = _Tally(Bucket(limit, parts, interval))
            tallies.append(tally)
            plan.until = min(plan.until, interval.end)
        plan.tallies = tuple(tallies)

    def _interval(self, window: Window, zone: ZoneInfo, at: datetime, now: float) -> Interval:
        found = self._intervals.get((window, zone))
        if found is None or not found.start <= now < found.end:
            found = self._intervals[window, zone] = interval_at(window, at, zone)
        return found

    def _forget(self, now: float) -> None:
        self._tallies = {key: tally for key, tally in self._tallies.items() if tally.bucket.interval.end > now}
        # If most buckets are still needed, raise the threshold, so that scanning stays a small part of the work.
        self._tallies_at_most = max(_MANY, 2 * len(self._tallies))


def _held(cost: Cost, weights: Weights) -> _Units:
    return (weights.at_most(cost.prompt, cost.output), cost.prompt, cost.output, 1)


def _held_at_the_end(entry: Entry, weights: Weights) -> _Units:
    return _held(Cost(entry.cost.prompt, entry.cost.output + _extra_output(entry, weights)), weights)


def _extra_output(entry: Entry, weights: Weights) -> int:
    """Return the output by which the hold grew, computed from the ledger. Exact if the weights are the same and >=
    1.
    """
    if not entry.stream:
        return 0  # only the holds of streams grow
    output = entry.cost.output
    if entry.outcome is Outcome.EXPIRED:
        output = entry.usage.output
    elif weights.any_output:
        output = (entry.held * THOUSAND - weights.any_input * entry.cost.prompt) // weights.any_output
    return max(0, output - entry.cost.output)


def _single(entry: Entry) -> Iterator[Entry]:
    """Yield an entry for each request. Requests that were counted together have equal shares of the cost."""
    if entry.count == 1:
        yield entry
        return
    share = Cost(entry.cost.prompt // entry.count, entry.cost.output // entry.count)
    yield from repeat(replace(entry, count=1, cost=share, ended_at=entry.admitted_at), entry.count)


def _capped(entry: Entry, *, strict: bool) -> bool:
    """Return whether the charge is capped by the hold. Without a strict limit, estimates stay as they were
    charged.
    """
    return entry.reason == "cut_off" or (strict and entry.outcome is Outcome.ESTIMATED)


def _charged(entry: Entry, weights: Weights) -> _Units:
    """Return the charge by unit if no limit is strict, as `settlement.charges` computes it."""
    usage = entry.usage
    match entry.outcome:
        case Outcome.DENIED | Outcome.EXPIRED:
            return _held_at_the_end(entry, weights)
        case Outcome.RELEASED:
            return (0, 0, 0, int(entry.reason != "not_forwarded"))
        case Outcome.SETTLED | Outcome.ESTIMATED:
            tokens, tokens_in, tokens_out = weights.of(usage), usage.input, max(0, usage.total - usage.input)
        case _:
            assert_never(entry.outcome)
    if _capped(entry, strict=False):
        held = _held_at_the_end(entry, weights)
        tokens, tokens_in, tokens_out = min(tokens, held[0]), min(tokens_in, held[1]), min(tokens_out, held[2])
    return (tokens, tokens_in, tokens_out, 1)


def _settlement(entry: Entry, granted: Reservation) -> Settlement:
    match entry.outcome:
        case Outcome.DENIED | Outcome.EXPIRED:
            return expiry(granted)
        case Outcome.RELEASED:
            return released(entry.reason, forwarded=entry.reason != "not_forwarded")
        case Outcome.SETTLED | Outcome.ESTIMATED:
            complete = not _capped(entry, strict=granted.strict)
            return Estimates.of(granted, 1).settle(_bounded(entry, granted), complete=complete)
        case _:
            assert_never(entry.outcome)


def _bounded(entry: Entry, granted: Reservation) -> Usage:
    """Return the usage under a lower output bound than the real one. An output that obeys bounds ends there."""
    usage = entry.usage
    beyond = usage.total - usage.input - granted.output_held
    if beyond <= 0 or not granted.strict or entry.reason == "overran":
        return usage
    output = min(usage.output, granted.output_held)
    return replace(usage, output=output, reasoning=min(usage.reasoning, output), total=usage.total - beyond)


def _reservation(entry: Entry, plan: _Plan) -> Reservation:
    cost = entry.cost
    return Reservation(
        id=entry.id,
        request_id=entry.request_id,
        identity=entry.identity,
        endpoint=_ENDPOINTS.get(entry.endpoint, Endpoint.ROUTE),
        model=entry.model,
        stream=entry.stream,
        cost=cost,
        buckets=plan.buckets(),
        admitted_at=entry.admitted_at,
        date=entry.date,
        deadline=entry.ended_at.timestamp(),
        weights=plan.weights,
        bound=_bound(entry, cost, plan.least_output) if plan.strict else None,
    )


def _bound(entry: Entry, cost: Cost, least: int) -> Bound:
    """Return the bound for the replay. The bound is at least the usage, or the replay would charge less than the
    truth.

    The exception is an output that exceeded a bound in the request (`overran`): it would be cut again.
    """
    output = cost.output
    if output and entry.reason != "overran":
        output = max(output, entry.usage.total - entry.usage.input)
    return Bound(max(cost.prompt, entry.usage.input), output, min(least, output), writable=output > 0)
