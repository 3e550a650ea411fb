"""Share the event loop out between long work, which is done in slices, and everything else."""

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import Final

# The longest slice, but for its last step. A message of another exchange waits for one slice at a time.
SLICE_S: Final = 0.0005
# A slice that took less than this counts as short, and nobody rests after it.
SHORT_S: Final = 0.0001
# After each slice all long work rests for this many times as long as the slice took.
_REST: Final = 2
# So much rest may be left out: timers are no finer than a millisecond.
_TIMER_S: Final = 0.0005
_PAUSE_S: Final = 0.001
# Long work does not rest while exchanges without long work have said nothing for so long: nobody needs the time.
_QUIET_S: Final = 0.02
# An exchange that has done so much long work is no longer one of those that must not wait.
_HEAVY_S: Final = 0.005


class Turns:
    """Let one exchange after the other do a slice of long work, for a third of the time at the most.

    Of the exchanges that wait, the one that has worked least is next. One that comes later begins with what those
    who are served have worked by then (start-time fair queueing), so the newest do not keep the oldest waiting.
    While only exchanges with long work say anything, nobody rests: each turn of the loop then does one slice.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._free_at = clock()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()
        self._served = 0.0  # what an exchange that comes now counts as having worked
        self._due = False
        self._heard = False  # since `_heard_at`: messages are many, and the clock is read when somebody asks
        self._heard_at = self._free_at

    def heard(self) -> None:
        """Note a message of an exchange without long work."""
        self._heard = True

    async def wait(self, worked_s: float) -> float:
        """Wait for the next slice of an exchange that has worked for `worked_s` seconds. Return its new count."""
        worked_s = max(worked_s, self._served)
        if not self._waiting and self._is_free():
            return worked_s
        turn = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (worked_s, next(self._order), turn))
        self._call_next()
        await turn
        return worked_s

    def worked(self, seconds: float) -> None:
        """Note that a slice took so long."""
        now = self._clock()
        since = now if self._is_quiet(now) else max(self._free_at, now)
        self._free_at = since + _REST * seconds
        self._served += seconds / (len(self._waiting) + 1)

    def _is_free(self) -> bool:
        return self._free_at - self._clock() < _TIMER_S

    @property
    def rests(self) -> bool:
        """Tell whether long work rests after a slice."""
        return not self._is_quiet(self._clock())

    def _is_quiet(self, now: float) -> bool:
        if self._heard:
            self._heard = False
            self._heard_at = now
        return now - self._heard_at > _QUIET_S

    def _call_next(self) -> None:
        if not self._due:
            self._due = True
            loop, now = asyncio.get_running_loop(), self._clock()
            if self._is_quiet(now):
                loop.call_soon(self._next)
            else:
                loop.call_later(max(_PAUSE_S, self._free_at - now), self._next)

    def _next(self) -> None:
        self._due = False
        while self._waiting and (self._is_free() or not self.rests):
            worked_s, _, turn = heappop(self._waiting)
            if not turn.done():  # its exchange was not cancelled
                self._served = max(self._served, worked_s)
                turn.set_result(None)
                break
        if self._waiting:
            self._call_next()


class Turn:
    """Hold what one exchange has worked, and wait on its behalf.

    By a clock that costs nothing, not by the thread's processor time: a piece of work that the machine interrupts
    counts as longer than it was, and its exchange then waits a little longer.
    """

    __slots__ = ("_begun", "_counted_s", "_turns", "_worked_s", "owes")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._worked_s = 0.0
        self._counted_s = 0.0  # the same, and what it was not here for
        self._begun = 0.0
        self.owes = False
        """Tell whether the work before was long: `wait` before the next."""

    def heard(self) -> None:
        """Note that a message has come. Others rest for it, unless this exchange itself does long work."""
        if self._worked_s < _HEAVY_S:
            self._turns.heard()

    def begin(self) -> None:
        """Begin a piece of work."""
        self._begun = perf_counter()

    @property
    def over(self) -> bool:
        """Tell whether the piece of work has taken as long as a slice may take."""
        return perf_counter() - self._begun > SLICE_S

    def end(self) -> None:
        """End a piece of work. After long work it `owes` a wait."""
        took = perf_counter() - self._begun
        if took > SHORT_S:
            self.owes = True
            self._worked_s += took
            self._counted_s += took
            self._turns.worked(took)

    async def wait(self) -> None:
        """Wait for a slice of long work."""
        self.owes = False
        self._counted_s = await self._turns.wait(self._counted_s)
