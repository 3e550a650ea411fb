"""What Redis and its driver raise, as the port's faults."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from extproc.ports.base import StoreError, UnreadyError

# An error code at the start of a message. redis-py takes ERR away, the code of whatever has none of its own.
_CODE = re.compile(r"[A-Z]{3,} ")
_UNREADY = "UNREADY "
_BACKLOG = "BACKLOG "
FAULTS = (RedisError, OSError, asyncio.IncompleteReadError)
UNREACHABLE = (RedisConnectionError, RedisTimeoutError, OSError, asyncio.IncompleteReadError)


@asynccontextmanager
async def translated(timeout_s: float) -> AsyncIterator[None]:
    """Bounds what is done within, and raises its faults as `StoreError`."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except FAULTS as error:
        raise store_error(error) from error


def store_error(error: BaseException) -> StoreError:
    """The fault that an exception of the driver is, or that a script refused with."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, UNREACHABLE):
        return StoreError(f"Redis can't be reached: {_brief(error)}", transient=True)
    if isinstance(error, ResponseError):
        return _refusal(error)
    return StoreError(f"Redis: {_brief(error)}", transient=True)


def _refusal(error: ResponseError) -> StoreError:
    text = _brief(error)
    if text.startswith(_UNREADY):
        return UnreadyError(text.removeprefix(_UNREADY))
    if text.startswith(_BACKLOG):
        return StoreError(f"nothing new is held: {text.removeprefix(_BACKLOG)}", transient=True)
    return StoreError(f"Redis refused: {text}", transient=_passes(error))


def _passes(error: ResponseError) -> bool:
    """OOM, READONLY, NOPERM and the like pass, or somebody mends them; a call that is wrong stays so."""
    if type(error) is not ResponseError:
        return True
    text = str(error)
    return _CODE.match(text) is not None and not text.startswith(("ERR ", "WRONGTYPE "))


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
