"""Fence the ledger: it is open only while this process takes part in the counters' current epochs."""

import asyncio
from collections.abc import Iterable

from extproc.metering.shards import Part


class WriteFence:
    """Tell, for each part of the counters, whether the ledger may be written to.

    It is open for a part whose epochs were looked at in the last `fresh_s` seconds, and are not being rebuilt. A
    process that was stopped for longer may have been taken for dead, and its counters rebuilt without it: such a
    process must look at the epochs before it writes.
    """

    def __init__(self, fresh_s: float = 2.0) -> None:
        self._fresh_s = fresh_s
        self._looked_at: dict[Part, float] = {}
        self._rebuilding: set[Part] = set()
        self._released = False
        self._changed = asyncio.Event()

    def is_open(self, part: Part) -> bool:
        """Tell whether entries of a part may be written now."""
        age_s = asyncio.get_running_loop().time() - self._looked_at.get(part, float("-inf"))
        return self._released or (age_s <= self._fresh_s and part not in self._rebuilding)

    async def wait_until_open(self, part: Part) -> None:
        """Return when entries of a part may be written."""
        while not self.is_open(part):
            self._changed.clear()
            await self._changed.wait()

    def looked(self, parts: Iterable[Part], at: float, rebuilding: Iterable[Part]) -> None:
        """Record a look at the epochs of some parts, begun at `at` (the event loop's time), and its result."""
        self._looked_at.update(dict.fromkeys(parts, at))
        self._rebuilding = set(rebuilding)
        self._changed.set()

    def release(self) -> None:
        """Open for good: this process ends, and other replicas wait until it has left."""
        self._released = True
        self._changed.set()
