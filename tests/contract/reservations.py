"""Reservations, closings and ledger entries to test the stores with."""

import itertools
from datetime import UTC, datetime, timedelta

from extproc.core.endpoints import Endpoint
from extproc.core.identity import Identity
from extproc.core.ledger import Entry
from extproc.core.limits import Bucket, Limit, Scope, Window, interval_at
from extproc.core.quota import Cost, Reservation
from extproc.core.settlement import Outcome
from extproc.core.usage import Usage
from extproc.ports import Closing

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


def bucket(identity, amount, limit=SA, now=NOW):
    scope, window = limit
    return Bucket(Limit(scope, window, amount), scope.parts(identity), interval_at(window, now, UTC))


def reservation(cost=10, *, limit=100, ip_limit=None, identity=None, at=NOW, ttl_s=TTL_S, id=None):  # noqa: A002
    """A reservation bound by a limit of its service account, and one of its client IP where that is given."""
    identity = identity or who()
    buckets = [bucket(identity, limit)]
    if ip_limit is not None:
        buckets.append(bucket(identity, ip_limit, SA_IP))
    number = next(_numbers)
    return Reservation(
        id=id or f"r{number}",
        request_id=f"request-{number}",
        identity=identity,
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model="m",
        stream=False,
        cost=Cost(cost // 2, cost - cost // 2),
        buckets=tuple(buckets),
        admitted_at=at,
        date=at.date().isoformat(),
        deadline=at.timestamp() + ttl_s,
    )


def settled(held, charge):
    return Closing(held, Outcome.SETTLED, charge)


def released(held):
    return Closing(held, Outcome.RELEASED, 0)


def expired(held):
    return Closing(held, Outcome.EXPIRED, held.cost.total)


async def counts(counters, held):
    """(used, held) of each bucket of a reservation."""
    read = await counters.read(held.identity.tenant, held.buckets)
    return [(count.used, count.held) for count in read]


def entry(charge=10, *, identity=None, outcome=Outcome.SETTLED, model="m", date="2026-03-01", id=None, status=200):  # noqa: A002
    number = next(_numbers)
    denied = outcome is Outcome.DENIED
    usage = Usage(0, 0) if denied else Usage(charge - charge // 2, charge // 2, charge // 4, 0, charge)
    return Entry(
        id=id or f"e{number}",
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
    )
