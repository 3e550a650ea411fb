"""Sum usage from the ledger in memory: the reference for the tests of the other stores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from extproc.core.quota.ledger import Entry
from extproc.ports.reports import (
    By,
    ClosedErasure,
    ClosedMonth,
    Grain,
    Key,
    Measure,
    Missing,
    Place,
    ReportFilter,
    Sums,
    UsageRow,
    sums_of,
)


class MemorySums:
    """Implement `ports.UsageSums` over what `entries` returns."""

    def __init__(self, entries: Callable[[], Iterable[Entry]]) -> None:
        self._entries = entries

    async def report(
        self, by: By, grain: Grain, wanted: ReportFilter, at_most: int, after: Place | None = None
    ) -> list[UsageRow]:
        rows = self._rows(by, wanted, grain)
        return [row for row in rows if after is None or _is_after(row.place, after)][:at_most]

    async def top(self, by: By, wanted: ReportFilter, measure: Measure, at_most: int) -> list[UsageRow]:
        rows = self._rows(by, wanted, None)
        rows.sort(key=lambda row: getattr(row.sums, measure), reverse=True)
        return rows[:at_most]

    async def total(self, wanted: ReportFilter) -> Sums:
        return sum(map(sums_of, filter(wanted.fits, self._entries())), Sums())

    async def missing(self) -> Missing:
        return Missing(entries=False)

    def _rows(self, by: By, wanted: ReportFilter, grain: Grain | None) -> list[UsageRow]:
        sums: dict[tuple[str | None, Key], Sums] = {}
        for entry in self._entries():
            if wanted.fits(entry, grain or Grain.DAY):
                place = (grain.period(entry) if grain else None, by.key(entry))
                sums[place] = sums.get(place, Sums()) + sums_of(entry)
        rows = [UsageRow(period, *key, each) for (period, key), each in sums.items()]
        rows.sort(key=lambda row: (row.name, row.tenant or ""))
        rows.sort(key=lambda row: row.period or "", reverse=True)
        return rows


class MemoryClosedMonths:
    """Implement `ports.ClosedMonths`."""

    def __init__(self) -> None:
        self._closed: dict[str, tuple[ClosedMonth, list[UsageRow]]] = {}

    async def add(self, closed: ClosedMonth, rows: Sequence[UsageRow]) -> bool:
        if closed.month in self._closed:
            return False
        self._closed[closed.month] = closed, sorted(rows, key=lambda row: (row.name, row.tenant or ""))
        return True

    async def all(self, at_most: int, after: str | None = None) -> list[ClosedMonth]:
        months = sorted((m for m in self._closed if after is None or m < after), reverse=True)
        return [self._closed[month][0] for month in months[:at_most]]

    async def find(self, month: str) -> ClosedMonth | None:
        found = self._closed.get(month)
        return found[0] if found is not None else None

    async def rows(self, month: str, at_most: int, after: Place | None = None) -> list[UsageRow]:
        rows = self._closed[month][1]
        return [row for row in rows if after is None or _is_after(row.place, after)][:at_most]

    async def months_of(self, tenant: str, names: Sequence[str]) -> list[str]:
        return sorted(
            month
            for month, (_, rows) in self._closed.items()
            if any(row.tenant == tenant and row.name in names for row in rows)
        )

    async def erase(self, month: str, tenant: str, name: str, erasure: ClosedErasure) -> bool:
        closed, rows = self._closed[month]
        if erasure.pseudonym not in [each.pseudonym for each in closed.erasures]:
            if closed.checksum_now != erasure.before:
                return False
            closed = replace(closed, erasures=(*closed.erasures, erasure))
        renamed = [replace(r, name=erasure.pseudonym) if (r.tenant, r.name) == (tenant, name) else r for r in rows]
        self._closed[month] = closed, sorted(renamed, key=lambda row: (row.name, row.tenant or ""))
        return True


def _is_after(place: Place, after: Place) -> bool:
    """Return whether a row comes later in a report: its period is older, or its name is greater."""
    if place[0] != after[0]:
        return place[0] < after[0]
    return (place[1], place[2] or "") > (after[1], after[2] or "")
