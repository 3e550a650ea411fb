"""Declares what is durable beside the ledger, for rebuilding counters."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.ports.epochs import Used


class Records(Protocol):
    """What is durable beside the ledger's entries, for rebuilding counters. Every call raises `StoreError`."""

    async def outcomes(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Outcome]:
        """How reservations ended that are in the ledger."""

    async def used(self, now: datetime) -> list[Used]:
        """What the ledger's entries make of all buckets whose window is not over: the sums of their charges."""

    async def keep(self, reservations: Sequence[Reservation]) -> None:
        """Keeps open reservations as they are now; an older state of the same is replaced."""

    async def drop(self, ids: Sequence[ReservationId]) -> None:
        """They are open no more."""

    async def kept(self) -> list[Reservation]:
        """What is kept. Some of it may have ended: `outcomes` tells."""

    async def beat(self, replica: str) -> dict[str, int]:
        """The replica is alive. Returns the beats of all that are known, by name; their numbers only grow."""

    async def leave(self, replica: str) -> None:
        """It is gone, having left nothing behind, or for too long."""
