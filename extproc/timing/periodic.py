"""Repeat a step in the background."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

F = TypeVar("F", bound=Exception)


async def periodically(
    step: Callable[[], Awaitable[object]],
    every_s: float,
    *,
    expected: type[F],
    on_failure: Callable[[F], None],
    jitter: float = 0.0,
    draw: Callable[[], float] = random.random,
    at_once: bool = False,
) -> NoReturn:
    """Sleep `every_s` seconds, await `step()`, and repeat until cancelled.

    An `expected` exception goes to `on_failure`, and the next step comes as usual; any other exception is raised.
    `jitter` (0 to 1) spreads each sleep evenly over `every_s` * (1 - jitter) to `every_s` * (1 + jitter), so
    replicas that started together do not act together; `draw` returns a random number, 0 <= number < 1. `at_once`
    takes the first step before the first sleep.
    """
    if not at_once:
        await asyncio.sleep(_spread(every_s, jitter, draw))
    while True:
        try:
            await step()
        except expected as failure:
            on_failure(failure)
        await asyncio.sleep(_spread(every_s, jitter, draw))


def _spread(every_s: float, jitter: float, draw: Callable[[], float]) -> float:
    return every_s * (1 + jitter * (2 * draw() - 1)) if jitter else every_s
