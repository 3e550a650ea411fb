"""Declare the ledger, and the reports that are read from it."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from extproc.core.quota.ledger import Entry


class Ledger(Protocol):
    """Record every request, and sum daily usage from the records."""

    async def append(self, entries: Sequence[Entry], still: Callable[[], bool] | None = None) -> None:
        """Write entries durably and add them to daily usage. An entry whose id is known changes nothing.

        `still` is asked immediately before the step that puts the entries into the ledger. If it returns False,
        nothing is written, and a transient `StoreError` is raised. It is not asked again when that step is
        repeated because its result is unknown.

        Raise `StoreError`; after a transient one the same entries may be appended again. An entry that the ledger
        may have had and deleted is refused permanently: it could be counted twice.
        """

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Select daily usage. None: any value. Dates are YYYY-MM-DD, both inclusive."""

    tenant: str | None = None
    service_account: str | None = None
    client_ip: str | None = None
    since: str | None = None
    until: str | None = None

    def fits(self, used: "Entry | DailyUsage") -> bool:
        """Return whether an entry, or the usage of a day, is wanted."""
        who = used.identity if isinstance(used, Entry) else used
        return (
            self.tenant in (None, who.tenant)
            and self.service_account in (None, who.service_account)
            and self.client_ip in (None, who.client_ip)
            and (self.since or "") <= used.date <= (self.until or "9999")
        )


@dataclass(frozen=True, slots=True)
class DailyUsage:
    """Sum the usage of one service account + client IP on one date, in tokens and requests; `price` as in
    `Entry`.
    """

    tenant: str
    service_account: str
    client_ip: str
    date: str
    usage: int
    input: int = 0
    output: int = 0
    cached: int = 0
    requests: int = 0
    denied: int = 0
    estimated: int = 0
    price: int = 0


class UsageReports(Protocol):
    """Report usage. Every call raises `StoreError`."""

    async def daily(self, wanted: UsageFilter, at_most: int) -> list[DailyUsage]:
        """Return daily usage, newest date first, then largest usage first."""

    async def entries(self, wanted: UsageFilter, at_most: int) -> list[Entry]:
        """Return ledger entries, those that ended last first."""

    def replay(self, wanted: UsageFilter) -> AsyncIterator[Entry]:
        """Yield ledger entries in order of admission, oldest first, without a limit on their number.

        A second call starts again. Entries that are appended meanwhile may or may not be included.
        """

    async def gone_before(self, now: datetime) -> datetime | None:
        """Return the instant before which entries that ended may be deleted. None: no entry was ever deleted.

        Daily usage is never deleted.
        """
