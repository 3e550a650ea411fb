"""Close months: freeze a report with its checksum, and show what came later."""

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from extproc.admin.change import Change
from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.paging import MAX_PAGE, Page, checked_page, cursor_of, key_of
from extproc.admin.usage import a_month, of_month
from extproc.ports.audit import AuditEntry, AuditLog
from extproc.ports.journal import Journal
from extproc.ports.reports import (
    SUM_NAMES,
    By,
    ClosedMonth,
    ClosedMonths,
    Grain,
    Place,
    ReportFilter,
    Sums,
    UsageRow,
    UsageSums,
)

# A month is over in the last time zone 12 hours after UTC. A request of its last minute may take some hours more.
_OVER_AFTER: Final = timedelta(hours=18)
# Entries of a healthy system wait some seconds for the ledger.
_WAITING_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Verified:
    """Tell whether a closed month is as it was closed, and what the ledger has of it now.

    `intact`: its rows still have the checksum. `now` are the sums of the ledger now: what came after the close is
    the difference from `closed.total`.
    """

    closed: ClosedMonth
    intact: bool
    now: Sums
    difference: Sums


class Closing:
    """Run the use cases on closed months. Every call raises `AdminError` and `StoreError`."""

    def __init__(  # noqa: PLR0917 - ports
        self,
        sums: UsageSums,
        months: ClosedMonths,
        journal: Journal,
        audit: AuditLog,
        now: Callable[[], datetime],
        currency: str,
    ) -> None:
        self._sums = sums
        self._months = months
        self._journal = journal
        self._audit = audit
        self._now = now
        self._currency = currency

    async def close(self, month: str, change: Change) -> ClosedMonth:
        """Freeze the sums of each tenant and service account of a month.

        Raise `AdminError` if the month is not over everywhere, is closed already, or entries still wait for the
        ledger or its reports.
        """
        month, now = a_month(month), self._now()
        await self._refuse_unready(month, now)
        rows = [row async for row in self._present(month)]
        total = sum((row.sums for row in rows if row.tenant is None), Sums())
        digest = checksum(month, self._currency, rows)
        closed = ClosedMonth(month, now, change.actor, change.note, self._currency, digest, len(rows), total)
        if change.dry_run:
            return closed
        if not await self._months.add(closed, rows):
            raise _closed_already(month)
        await self._audit.append(_audited(closed))
        return closed

    async def closed(self, at_most: int = 1000, cursor: str | None = None) -> Page[ClosedMonth]:
        """Return the closed months, the newest first."""
        after = key_of(cursor, str) if cursor is not None else None
        months = await self._months.all(checked_page(at_most) + 1, after)
        page = tuple(months[:at_most])
        return Page(page, cursor_of(page[-1].month) if len(months) > at_most else None)

    async def show(self, month: str, at_most: int = MAX_PAGE, cursor: str | None = None) -> Page[UsageRow]:
        """Return the rows of a closed month: of a tenant as a whole (without `tenant`), and of each account."""
        await self.found(month)
        after = key_of(cursor, Place) if cursor is not None else None
        rows = await self._months.rows(month, checked_page(at_most) + 1, after)
        page = tuple(rows[:at_most])
        return Page(page, cursor_of(page[-1].place) if len(rows) > at_most else None)

    async def verify(self, month: str) -> Verified:
        """Compare the rows of a closed month with their checksum, and its total with the ledger's now."""
        closed = await self.found(month)
        rows = await frozen_rows(self._months, closed.month)
        intact = checksum(closed.month, closed.currency, rows) == closed.checksum_now
        now = await self._sums.total(of_month(ReportFilter(), closed.month))
        before = closed.total
        difference = Sums(*(getattr(now, name) - getattr(before, name) for name in SUM_NAMES))
        return Verified(closed, intact, now, difference)

    async def _refuse_unready(self, month: str, now: datetime) -> None:
        if (closed := await self._months.find(month)) is not None:
            await self._audit.append(_audited(closed))  # it is missing if the process died in between
            raise _closed_already(month)
        last = of_month(ReportFilter(), month).until or ""
        over = datetime.fromisoformat(last).replace(tzinfo=UTC) + timedelta(days=1) + _OVER_AFTER
        if now < over:
            raise AdminError(
                f"{month} can be closed from {over:%Y-%m-%dT%H:%MZ} on: until then it may get entries"
            )
        backlog = await self._journal.backlog()
        if backlog.aside:
            raise AdminError(
                f"the ledger refused {backlog.aside} entries, which may be of {month}: `tokenweir ledger aside`"
            )
        if backlog.waiting and backlog.oldest_s >= _WAITING_S:
            raise AdminError(
                f"{backlog.waiting} entries wait for the ledger, the oldest for {backlog.oldest_s:.0f} s, and may "
                f"be of {month}: close it when they are written (`tokenweir ledger waiting`)"
            )
        if (await self._sums.missing()).entries:
            raise AdminError("entries of the ledger are still being added to the reports: close the month later")

    async def found(self, month: str) -> ClosedMonth:
        """Return a closed month. Raise `NotFoundError`."""
        found = await self._months.find(a_month(month))
        if found is None:
            raise NotFoundError(f"{month} is not closed")
        return found

    async def _present(self, month: str) -> AsyncIterator[UsageRow]:
        """Yield the rows of a month as they are now, in the order of the frozen ones."""
        wanted = of_month(ReportFilter(), month)
        tenants: list[UsageRow] = []
        async for row in self._all(By.TENANT, wanted):
            tenants.append(row)
            yield row
        for each in tenants:
            async for row in self._all(By.SERVICE_ACCOUNT, of_month(ReportFilter(tenant=each.name), month)):
                yield row

    async def _all(self, by: By, wanted: ReportFilter) -> AsyncIterator[UsageRow]:
        after: Place | None = None
        while rows := await self._sums.report(by, Grain.MONTH, wanted, MAX_PAGE, after):
            for row in rows:
                yield row
            after = rows[-1].place


async def frozen_rows(months: ClosedMonths, month: str) -> list[UsageRow]:
    """Return all rows of a closed month."""
    rows: list[UsageRow] = []
    while page := await months.rows(month, MAX_PAGE, rows[-1].place if rows else None):
        rows += page
    return rows


def checksum(month: str, currency: str, rows: list[UsageRow]) -> str:
    """Return the SHA-256 over lines of JSON: month and currency, then the rows by name and tenant."""
    digest = hashlib.sha256(msgspec.json.encode([month, currency]) + b"\n")
    for row in sorted(rows, key=lambda row: (row.name, row.tenant or "")):
        numbers = [getattr(row.sums, name) for name in SUM_NAMES]
        digest.update(msgspec.json.encode([row.name, row.tenant, *numbers]) + b"\n")
    return digest.hexdigest()


def _audited(closed: ClosedMonth) -> AuditEntry:
    """Return the entry of a close. Its id is that of the close, so it is written once."""
    return AuditEntry(
        id=f"usage.close:{closed.month}",
        at=closed.closed_at,
        actor=closed.closed_by,
        action="usage.close",
        tenant=None,
        subject=closed.month,
        after={
            "checksum": closed.checksum,
            "rows": closed.rows,
            "usage": closed.total.usage,
            "price": closed.total.price,
        },
        note=closed.note,
    )


def _closed_already(month: str) -> AdminError:
    return AdminError(
        f"{month} is closed: a closed month never changes; `usage closed verify` shows what came later"
    )
