"""Replicas of version 0.1 and of this one at once: which run, and the migration that waits for the last of 0.1."""

import asyncio
from datetime import UTC, datetime

from pymongo.errors import OperationFailure

from tests.system.waiting import until

from .former import runs_former

FORMER_KEY = ("serviceAccount", "clientIP", "date")  # of daily usage in version 0.1: no tenant
_MARKED = {"daily_usage": "by_tenant"}  # the heartbeat of a replica that is not of version 0.1
_MIGRATION = {"_id": "daily_usage_by_tenant"}
_DUPLICATE = 11000


async def run_on(plant, codes):
    """Have each replica run the code that is asked for. Those that ran another one stop, and exit with status 0."""
    for replica, code in zip(plant.replicas, codes, strict=True):
        if replica.code != code:
            assert await start_as(replica, code) == 0
    await check_versions(plant)


async def start_as(replica, code):
    """Stop a replica, and start another version in its place: same port, same spool. Return its exit status."""
    status = await replica.stop()
    replica.code = code
    await replica.start()
    return status


async def served(replica, caller):
    """Return once a replica has served a caller since its start.

    Envoy leaves out a replica for some seconds that was just away.
    """

    async def some():
        return f'tenant="{caller.tenant}"' in await replica.metrics()

    await until(some, "Envoy sends requests to a replica again", poll_s=0.05)


async def check_versions(plant):
    """Fail where a process runs another version than it should: by its metrics, and by the heartbeats of all.

    There may be more heartbeats: of processes that were killed just now.
    """
    wanted = [replica.code is not None for replica in plant.replicas]
    assert await asyncio.gather(*map(runs_former, plant.replicas)) == wanted
    heartbeats = plant.database["token_replicas"]

    async def beat():
        marked = await heartbeats.count_documents(_MARKED)
        unmarked = await heartbeats.count_documents({}) - marked
        return unmarked >= sum(wanted) and marked >= len(wanted) - sum(wanted)

    await until(beat, "a heartbeat of each replica, with or without the mark")


def both_run(plant):
    """Tell whether both versions run now."""
    return len({replica.code for replica in plant.replicas}) > 1


async def hold_back_migration(database):
    """Take the lease of the migration for a day, as docs/install.md says."""
    held = {"$set": {"by": "operator", "until": datetime(2100, 1, 1, tzinfo=UTC)}}
    await database["token_migrations"].update_one(_MIGRATION, held, upsert=True)


async def let_migrate(database):
    """Give the lease back."""
    await database["token_migrations"].delete_one(_MIGRATION)


async def is_shared(database):
    """Tell whether the unique index of version 0.1 is there: tenants may share a day."""
    indexes = await database["sa_ip_usage_daily"].index_information()
    return any(
        index.get("unique") and {name for name, _ in index["key"]} == {*FORMER_KEY} for index in indexes.values()
    )


async def leave_one_of_each_day(database):
    """Make room for the index of version 0.1, and make it, as docs/install.md says."""
    days = database["sa_ip_usage_daily"]
    key = {name: f"${name}" for name in FORMER_KEY}
    several = [{"$group": {"_id": key, "ids": {"$push": "$_id"}}}, {"$match": {"ids.1": {"$exists": True}}}]

    async def made():
        async for day in await days.aggregate(several):
            await days.delete_many({"_id": {"$in": day["ids"][1:]}})
        try:
            return await days.create_index([(name, 1) for name in FORMER_KEY], unique=True)
        except OperationFailure as error:
            if error.code != _DUPLICATE:
                raise
            return None  # a request of another tenant came in between

    await until(made, "one document of each day")
