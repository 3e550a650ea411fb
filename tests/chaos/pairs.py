"""Draw two or three faults at a distance of some seconds by seed, and carry them out."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from extproc.local.process import ChildError

from .plant import PlantOptions
from .processes import VALKEY
from .sizes import FULL, PAIRS, REPLICAS, draw, size
from .timeline import Window

KINDS = (
    "replica killed", "replica paused", "redis killed", "redis flushed", "redis stopped", "redis failed over",
    "mongo killed", "mongo stopped",
)  # fmt: skip
KEEPS = ("nothing", "aof", "aof everysec")
APART_S = size("APART_S", full=15.0, short=3.0)  # of the first fault and any other, at the most
PAUSES_S = (0.3, 1.5, 4.0, 12.0) if FULL else (0.3, 1.5)
SHORTEST_S = 0.05
LONGEST_S = size("FAULT_S", full=3.0, short=1.5)  # of a store that is away
DEAD_S = size("DEAD_S", full=20.0, short=2.0)  # of a replica, at the most
TRIPLES = 4  # one case in so many has three faults
# Short, so that what a dead replica held is over soon. All else is as it is by default.
TTL_S = size("PAIR_TTL_S", full=6.0, short=4.0)
_STARTS = 20

PAIRED = PlantOptions(
    settings={
        "TOKENWEIR_RESERVATION__TTL_S": str(TTL_S),
        "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.5",
    }
)


@dataclass(frozen=True)
class Fault:
    """Describe a fault of a replica or a store: it begins `at_s` after the first one, and lasts `lasts_s` seconds."""

    kind: str
    at_s: float
    lasts_s: float
    replica: int | None = None

    def __str__(self):
        who = self.kind if self.replica is None else self.kind.replace("replica", f"replica {self.replica}")
        lasts = "" if self.kind == "redis flushed" else f" for {self.lasts_s:.2f} s"
        return f"{who} at {self.at_s:.2f} s{lasts}"


@dataclass(frozen=True)
class Case:
    """Hold the faults of one run, in their order, and what Redis keeps when it is killed (see `KEPT`)."""

    number: int
    keeps: str
    faults: tuple[Fault, ...]

    @property
    def kinds(self):
        return {fault.kind for fault in self.faults}

    @property
    def plant(self):
        return "watched" if "redis failed over" in self.kinds else "paired"

    @property
    def loses_redis(self):
        """Tell whether Redis loses its memory, or may lose some of it."""
        forgets = {"redis flushed", "redis failed over"} | ({"redis killed"} if self.keeps == "nothing" else set())
        return not forgets.isdisjoint(self.kinds)

    @property
    def begins_epochs(self):
        """Tell whether the counters are rebuilt."""
        return self.loses_redis or "redis killed" in self.kinds

    @property
    def name(self):
        return f"case{self.number}-" + "-and-".join(fault.kind.replace(" ", "-") for fault in self.faults)

    def __str__(self):
        return f"{', '.join(map(str, self.faults))} (Redis keeps {self.keeps})"


@dataclass(frozen=True)
class Known:
    """Describe an open point. The short form draws no case that matches; the full form draws all."""

    what: str
    matches: Callable[[Case], bool]


KNOWN: tuple[Known, ...] = ()


def hardest():
    """Return the cases that were found to be the hardest to get right. The full form has them in every run."""
    return [
        # A survivor takes over what the dead one left in the journal, before Redis forgets it.
        ("nothing", [Fault("replica killed", 0.0, 20.0, 1), Fault("redis killed", 5.6, 0.3)]),
        # Nobody waits for the registration of the dead one.
        ("nothing", [Fault("replica killed", 0.0, 20.0, 1), Fault("redis killed", 0.5, 0.1)]),
        ("aof", [Fault("replica killed", 0.0, 20.0, 1), Fault("redis killed", 2.5, 0.1)]),
        # The dead one had asked for reservations whose answer never came.
        ("nothing", [Fault("redis killed", 0.0, 0.3), Fault("replica killed", 0.2, 20.0, 1)]),
        ("aof", [Fault("redis stopped", 0.0, 1.0), Fault("replica killed", 0.3, 20.0, 1)]),
        # A replica that stands still is not dead.
        ("nothing", [Fault("replica paused", 0.0, 1.5, 1), Fault("redis flushed", 0.7, 0.0)]),
    ]


def cases():
    """Return all cases of this run. Each depends on the form, the seed and its number alone."""
    fixed = [Case(n, keeps, tuple(faults)) for n, (keeps, faults) in enumerate(hardest())] if FULL else []
    return [*fixed, *(_drawn(n) for n in range(len(fixed), PAIRS))]


def _drawn(number):
    rng = draw("pairs", number)
    while True:
        case = _any_case(rng, number)
        if FULL or not ("redis failed over" in case.kinds or any(known.matches(case) for known in KNOWN)):
            return case


def _any_case(rng, number):
    kinds = rng.sample(KINDS, 3 if FULL and rng.randrange(TRIPLES) == 0 else 2)
    victims = rng.sample(range(REPLICAS), REPLICAS)
    moments = sorted([0.0, *(rng.uniform(0, APART_S) for _ in kinds[1:])])
    faults = [
        Fault(kind, at_s, _lasts_s(rng, kind), victims.pop() if kind.startswith("replica") else None)
        for kind, at_s in zip(kinds, moments, strict=True)
    ]
    return Case(number, rng.choice(KEEPS), tuple(faults))


def _lasts_s(rng, kind):
    match kind:
        case "replica paused":
            return rng.choice(PAUSES_S)
        case "replica killed":
            return rng.uniform(SHORTEST_S, DEAD_S)
        case "redis flushed":
            return 0.0
        case _:
            return rng.uniform(SHORTEST_S, LONGEST_S)


async def carry_out(plant, case, timeline):
    """Carry out all faults of a case, each at its time. Return when all processes run again.

    Faults of one store happen one after the other.
    """
    one_at_a_time = {"redis": asyncio.Lock(), "mongo": asyncio.Lock()}
    timeline.begun = time.monotonic()

    async def happen(fault):
        await asyncio.sleep(timeline.begun + fault.at_s - time.monotonic())
        carried = globals()[f"_{fault.kind.replace(' ', '_')}"](plant, fault, timeline)
        if fault.replica is not None:
            await carried
            return
        store = fault.kind.split()[0]
        async with one_at_a_time[store]:
            timeline.faults[store].append(Window(time.monotonic()))
            await carried
            timeline.faults[store][-1].end = time.monotonic()

    async with asyncio.TaskGroup() as together:
        for fault in case.faults:
            together.create_task(happen(fault))


async def begin_anew(plant, case):
    """Replace Redis by an empty one, of the kind that the case needs."""
    await plant.redis.anew(flavour=VALKEY, keeps=case.keeps)


async def _replica_killed(plant, fault, timeline):
    victim, away = plant.replicas[fault.replica], Window(time.monotonic())
    timeline.dead[fault.replica].append(away)
    await victim.kill()
    await asyncio.sleep(fault.lasts_s)
    for attempt in range(1, _STARTS + 1):
        try:
            await victim.start()
            break
        except ChildError:  # without its stores it may end: then it is started again, as any supervisor would
            if attempt == _STARTS:
                raise
    away.end = time.monotonic()


async def _replica_paused(plant, fault, timeline):
    away = Window(time.monotonic())
    timeline.paused[fault.replica].append(away)
    with plant.replicas[fault.replica].paused():
        await asyncio.sleep(fault.lasts_s)
    away.end = time.monotonic()


async def _redis_killed(plant, fault, timeline):
    forgets = plant.redis.keeps == "nothing"
    (timeline.lost if forgets else timeline.restarted).append(time.monotonic())
    await plant.redis.kill()
    await asyncio.sleep(fault.lasts_s)
    await plant.redis.start()


async def _redis_flushed(plant, _fault, timeline):
    timeline.lost.append(time.monotonic())
    await plant.redis.ask("FLUSHALL", "SYNC")


async def _redis_stopped(plant, fault, _timeline):
    with plant.redis.paused():
        await asyncio.sleep(fault.lasts_s)


async def _redis_failed_over(plant, fault, timeline):
    timeline.failed_over.append(time.monotonic())
    await plant.redis.fail_over(fault.lasts_s)
    await plant.redis.take_back()


async def _mongo_killed(plant, fault, _timeline):
    await plant.mongo.kill()
    await asyncio.sleep(fault.lasts_s)
    await plant.mongo.start()


async def _mongo_stopped(plant, fault, _timeline):
    with plant.mongo.paused():
        await asyncio.sleep(fault.lasts_s)
