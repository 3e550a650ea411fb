"""Decide whether a request fits: check all buckets, then hold in all or in none."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NewType

from msgspec import Struct
from msgspec.structs import replace

from extproc.core.quota.costs import EVEN, Bound, Cost, Demand, Weights, demand, strict_demand
from extproc.core.quota.limits import Bucket, Limit, Mode, Unit
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity

ReservationId = NewType("ReservationId", str)
_REQUESTS: Final = Unit.REQUESTS  # to find a member of an enumeration takes 0.1 us


class Count(Struct, frozen=True):
    """Describe a bucket's counts in its unit: used, and held by requests in flight."""

    used: int
    held: int


class BucketState(Struct, frozen=True):
    """Pair a bucket with its count."""

    bucket: Bucket
    count: Count

    @property
    def remaining(self) -> int:
        """Return the amount that is neither used nor held; never negative."""
        return max(0, self.bucket.limit.amount - self.count.used - self.count.held)

    @property
    def used_ratio(self) -> float:
        """Return the part of the amount that is used. 1 is all of it; more was used if a limit was overrun. All of
        an amount of 0 is used.
        """
        amount = self.bucket.limit.amount
        return self.count.used / amount if amount else 1.0

    def admits(self, units: int) -> bool:
        """Apply the rule of the limit's mode."""
        limit = self.bucket.limit
        if limit.mode is Mode.SOFT:
            return self.count.used < limit.amount
        return self.count.used + self.count.held + units <= limit.amount


class Reservation(Struct, frozen=True):
    """Describe the hold of one request, from admission until it is settled, released or expired.

    `cost` is the estimate. `bound` is the most that can be needed, if a strict limit binds. `requests` is the
    number of requests that it counts as. `extra_output` tokens are held beside the cost, if the answer has
    outgrown it. `deadline` (seconds since the epoch) is the time of its expiry; `date` is the tenant's calendar
    date at admission. A `local` reservation was admitted while the counters were unavailable: they accept it as it
    is on their first contact with it. `replica` is the process that made it; only that process knows whether its
    request is still running.
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
        """Return whether a strict limit counts output tokens: only then an output bound is written into the
        request.
        """
        if self.bound is None:
            return False
        counting_output = (b.limit for b in self.buckets if b.limit.unit in (Unit.TOKENS, Unit.OUTPUT_TOKENS))
        return any(map(_strict, counting_output))

    @property
    def all_strict(self) -> bool:
        """Return whether all limits on tokens are strict: then nothing beyond the hold is ever charged."""
        if not self.strict:
            return False
        of_tokens = (b.limit for b in self.buckets if b.limit.unit is Unit.TOKENS and not b.limit.shadow)
        return all(limit.mode is Mode.STRICT for limit in of_tokens)

    @property
    def held(self) -> int:
        """Return the held weighted tokens: the bound if a strict limit binds, else the estimate.

        If strict and other limits bind, a bucket of another mode may hold more or less than this.
        """
        if self.strict and self.bound is not None:
            return self.weights.at_most(self.bound.prompt, self.bound.all_output)
        return self.weights.at_most(self.cost.prompt, self.output_held)

    @property
    def output_held(self) -> int:
        """Return the held output tokens of all choices."""
        if self.strict and self.bound is not None:
            return self.bound.all_output
        return self.cost.output + self.extra_output

    @property
    def output_bound(self) -> int | None:
        """Return the output bound per choice to write into the request; None if none has to be written."""
        if self.bound is not None and self.bound.writable and self.strict:
            return self.bound.output
        return None

    def demand(self, limit: Limit) -> Demand:
        """Return the need of a bucket of the limit, as a function of the output bound."""
        if self.bound is not None and limit.mode is Mode.STRICT:
            return strict_demand(limit.unit, self.weights, self.bound, self.requests)
        held = self.cost
        if self.extra_output:
            held = Cost(held.prompt, held.output + self.extra_output)
        return demand(limit.unit, self.weights, held, self.requests)

    def hold(self, limit: Limit) -> int:
        """Return the hold of a bucket of the limit, with the present output bound."""
        return self.demand(limit).at(self.bound.output if self.bound is not None else 0)

    def granted(self, output: int) -> "Reservation":
        """Return the reservation with a lower output bound."""
        if self.bound is None or output == self.bound.output:
            return self
        return replace(self, bound=replace(self.bound, output=output))


class Admitted(Struct, frozen=True):
    """Report that the reservation is held. `states` include its hold. `shadowed` shadow limits would have denied
    it.
    """

    reservation: Reservation
    states: tuple[BucketState, ...]
    shadowed: tuple[BucketState, ...] = ()


class Denied(Struct, frozen=True):
    """Report a denial: nothing is held and nothing is charged. `state` is the bucket to name to the client.

    `need` is the least that the request would have needed from this bucket, in its unit.
    """

    state: BucketState
    need: int


class Suspended(Struct, frozen=True):
    """Report that this caller is suspended. `reason` is for the caller."""

    reason: str


class Unbounded(Struct, frozen=True):
    """Report that a strict limit binds, but the request's need has no bound. Nothing is held."""


