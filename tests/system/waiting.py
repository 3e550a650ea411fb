"""Waiting for what another process does: by asking again, never by sleeping for a fixed time."""

import asyncio
import inspect

_POLL_S = 0.01


async def until(condition, what, *, within_s=5.0, poll_s=_POLL_S):
    """The first true value of `condition` (a function, maybe async); a failure that names `what` if none comes."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(poll_s)
