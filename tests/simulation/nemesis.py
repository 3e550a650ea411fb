"""What goes wrong, when, and how all of it ends; and what may be lost by it."""

import asyncio
from contextlib import contextmanager
from unittest import mock

from .network import CALM, Weather
from .oracle import ANSWERED_S, DURABLE_S
from .replica import BARRIER_S, UNSEEN_S

# With both stores there, another replica has what a dead one left in the ledger and in the records.
TAKEN_OVER_S = 3.0

_WEATHERS = (
    CALM,
    CALM,
    CALM,
    CALM,
    Weather(slow=30, refused=20, reply_lost=20, hangs=5, twice=20, late=20),
    Weather(slow=100, refused=100, reply_lost=100, hangs=20, twice=50, late=100),
    Weather(late=200, twice=100),
    Weather(reply_lost=250),
)


async def trouble(world):
    rng = world.rng
    world.redis.weather(rng.choice(_WEATHERS))
    world.mongo.weather(rng.choice(_WEATHERS))
    world.server_machine.snapshot()
    events = rng.sample(_EVENTS, rng.randint(0, 4))
    while True:
        await asyncio.sleep(rng.random() * world.length_s / 3)
        if events:
            await rng.choice(events)(world)


async def _kill(world, replica=None):
    if len(world.serving) > 0:
        replica = replica or world.rng.choice(world.serving)
        world.say(f"{replica.name} is killed")
        replica.kill()
        await asyncio.sleep(world.rng.choice((0.0, 1.0, 8.0)))
        world.start_replica(replica.slot)


async def pause(world, replica=None, seconds=None):
    if len(world.serving) > 0:
        replica = replica or world.rng.choice(world.serving)
        if replica.paused:
            return
        world.say(f"{replica.name} is paused")
        replica.pause()
        await asyncio.sleep(seconds or world.rng.choice((0.2, 1.0, 3.0, 12.0, 25.0)))
        world.say(f"{replica.name} goes on")
        replica.resume()


async def _rolling(world):
    if len(world.serving) > 0:
        replica = world.rng.choice(world.serving)
        if replica.paused:
            return
        world.say(f"{replica.name} is told to stop")
        await replica.stop(world.rng.choice((0.1, 2.0, 10.0)))
        replica.leaving = True
        world.say(f"{replica.name} has stopped")
        world.start_replica(replica.slot)


async def _redis_away(world):
    """It refuses connections, or stands still: nothing is lost."""
    redis, rng = world.redis, world.rng
    if not redis.healthy:
        return
    world.say("redis is away")
    if rng.random() < 0.5:
        redis.stop()
    else:
        redis.refuse()
    await asyncio.sleep(rng.choice((0.05, 0.5, 3.0)))
    world.say("redis is back")
    redis.go_on()


async def restarts(world):
    """It is killed, and comes back with all it had, with an old copy, or with nothing."""
    redis, rng = world.redis, world.rng
    if not redis.healthy:
        return
    how = rng.choice(("all", "stale", "stale", "nothing"))
    world.say(f"redis is killed, and will be back with {how}")
    redis.kill()
    await asyncio.sleep(rng.choice((0.05, 0.5, 3.0)))
    world.server_machine.restart(how)
    world.say("redis is back")
    redis.go_on()


async def flush(world):
    world.server_machine.flush()


async def _flush_and_kill(world):
    world.server_machine.flush()
    await _kill(world)


async def _kill_and_flush(world):
    if world.serving:
        replica = world.rng.choice(world.serving)
        world.say(f"{replica.name} is killed")
        replica.kill()
        await asyncio.sleep(world.rng.choice((0.0, 0.1, 2.0)))
        world.server_machine.flush()
        await asyncio.sleep(world.rng.choice((0.0, 1.0, 8.0)))
        world.start_replica(replica.slot)


async def _kill_and_restart(world):
    """A replica, and the counters too; nothing of theirs is lost."""
    if world.serving and world.redis.healthy:
        replica = world.rng.choice(world.serving)
        world.say(f"{replica.name} is killed, redis restarts with all it had")
        replica.kill()
        world.redis.kill()
        await asyncio.sleep(world.rng.choice((0.05, 1.0)))
        world.server_machine.restart("all")
        world.redis.go_on()
        world.start_replica(replica.slot)


async def _pause_and_flush(world):
    """The counters are rebuilt without one that stands still."""
    if world.serving:
        replica = world.rng.choice(world.serving)
        for _ in range(world.rng.choice((0, 100, 100))):  # until it has something in hand for the ledger
            if replica.entries_waiting():
                break
            await asyncio.sleep(0.02)
        if replica.paused or replica.killed:
            return
        world.say(f"{replica.name} is paused")
        replica.pause()
        world.server_machine.flush()
        await asyncio.sleep(world.rng.choice((1.0, 6.0, 9.0)))
        world.say(f"{replica.name} goes on")
        replica.resume()


