"""Draft a reservation: bind a request to its buckets, or refuse it without asking them."""

from dataclasses import dataclass, field
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from extproc.core.quota.binding import Policy, bind_request
from extproc.core.quota.costs import NO_COST, Bound, Cost, Weights
from extproc.core.quota.hits import Hit
from extproc.core.quota.limits import Subject, Unit, local_date
from extproc.core.quota.plans import Plans, refusal_of
from extproc.core.quota.reservation import Reservation, ReservationId, Suspended, Unbounded, Unnamed
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.request.body import RequestFacts
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity


class Ask(Struct, frozen=True):
    """Describe a request to reserve tokens for: its caller, its endpoint, and what its body says."""

    identity: Identity
    endpoint: Endpoint
    facts: RequestFacts
    request_id: str
    route: Route = NO_ROUTE


class Caller(Struct, frozen=True):
    """Describe a request whose body was not read: its caller, its endpoint, and the model if the path names it."""

    identity: Identity
    endpoint: Endpoint
    model: str | None
    request_id: str


@dataclass(frozen=True, slots=True)
class Drafter:
    """Draft the reservations of one replica.

    A reservation expires `ttl_s` seconds after its admission, unless its replica renews it. With
    `refuse_unbounded`, a strict limit refuses a prompt whose size nothing bounds.
    """

    replica: str
    ttl_s: float
    refuse_unbounded: bool = True
    plans: Plans = field(default_factory=Plans)

    def draft(self, ask: Ask, policy: Policy, now: datetime, new_id: ReservationId) -> "Draft":
        """Bind a request to the buckets of its tenant and of its route."""
        plan = self.plans.of(
            policy, ask.identity, endpoint=ask.endpoint, model=ask.facts.model, route=ask.route, now=now
        )
        refusal: Suspended | Unbounded | Unnamed | None = plan.refusal
        if refusal is None and self.refuse_unbounded and ask.facts.unbounded_prompt and plan.refuses_unbounded:
            refusal = Unbounded()
        reservation = Reservation(
            id=new_id,
            request_id=ask.request_id,
            identity=plan.identity,
            endpoint=ask.endpoint,
            model=plan.model,
            stream=ask.facts.stream,
            cost=NO_COST,
            buckets=plan.buckets if refusal is None else (),
            admitted_at=now,
            date=plan.date,
            deadline=now.timestamp() + self.ttl_s,
            replica=self.replica,
        )
        return Draft(reservation, refusal, strict=plan.strict, weights=plan.weights)

    def draft_unread(self, caller: Caller, policy: Policy, now: datetime, new_id: ReservationId) -> "Draft":
        """Bind a request whose body was not read to the limits of its tenant that count all requests."""
        subject = Subject(caller.model or "", caller.endpoint)
        binding = bind_request(policy, caller.identity, now, subject)
        reservation = Reservation(
            id=new_id,
            request_id=caller.request_id,
            identity=caller.identity,
            endpoint=caller.endpoint,
            model=caller.model or "",
            stream=False,
            cost=NO_COST,
            buckets=binding.buckets,
            admitted_at=now,
            date=local_date(now, policy.zone),
            deadline=now.timestamp() + self.ttl_s,
            replica=self.replica,
        )
        return Draft(reservation, refusal_of(binding))

    def draft_hit(self, hit: Hit, policy: Policy, now: datetime, new_id: ReservationId) -> "Draft":
        """Bind a request that counts only as requests. Its draft has no cost, and is strict for nothing."""
        binding = bind_request(policy, hit.identity, now, Subject(hit.model, Endpoint.ROUTE))
        refusal = refusal_of(binding)
        requests = [bucket for bucket in binding.buckets if bucket.limit.unit is Unit.REQUESTS]
        if refusal is None:
            requests += [limit.bucket(now, policy.zone) for limit in hit.extra]
        reservation = Reservation(
            id=new_id,
            request_id="",
            identity=hit.identity,
            endpoint=Endpoint.ROUTE,
            model=hit.model or "",
            stream=False,
            cost=NO_COST,
            buckets=tuple(requests),
            admitted_at=now,
            date=local_date(now, policy.zone),
            deadline=now.timestamp() + self.ttl_s,
            requests=hit.hits,
            replica=self.replica,
        )
        return Draft(reservation, refusal)


class Draft(Struct, frozen=True):
    """Hold a reservation before its cost is known; or, with a `refusal`, the request that got none.

    `strict`: a limit in mode strict binds tokens (a shadow limit counts too), so the request needs a bound.
    `weights` are the tenant's own for the model; None where the model's count.
    """

    reservation: Reservation
    refusal: Suspended | Unbounded | Unnamed | None = None
    strict: bool = False
    weights: Weights | None = None

    @property
    def refused_for(self) -> str:
        """Return the reason of the refusal, for the ledger and metrics: one of a small fixed set."""
        if isinstance(self.refusal, Unnamed):
            return "unnamed_model"
        return "suspended" if isinstance(self.refusal, Suspended) else "unbounded_prompt"

    def priced(self, cost: Cost, bound: Bound | None, weights: Weights) -> Reservation:
        """Return the reservation with its cost and bound. `weights` count where the tenant has none of its own."""
        return replace(self.reservation, cost=cost, bound=bound, weights=self.weights or weights)


def is_recorded(reservation: Reservation) -> bool:
    """Tell whether the end of a reservation goes to the ledger: hits on a route do not."""
    return reservation.endpoint is not Endpoint.ROUTE
