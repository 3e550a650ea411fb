"""R13: MongoDB restored from a backup, Redis from a snapshot, or both: no limit is exceeded as far as one knows."""

import shutil
import time
from contextlib import asynccontextmanager

from tests.system.waiting import until

from .books import Count
from .crowd import Crowd
from .marks import CHAOS
from .plants import on
from .processes import VALKEY
from .sizes import size

pytestmark = [*CHAOS, on("fragile")]

COST = 100
EACH = size("RESTORED_REQUESTS", full=300, short=12)  # requests between two moments
CLIENTS = 4
WITHIN_S = 60.0


async def made(plant, rng):
    """A site whose Redis keeps what its last snapshot has."""
    await plant.redis.anew(flavour=VALKEY, keeps="snapshot")
    caller = await plant.tenant(5 * EACH * COST)
    await plant.serving(caller)
    return Site(plant, caller, rng, await plant.prompt_cost(caller))


class Site:
    """A plant, the backups of its stores, and one caller."""

    def __init__(self, plant, caller, rng, prompt):
        self.plant = plant
        self.caller = caller
        self.crowd = Crowd(plant.doors, caller, rng, prompt)
        self.backup = plant.mongo.run_dir.parent / "mongo-backup"

    async def spend(self):
        """Use tokens until all of it is in the ledger; return how many."""
        before = self.crowd.upstream.total
        await self.crowd.ask(EACH, lambda _: COST, clients=CLIENTS)
        assert not await self.plant.books.recorded(self.caller, self.crowd.upstream.generated)
        return self.crowd.upstream.total - before

    async def back_up_mongo(self):
        """Copy the files, as a snapshot of the volume does."""
        await self.plant.mongo.kill()
        shutil.rmtree(self.backup, ignore_errors=True)
        shutil.copytree(self.plant.mongo.run_dir, self.backup)
        await self.plant.mongo.start()
        await self.plant.serving(self.caller)

    @asynccontextmanager
    async def restoring_mongo(self):
        """Restore the files; the block is carried out while MongoDB is away."""
        await self.noted_since_the_backup()
        await self.plant.mongo.kill()
        yield
        shutil.rmtree(self.plant.mongo.run_dir)
        shutil.copytree(self.backup, self.plant.mongo.run_dir)
        await self.plant.mongo.start()

    async def noted_since_the_backup(self):
        """Return when Redis has noted a generation that the backup lacks. It does so every two seconds."""
        first = await self._generation()

        async def two_more():
            return await self._generation() >= first + 2

        await until(two_more, "generations are noted", within_s=WITHIN_S, poll_s=0.1)

    async def _generation(self):
        return int(await self.plant.redis.ask("HGET", "tw:{0}:generation", "number") or 0)

    async def corrected(self):
        """Return the sum of the caller's corrections, once there are any."""
        wanted = {"correction": True, "tenant_id": self.caller.tenant}

        async def found():
            return await self.plant.database["token_bucket_usage"].find(wanted).to_list()

        return sum(each["used"] for each in await until(found, "corrections", within_s=WITHIN_S, poll_s=0.1))

    async def remove_corrections(self):
        """Have all of it corrected anew, as docs/operators.md says."""
        await self.plant.database["token_bucket_usage"].delete_many({"correction": True})
        await self.plant.database["token_ledger_generation"].delete_many({})

    async def lose_redis(self):
        await self.plant.redis.ask("FLUSHALL")
        await self.plant.serving(self.caller)

    async def restart_redis(self):
        """Restart Redis with what its last snapshot has."""
        await self.plant.redis.kill()
        await self.plant.redis.start()
        await self.decided()

    async def decided(self):
        """Return once each replica has decided: what it tells of counters may be the snapshot's until then."""
        for door in self.plant.doors:

            async def decides(door=door):
                return await self.crowd.one(door, COST)

            await until(decides, "a replica decides", within_s=WITHIN_S, poll_s=0.02)

    async def used(self):
        return set(await self.plant.books.towards(self.caller, 0))


async def test_a_restored_mongodb_is_corrected_from_a_live_redis(plant, rng, figure):
    site = await made(plant, rng)
    await site.spend()
    await site.back_up_mongo()
    lost = await site.spend()
    async with site.restoring_mongo():
        await site.crowd.ask(EACH, lambda _: COST, clients=CLIENTS)
    began = time.monotonic()
    corrected = await site.corrected()
    took_s = time.monotonic() - began
    assert await site.used() == {Count(site.crowd.upstream.total, 0)}
    await site.remove_corrections()
    assert await site.corrected() == corrected
    await site.lose_redis()
    assert await site.used() == {Count(site.crowd.upstream.total, 0)}
    await site.crowd.until_denied(COST)
    total, limit = site.crowd.upstream.total, 5 * EACH * COST
    figure(
        "R13",
        f"MongoDB restored with a live Redis, which is lost later: {total:,} of {limit:,} tokens admitted, "
        f"{lost:,} lost in the ledger, {corrected:,} corrected {took_s:.1f} s after MongoDB was back",
    )
    assert corrected == lost
    assert limit - COST < total <= limit


async def test_a_redis_from_a_snapshot_is_rebuilt_from_a_live_mongodb(plant, rng, figure):
    site = await made(plant, rng)
    await site.spend()
    await site.plant.redis.ask("SAVE")
    await site.spend()
    await site.restart_redis()
    assert await site.used() == {Count(site.crowd.upstream.total, 0)}
    await site.crowd.until_denied(COST)
    total, limit = site.crowd.upstream.total, 5 * EACH * COST
    figure("R13", f"Redis from a snapshot with a live MongoDB: {total:,} of {limit:,} tokens admitted")
    assert limit - COST < total <= limit


async def test_of_both_restored_the_newer_one_counts(plant, rng, figure):
    site = await made(plant, rng)
    await site.spend()
    await site.back_up_mongo()
    await site.spend()
    await site.noted_since_the_backup()
    await site.plant.redis.ask("SAVE")
    lost = await site.spend()
    async with site.restoring_mongo():
        await site.plant.redis.kill()
    await site.plant.redis.start()
    await site.decided()
    known = site.crowd.upstream.total - lost
    assert await site.used() == {Count(known, 0)}
    figure("R13", f"both restored: {known:,} tokens known, {lost:,} used after the newer of both are not")