async def _full_disk(world):
    spools = [replica.spool for replica in world.serving]
    for spool in spools:
        spool.full = True
    await asyncio.sleep(3.0)
    for spool in spools:
        spool.full = False


async def _snapshot(world):
    world.server_machine.snapshot()


async def _mongo_away(world):
    mongo, rng = world.mongo, world.rng
    if not mongo.healthy:
        return
    world.say("mongo is away")
    if rng.random() < 0.5:
        mongo.stop()
    else:
        mongo.refuse()
    await asyncio.sleep(rng.choice((0.5, 3.0, 10.0)))
    world.say("mongo is back")
    mongo.go_on()


_EVENTS = [
    _kill,
    pause,
    _rolling,
    _redis_away,
    restarts,
    flush,
    _flush_and_kill,
    _kill_and_flush,
    _mongo_away,
    _snapshot,
    _full_disk,
    _kill_and_restart,
    _pause_and_flush,
]


async def struck(world, replica, *, still=False):
    """It stands still or is killed, and the counters are lost in the same moment."""
    await asyncio.sleep(world.rng.choice((0.0, 0.02, 0.05)))  # or while its answer waits to be written down
    if replica is None or replica.killed or replica.paused:
        return
    world.server_machine.flush()
    if world.rng.random() < 0.5 and not still:
        await _kill(world, replica)
    else:
        await pause(world, replica, world.rng.choice((6.0, 7.0, 9.0)))  # longer than a rebuild waits


async def stands_still(world, replica):
    """For longer than a rebuild waits, and the counters are lost in the same moment."""
    await struck(world, replica, still=True)


async def taken_over(world, replica):
    """It is killed, and the counters are lost when others have had the time to take over what it left."""
    if replica is None or replica.killed or replica.paused:
        return
    world.say(f"{replica.name} is killed")
    replica.kill()
    if not _others_are_here(world, replica):
        return
    await asyncio.sleep(TAKEN_OVER_S + 0.5)
    world.server_machine.flush()


async def unanswered(world, replica):
    """For a moment no answer reaches anybody, then nothing reaches the counters, and then it is killed."""
    await _unanswered(world, replica, lost=False)


async def unanswered_and_lost(world, replica):
    """The same, but the counters were lost meanwhile, and are back just before it is killed."""
    await _unanswered(world, replica, lost=True)


async def _unanswered(world, replica, *, lost):
    if replica is None or replica.killed or replica.paused:
        return
    redis, rng = world.redis, world.rng
    redis.weather(Weather(reply_lost=1000))
    await asyncio.sleep(0.2)
    redis.weather(CALM)
    redis.refuse()
    await asyncio.sleep(DURABLE_S + 0.5)
    if lost:
        world.server_machine.flush()
        redis.go_on()
        await asyncio.sleep(rng.choice((0.1, 0.3, 0.6)))
    world.say(f"{replica.name} is killed")
    replica.kill()
    redis.go_on()


async def answered_late(world, replica):
    """The counters are lost while their answers are on the way."""
    world.redis.weather(Weather(slow_reply=300))
    for _ in range(5):
        await asyncio.sleep(world.rng.random())
        world.server_machine.flush()
    world.redis.weather(CALM)


class Ambush:
    """Something that happens just before or after the nth time that a command is carried out: faults at the edges."""

    NAMES = (
        "epochs",
        "restore",
        "register",
        "registered",
        "waiting",
        "journalled",
        "saved",
        "left_open",
        "still_open",
        "outcomes",
        "used",
        "forget",
        "install",
        "complete",
        "reserve",
        "close",
        "close",
        "close",
        "renew",
        "append",
        "written",
        "save",
        "heartbeat",
    )
    FAULTS = (_kill, pause, flush, restarts, _redis_away, _mongo_away, struck, struck)

    def __init__(self, world):
        rng = world.rng
        self.world = world
        self.name = rng.choice(self.NAMES)
        self.left = rng.choice((1, 1, 2, 3, 5, 8))
        self.after = rng.random() < 0.5
        self.what = rng.choice(self.FAULTS)

    def __call__(self, caller, name):
        self.left -= 1
        if self.left:
            return
        world = self.world
        world.say(f"ambush at {name} of {caller}: {self.what.__name__}")
        victim = next((r for r in world.serving if r.name == caller and not r.paused), None)
        if self.what is flush:
            world.server_machine.flush()  # in this very moment
        elif self.what in (_kill, pause, struck, stands_still, *AIMED_AT_ONE):
            world.start(self.what(world, victim))
        else:
            world.start(self.what(world))


AIMED_AT_ONE = (taken_over, unanswered, unanswered_and_lost, answered_late)


