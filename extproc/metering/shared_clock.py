"""The time of day on which all replicas agree: the counters' own clock, asked for now and then.

Windows and deadlines are counted by it, so that a replica whose clock is a minute off counts in the same windows
as the others. In between, and while the counters are away, time passes by this host's monotonic clock, which
nobody sets.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Counters

_log = logging.getLogger(__name__)
# A difference that is worth a line in the log: at the borders of windows it would have counted.
_NOTABLE_S = 1.0


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """Seconds. An answer that took longer than `exact_s` says too little about the time."""

    every_s: float = 10.0
    timeout_s: float = 1.0
    exact_s: float = 0.25


class SharedClock:
    """The host's clock until the counters have told theirs."""

    def __init__(
        self,
        counters: Counters,
        own: Clock,
        options: SyncOptions | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._own = own
        self._options = options or SyncOptions()
        self._monotonic = monotonic
        self._ahead_s: float | None = None  # of the monotonic clock
        self.on_step: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        if self._ahead_s is None:
            return self._own.now()
        return datetime.fromtimestamp(self._monotonic() + self._ahead_s, UTC)

    async def sync(self) -> None:
        """Asks once. Raises `StoreError`; an answer that took too long changes nothing."""
        before = self._monotonic()
        try:
            async with asyncio.timeout(self._options.timeout_s):
                theirs = await self._counters.time()
        except TimeoutError:
            raise StoreError("the counters did not tell the time", transient=True) from None
        after = self._monotonic()
        if after - before > self._options.exact_s and self._ahead_s is not None:
            return
        first, known = self._ahead_s is None, self._ahead_s or 0.0
        self._ahead_s = theirs - (before + after) / 2
        if not first and abs(self._ahead_s - known) > _NOTABLE_S:
            _log.warning("the counters' clock was set", extra={"seconds": round(self._ahead_s - known, 1)})
            self.on_step()
        off_s = abs(self.now().timestamp() - self._own.now().timestamp())
        if first and off_s > _NOTABLE_S:
            _log.warning(
                "this host's clock is not the counters': theirs counts", extra={"seconds": round(off_s, 1)}
            )

    async def run(self) -> None:
        """Keeps in step until cancelled."""
        while True:
            await asyncio.sleep(self._options.every_s)
            try:
                await self.sync()
            except StoreError as error:
                _log.debug("clock not synchronised", extra={"error": str(error)})
