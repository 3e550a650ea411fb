"""The ledger's entries: one per request, the source of truth that daily usage is summed from."""

from dataclasses import dataclass, replace
from datetime import datetime

from extproc.core.quota.costs import NO_COST, Cost
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome, Settlement, charges
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.identity import Identity


@dataclass(frozen=True, slots=True)
class Charge:
    """What a bucket was charged, in its unit.

    `key` is unique within the tenant; `until` (seconds since the epoch) is the end of its window.
    """

    key: str
    until: int
    amount: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What one request did to its buckets.

    `charge` is what was counted as used, `held` what had been held, both in weighted tokens. `cost` is what it was
    expected to need when it came, admitted or not. `shadow` names the shadow limits (their kinds) that would have
    denied it. `price` is in billionths of the currency that the prices are given in. `charges` are those of its
    buckets, without the ones of 0: counters that are lost are rebuilt from them.
    """

    id: ReservationId
    request_id: str
    identity: Identity
    date: str
    endpoint: str
    model: str
    stream: bool
    outcome: Outcome
    reason: str
    held: int
    charge: int
    usage: Usage
    status: int
    admitted_at: datetime
    ended_at: datetime
    cost: Cost = NO_COST
    shadow: tuple[str, ...] = ()
    price: int = 0
    charges: tuple[Charge, ...] = ()


def closed_entry(
    reservation: Reservation,
    settlement: Settlement,
    ended_at: datetime,
    *,
    shadow: tuple[str, ...] = (),
    price: int = 0,
) -> Entry:
    """The entry of a reservation that ended."""
    charged = zip(reservation.buckets, charges(reservation, settlement), strict=True)
    return Entry(
        id=reservation.id,
        request_id=reservation.request_id,
        identity=reservation.identity,
        date=reservation.date,
        endpoint=reservation.endpoint,
        model=reservation.model,
        stream=reservation.stream,
        outcome=settlement.outcome,
        reason=settlement.reason,
        held=reservation.held,
        charge=settlement.charge,
        usage=settlement.usage,
        status=settlement.status,
        admitted_at=reservation.admitted_at,
        ended_at=ended_at,
        cost=reservation.cost,
        shadow=shadow,
        price=price,
        charges=tuple(Charge(b.key, b.interval.end, amount) for b, amount in charged if amount),
    )


def denied_entry(reservation: Reservation, reason: str) -> Entry:
    """The entry of a request that was denied: it held nothing and costs nothing."""
    settlement = Settlement(Outcome.DENIED, NO_USAGE, 0, reason, forwarded=False)
    return replace(closed_entry(reservation, settlement, reservation.admitted_at), held=0)
