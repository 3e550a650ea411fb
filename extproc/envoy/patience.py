"""How long a stream is waited for: for its whole request, and between two messages after that."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waits:
    """`request_s`: from a stream's beginning to its whole request; `idle_s`: of silence, once that is there."""

    request_s: float = 30.0
    idle_s: float = 3600.0


class Patience:
    """Cancels the task that made it when its stream has taken too long. One timer a stream, none a message.

    The timer runs from the stream's beginning. When it fires and all is well, it is set again.
    """

    def __init__(self, waits: Waits, awaits_request: Callable[[], bool]) -> None:
        self._waits = waits
        self._awaits_request = awaits_request
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._begun = self._heard = self._loop.time()
        self._timer = self._loop.call_at(self._begun + waits.request_s, self._look)
        self.lost = False

    def heard(self) -> None:
        """A message has come."""
        self._heard = self._loop.time()

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        due = self._begun + self._waits.request_s
        if not self._awaits_request():
            due = self._heard + self._waits.idle_s
        if due > self._loop.time():
            self._timer = self._loop.call_at(due, self._look)
        elif self._task is not None:
            self.lost = True
            self._task.cancel()
