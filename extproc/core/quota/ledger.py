"""Define the ledger's entries: one per request. Daily usage is summed from them."""

from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from extproc.core.quota.costs import NO_COST, Cost
from extproc.core.quota.limits import LONGEST_WINDOW
from extproc.core.quota.reservation import Denied, Reservation, ReservationId
from extproc.core.quota.settlement import Outcome, Settlement, charges
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.identity import Identity

# A ledger keeps each entry at least so long after its request ended, for rebuilds of counters and for entries that
# come late. The limits of a tenant may change at any time, so the longest window of all counts.
SHORTEST_RETENTION: Final = LONGEST_WINDOW + timedelta(days=7)


class Charge(Struct, frozen=True, omit_defaults=True):
    """Hold the charge of one bucket, in its unit.

    `key` is unique within the tenant; `until` (seconds since the epoch) is the end of its window. `limit` is the
    amount of the limit at admission; None in entries of version 0.1.
    """

    key: str
    until: int
    amount: int
    limit: int | None = None


class RefusedBy(Struct, frozen=True):
    """Say which bucket refused a request, with its counts at that moment, in its unit.

    `key` and `until` as in `Charge`. `limit` is the amount of the limit; `needed` is the least that the request
    would have needed.
    """

    key: str
    until: int
    limit: int
    used: int
    held: int
    needed: int

    @classmethod
    def of(cls, denied: Denied) -> "RefusedBy":
        """Take these facts from a decision."""
        bucket, count = denied.state.bucket, denied.state.count
        return cls(bucket.key, bucket.interval.end, bucket.limit.amount, count.used, count.held, denied.need)


class Entry(Struct, frozen=True):
    """Record one request and its effect on its buckets; or, with a `count` above 1, so many denied requests of one
    caller, with the sum of their costs.

    `charge` was counted as used and `held` was held, both in weighted tokens. `cost` is the estimate at admission,
    also for a denied request. `shadow` names the shadow limits (their kinds) that would have denied it. `price` is
    in billionths of the currency of the configured prices. `charges` lists the charges of its buckets, without
    those of 0: lost counters are rebuilt from them. `refused_by` is that of a request which a limit denied; with a
    `count` above 1, that of the last one.
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
    count: int = 1
    refused_by: RefusedBy | None = None


def closed_entry(
    reservation: Reservation,
    settlement: Settlement,
    ended_at: datetime,
    *,
    charged: tuple[int, ...] | None = None,
    shadow: tuple[str, ...] = (),
    price: int = 0,
) -> Entry:
    """Return the entry of a reservation that ended. `charged` are its `charges`, if they are known already."""
    if charged is None:
        charged = charges(reservation, settlement)
    amounts = zip(reservation.buckets, charged, strict=True)
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
        charges=tuple(Charge(b.key, b.interval.end, amount, b.limit.amount) for b, amount in amounts if amount),
    )


def denied_entry(reservation: Reservation, reason: str, denied: Denied | None = None) -> Entry:
    """Return the entry of a denied request: it held nothing and costs nothing. `denied` is a limit's decision."""
    settlement = Settlement(Outcome.DENIED, NO_USAGE, 0, reason, forwarded=False)
    refusal = RefusedBy.of(denied) if denied is not None else None
    return replace(closed_entry(reservation, settlement, reservation.admitted_at), held=0, refused_by=refusal)
