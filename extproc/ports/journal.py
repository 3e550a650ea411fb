"""Declare the journal: it keeps entries from the end of their reservation until they are in the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from extproc.core.quota.ledger import Charge, Entry
from extproc.core.quota.reservation import ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.counters import Receipt


@dataclass(frozen=True, slots=True)
class Waiting:
    """Hold an entry of the journal that is not yet in the ledger. `entry` is None if it can't be read.

    `replica` admitted the request; '' where the journal does not say (version 0.1).
    """

    receipt: Receipt
    entry: Entry | None
    replica: str = ""


@dataclass(frozen=True, slots=True)
class Journalled:
    """Hold the facts of a journal entry that a rebuild of counters needs."""

    id: ReservationId
    tenant: TenantId
    outcome: Outcome
    charges: tuple[Charge, ...]

    @classmethod
    def of(cls, entry: Entry) -> "Journalled":
        """Take these facts from the entry."""
        return cls(entry.id, entry.identity.tenant, entry.outcome, entry.charges)


@dataclass(frozen=True, slots=True)
class Aside:
    """Hold an entry that the ledger refused permanently: its text in the journal (JSON), the reason, and its
    place.
    """

    text: str
    reason: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Backlog:
    """Count the entries that wait, the age of the oldest one in seconds, and the entries that were set aside."""

    waiting: int
    oldest_s: float
    aside: int


class Journal(Protocol):
    """Keep entries between the end of their reservation and the ledger. Every call raises `StoreError`.

    The journal outlives epochs. It removes an entry only if the entry is in the ledger or was set aside.
    """

    async def written(self, receipts: Sequence[Receipt]) -> None:
        """Remove entries that are in the ledger. An entry that is already gone is no error."""

    async def waiting(
        self, older_than_s: float, at_most: int, partition: int | None = None, after: Receipt | None = None
    ) -> list[Waiting]:
        """Return entries older than `older_than_s`, oldest first, of all partitions or of one.

        Of one partition, `after` leaves out what stands up to an entry, which may be gone by now.

        An age of 0 returns all entries, whatever their clock says. If there are more entries than `at_most`, the
        result contains the oldest ones of each partition.
        """

    async def journalled(self, partition: int) -> list[Journalled]:
        """Return all readable entries of a partition. An entry that is removed during the call may or may not be
        included.
        """

    async def set_aside(self, entry: Entry | None, receipt: Receipt | None, reason: str) -> None:
        """Move an entry from the journal to a place for manual repair, in one atomic step. The entry is not
        retried.

        If `entry` is None, the journal's own text is kept.
        """

    async def aside(self, at_most: int) -> list[Aside]:
        """Return the entries that were set aside, oldest first."""

    async def forget_aside(self, receipts: Sequence[Receipt]) -> None:
        """Remove entries from those set aside, because they are in the ledger now. An entry that is gone is no
        error.
        """

    async def backlog(self) -> Backlog:
        """Return the size and age of the backlog."""
