"""Wait for an event with a timeout."""

import asyncio
from contextlib import suppress


async def happens_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait until the event is set, for `timeout_s` seconds at most (None: no bound). Return whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
