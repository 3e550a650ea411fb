"""Remember for a moment which buckets are used up, to refuse a large request before its body is read."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from extproc.core.quota.limits import Bucket, Unit
from extproc.core.quota.reservation import BucketState

# An operator may reset a counter, or a rebuild may correct it: that is noticed after so many seconds.
_REMEMBERED_S: Final = 5.0
_MAX_BUCKETS: Final = 10_000
# Every request needs at least one of these.
_UNITS: Final = frozenset({Unit.TOKENS, Unit.REQUESTS})


class Exhausted:
    """Hold the buckets that denied a request because all of their limit was used: holds do not count.

    Only limits that bind requests for all models and endpoints are kept. A limit that is raised is another bucket.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[Bucket, tuple[float, BucketState]] = OrderedDict()

    def note(self, state: BucketState, now: float) -> None:
        """Take the state of a bucket that denied a request. `now` is in seconds since the epoch."""
        limit = state.bucket.limit
        if limit.shadow or not limit.is_general or limit.unit not in _UNITS or state.count.used < limit.amount:
            return
        self._states[state.bucket] = (min(now + _REMEMBERED_S, state.bucket.interval.end), state)
        self._states.move_to_end(state.bucket)
        if len(self._states) > _MAX_BUCKETS:
            self._states.popitem(last=False)

    def among(self, buckets: Iterable[Bucket], now: float) -> BucketState | None:
        """Return the state of the first of these buckets that is known to be used up; None if none is."""
        for bucket in buckets:
            until, state = self._states.get(bucket, (0.0, None))
            if now < until:
                return state
        return None
