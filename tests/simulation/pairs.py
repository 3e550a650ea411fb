"""Worlds in which two or three faults come one after the other, up to 15 seconds apart."""

import asyncio

from . import nemesis
from .network import CALM, Weather
from .oracle import BrokenError
from .world import World

_WEATHERS = (CALM, CALM, CALM, Weather(slow=30, refused=20, reply_lost=20, hangs=5, twice=20, late=20))
_FAR_S = 15.0


async def killed(world):
    """A replica is killed. Another one starts in its place, or none before the end."""
    if not world.serving:
        return
    replica = world.rng.choice(world.serving)
    world.say(f"{replica.name} is killed")
    replica.kill()
    await asyncio.sleep(world.rng.choice((0.5, 3.0, 10.0, 60.0)))
    world.start_replica(replica.slot)


async def paused(world):
    await nemesis.pause(world, seconds=world.rng.choice((1.5, 4.0, 7.0, 15.0)))


async def _redis_killed(world):
    """It comes back soon, as another process, with all that it had, an old copy, or nothing."""
    await _back(world, world.rng.choice(("all", "stale", "nothing")), world.rng.choice((0.1, 1.0, 4.0)))


async def restarts_whole(world):
    await _back(world, "all", 0.1)


async def restarts_stale(world):
    await _back(world, "stale", 0.1)


async def _redis_failed_over(world):
    """A replica of it takes over, which lacks the last writes."""
    world.server_machine.snapshot()
    await asyncio.sleep(world.rng.random() * 0.2)
    await _back(world, "stale", world.rng.choice((0.3, 2.0)))


async def redis_flushed(world):
    await nemesis.flush(world)


async def _redis_away(world):
    await _away(world.redis, world, world.rng.choice((0.5, 3.0)))


async def mongo_away(world):
    await _away(world.mongo, world, world.rng.choice((0.5, 3.0, 10.0)))


async def _back(world, how, after_s):
    if not world.redis.healthy:
        return
    world.say(f"redis is killed, and will be back with {how}")
    world.redis.kill()
    await asyncio.sleep(after_s)
    world.server_machine.restart(how)
    world.say("redis is back")
    world.redis.go_on()


async def _away(host, world, for_s):
    if not host.healthy:
        return
    world.say(f"{host.name} is away")
    world.rng.choice((host.stop, host.refuse))()
    await asyncio.sleep(for_s)
    world.say(f"{host.name} is back")
    host.go_on()


FAULTS = (killed, paused, _redis_killed, _redis_failed_over, redis_flushed, _redis_away, mongo_away)


class Pairs(World):
    """What happened is in the message of an invariant that does not hold."""

    replay = " --pairs"
    faults_drawn = FAULTS
    far_s = _FAR_S
    weathers = _WEATHERS

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        rng = self.rng
        self.redis.ambush = self.mongo.ambush = None
        self.faults = rng.sample(self.faults_drawn, min(rng.choice((2, 2, 3)), len(self.faults_drawn)))
        far_s = self.far_s
        self.distances = [rng.random() * rng.choice((0.5, 3.0, far_s, far_s)) for _ in self.faults[1:]]
        self.began_s = rng.random() * 4.0
        self.length_s = self.began_s + sum(self.distances) + rng.choice((2.0, 8.0))

    async def play(self):
        try:
            return await super().play()
        except BrokenError as error:
            raise BrokenError(f"{error} [{self._told()}]") from error

    async def _trouble(self):
        rng = self.rng
        self.redis.weather(rng.choice(self.weathers))
        self.mongo.weather(rng.choice(self.weathers))
        self.server_machine.snapshot()
        await asyncio.sleep(self.began_s)
        for fault, distance in zip(self.faults, [*self.distances, 0.0], strict=True):
            self.start(fault(self))
            await asyncio.sleep(distance)

    def _told(self):
        names = [fault.__name__.strip("_").replace("_", " ") for fault in self.faults]
        later = [
            f"{distance:.1f} s later {name}" for name, distance in zip(names[1:], self.distances, strict=True)
        ]
        return ", ".join([names[0], *later])


def pairs_of(*faults, far_s=_FAR_S, weathers=_WEATHERS):
    """A world in which these faults come, so far apart at the most."""
    return type("Pairs", (Pairs,), {"faults_drawn": faults, "far_s": far_s, "weathers": weathers})
