"""Reservations, closings and ledger entries to test the stores with."""

import itertools
from datetime import UTC, datetime, timedelta

from extproc.core.quota.costs import Bound, Cost
from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import Bucket, Limit, Mode, Scope, Subject, Unit, Window, interval_at
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome, charges, expiry
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.ports.counters import Closing

# The servers forget by their own clock, so the tests' clock must be near it.
NOW = datetime.now(UTC).replace(microsecond=0)
TTL_S = 900.0
_numbers = itertools.count(1)

SA = (Scope.SERVICE_ACCOUNT, Window.DAY)
SA_IP = (Scope.SERVICE_ACCOUNT_IP, Window.DAY)

# Names that mean something to Redis, to MongoDB or to a key that is joined from parts.
HOSTILE = [
    ("t", "a/b", "c"),
    ("t", "a", "b/c"),
    ("t", "a:b", "c"),
    ("t", "a", "b:c"),
    ("t", "a%3Ab", "c"),
    ("t:b", "a", "c"),
    ("{t}", "a", "c"),
    ("t}x{", "a", "c"),
    ("t", "a b", "c"),
    ("t", "ünïcødé-名前-🦦", "c"),
    ("t", '{"$ne": ""}', "c"),
    ("t", "$where", "c"),
    ("t", "a.b.c", "c"),
    ("t", "*", "c"),
    ("t", "a\\nb'\"", "c"),
    ("*", "a", "c"),
]


def who(tenant="acme", account="sa", ip="10.0.0.1"):
    return Identity(tenant, account, ip)


def bucket(identity, amount, limit=SA, now=NOW, **further):
    """A bucket of a limit; `further` are fields of the limit: unit, mode, shadow."""
    scope, window = limit
    subject = Subject("m", Endpoint.CHAT_COMPLETIONS)
    return Bucket(
        Limit(scope, window, amount, **further), scope.parts(identity, subject), interval_at(window, now, UTC)
    )


def reservation(cost=10, *, limit=100, ip_limit=None, identity=None, at=NOW, ttl_s=TTL_S, **further):
    """A reservation bound by a limit of its service account, and one of its client IP where that is given.

    `cost` is in tokens, or given whole; `further` are fields of the reservation: id, buckets, bound, weights, requests.
    """
    identity = identity or who()
    buckets = [bucket(identity, limit)]
    if ip_limit is not None:
        buckets.append(bucket(identity, ip_limit, SA_IP))
    number = next(_numbers)
    fields = {
        "id": f"r{number}",
        "request_id": f"request-{number}",
        "identity": identity,
        "endpoint": Endpoint.CHAT_COMPLETIONS,
        "model": "m",
        "stream": False,
        "cost": cost if isinstance(cost, Cost) else Cost(cost // 2, cost - cost // 2),
        "buckets": tuple(buckets),
        "admitted_at": at,
        "date": at.date().isoformat(),
        "deadline": at.timestamp() + ttl_s,
    }
    return Reservation(**(fields | further))


def bound_by(*limits, identity=None, cost=10, **further):
    """A reservation bound by (amount, fields of the limit), each limit of its service account."""
    identity = identity or who()
    buckets = tuple(bucket(identity, amount, **fields) for amount, fields in limits)
    return reservation(cost, identity=identity, buckets=buckets, **further)


def strictly(amount, *, unit=Unit.TOKENS, shadow=False, prompt=0, output=40, least=1, choices=1, **further):
    """A reservation under one strict limit."""
    strict, bound = {"mode": Mode.STRICT, "unit": unit, "shadow": shadow}, Bound(prompt, output, least, choices)
    return bound_by((amount, strict), cost=Cost(prompt, 5), bound=bound, **further)


def settled(held, charge):
    """Its end, with the same charge for each bucket."""
    return Closing(held, Outcome.SETTLED, (charge,) * len(held.buckets))


def released(held):
    return Closing(held, Outcome.RELEASED, (0,) * len(held.buckets))


def expired(held):
    """Its end as whoever expires it makes it."""
    return Closing(held, Outcome.EXPIRED, charges(held, expiry(held)))


async def outcomes(counters, closings, thresholds=()):
    """The outcomes that stand."""
    return [closed.outcome for closed in await counters.close(closings, thresholds)]


async def counts(counters, held):
    """(used, held) of each bucket of a reservation."""
    read = await counters.read(held.identity.tenant, held.buckets)
    return [(count.used, count.held) for count in read]


def entry(
    charge=10, *, identity=None, outcome=Outcome.SETTLED, model="m", date="2026-03-01", status=200, **further
):
    number = next(_numbers)
    denied = outcome is Outcome.DENIED
    usage = Usage(0, 0) if denied else Usage(charge - charge // 2, charge // 2, charge // 4, 0, charge)
    return Entry(
        id=f"e{number}",
        request_id=f"request-{number}",
        identity=identity or who(),
        date=date,
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model=model,
        stream=True,
        outcome=outcome,
        reason="usage",
        held=0 if denied else charge + 5,
        charge=0 if denied else charge,
        usage=usage,
        status=status,
        # Whole milliseconds: MongoDB keeps no more.
        admitted_at=NOW,
        ended_at=NOW + timedelta(milliseconds=number),
        **further,
    )


def short(sa_limit, ip_limit):
    """The fields of the talk's short form; None: without it."""
    return {"sa_limit": sa_limit, "ip_limit": ip_limit}
