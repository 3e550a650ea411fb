"""Bound how long a stream is waited for: for its whole request, and between two messages after that."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Waits:
    """`request_s`: from a stream's beginning to its whole request; `idle_s`: of silence, once that is there."""

    request_s: float = 30.0
    idle_s: float = 3600.0


class Waiter(Protocol):
    """Be a stream: when it said something last (by the loop's clock), and whether its request is not whole yet."""

    heard_at: float

    @property
    def awaits_request(self) -> bool: ...

    def lose(self) -> None:
        """End: it took too long."""


class Patience:
    """Lose streams that take too long. All of them share one timer: most end long before, and cost none.

    A stream is looked at `request_s` after its beginning, and every `idle_s` after that.
    """

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self.now: Callable[[], float] = time.monotonic
        """Return the time by the clock of the streams' loop. To ask for the loop costs a system call."""
        # When each of them is looked at. Those that came first are first.
        self._new: dict[Waiter, float] = {}
        self._old: dict[Waiter, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, waiter: Waiter) -> None:
        """Wait for a stream from now on."""
        loop = asyncio.get_running_loop()
        self.now = loop.time
        waiter.heard_at = loop.time()
        self._new[waiter] = due = waiter.heard_at + self._waits.request_s
        if self._timer is None or self._timer.when() > due:  # it may be set for an old one, long after this
            self._look_later(loop)

    def end(self, waiter: Waiter) -> None:
        """Wait for it no longer."""
        if self._new.pop(waiter, None) is None:
            self._old.pop(waiter, None)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = [next(iter(each.values())) for each in (self._new, self._old) if each]
        self._timer = loop.call_at(min(due), self._look) if due else None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, idle_s = loop.time(), self._waits.idle_s
        due = []
        for waiters in (self._new, self._old):
            for waiter, at in waiters.items():
                if at > now:
                    break
                due.append(waiter)
        for waiter in due:
            self.end(waiter)
            if waiter.awaits_request or now - waiter.heard_at >= idle_s:
                waiter.lose()
            else:
                self._old[waiter] = now + idle_s
        self._look_later(loop)
