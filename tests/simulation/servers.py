"""The server that counters live in, and the ways in which it loses them: here the memory store's."""

import copy
from collections import Counter
from contextlib import contextmanager
from itertools import count
from unittest import mock

from extproc.core.quota import partitions
from extproc.stores.memory import counters as memory_counters
from extproc.stores.memory.counters import MemoryCounters
from tests.changing import replace
from tests.memory_server import LosableServer

from .network import RemoteCounters
from .replica import EPOCH

# Partitions are rebuilt one by one: with fewer of them more happens in each.
FEW = 2


@contextmanager
def few_partitions(*modules):
    """Patch the number of partitions in all modules that have it."""
    with mock.patch.object(partitions, "PARTITIONS", FEW), _few(memory_counters, *modules):
        yield


@contextmanager
def _few(module, *others):
    with mock.patch.object(module, "PARTITIONS", FEW):
        if not others:
            yield
            return
        with _few(*others):
            yield


class Machine:
    """One server, with the copies of itself that it wrote to disk."""

    def __init__(self, world):
        self.world = world
        self.start = EPOCH.timestamp() + world.start_s
        self.losses = []  # when something was lost, and since when
        self.lives_at = []  # when epochs had to begin
        self._snapshots = []

    def now(self):
        return self.start + self.world.loop.time()

    def flush(self):
        self.world.say("redis: FLUSHALL")
        self.losses.append((self.world.loop.time(), 0.0))
        self.lives_at.append(self.world.loop.time())
        self._lose()

    def snapshot(self):
        self._snapshots.append((self.world.loop.time(), self._copy()))

    def restart(self, how):
        """Another process: it has `all` that the last one had, the `stale` copy on disk, or `nothing`."""
        self.lives_at.append(self.world.loop.time())
        if how == "nothing":
            self.losses.append((self.world.loop.time(), 0.0))
            self._lose()
        elif how == "stale" and self._snapshots:
            taken_at, state = self._snapshots[-1]
            self.losses.append((self.world.loop.time(), taken_at))
            self._take(state)
        self._begin(how)


class MemoryMachine(Machine):
    """The memory store's server. A call of a port is one command, carried out at once and as a whole."""

    replay = ""  # what a command that replays a world says further

    def __init__(self, world):
        super().__init__(world)
        numbers = count(1)
        self.server = LosableServer(self.now, lambda: f"e{next(numbers)}")

    @staticmethod
    def patched():
        """What has to be otherwise than usual while a world is played."""
        return few_partitions()

    def client(self, caller):
        return RemoteCounters(self.world.redis, lambda: self.server, caller, MemoryCounters)

    async def bury(self, client):
        """Nothing is left of a client that is gone."""

    # ------------------------------------------------ losses

    def _lose(self):
        self.server.lose()

    def _copy(self):
        server = self.server
        return _copied((server.journal, server.lives, server.before, server.aside, server.seen))

    def _take(self, state):
        server = self.server
        journal, lives, before, aside, seen = _copied(state)
        server.journal.clear()
        server.journal.update(journal)
        server.lives, server.before, server.seen = lives, before, seen
        server.aside.clear()
        server.aside.extend(aside)

    def _begin(self, how):
        if how != "nothing":
            for partition in range(FEW):
                self.server.begin(partition)

    # ------------------------------------------------ what is there in the end

    def check(self):
        """Nothing can be wrong beside what the books say."""

    def waiting(self):
        """How many entries wait for the ledger."""
        return len(self.server.journal)

    def aside(self):
        return len(self.server.aside)

    def unready(self):
        """Why the counters are not ready; None if they are."""
        if len(self.server.lives) < FEW:
            return "nobody has seen that the counters are gone"
        for partition, life in self.server.lives.items():
            if not life.epoch.ready:
                return f"partition {partition} is not ready"
        return None

    def held(self):
        return Counter({key: each.held for key, each in self._counts()})

    def used(self):
        """What the counters have of each tenant and bucket."""
        return Counter({key: each.used for key, each in self._counts()})

    def lasting(self):
        """The buckets whose window is not over."""
        now = self.now()
        return {
            (known.reservation.identity.tenant, bucket.key)
            for life in self.server.lives.values()
            for known in life.known.values()
            for bucket in known.reservation.buckets
            if bucket.interval.end > now
        }

    def _counts(self):
        for life in self.server.lives.values():
            yield from life.counts.items()


def _copied(state):
    journal, lives, before, aside, seen = state
    return dict(journal), _lives(lives), _lives(before), list(aside), copy.deepcopy(seen)


def _lives(lives):
    return {
        partition: replace(
            life,
            counts=dict(life.counts),
            alerted=dict(life.alerted),
            known={name: replace(known, holds=list(known.holds)) for name, known in life.known.items()},
            registered=set(life.registered),
        )
        for partition, life in lives.items()
    }
