"""What goes wrong, one fault a function: it happens, lasts for a while, and everything is as before when it returns."""

import asyncio

LONGEST_S = 2.0


async def redis_killed(plant, rng):
    await plant.redis.kill()
    await asyncio.sleep(rng.uniform(0, LONGEST_S))
    await plant.redis.start()


async def redis_flushed(plant, rng):
    await plant.redis.ask("FLUSHALL", rng.choice(["SYNC", "ASYNC"]))


async def scripts_flushed(plant, _rng):
    await plant.redis.ask("SCRIPT", "FLUSH")


async def redis_stopped(plant, rng):
    with plant.redis.paused():
        await asyncio.sleep(rng.uniform(0, LONGEST_S))


async def redis_full(plant, rng):
    """Every write is refused (OOM), reads are not."""
    await plant.redis.ask("CONFIG", "SET", "maxmemory", "1")
    await asyncio.sleep(rng.uniform(0, LONGEST_S))
    await plant.redis.ask("CONFIG", "SET", "maxmemory", "0")


async def redis_read_only(plant, rng):
    """As a master is that became the replica of another: every write is answered READONLY."""
    await plant.redis.ask("REPLICAOF", "127.0.0.1", "1")
    await asyncio.sleep(rng.uniform(0, LONGEST_S))
    await plant.redis.ask("REPLICAOF", "NO", "ONE")


async def redis_slow(plant, rng):
    await _suffer(plant.redis_wire, rng, delay_s=rng.uniform(0.01, 0.3))


async def redis_silent(plant, rng):
    await _suffer(plant.redis_wire, rng, silent=True)


async def redis_cut(plant, rng):
    """Connections are reset in the middle of answers."""
    await _suffer(plant.redis_wire, rng, cut=rng.uniform(0.05, 0.5))


async def mongo_killed(plant, rng):
    await plant.mongo.kill()
    await asyncio.sleep(rng.uniform(0, LONGEST_S))
    await plant.mongo.start()


async def mongo_stopped(plant, rng):
    with plant.mongo.paused():
        await asyncio.sleep(rng.uniform(0, LONGEST_S))


async def mongo_slow(plant, rng):
    await _suffer(plant.mongo_wire, rng, delay_s=rng.uniform(0.05, 0.5))


async def mongo_cut(plant, rng):
    await _suffer(plant.mongo_wire, rng, cut=rng.uniform(0.05, 0.5))


async def mongo_refuses(plant, rng):
    await _suffer(plant.mongo_wire, rng, refuse=True)


async def replica_killed(plant, rng):
    victim = _victim(plant, rng)
    await victim.kill()
    await asyncio.sleep(rng.uniform(0, LONGEST_S))
    await victim.start()


async def replica_stopped(plant, rng):
    with _victim(plant, rng).paused():
        await asyncio.sleep(rng.uniform(0, 2 * LONGEST_S))


async def replica_restarted(plant, rng):
    victim = _victim(plant, rng)
    await victim.stop()
    await victim.start()


# Two that are of different kinds can happen at once.
REDIS = (
    redis_killed, redis_flushed, scripts_flushed, redis_stopped, redis_full, redis_read_only, redis_slow, redis_silent,
    redis_cut,
)  # fmt: skip
MONGO = (mongo_killed, mongo_stopped, mongo_slow, mongo_cut, mongo_refuses)
REPLICA = (replica_killed, replica_stopped, replica_restarted)
KINDS = (REDIS, MONGO, REPLICA)
EACH = tuple(fault for kind in KINDS for fault in kind)


def forgetful(faults, keeps):
    """Whether a replica is killed and Redis forgets, about at once.

    What had ended on that replica within the last moment was nowhere else: that can't be promised to be kept.
    """
    forgets = {redis_flushed} if keeps == "aof" else {redis_flushed, redis_killed}
    return replica_killed in faults and not forgets.isdisjoint(faults)


def name_of(*faults):
    return " + ".join(fault.__name__.replace("_", " ") for fault in faults)


async def at_once(plant, rng, *faults):
    """All of them, each beginning a little later than the one before."""
    async with asyncio.TaskGroup() as together:
        for fault in faults:
            together.create_task(fault(plant, rng))
            await asyncio.sleep(rng.uniform(0, 0.5))


async def _suffer(wire, rng, **faults):
    with wire.suffering(**faults):
        await asyncio.sleep(rng.uniform(0.2, LONGEST_S))


def _victim(plant, rng):
    """Any replica but the first: that one lives through all of it, so that what it leaks adds up."""
    return rng.choice(plant.replicas[1:])
