"""Declares the ledger, and the reports that are read from it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from extproc.core.quota.ledger import Entry


class Ledger(Protocol):
    """The record of what happened, and daily usage as its sum."""

    async def append(self, entries: Sequence[Entry]) -> None:
        """Writes entries durably and adds them to daily usage; an entry whose id is known changes nothing.

        Raises `StoreError`; after a transient one the same entries may be appended again.
        """

    async def aclose(self) -> None:
        """Gives connections back."""


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which daily usage to report; None: any. Dates are YYYY-MM-DD, both inclusive."""

    tenant: str | None = None
    service_account: str | None = None
    client_ip: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class DailyUsage:
    """The usage of one service account + client IP on one date, in tokens and requests; `price` as in `Entry`."""

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
    """What was used. Every call raises `StoreError`."""

    async def daily(self, wanted: UsageFilter, at_most: int) -> list[DailyUsage]:
        """Daily usage, newest date first, then the largest usage."""

    async def entries(self, wanted: UsageFilter, at_most: int) -> list[Entry]:
        """The ledger itself, newest first."""

    def replay(self, wanted: UsageFilter) -> AsyncIterator[Entry]:
        """The ledger in the order of admission, oldest first, however long; one that asks again starts anew.

        What is appended meanwhile may or may not be among them.
        """
