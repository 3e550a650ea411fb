"""Declare the errors that a store may raise, and the clock."""

from datetime import datetime
from typing import Protocol

# Name a shard: its partition, where each partition fails by itself (a Redis Cluster); None where all partitions
# fail together.
ShardId = int | None


class StoreError(Exception):
    """Report that a store failed to do a call. `transient`: the same call may succeed later, and is safe to
    repeat.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class UnreadyError(StoreError):
    """Report that the counters answer but are not yet rebuilt after a loss: nothing may be counted in them."""

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class ConflictError(Exception):
    """Report that the document was changed since it was read, and nothing was written. Read the document again."""


class Clock(Protocol):
    """Tell the time."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
