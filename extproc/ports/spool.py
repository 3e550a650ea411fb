"""Declares the spool: the local disk that must survive a kill of this process."""

from collections.abc import Sequence
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
