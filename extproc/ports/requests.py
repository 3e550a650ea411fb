"""Declare the look-up of single requests in the ledger."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from extproc.core.quota.ledger import Entry
from extproc.core.quota.settlement import Outcome


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Select entries. All that are given must fit; None: any value.

    `since` (inclusive) and `until` (exclusive) are aware, and bound the end of the request.
    """

    outcome: Outcome | None = None
    tenant: str | None = None
    service_account: str | None = None
    client_ip: str | None = None
    model: str | None = None
    endpoint: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def fits(self, entry: Entry) -> bool:
        """Return whether an entry is wanted."""
        who = entry.identity
        return (
            self.outcome in (None, entry.outcome)
            and self.tenant in (None, who.tenant)
            and self.service_account in (None, who.service_account)
            and self.client_ip in (None, who.client_ip)
            and self.model in (None, entry.model)
            and self.endpoint in (None, entry.endpoint)
            and (self.since is None or self.since <= entry.ended_at)
            and (self.until is None or entry.ended_at < self.until)
        )


@dataclass(frozen=True, slots=True)
class RequestPlace:
    """Name the place of an entry in the order of `RequestRecords.newest`."""

    ended_at: datetime
    id: str


class RequestRecords(Protocol):
    """Find requests in the ledger. Every call raises `StoreError`."""

    async def of_id(self, name: str, at_most: int) -> list[Entry]:
        """Return the entries with this reservation id or this request id, the last to end first."""

    async def newest(self, wanted: RequestFilter, at_most: int, after: RequestPlace | None = None) -> list[Entry]:
        """Return entries, the last to end first (then by id, descending), those behind `after` only."""
