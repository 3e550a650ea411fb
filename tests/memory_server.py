"""Counters in memory that can be lost."""

from extproc.core.quota.partitions import PARTITIONS
from extproc.stores.memory.counters import MemoryServer


class LosableServer(MemoryServer):
    """A server that can lose everything, or one partition, its journal included: as by FLUSHALL."""

    def lose(self, partition=None):
        for each in range(PARTITIONS) if partition is None else (partition,):
            self.lives.pop(each, None)
            self.before.pop(each, None)
            self.seen.pop(each, None)
        if partition is None:
            self.generation = 0
        for receipt in [r for r in self.journal if partition in (None, r.partition)]:
            del self.journal[receipt]
