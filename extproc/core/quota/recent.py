"""Keep the latest values of one kind, and compare the values that many tenants' requests show."""

from array import array
from bisect import bisect_left, insort
from typing import Final

# The number of latest values that count: a tenth of them is still a dozen, and a change shows within minutes.
WINDOW: Final = 128
# With fewer values than this, the value before learning has its share in the estimate.
ENOUGH: Final = 32
# With fewer tenants than this, nothing is taken from them: few of them could steer the median.
TENANTS: Final = 5
_FOUR_BYTES: Final = "I"
MOST: Final = 2**32 - 1


class Recent:
    """Keep the last `WINDOW` values of one tenant, in order of arrival and in order of size.

    An estimate leaves out the largest tenth of the values. `shown` is the value in `Figures` that stands for this
    tenant; None if there is none.
    """

    __slots__ = ("_arrived", "_oldest", "_sorted", "shown")

    def __init__(self) -> None:
        self._arrived = array(_FOUR_BYTES)
        self._sorted = array(_FOUR_BYTES)
        self._oldest = 0
        self.shown: int | None = None

    def add(self, value: int) -> None:
        """Take in a value from 0 to 2**32 - 1; beyond `WINDOW` values, drop the oldest one."""
        if len(self._arrived) < WINDOW:
            self._arrived.append(value)
        else:
            del self._sorted[bisect_left(self._sorted, self._arrived[self._oldest])]
            self._arrived[self._oldest] = value
            self._oldest = (self._oldest + 1) % WINDOW
        insort(self._sorted, value)

    @property
    def decile(self) -> int | None:
        """Return the value that is next to the tenth left out; None with fewer than `ENOUGH` values."""
        values = len(self._sorted)
        if values < ENOUGH:
            return None
        return self._sorted[-1 - values // 10]

    def estimate(self, prior: int, low: int, high: int) -> int:
        """Return the decile, brought between `low` and `high`. With few values, blend it with the prior."""
        values = len(self._sorted)
        if not values:
            return prior
        return _blended(self._sorted[-1 - values // 10], values, prior, low, high)


class Figure:
    """Hold what a tenant's latest values show together, where that is no single one of them.

    `shown` is as in `Recent`.
    """

    __slots__ = ("_own", "_values", "shown")

    def __init__(self) -> None:
        self._own = self._values = 0
        self.shown: int | None = None

    def set(self, values: int, own: int) -> None:
        """Let so many values show this figure, from 0 to 2**32 - 1."""
        self._values, self._own = values, min(own, MOST)

    @property
    def decile(self) -> int | None:
        """Return the figure; None with fewer than `ENOUGH` values."""
        return self._own if self._values >= ENOUGH else None

    def estimate(self, prior: int, low: int, high: int) -> int:
        """Return the figure, brought between `low` and `high`. With few values, blend it with the prior."""
        return _blended(self._own, self._values, prior, low, high) if self._values else prior


def _blended(own: int, values: int, prior: int, low: int, high: int) -> int:
    own = min(max(own, low), high)
    return own if values >= ENOUGH else (prior * (ENOUGH - values) + own * values) // ENOUGH


class Figures:
    """Keep one figure of each tenant, in order of size."""

    __slots__ = ("_sorted",)

    def __init__(self) -> None:
        self._sorted = array(_FOUR_BYTES)

    def follow(self, recent: Recent | Figure) -> None:
        """Let the present decile stand for a tenant, once it has enough values."""
        if (figure := recent.decile) != recent.shown:
            self._replace(recent, figure)

    def withdraw(self, recent: Recent | Figure) -> None:
        """Take out what stands for a tenant."""
        self._replace(recent, None)

    def _replace(self, recent: Recent | Figure, figure: int | None) -> None:
        if recent.shown is not None:
            del self._sorted[bisect_left(self._sorted, recent.shown)]
        if figure is not None:
            insort(self._sorted, figure)
        recent.shown = figure

    def prior(self, own: int | None, start: int, low: int, high: int) -> int:
        """Return the median without a tenant's own figure, between `low` and `high`.

        Return `start` if fewer than `TENANTS` others have a figure. Of an even number, the larger one of the two
        in the middle counts. A minority of the others moves the median only between figures of the majority.
        """
        others = len(self._sorted) - (own is not None)
        if others < TENANTS:
            return start
        middle = others // 2
        if own is not None and bisect_left(self._sorted, own) <= middle:
            middle += 1
        return min(max(self._sorted[middle], low), high)
