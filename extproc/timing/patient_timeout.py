"""Bound waits of the same length, without counting against a peer what this event loop itself is late."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Final

# An answer that is there when the time is over takes some turns of the loop to reach the code that waits for it.
# These turns take less than a millisecond on a loop that has nothing else to do.
_TURNS: Final = 16


class PatientTimeouts:
    """Bound many waits of `seconds` each. All of them share one timer: most end long before, and cost none."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: deque[_Wait] = deque()  # those that began first end first
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> "_Wait":
        """Return a context that raises `TimeoutError` after `seconds`, once the loop has read what is there."""
        loop = asyncio.get_running_loop()
        wait = _Wait(asyncio.current_task(loop), loop.time() + self._seconds)
        self._running.append(wait)
        if self._timer is None:
            self._timer = loop.call_at(wait.due, self._look)
        return wait

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, running = loop.time(), self._running
        over = []
        while running and (running[0].task is None or running[0].due <= now):
            wait = running.popleft()
            if wait.task is not None:
                over.append(wait)
        self._timer = loop.call_at(running[0].due, self._look) if running else None
        if over:
            _end_later(loop, over, _TURNS)


class _Wait:
    """Cancel the task that entered it, and turn that into a `TimeoutError`."""

    __slots__ = ("_cancelling", "_is_over", "due", "task")

    def __init__(self, task: asyncio.Task[object] | None, due: float) -> None:
        self.due = due
        self.task = task
        self._cancelling = 0
        self._is_over = False

    def __enter__(self) -> None:
        if self.task is not None:
            self._cancelling = self.task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self.task = self.task, None
        if not self._is_over or task is None:
            return
        left = task.uncancel()
        # Somebody else cancelled the task too: that goes on.
        if left <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def end(self) -> None:
        """End the wait, unless it has ended."""
        if self.task is not None:
            self._is_over = True
            self.task.cancel()


def _end_later(loop: asyncio.AbstractEventLoop, waits: list[_Wait], turns: int) -> None:
    if turns:
        loop.call_soon(_end_later, loop, waits, turns - 1)
        return
    for wait in waits:
        wait.end()
