"""Find single requests in the ledger in memory."""

from datetime import datetime
from typing import Final

from extproc.core.quota.ledger import Entry
from extproc.ports.ledger import UsageFilter
from extproc.ports.requests import RequestFilter, RequestPlace
from extproc.stores.memory.ledger import MemoryLedger

_ALL: Final = 1 << 62


class MemoryRequests:
    """Implement `ports.RequestRecords` on the entries of a `MemoryLedger`."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger

    async def of_id(self, name: str, at_most: int) -> list[Entry]:
        return [entry for entry in await self._newest() if name in (entry.id, entry.request_id)][:at_most]

    async def newest(self, wanted: RequestFilter, at_most: int, after: RequestPlace | None = None) -> list[Entry]:
        behind = (after.ended_at, after.id) if after is not None else None
        return [
            entry
            for entry in await self._newest()
            if wanted.fits(entry) and (behind is None or _place(entry) < behind)
        ][:at_most]

    async def _newest(self) -> list[Entry]:
        return sorted(await self._ledger.entries(UsageFilter(), _ALL), key=_place, reverse=True)


def _place(entry: Entry) -> tuple[datetime, str]:
    return entry.ended_at, entry.id
