"""Declare the durable records beside the ledger's entries that a rebuild of counters needs."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.epochs import Used
from extproc.ports.generation import Generation


class Records(Protocol):
    """Keep the durable records that a rebuild of counters needs. Every call raises `StoreError`."""

    async def outcomes(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Outcome]:
        """Return the outcomes of the reservations that are in the ledger."""

    async def used(self, now: datetime) -> list[Used]:
        """Return the charges of the ledger's entries and the corrections, summed per bucket, for all buckets whose
        window is not over.
        """

    async def used_of(self, buckets: Sequence[tuple[TenantId, str]], now: datetime) -> list[int] | None:
        """Return the same sums of single buckets, by tenant and key: 0 for a bucket without any.

        Return None while the sums are not known without reading entries: a standalone server has none.
        """

    async def corrections(self, now: datetime) -> list[Used]:
        """Return the corrections of buckets whose window is not over."""

    async def correct(self, corrections: Sequence[Used]) -> None:
        """Record that so much was used of buckets beside the ledger's entries: they are lost.

        Of several corrections of a bucket the largest one counts. Safe to repeat.
        """

    async def advance(self, noted: int) -> Generation | None:
        """Raise the ledger's generation beyond `noted`, and return it.

        Return None, and change nothing, if the ledger's generation is less than `noted`: the ledger went back.
        `noted` is 0 or a generation that this method returned, to any replica.
        """

    async def corrected(self, noted: int) -> None:
        """Raise the ledger's generation beyond `noted`, whatever it is: the sums of the ledger were corrected."""

    async def save(self, reservations: Sequence[Reservation]) -> None:
        """Save open reservations in their present state. Replaces an older state of the same reservation."""

    async def drop(self, ids: Sequence[ReservationId]) -> None:
        """Delete saved reservations: they have ended."""

    async def saved(self) -> list[Reservation]:
        """Return the saved reservations. Some of them may have ended; check with `outcomes`."""

    async def which_saved(self, ids: Sequence[ReservationId]) -> set[ReservationId]:
        """Return those of the given ids whose reservations are saved."""

    async def note_saved_until(self, replica: str, until: datetime) -> None:
        """Record that each reservation which the replica answers for and which was admitted before `until` (aware)
        is saved, or has its entry in the journal or the ledger.

        As durable as `keep`. The instant of the replica's latest call counts, also if it is an earlier one: its
        clock may have been set back. Only the process of the replica calls this.
        """

    async def abort_writes_of(self, replica: str) -> None:
        """Abort what a replica that is gone has begun to write to the ledger, and not committed.

        Others could not write the same rows until MongoDB gave it up, after a minute. If the replica only stood
        still, it writes all of it again. Know its sessions by its latest call of `note_saved_until`.
        """

    async def saved_until(self) -> dict[str, datetime]:
        """Return the recorded instant of each replica, dead ones too, rounded down to a millisecond.

        A replica of version 0.1 has none. An instant is kept for 35 days after the replica's latest call.
        """

    async def heartbeat(self, replica: str) -> dict[str, int]:
        """Record that the replica is alive. Return the number of beats of each known replica, by name. The numbers
        only grow.
        """

    async def deregister(self, replica: str) -> None:
        """Delete the replica: it left nothing behind, or has been gone for too long."""
