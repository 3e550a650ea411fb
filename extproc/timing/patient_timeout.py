"""Bound what waits for a peer, without counting against the peer what this event loop itself is late."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# An answer that is there when the time is over takes some turns of the loop to reach the code that waits for it.
# These turns take less than a millisecond on a loop that has nothing else to do.
_TURNS: Final = 16


@asynccontextmanager
async def patient_timeout(seconds: float) -> AsyncIterator[None]:
    """Raise `TimeoutError` after `seconds`, once the loop has had turns enough to read what is there."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as bound:
        due: asyncio.Handle = loop.call_later(seconds, lambda: take_turn(_TURNS))

        def take_turn(left: int) -> None:
            nonlocal due
            if left:
                due = loop.call_soon(take_turn, left - 1)
            else:
                bound.reschedule(loop.time())

        try:
            yield
        finally:
            due.cancel()
