"""Erase a person in closed months: the name of a row changes, and with it the checksum. Sums never change.

A month notes each erasure with the checksum before and after it, so that anybody can tell it from another change.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime
from typing import Final

from extproc.admin.closing import checksum, frozen_rows
from extproc.admin.usage import of_month
from extproc.ports.base import StoreError
from extproc.ports.erasure import ErasureJob, NameKind
from extproc.ports.reports import ClosedErasure, ClosedMonths, ReportFilter

_TRIES: Final = 3


async def erasable_months(months: ClosedMonths, job: ErasureJob, running: Iterable[str]) -> tuple[str, ...]:
    """Return the closed months with a row of the name or its pseudonym, of which no date stays as it is."""
    if job.kind is not NameKind.SERVICE_ACCOUNT:
        return ()  # rows are of tenants and service accounts
    stay = {day[:7] for day in running} | {job.before[:7]}
    found = await months.months_of(job.tenant, [job.name, job.pseudonym])
    return tuple(month for month in found if month not in stay and _last(month) < date.fromisoformat(job.before))


async def erase_in_month(months: ClosedMonths, month: str, job: ErasureJob, at: datetime) -> ClosedErasure:
    """Rename the row of a closed month, once. Return what the month notes about it. Raise `StoreError`."""
    for _ in range(_TRIES):
        closed = await months.find(month)
        if closed is None:
            break
        noted = next((each for each in closed.erasures if each.pseudonym == job.pseudonym), None)
        if noted is None:
            rows, before = await frozen_rows(months, month), closed.checksum_now
            renamed = [
                replace(row, name=job.pseudonym) if (row.tenant, row.name) == (job.tenant, job.name) else row
                for row in rows
            ]
            intact = checksum(month, closed.currency, rows) == before
            after = checksum(month, closed.currency, renamed) if intact else before
            noted = ClosedErasure(at, job.pseudonym, before, after)
        if await months.erase(month, job.tenant, job.name, noted):
            return noted
    raise StoreError(f"closed month {month} was changed meanwhile: repeat the command", transient=True)


def _last(month: str) -> date:
    return date.fromisoformat(of_month(ReportFilter(), month).until or "")
