"""Declares what every port needs: the faults that a store may raise, and the clock."""

from datetime import datetime
from typing import Protocol


class StoreError(Exception):
    """A store did not do what was asked. `transient`: the same call may succeed later, and is safe to repeat."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class UnreadyError(StoreError):
    """The counters answer, but what they have lost is not rebuilt yet: nothing may be counted in them so far."""

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class ConflictError(Exception):
    """The document was changed since it was read: nothing was written. Read again."""


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""
