"""Declares the journal: entries between the end of their reservation and the ledger."""

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
    """An entry that waits in the journal to be written to the ledger; `entry` is None where it can't be read."""

    receipt: Receipt
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Journalled:
    """What counters have to know of an entry that waits in the journal, when they are rebuilt."""

    id: ReservationId
    tenant: TenantId
    outcome: Outcome
    charges: tuple[Charge, ...]

    @classmethod
    def of(cls, entry: Entry) -> "Journalled":
        """What it has to say."""
        return cls(entry.id, entry.identity.tenant, entry.outcome, entry.charges)


@dataclass(frozen=True, slots=True)
class Aside:
    """An entry that the ledger refused for good, as it was journalled (JSON), and why; where it stands."""

    text: str
    reason: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many entries wait, how many seconds the oldest has waited, and how many were set aside."""

    waiting: int
    oldest_s: float
    aside: int


class Journal(Protocol):
    """Entries between the end of their reservation and the ledger. Every call raises `StoreError`.

    It outlives epochs. What it holds is only removed when it is known to be in the ledger, or set aside.
    """

    async def written(self, receipts: Sequence[Receipt]) -> None:
        """The entries are in the ledger: forgets them. One that is gone already is fine."""

    async def waiting(self, older_than_s: float, at_most: int, partition: int | None = None) -> list[Waiting]:
        """Entries that have waited for so long, oldest first, of all partitions or of one.

        With an age of 0 all that wait, whatever the clock says that they are.
        Where more wait than are asked for, each partition's oldest ones are among them.
        """

    async def journalled(self, partition: int) -> list[Journalled]:
        """All that waits in a partition and can be read. What is removed meanwhile may be among it or not."""

    async def set_aside(self, entry: Entry | None, receipt: Receipt | None, reason: str) -> None:
        """Puts an entry where people find it and nothing tries it again; atomically with forgetting it.

        With an entry of None the journal's own text is kept.
        """

    async def aside(self, at_most: int) -> list[Aside]:
        """What was set aside, oldest first."""

    async def forget_aside(self, receipts: Sequence[Receipt]) -> None:
        """These are in the ledger after all: removes them from what was set aside. One that is gone is fine."""

    async def backlog(self) -> Backlog:
        """What waits."""
