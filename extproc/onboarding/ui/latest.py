"""One job at a time; of those that wait only the newest is done."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Latest:
    """Who types makes a request per pause; only the last one's answer is looked at."""

    def __init__(self) -> None:
        self._newest = 0
        self._busy = asyncio.Lock()

    async def run(self, job: Callable[[], T]) -> T | None:
        """What `job` gives, from a thread; None where a newer one came while this one waited."""
        self._newest += 1
        mine = self._newest
        async with self._busy:
            if mine != self._newest:
                return None
            return await asyncio.shield(asyncio.to_thread(job))
