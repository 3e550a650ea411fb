"""Tell the time of day on which all replicas agree: the counters' own clock, asked for every few seconds.

Windows and deadlines follow it, so a replica whose own clock is a minute off counts in the same windows as the
others. Between two answers, and while the counters are away, time passes by this host's monotonic clock.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Counters
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
# A larger difference is logged: it would count requests in the wrong window.
_NOTABLE_S = 1.0


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """Set the durations of asking, in seconds. An answer that took longer than `exact_s` is too inexact to use."""

    every_s: float = 10.0
    timeout_s: float = 1.0
    exact_s: float = 0.25


class SharedClock:
    """Tell the counters' time; the host's until the counters have answered once."""

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
        self._next_step = asyncio.Event()
        self.stepped_at = float("-inf")  # when the counters' clock was last set, loop time

    def now(self) -> datetime:
        if self._ahead_s is None:
            return self._own.now()
        return datetime.fromtimestamp(self._monotonic() + self._ahead_s, UTC)

    def next_step(self) -> asyncio.Event:
        """Return the event that is set when the counters' clock is next set, by more than a second."""
        return self._next_step

    def stepped(self) -> None:
        """Tell everybody who waits that the counters' clock was set."""
        self.stepped_at = asyncio.get_running_loop().time()
        step, self._next_step = self._next_step, asyncio.Event()
        step.set()

    async def sync(self) -> None:
        """Ask the counters once. Raise `StoreError`; an answer that took too long changes nothing."""
        before = self._monotonic()
        try:
            async with asyncio.timeout(self._options.timeout_s):
                theirs = await self._counters.time()
        except TimeoutError:
            raise StoreError("the counters did not tell the time within a second", transient=True) from None
        after = self._monotonic()
        if after - before > self._options.exact_s and self._ahead_s is not None:
            return
        first, known = self._ahead_s is None, self._ahead_s or 0.0
        self._ahead_s = theirs - (before + after) / 2
        if not first and abs(self._ahead_s - known) > _NOTABLE_S:
            _log.warning(
                "redis: its clock was set: windows and deadlines follow it",
                extra={"seconds": round(self._ahead_s - known, 1)},
            )
            self.stepped()
        off_s = abs(self.now().timestamp() - self._own.now().timestamp())
        if first and off_s > _NOTABLE_S:
            _log.warning(
                "this host's clock differs from redis': windows and deadlines follow redis",
                extra={"seconds": round(off_s, 1)},
            )

    async def run(self) -> None:
        """Follow the counters' clock until cancelled."""

        def failed(error: StoreError) -> None:
            _log.debug("clock not synchronised: the monotonic clock goes on", extra={"error": str(error)})

        await periodically(self.sync, self._options.every_s, expected=StoreError, on_failure=failed)
