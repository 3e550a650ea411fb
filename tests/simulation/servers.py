"""The store that counters live in, and the ways in which it loses them."""

import copy
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from unittest import mock

from extproc.core.quota import partitions
from extproc.stores.memory import counters as memory_counters
from tests.memory_server import LosableServer

from .replica import EPOCH

# Partitions are rebuilt one by one: with fewer of them more happens in each.
FEW = 2


@contextmanager
def few_partitions():
    with mock.patch.object(partitions, "PARTITIONS", FEW), mock.patch.object(memory_counters, "PARTITIONS", FEW):
        yield


class Redis:
    """One server, with the copies of itself that it wrote to disk."""

    def __init__(self, world):
        self._world = world
        numbers = count(1)
        start = EPOCH.timestamp() + world.start_s
        self.server = LosableServer(lambda: start + world.loop.time(), lambda: f"e{next(numbers)}")
        self.losses = []  # when something was lost, and since when
        self.lives_at = []  # when epochs had to begin
        self._snapshots = []

    def flush(self):
        self._world.say("redis: FLUSHALL")
        self.losses.append((self._world.loop.time(), 0.0))
        self.lives_at.append(self._world.loop.time())
        self.server.lose()

    def snapshot(self):
        self._snapshots.append((self._world.loop.time(), _state(self.server)))

    def restart(self, *, stale):
        """Another process: it has what the last one had, or what was on disk."""
        server = self.server
        self.lives_at.append(self._world.loop.time())
        if stale and self._snapshots:
            taken_at, state = self._snapshots[-1]
            self.losses.append((self._world.loop.time(), taken_at))
            journal, lives, before, aside, seen = _copied(state)
            server.journal.clear()
            server.journal.update(journal)
            server.lives, server.before, server.seen = lives, before, seen
            server.aside.clear()
            server.aside.extend(aside)
        for partition in range(FEW):
            server.begin(partition)


def _state(server):
    return _copied((server.journal, server.lives, server.before, server.aside, server.seen))


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


def live_counts(server):
    for life in server.lives.values():
        yield from life.counts.items()
