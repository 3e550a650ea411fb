"""Bound how often each caller may ask, in bounded memory."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_MAX_CALLERS: Final = 10_000
_MINUTE_S: Final = 60.0


class Pace:
    """Give each caller a token bucket: `per_minute` requests at once, refilled over a minute.

    The callers that asked longest ago are forgotten beyond `at_most`: each of them has a full bucket again.
    """

    def __init__(self, per_minute: int, now_s: Callable[[], float], at_most: int = _MAX_CALLERS) -> None:
        self._per_minute = per_minute
        self._now_s = now_s
        self._at_most = at_most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> int | None:
        """Count a request. Return None if it may be served, else the seconds after which the next one may."""
        now = self._now_s()
        left = self._left(caller, now)
        allowed = left >= 1
        self._buckets[caller] = (left - 1 if allowed else left, now)
        self._buckets.move_to_end(caller)
        while len(self._buckets) > self._at_most:
            self._buckets.popitem(last=False)
        return None if allowed else self._wait_s(left)

    def wait_s(self, caller: str) -> int | None:
        """Return what `take` would, without counting a request."""
        left = self._left(caller, self._now_s())
        return None if left >= 1 else self._wait_s(left)

    def _left(self, caller: str, now: float) -> float:
        left, at = self._buckets.get(caller, (float(self._per_minute), now))
        return min(float(self._per_minute), left + (now - at) * self._per_minute / _MINUTE_S)

    def _wait_s(self, left: float) -> int:
        return max(1, math.ceil((1 - left) * _MINUTE_S / self._per_minute))