class Unnamed(Struct, frozen=True):
    """Report that a limit by model binds, but the request names no model. Nothing is held."""


class Unavailable(Struct, frozen=True):
    """Report that no decision was possible: the counters can't be reached. Nothing is held."""


HitDecision = Admitted | Denied | Suspended | Unavailable
Decision = HitDecision | Unbounded | Unnamed


def decide(reservation: Reservation, counts: Sequence[Count]) -> Admitted | Denied:
    """Check all buckets, then hold in all or in none. `counts` are those before this request.

    The rule: used + held + hold <= limit for every bucket; used < limit for soft ones. If little is left in a
    strict bucket, the output bound is lowered to fit, but not below the smallest useful one.
    `stores/redis/lua/reserve.lua` is the same rule as an atomic script; one contract suite tests both.
    """
    output = grantable(reservation, counts)
    granted = reservation.granted(output)
    fits = all(s.bucket.limit.shadow or s.admits(granted.hold(s.bucket.limit)) for s in _states(granted, counts))
    return admitted(reservation, counts, output) if fits else denied(reservation, counts)


def grantable(reservation: Reservation, counts: Sequence[Count]) -> int:
    """Return the output bound per choice that the strict buckets have room for, from the least to the wanted
    one.
    """
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
    """Return the admission with an output bound of `output`; `counts` are those before the hold."""
    granted = reservation.granted(output)
    after, shadows = [], []
    for bucket, count in zip(granted.buckets, counts, strict=True):
        after.append(BucketState(bucket, Count(count.used, count.held + granted.hold(bucket.limit))))
        if bucket.limit.shadow:
            shadows.append(BucketState(bucket, count))
    shadowed = tuple(_refusing(_at_least(granted), shadows)) if shadows else ()
    return Admitted(granted, tuple(after), shadowed)


def denied(reservation: Reservation, counts: Sequence[Count]) -> Denied:
    """Return the denial, with the bucket that keeps the request out the longest."""
    least = _at_least(reservation)
    refusing = [s for s in _refusing(least, _states(least, counts)) if not s.bucket.limit.shadow]
    state = min(refusing, key=lambda s: (-s.bucket.interval.end, s.remaining))
    return Denied(state, least.hold(state.bucket.limit))


def tightest(states: Sequence[BucketState], *, requests: bool = False) -> BucketState | None:
    """Return the bucket to name to a client: the one with the least remaining; among equals, the last to reset.

    Considers only the buckets that count tokens, or requests. Return None if there is none.
    """
    told = [s for s in states if (s.bucket.limit.unit is _REQUESTS) is requests and not s.bucket.limit.shadow]
    if not told:
        return None
    return told[0] if len(told) == 1 else min(told, key=_tightness)


def _tightness(state: BucketState) -> tuple[int, int]:
    return state.remaining, -state.bucket.interval.end


def _at_least(reservation: Reservation) -> Reservation:
    """Return the reservation with its smallest output bound. If even that does not fit, the request is denied."""
    return reservation.granted(reservation.bound.least) if reservation.bound is not None else reservation


def _strict(limit: Limit) -> bool:
    return limit.mode is Mode.STRICT and not limit.shadow


def _refusing(reservation: Reservation, states: Sequence[BucketState]) -> list[BucketState]:
    return [s for s in states if not s.admits(reservation.hold(s.bucket.limit))]


def _states(reservation: Reservation, counts: Sequence[Count]) -> list[BucketState]:
    return [BucketState(b, c) for b, c in zip(reservation.buckets, counts, strict=True)]
