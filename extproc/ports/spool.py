"""Declare the spool: records on local disk that survive a kill of this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.ports.counters import Closing


class Spool(Protocol):
    """Keep records on local disk that must survive a kill of this process while the counters are down. Bounded in
    size.
    """

    async def opened(self, reservation: Reservation) -> None:
        """Record a reservation that only this process knows. Returns once it is on disk. Raise `StoreError` if
        full.
        """

    def ended(self, closing: Closing) -> None:
        """Record the end of a reservation. Returns at once; the record is on disk soon after."""

    def done(self, ids: Sequence[ReservationId]) -> None:
        """Forget reservations that are now recorded elsewhere. Returns at once."""

    async def keep(self, closings: Sequence[Closing]) -> None:
        """Record ends that could not be delivered in time. Returns once they are on disk. Raise `StoreError`."""


class SpoolFile(Protocol):
    """Hold what a dead process left: reservations whose end nobody knows, and ends that are not recorded."""

    @property
    def path(self) -> Path:
        """Return where the file is."""

    @property
    def unended(self) -> Sequence[Reservation]:
        """Return reservations whose end nobody knows."""

    @property
    def ended(self) -> Sequence[Closing]:
        """Return ends that are not known to be recorded."""

    @property
    def unreadable(self) -> int:
        """Return how many lines can't be read."""

    @property
    def ids(self) -> Sequence[ReservationId]:
        """Return the ids of all reservations in it."""

    def remove(self) -> None:
        """Remove the file: all of it is recorded."""
