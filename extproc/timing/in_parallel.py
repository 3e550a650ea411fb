"""Take several steps at once."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_parallel(steps: Iterable[Awaitable[T]]) -> list[T]:
    """Await all steps at once. When all have ended, raise the first one's exception, if any failed."""
    done = await asyncio.gather(*steps, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [result for result in done if not isinstance(result, BaseException)]
