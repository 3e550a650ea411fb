"""Waits of the tests in this folder. Their time is virtual (conftest.py)."""

import asyncio
from inspect import iscoroutinefunction


async def until(condition):
    """Wait for the first moment at which `condition()` is true; TimeoutError after a virtual minute.

    A coroutine function is asked once a millisecond.
    """
    async with asyncio.timeout(60):
        if iscoroutinefunction(condition):
            while not await condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)
        elif not condition():
            await asyncio.get_running_loop().when(condition)


async def all_done():
    """Return when nothing is left to do but what waits for a time or for another event."""
    await asyncio.sleep(1e-6)
