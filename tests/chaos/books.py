"""What the product itself says was used: the ledger, daily usage, and the counters as callers are told of them."""

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass

from tests.system.waiting import until

# How long to wait after the last exchange until everything is counted and recorded, where no fault is left.
SETTLED_S = 60.0
# What a dead replica left in the journal is written by others after 5 s. But where it died in the middle of a
# transaction (or the wire did), MongoDB keeps that open for 60 s, and nobody else writes the same day meanwhile.
LEFT_BEHIND_S = 80.0
_DENIED = "denied"
_FEW = 500


def recorded_within_s(entries):
    """How long so many entries, written at once, may take to be in MongoDB; denied ones are among them."""
    return SETTLED_S + entries / 50


@dataclass(frozen=True)
class Count:
    used: int
    held: int


@dataclass
class Balance:
    """The ledger of one service account beside what the upstream counted."""

    ledger: int
    upstream: int
    daily: int
    counters: list[Count]
    lost: list[str]
    double: list[str]
    wrong: list[str]

    def __str__(self):
        used = "/".join(sorted({f"{count.used:,}" for count in self.counters}))
        return (
            f"ledger {self.ledger:,}, upstream {self.upstream:,}, daily {self.daily:,}, counters {used}; "
            f"{len(self.lost)} lost, {len(self.double)} double, {len(self.wrong)} wrong"
        )


class Books:
    """Reads MongoDB itself, and the counters through the replicas."""

    def __init__(self, database, doors):
        self._ledger = database["token_ledger"]
        self._daily = database["sa_ip_usage_daily"]
        self.doors = doors

    async def entries(self, caller, *, denied=False):
        wanted = {"tenant_id": caller.tenant, "serviceAccount": caller.account}
        states = {} if denied else {"state": {"$ne": _DENIED}}
        return await self._ledger.find(wanted | states).to_list()

    async def daily(self, caller):
        return (await self.days(caller.account)).get(caller.tenant, 0)

    async def days(self, account):
        """Daily usage of all tenants that have a service account of this name, by tenant."""
        days = Counter()
        async for day in self._daily.find({"serviceAccount": account}):
            days[day["tenant_id"]] += day["usage"]
        return dict(days)

    async def counts(self, caller):
        """What each replica tells of the caller's only limit. Fails where one can't tell."""
        rows = await asyncio.gather(*(door.quota(caller) for door in self.doors))
        assert None not in rows, "a replica can't tell what is used"
        return [Count(row["used"], row["held"]) for (row,) in rows]

    async def nothing_held(self, caller, *, within_s=SETTLED_S):
        """Waits until nothing is held, as every replica tells; returns what is used."""
        counts = await self.towards(caller, 0, within_s=within_s)
        assert not any(count is None or count.held for count in counts), counts
        return counts[0].used

    async def towards(self, caller, held, *, within_s=SETTLED_S):
        """Waits until every replica tells that so much is held, at most so long; returns what each tells then."""
        seen = []

        async def so_much():
            rows = await asyncio.gather(*(door.quota(caller) for door in self.doors))
            seen[:] = [Count(row[0]["used"], row[0]["held"]) if row else None for row in rows]
            return all(count is not None and count.held == held for count in seen)

        with contextlib.suppress(AssertionError):
            await until(so_much, "so much is held", within_s=within_s, poll_s=0.1)
        return seen

    async def recorded(self, caller, ids, *, within_s=None):
        """Waits until each of these requests has an entry. Returns the ids that have none when the time is over."""
        missing = set(ids)
        within_s = within_s if within_s is not None else recorded_within_s(len(missing))

        async def all_there():
            wanted = {"tenant_id": caller.tenant, "state": {"$ne": _DENIED}}
            if len(missing) < _FEW:
                wanted["request_id"] = {"$in": list(missing)}
            found = self._ledger.find(wanted, {"request_id": 1, "_id": 0})
            missing.difference_update([entry["request_id"] async for entry in found])
            return not missing

        with contextlib.suppress(AssertionError):
            # Asking takes the store's time too.
            await until(all_there, "all have an entry", within_s=within_s, poll_s=max(0.1, len(missing) / 2000))
        return sorted(missing)

    async def count(self, caller, wanted):
        """Wait until the ledger has so many requests of this caller, denied ones included. Return how many it has.

        An entry may count for several denied requests.
        """
        mine = {"tenant_id": caller.tenant}
        found = [0]

        async def so_many():
            found[0] = sum([entry.get("count", 1) async for entry in self._ledger.find(mine, {"count": 1})])
            return found[0] >= wanted

        with contextlib.suppress(AssertionError):
            await until(so_many, "so many", within_s=recorded_within_s(wanted), poll_s=0.5)
        return found[0]

    async def balance(self, caller, upstream, *, exact=True, within_s=None):
        """Compares all of it, once all that the upstream generated is in the ledger (or the time is over)."""
        await self.recorded(caller, upstream.generated, within_s=within_s)
        entries = await self.entries(caller)
        seen = Counter(entry["request_id"] for entry in entries)
        charged = {entry["request_id"]: entry["charge"] for entry in entries}
        made = upstream.generated
        wrong = [i for i, tokens in made.items() if _differs(charged.get(i, tokens), tokens, exact=exact)]
        return Balance(
            ledger=sum(entry["charge"] for entry in entries),
            upstream=upstream.total,
            daily=await self.daily(caller),
            counters=await self.counts(caller),
            lost=[i for i in made if i not in seen],
            double=[i for i, times in seen.items() if times > 1],
            wrong=wrong,
        )


def _differs(charge, tokens, *, exact):
    """Whether a charge is not what was generated; where that can't be known, whether it is less."""
    return charge != tokens if exact else charge < tokens


def holds_exactly(balance):
    """Ledger = upstream = daily usage = counters of every replica; nothing lost, double or held."""
    counted_exactly(balance)
    derived_from_the_ledger(balance)


def counted_exactly(balance):
    """Ledger = upstream = counters of every replica; nothing lost, double or held."""
    assert not balance.lost, balance.lost[:5]
    assert not balance.double, balance.double[:5]
    assert not balance.wrong, balance.wrong[:5]
    assert balance.ledger == balance.upstream
    assert balance.counters == [Count(balance.ledger, 0)] * len(balance.counters)


def never_too_little(balance):
    """Nothing lost or double; nothing charged below what was generated; daily usage and counters as the ledger."""
    assert not balance.lost, balance.lost[:5]
    assert not balance.double, balance.double[:5]
    assert not balance.wrong, balance.wrong[:5]
    derived_from_the_ledger(balance)


def derived_from_the_ledger(balance):
    """Daily usage and every replica's counters say what the ledger says; nothing is held."""
    assert balance.daily == balance.ledger
    assert balance.counters == [Count(balance.ledger, 0)] * len(balance.counters)
