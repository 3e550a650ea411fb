"""Erase a person: their name becomes a pseudonym in records of windows that have ended; all sums stay.

The pseudonym is random. While it runs, the store keeps name and pseudonym, so that a command that was killed goes
on where it stood; at the end nothing connects them any more.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Final

from extproc.admin.change import Change
from extproc.admin.closed_erasing import erasable_months, erase_in_month
from extproc.admin.errors import AdminError
from extproc.admin.names import client_ip as address
from extproc.admin.names import named, tenant_id
from extproc.core.request.addresses import IPV6_PREFIX
from extproc.ports.audit import AuditEntry, AuditLog
from extproc.ports.base import StoreError
from extproc.ports.erasure import ErasureJob, ErasureStore, ErasureSums, NameKind
from extproc.ports.reports import ClosedErasure, ClosedMonths

PSEUDONYM: Final = "erased-"
# A tenant's day ends up to 12 hours after that of UTC; entries of its last requests come a little later.
_YOUNGEST: Final = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Erased:
    """Say what was erased, or would be (`dry_run`). `running`: dates that stay, with the end of their window.

    `sums` are those of the dates' records, before and after alike. `resumed`: an earlier try had begun it.
    `closed_months` are those with a row of the name, which has the pseudonym then.
    """

    tenant: str
    kind: NameKind
    pseudonym: str
    dates: tuple[str, ...]
    running: Mapping[str, datetime]
    sums: ErasureSums
    changed: int
    resumed: bool
    dry_run: bool
    closed_months: tuple[str, ...] = ()


class Erasing:
    """Run the use case. Stateless."""

    def __init__(
        self,
        store: ErasureStore,
        audit: AuditLog,
        months: ClosedMonths,
        now: Callable[[], datetime],
        *,
        ipv6_prefix: int = IPV6_PREFIX,
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._store = store
        self._audit = audit
        self._months = months
        self._now = now
        self._ipv6_prefix = ipv6_prefix
        self._new_id = new_id

    async def erase(self, tenant: str, kind: NameKind, name: str, before: str, change: Change) -> Erased:
        """Erase one name in records of dates before `before` (YYYY-MM-DD). Safe to repeat, also after a kill.

        Dates of which any window still runs stay, whole: their counters are rebuilt from these records. Raise
        `AdminError` for names and dates that can't be, `StoreError`, also if a sum has changed.
        """
        job, resumed = await self._job(tenant, kind, name, before)
        dates = await self._store.dates(job, self._now())
        sums = await self._store.sums(job, dates.ended)
        months = await erasable_months(self._months, job, dates.running)
        found = Erased(
            job.tenant, kind, job.pseudonym, dates.ended, dates.running, sums, 0, resumed, change.dry_run, months
        )
        if change.dry_run or not (dates.ended or sums.others or months or resumed):
            return found
        await self._store.begin(job)
        changed = await self._store.rename(job, dates.ended)
        await self._compare(job, dates.ended, sums)
        closed = {month: await erase_in_month(self._months, month, job, self._now()) for month in months}
        changed += len(closed)
        await self._audit.append(self._entry(job, change, dates.ended, changed, closed))
        await self._store.finish(job)
        return replace(found, changed=changed, sums=replace(sums, others=0))

    async def _job(self, tenant: str, kind: NameKind, name: str, before: str) -> tuple[ErasureJob, bool]:
        whose, day = tenant_id(tenant), self._date(before)
        if kind is NameKind.CLIENT_IP:
            name = address(name, self._ipv6_prefix)
        else:
            named("service account", name)
        if name.startswith(PSEUDONYM):
            raise AdminError(f"{name!r} is erased already")
        if not await self._store.is_possible():
            raise AdminError(
                "daily usage is not yet kept by tenant: it is split when no replica of version 0.1 runs; then try "
                "again"
            )
        known = await self._store.unfinished(whose, kind, name)
        if known is not None:
            return replace(known, before=max(day, known.before)), True
        return ErasureJob(self._new_id(), whose, kind, name, PSEUDONYM + self._new_id(), day), False

    def _date(self, text: str) -> str:
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise AdminError(f"'before' must be a date such as 2026-01-31, not {text[:40]!r}") from None
        latest = (self._now() - _YOUNGEST).date()
        if day > latest:
            raise AdminError(f"'before' can be {latest} at the latest: windows of later days may still run")
        return day.isoformat()

    async def _compare(self, job: ErasureJob, dates: tuple[str, ...], before: ErasureSums) -> None:
        after = await self._store.sums(job, dates)
        # Entries that come late add to both names alike, and take nothing away.
        fell = [
            name
            for name in ("entries", "charge", "price", "requests", "usage")
            if getattr(after, name) < getattr(before, name)
        ]
        if fell or after.others:
            what = f"sums fell: {', '.join(fell)}" if fell else f"{after.others} documents still have the name"
            raise StoreError(f"the erasure is not complete ({what}): repeat the command", transient=True)

    def _entry(
        self,
        job: ErasureJob,
        change: Change,
        dates: tuple[str, ...],
        changed: int,
        closed: Mapping[str, ClosedErasure],
    ) -> AuditEntry:
        """Return the audit entry. It does not have the name."""
        made: dict[str, object] = {"kind": job.kind.value, "before": job.before}
        made |= {"dates": len(dates), "documents": changed}
        if closed:
            made["closed_months"] = {
                month: {"checksum_before": each.before, "checksum_after": each.after}
                for month, each in closed.items()
            }
        return AuditEntry(
            id=f"erase-{job.id}",
            at=self._now(),
            actor=change.actor,
            action="identity.erase",
            tenant=job.tenant,
            subject=job.pseudonym,
            after=made,
            note=change.note,
        )
