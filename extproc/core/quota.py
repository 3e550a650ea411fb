"""Which limits bind a request, what it costs, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NewType
from zoneinfo import ZoneInfo

from extproc.core.endpoints import Endpoint
from extproc.core.identity import Identity, TenantId
from extproc.core.limits import Bucket, Limit, interval_at
from extproc.core.requests import RequestFacts

ReservationId = NewType("ReservationId", str)


@dataclass(frozen=True, slots=True)
class Policy:
    """A tenant's limits. `known` is False where the defaults stand in for a tenant that nobody configured."""

    tenant: TenantId
    limits: tuple[Limit, ...]
    zone: ZoneInfo
    known: bool = True


@dataclass(frozen=True, slots=True)
class Costing:
    """How many tokens a request is expected to need, before anything is known of its answer.

    Attributes:
        bytes_per_token: bytes of prompt JSON that are counted as one token, rounded up. The default is below
            what tokenizers need for most text, so that the estimate is rather too high than too low.
        overhead_tokens: what a chat template adds.
        media_tokens: held for each image or audio part carried inside the body.
        typical_output_tokens: held per choice where the client gave no output bound.
    """

    bytes_per_token: int = 3
    overhead_tokens: int = 8
    media_tokens: int = 1024
    typical_output_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens to hold for a request. Both parts are estimates or bounds, never usage."""

    prompt: int
    output: int

    @property
    def total(self) -> int:
        return self.prompt + self.output


@dataclass(frozen=True, slots=True)
class Count:
    """What stands in a bucket: tokens used, and tokens held by requests in flight."""

    used: int
    held: int


@dataclass(frozen=True, slots=True)
class BucketState:
    """A bucket with its count."""

    bucket: Bucket
    count: Count

    @property
    def remaining(self) -> int:
        """Tokens that are neither used nor held; never negative."""
        return max(0, self.bucket.limit.amount - self.count.used - self.count.held)

    def admits(self, tokens: int) -> bool:
        return self.count.used + self.count.held + tokens <= self.bucket.limit.amount


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens held for one request from admission until it is settled, released or expired.

    `deadline` (seconds since the epoch) is when it expires; `date` is the tenant's calendar date at admission.
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


@dataclass(frozen=True, slots=True)
class Admitted:
    """The tokens are held. `states` are the buckets' counts with this hold in them."""

    reservation: Reservation
    states: tuple[BucketState, ...]


@dataclass(frozen=True, slots=True)
class Denied:
    """Nothing is held and nothing was charged. `state` is the bucket that the client is told about."""

    state: BucketState
    cost: Cost


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No decision could be made: the counters can't be reached. Nothing is held."""


Decision = Admitted | Denied | Unavailable


def bind(policy: Policy, identity: Identity, now: datetime) -> tuple[Bucket, ...]:
    """The buckets that a request of `identity` must fit in, every one of them."""
    return tuple(
        Bucket(limit, limit.scope.parts(identity), interval_at(limit.window, now, policy.zone))
        for limit in policy.limits
    )


def cost_of(facts: RequestFacts, costing: Costing) -> Cost:
    """Prompt estimate + output bound x n."""
    prompt = -(-facts.prompt_bytes // costing.bytes_per_token)
    prompt += costing.overhead_tokens + facts.media_parts * costing.media_tokens
    bound = facts.output_bound if facts.output_bound is not None else costing.typical_output_tokens
    return Cost(prompt, bound * facts.choices)


def decide(reservation: Reservation, counts: Sequence[Count]) -> Admitted | Denied:
    """Check all, then hold in all or in none. `counts` stand as they were before this request.

    The rule itself: used + held + cost <= limit, for every bucket. `stores/lua/reserve.lua` is the same rule
    where it has to be atomic, and one contract suite holds both to it.
    """
    tokens = reservation.cost.total
    fits = all(s.admits(tokens) for s in _states(reservation, counts))
    return admitted(reservation, counts) if fits else denied(reservation, counts)


def admitted(reservation: Reservation, counts: Sequence[Count]) -> Admitted:
    """The hold is in; `counts` stand as they were before it."""
    tokens = reservation.cost.total
    held = (Count(count.used, count.held + tokens) for count in counts)
    return Admitted(reservation, tuple(_states(reservation, list(held))))


def denied(reservation: Reservation, counts: Sequence[Count]) -> Denied:
    """Nothing is held; the client is told of the tightest bucket, which the request fits in least of all."""
    return Denied(tightest(_states(reservation, counts)), reservation.cost)


def _states(reservation: Reservation, counts: Sequence[Count]) -> list[BucketState]:
    return [BucketState(b, c) for b, c in zip(reservation.buckets, counts, strict=True)]


def tightest(states: Sequence[BucketState]) -> BucketState:
    """The bucket to tell a client of: the least remaining; among equals the one that resets last."""
    return min(states, key=lambda state: (state.remaining, -state.bucket.interval.end))