@contextmanager
def aimed(names=Ambush.NAMES, faults=Ambush.FAULTS):
    """Let ambushes lie at these commands only, with these faults."""
    with mock.patch.object(Ambush, "NAMES", names), mock.patch.object(Ambush, "FAULTS", faults):
        yield


def ambushes(world):
    """What waits for commands. Nothing of it happens once all faults are over."""
    waiting = [Ambush(world) for _ in range(world.rng.choice((0, 0, 1, 1, 2, 4)))]

    def call(caller, name, *, after):
        for ambush in waiting:
            if ambush.name == name and ambush.after is after and ambush.left > 0 and world.in_trouble:
                ambush(caller, name)

    return call if waiting else None


async def heal(world):
    """All faults end. Who was killed stays dead; somebody is there."""
    world.say("all faults are over")
    for host in (world.redis, world.mongo):
        host.weather(CALM)
        host.go_on()
    for replica in world.replicas:
        replica.resume()
    for slot in range(world.slots):
        here = any(replica.slot == slot for replica in world.serving)
        if not here and (world.disks[slot].used() or not world.serving or world.rng.random() < 0.5):
            world.start_replica(slot)
    await asyncio.sleep(0)


def exception(world, request):
    """Why a request may be forgotten; None where nothing excuses that.

    Only what a replica that was killed had not made durable yet, and only if the counters' data was lost about then.
    """
    process = request.process
    if request.reservation.local or not process.killed or not fresh(world, request):
        return None
    ended = request.settlement is not None
    changed_at = request.ended_at if ended else request.at
    # Until others have taken over what it left: entries in the journal, and open reservations.
    until = process.killed_at + _taken_over_s(world) if _others_are_here(world, process) else float("inf")
    until += world.mongo.away_s(process.killed_at, until) + world.redis.away_s(process.killed_at, until)
    # Before the kill: until it had told the new life of the counters.
    told_s = 2 * world.check_s + 3.0 + (10.0 if world.redis.stormy or world.mongo.stormy else 0.0)
    for lost_at, kept_until in world.server_machine.losses:
        told_by = lost_at + told_s + world.mongo.away_s(lost_at, process.killed_at)
        soon = process.killed_at <= told_by + process.stood_still_s(lost_at, process.killed_at)
        # The loss may have come between a decision and its answer, which is when a request is known to be admitted.
        if soon and request.at - ANSWERED_S <= lost_at <= until and changed_at >= kept_until:
            return "its replica was killed and the counters lost, before it was durable"
    return None


def unknown(world, request):
    """Why a request may not have been counted in what was rebuilt; None where nothing excuses that.

    Beside those that may be lost: what a replica held that stood still for longer than a rebuild waits, if it was too
    young to be kept. It is restored when the replica goes on.
    """
    process = request.process
    for began, ended in process.pauses_at:
        if ended - began < UNSEEN_S - 0.25 or request.at < began - _durable_s(world):
            continue
        if any(began - 10.0 <= lost_at <= ended for lost_at, _ in world.server_machine.losses):
            return "its replica stood still for longer than the barrier, the counters were lost meanwhile"
    return exception(world, request)


def _others_are_here(world, process):
    """Whether any other replica had the time to take over from one that was killed."""
    since, until = process.killed_at, process.killed_at + TAKEN_OVER_S
    return any(
        other.serving
        and other.started_at < since
        and not other.leaving
        and not (other.killed and other.killed_at < until)
        and not other.stood_still_s(since, until)
        for other in world.replicas
        if other is not process
    )


def _taken_over_s(world):
    return TAKEN_OVER_S + (15.0 if world.mongo.stormy or world.redis.stormy else 0.0)


def _durable_s(world):
    return DURABLE_S + (10.0 if world.mongo.stormy or world.redis.stormy else 0.0)


def undecided(world, process, since):
    """Whether others may take for admitted what a replica asked for just before it was killed.

    Not if it lived to record that it knew nothing of it as admitted; and not if the counters were lost in between:
    then nobody knows of it.
    """
    durable_s = DURABLE_S + (10.0 if world.mongo.stormy else 0.0)
    durable_s += world.mongo.away_s(since, process.killed_at) + process.paused_s
    known = not any(since <= at <= process.killed_at for at, _ in world.server_machine.losses)
    return known and process.killed_at - since <= durable_s


def fresh(world, request):
    """Whether its replica was killed so soon after it (or its end) that it need not be durable."""
    process = request.process
    since = request.ended_at if request.settlement is not None else request.at
    durable_s = _durable_s(world)
    killed_at = process.killed_at
    for host in (world.mongo, world.redis):
        durable_s += host.away_s(since, killed_at)
    # No end is taken while the counters are rebuilt, which may wait for one that is gone.
    durable_s += sum(BARRIER_S + 2.0 for at in world.server_machine.lives_at if since - 10.0 <= at <= killed_at)
    return killed_at - since <= durable_s + process.paused_s
