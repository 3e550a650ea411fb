"""Run one job at a time; of the waiting jobs only the newest."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Latest:
    """Run the newest job only: a user who types sends a request at each pause, and only the last answer is
    used.
    """

    def __init__(self) -> None:
        self._newest = 0
        self._busy = asyncio.Lock()

    async def run(self, job: Callable[[], T]) -> T | None:
        """Return the result of `job` from a thread; None if a newer job came while this one waited."""
        self._newest += 1
        mine = self._newest
        async with self._busy:
            if mine != self._newest:
                return None
            return await asyncio.shield(asyncio.to_thread(job))
