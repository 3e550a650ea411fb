"""Read bodies for the exchanges: large ones in worker processes, where they delay nobody."""

from collections.abc import Callable
from typing import Final, Protocol

from extproc.core.events import ReadBody
from extproc.core.quota.drafting import Caller
from extproc.core.quota.reservation import Denied, Suspended
from extproc.core.request import apart
from extproc.core.request.apart import BodyFacts, Unread
from extproc.core.request.body import Malformed
from extproc.workers.pool import NotDoneError, Pool, Why

Result = BodyFacts | Malformed | Unread | Suspended | Denied
# What a worker process of `ReadApart` runs.
FUNCTION: Final = "extproc.core.request.apart:prepared"


class BodyReader(Protocol):
    """Perform `ReadBody`."""

    async def read(self, wanted: ReadBody) -> Result:
        """Return the result. Raise nothing; may be cancelled."""


class ReadHere:
    """Read bodies at once, on the event loop."""

    async def read(self, wanted: ReadBody) -> Result:
        return read_here(wanted)


class ReadApart:
    """Refuse the callers that `screen` refuses, and read the bodies of all others in a pool of processes."""

    def __init__(self, pool: Pool, screen: Callable[[Caller], Suspended | Denied | None]) -> None:
        self._pool = pool
        self._screen = screen

    async def read(self, wanted: ReadBody) -> Result:
        """Return the result. While the first process starts, the body is read on the event loop."""
        refused = self._screen(wanted.caller)
        if refused is not None:
            return refused
        if self._pool.starting:
            return read_here(wanted)
        try:
            result = await self._pool.do(wanted.caller.identity.tenant, apart.packed(wanted.reading), *wanted.body)
        except NotDoneError as error:
            return Unread.BUSY if error.why is Why.BUSY else Unread.FAILED
        return apart.unpacked(result)


def read_here(wanted: ReadBody) -> BodyFacts | Malformed:
    """Read a body on the event loop."""
    return apart.unpacked(apart.perform(apart.packed(wanted.reading), b"".join(wanted.body)))
