"""Declares the spool: the local disk that must survive a kill of this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.ports.counters import Closing


class Spool(Protocol):
    """What must survive a kill of this process while the counters are away: bounded, on local disk."""

    async def opened(self, reservation: Reservation) -> None:
        """A reservation that only this process knows of. On disk when it returns; full, it raises `StoreError`."""

    def ended(self, closing: Closing) -> None:
        """How it ended. Returns at once; on disk soon."""

    def done(self, ids: Sequence[ReservationId]) -> None:
        """These are recorded elsewhere: forgets them. Returns at once."""

    async def keep(self, closings: Sequence[Closing]) -> None:
        """Ends that could not be delivered in time. On disk when it returns; raises `StoreError`."""


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
