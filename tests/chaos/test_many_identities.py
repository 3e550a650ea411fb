"""R8: a flood of identities, each seen once: Redis, the replicas and their metrics stay within stated bounds."""

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass

import redis.asyncio

from tests.system.waiting import until

from .clients import Caller, chat
from .marks import CHAOS
from .plants import on
from .sizes import IDENTITIES, TENANT_SERIES, USAGE_SERIES

pytestmark = [*CHAOS, on("sound")]

AT_ONCE = 16  # of each replica
# Stated in docs/reliability.md. Some keys are there whoever asks: epochs, streams, one set of names for each partition.
KEYS_EACH, BYTES_EACH = 2.2, 1_500
KEYS_FIXED, BYTES_FIXED = 200, 8 << 20
REPLICA_BYTES = 96 << 20
# Pairs of tenant and model that a replica counts apart (`metrics.usage_series`), and what else may come.
KINDS_OF_TOKENS, SERIES_FIXED = 4, 60
# Of a tenant: its decisions (three outcomes, each with the time of its start), and five gauges of up to three limits.
SERIES_OF_A_TENANT = 3 * 2 + 5 * 3
# A bucket outlives its window by a day, in which what was admitted in it may still end.
GRACE_S = 86_400
MONTH_S = 31 * 86_400


@dataclass
class Size:
    """What there is now."""

    keys: int
    redis_bytes: int
    replica_bytes: int
    series: int


async def test_a_flood_of_identities_stays_within_its_bounds_and_expires(plant, rng, figure):
    tenant = (await plant.tenant(10**6)).tenant
    await _ask(plant, tenant, range(300))  # what is there after some
    await _recorded(plant, tenant, 300)
    before = await _size(plant)
    await _ask(plant, tenant, range(300, 300 + IDENTITIES))
    await _recorded(plant, tenant, 300 + IDENTITIES)
    after = await _size(plant)
    lasting, longest = await _lifetimes(plant)
    keys, size = after.keys - before.keys, after.redis_bytes - before.redis_bytes
    figure(
        "R8",
        f"{IDENTITIES:,} identities: {keys / IDENTITIES:.2f} Redis keys and {size / IDENTITIES:.0f} bytes each, "
        f"{lasting} keys without an end, the longest lives {longest / 86_400:.1f} days; the largest replica "
        f"{before.replica_bytes >> 20} -> {after.replica_bytes >> 20} MiB; metrics {before.series} -> "
        f"{after.series} series",
    )
    assert keys <= KEYS_EACH * IDENTITIES + KEYS_FIXED
    assert size <= BYTES_EACH * IDENTITIES + BYTES_FIXED
    assert after.replica_bytes <= before.replica_bytes + REPLICA_BYTES
    of_names = USAGE_SERIES * KINDS_OF_TOKENS + (TENANT_SERIES + 1) * SERIES_OF_A_TENANT
    assert after.series <= before.series + len(plant.replicas) * (of_names + SERIES_FIXED)
    assert lasting <= KEYS_FIXED
    assert longest <= MONTH_S + GRACE_S


async def _ask(plant, tenant, numbers):
    """One whole exchange of each: it is charged, so its bucket stays until its window is over."""
    todo = iter(numbers)

    async def client(door):
        for number in todo:
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            # Some of tenants that nobody knows: they have the default limits, by day.
            whose = tenant if number % 10 else f"{tenant}-{number}"
            exchange = door.exchange(Caller(whose, f"robot-{number}@{tenant}", address))
            while not (await exchange.request(chat(1))).admitted:
                exchange = door.exchange(Caller(whose, f"robot-{number}@{tenant}", address))
                await asyncio.sleep(0.02)
            exchange.leave()

    doors = itertools.chain.from_iterable(itertools.repeat(door, AT_ONCE) for door in plant.doors)
    await asyncio.gather(*(client(door) for door in doors))


async def _recorded(plant, tenant, count):
    """Waits until the ledger has so many: before that, they wait in Redis."""
    ledger = plant.database["token_ledger"]
    wanted = {"tenant_id": {"$regex": f"^{tenant}"}}

    async def all_there():
        return await ledger.count_documents(wanted) >= count

    await until(all_there, f"{count} entries are in the ledger", within_s=60 + count / 50, poll_s=0.5)


async def _size(plant):
    memory = await plant.redis.ask("INFO", "memory")
    pages = [page for replica in plant.replicas for page in (await replica.metrics()).splitlines()]
    return Size(
        keys=await plant.redis.ask("DBSIZE"),
        redis_bytes=memory["used_memory_dataset"],
        replica_bytes=max(replica.rss_bytes for replica in plant.replicas),
        series=sum(not line.startswith("#") for line in pages),
    )


async def _lifetimes(plant):
    """How many keys have no end, and the longest time that any other has left, in seconds."""
    seen = Counter()
    async with redis.asyncio.Redis.from_url(plant.redis.url) as client:
        cursor = None
        while cursor != 0:
            cursor, keys = await client.scan(cursor or 0, count=1000)
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.ttl(key)
            seen.update(await pipe.execute())
    lasting = seen.pop(-1, 0)
    return lasting, max(seen)
