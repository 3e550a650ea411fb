"""Whether a request fits: check all buckets, then hold in all or in none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NewType

from extproc.core.quota.costs import EVEN, Bound, Cost, Demand, Weights, demand, strict_demand
from extproc.core.quota.limits import Bucket, Limit, Mode, Unit
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity

ReservationId = NewType("ReservationId", str)


@dataclass(frozen=True, slots=True)
class Count:
    """What stands in a bucket, in its unit: used, and held by requests in flight."""

    used: int
    held: int


@dataclass(frozen=True, slots=True)
class BucketState:
    """A bucket with its count."""

    bucket: Bucket
    count: Count

    @property
    def remaining(self) -> int:
        """What is neither used nor held; never negative."""
        return max(0, self.bucket.limit.amount - self.count.used - self.count.held)

    def admits(self, units: int) -> bool:
        """The rule of the limit's mode."""
        limit = self.bucket.limit
        if limit.mode is Mode.SOFT:
            return self.count.used < limit.amount
        return self.count.used + self.count.held + units <= limit.amount


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is held for one request from admission until it is settled, released or expired.

    `cost` is the estimate; `bound` what can be needed at the most, where a strict limit binds. `requests` is how
    many it counts as. `extra_output` tokens are held beside the cost, where the answer has outgrown it. `deadline`
    (seconds since the epoch) is when it expires; `date` is the tenant's calendar date at admission. One that is
    `local` was admitted while the counters were away: they take it up as it is when they first hear of it.
    `replica` is the process that made it and alone knows whether its request is still under way.
    """

    id: ReservationId
    request_id: str
    identity: Identity
    endpoint: Endpoint
    model: str
    stream: bool
    cost: Cost
    buckets: tuple[Bucket, ...]
    admitted_at: datetime
    date: str
    deadline: float
    weights: Weights = EVEN
    bound: Bound | None = None
    requests: int = 1
    extra_output: int = 0
    local: bool = False
    replica: str = ""

    @property
    def strict(self) -> bool:
        """Whether a limit binds that rests on the output bound: only then one is written into the request."""
        counting_output = (b.limit for b in self.buckets if b.limit.unit in (Unit.TOKENS, Unit.OUTPUT_TOKENS))
        return self.bound is not None and any(map(_strict, counting_output))

    @property
    def all_strict(self) -> bool:
        """Whether strict limits are all that count tokens: then nothing beyond the hold is charged at all."""
        of_tokens = (b.limit for b in self.buckets if b.limit.unit is Unit.TOKENS and not b.limit.shadow)
        return self.strict and all(limit.mode is Mode.STRICT for limit in of_tokens)

    @property
    def held(self) -> int:
        """The weighted tokens that are held, by the bound where a strict limit binds, else by the estimate.

        Where both kinds of limits bind, a bucket of the other kind may hold more or less than this.
        """
        if self.strict and self.bound is not None:
            return self.weights.at_most(self.bound.prompt, self.bound.all_output)
        return self.weights.at_most(self.cost.prompt, self.output_held)

    @property
    def output_held(self) -> int:
        """The output tokens that are held, of all choices."""
        if self.strict and self.bound is not None:
            return self.bound.all_output
        return self.cost.output + self.extra_output

    @property
    def output_bound(self) -> int | None:
        """The output bound per choice that has to be written into the request; None: none has."""
        if self.bound is not None and self.bound.writable and self.strict:
            return self.bound.output
        return None

    def demand(self, limit: Limit) -> Demand:
        """What a bucket of the limit has to hold, as a function of the output bound."""
        if limit.mode is Mode.STRICT and self.bound is not None:
            return strict_demand(limit.unit, self.weights, self.bound, self.requests)
        held = Cost(self.cost.prompt, self.cost.output + self.extra_output)
        return demand(limit.unit, self.weights, held, self.requests)

    def hold(self, limit: Limit) -> int:
        """What a bucket of the limit holds with the output bound as it is."""
        return self.demand(limit).at(self.bound.output if self.bound is not None else 0)

    def granted(self, output: int) -> "Reservation":
        """The same with a lower output bound."""
        if self.bound is None or output == self.bound.output:
            return self
        return replace(self, bound=replace(self.bound, output=output))


@dataclass(frozen=True, slots=True)
class Admitted:
    """It is held. `states` are the buckets' counts with this hold in them; `shadowed` would have denied it."""

    reservation: Reservation
    states: tuple[BucketState, ...]
    shadowed: tuple[BucketState, ...] = ()


