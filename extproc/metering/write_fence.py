"""Fence the ledger: it may be written only while this process takes part in the counters' current epochs."""

import asyncio


class WriteFence:
    """Tell whether the ledger may be written for one shard.

    The fence is open while the shard's epochs were looked at in the last `fresh_s` seconds and are not being
    rebuilt. A process that stood still for longer may have been taken for dead, and its counters rebuilt without
    it: such a process must look at the epochs before it writes.
    """

    def __init__(self, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._looked_at = float("-inf")
        self._rebuilding = False
        self._released = False
        self._changed = asyncio.Event()

    def is_open(self) -> bool:
        """Tell whether entries may be written now."""
        age_s = asyncio.get_running_loop().time() - self._looked_at
        return self._released or (age_s <= self._fresh_s and not self._rebuilding)

    async def wait_until_open(self) -> None:
        """Return when entries may be written."""
        while not self.is_open():
            self._changed.clear()
            await self._changed.wait()

    def rebuilding(self, *, going_on: bool) -> None:
        """Close the fence while the counters are being rebuilt."""
        self._rebuilding = going_on
        self._changed.set()

    def looked(self, at: float) -> None:
        """Record a look at all epochs of the shard, begun at `at` (the event loop's time)."""
        self._looked_at = at
        self._changed.set()

    def release(self) -> None:
        """Open the fence until the end: this process ends, and other replicas wait until it has deregistered."""
        self._released = True
        self._changed.set()
