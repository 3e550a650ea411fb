"""Waiting for what another process does: by asking again, never by sleeping for a fixed time."""

import asyncio
import inspect

# The bound guards the run against what never comes. It says nothing of how long it may take.
NEVER_S = 60.0
_SOONEST_S = 0.005
_LATEST_S = 0.1
_SLOWER = 1.3


async def until(condition, what, *, within_s=NEVER_S, poll_s=None):
    """Return the first true value of `condition` (a function, maybe async); fail and name `what` if none comes.

    It asks again after `poll_s` seconds; without that after 5 ms at first, and then more and more rarely.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    pause_s = poll_s or _SOONEST_S
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(pause_s)
        if poll_s is None:
            pause_s = min(_LATEST_S, pause_s * _SLOWER)