@dataclass(frozen=True, slots=True)
class Denied:
    """Nothing is held and nothing was charged. `state` is the bucket that the client is told about.

    `need` is what the request would have needed of it at the least, in its unit.
    """

    state: BucketState
    need: int


@dataclass(frozen=True, slots=True)
class Suspended:
    """Nothing is admitted for this caller; `reason` is for the caller to read."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unbounded:
    """A strict limit binds, and what the request can need has no bound. Nothing is held."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No decision could be made: the counters can't be reached. Nothing is held."""


HitDecision = Admitted | Denied | Suspended | Unavailable
Decision = HitDecision | Unbounded


def decide(reservation: Reservation, counts: Sequence[Count]) -> Admitted | Denied:
    """Check all, then hold in all or in none. `counts` stand as they were before this request.

    The rule itself: used + held + hold <= limit, for every bucket; used < limit for soft ones. Where little is
    left in a strict bucket, the output bound is lowered to what fits, but not below the least that makes sense.
    `stores/lua/reserve.lua` is the same rule where it has to be atomic; one contract suite holds both to it.
    """
    output = grantable(reservation, counts)
    granted = reservation.granted(output)
    fits = all(s.bucket.limit.shadow or s.admits(granted.hold(s.bucket.limit)) for s in _states(granted, counts))
    return admitted(reservation, counts, output) if fits else denied(reservation, counts)


def grantable(reservation: Reservation, counts: Sequence[Count]) -> int:
    """The output bound per choice that the strict buckets have room for, from the least to what is wanted."""
    bound = reservation.bound
    if bound is None:
        return 0
    output = bound.output
    for state in _states(reservation, counts):
        limit = state.bucket.limit
        wanted = reservation.demand(limit)
        if _strict(limit) and wanted.slope:
            output = min(output, wanted.most(limit.amount - state.count.used - state.count.held))
    return max(output, bound.least)


def admitted(reservation: Reservation, counts: Sequence[Count], output: int = 0) -> Admitted:
    """The hold is in, with an output bound of `output`; `counts` stand as they were before it."""
    granted = reservation.granted(output)
    before = _states(granted, counts)
    after = tuple(
        BucketState(s.bucket, Count(s.count.used, s.count.held + granted.hold(s.bucket.limit))) for s in before
    )
    shadowed = tuple(s for s in _refusing(_at_least(granted), before) if s.bucket.limit.shadow)
    return Admitted(granted, after, shadowed)


def denied(reservation: Reservation, counts: Sequence[Count]) -> Denied:
    """Nothing is held; the client is told of the bucket that keeps it out the longest."""
    least = _at_least(reservation)
    refusing = [s for s in _refusing(least, _states(least, counts)) if not s.bucket.limit.shadow]
    state = min(refusing, key=lambda s: (-s.bucket.interval.end, s.remaining))
    return Denied(state, least.hold(state.bucket.limit))


def tightest(states: Sequence[BucketState], *, requests: bool = False) -> BucketState | None:
    """The bucket to tell a client of: the least remaining; among equals the one that resets last.

    Of those that count tokens, or of those that count requests; None where there is none.
    """
    told = (s for s in states if (s.bucket.limit.unit is Unit.REQUESTS) is requests and not s.bucket.limit.shadow)
    return min(told, key=lambda state: (state.remaining, -state.bucket.interval.end), default=None)


def _at_least(reservation: Reservation) -> Reservation:
    """With the lowest output bound that it could have got: what refuses even that, denies."""
    return reservation.granted(reservation.bound.least) if reservation.bound is not None else reservation


def _strict(limit: Limit) -> bool:
    return limit.mode is Mode.STRICT and not limit.shadow


def _refusing(reservation: Reservation, states: Sequence[BucketState]) -> list[BucketState]:
    return [s for s in states if not s.admits(reservation.hold(s.bucket.limit))]


def _states(reservation: Reservation, counts: Sequence[Count]) -> list[BucketState]:
    return [BucketState(b, c) for b, c in zip(reservation.buckets, counts, strict=True)]
