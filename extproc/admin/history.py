"""Read the audit log: all of it, or the history of one tenant."""

from collections.abc import Callable
from datetime import datetime

from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.names import named, tenant_id
from extproc.admin.paging import Page, checked_page, cursor_of, key_of
from extproc.metering.direct_changes import DirectChanges
from extproc.ports.audit import AuditEntry, AuditFilter, AuditLog, AuditPlace
from extproc.ports.tenants import TenantStore


class History:
    """Run the use cases on the audit log. Stateless."""

    def __init__(self, tenants: TenantStore, audit: AuditLog, now: Callable[[], datetime]) -> None:
        self._audit = audit
        self._direct = DirectChanges(tenants, audit, now, "")

    async def entries(
        self, wanted: AuditFilter, at_most: int = 100, cursor: str | None = None
    ) -> Page[AuditEntry]:
        """Return entries, newest first. Raise `AdminError` for a filter that can't match anything."""
        checked_page(at_most)
        _check(wanted)
        after = _place(cursor) if cursor is not None else None
        found = await self._audit.entries(wanted, at_most + 1, after)
        rows = tuple(found[:at_most])
        return Page(rows, cursor_of([rows[-1].at, rows[-1].id]) if len(found) > at_most else None)

    async def of_tenant(self, tenant: str, at_most: int = 100, cursor: str | None = None) -> Page[AuditEntry]:
        """Return the changes of one tenant, newest first; none of a tenant that nobody changed yet.

        A change that was made in MongoDB itself is among them, even if no replica has noticed it yet.
        """
        name = tenant_id(tenant)
        if cursor is None:
            await self._direct.of(name)
        return await self.entries(AuditFilter(tenant=name), at_most, cursor)

    async def entry(self, entry_id: str) -> AuditEntry:
        """Return one entry. Raise `NotFoundError`."""
        found = await self._audit.entry(named("entry", entry_id, "an id"))
        if found is None:
            raise NotFoundError(f"there is no audit entry '{entry_id}'; 'audit list' lists those that there are")
        return found


def _check(wanted: AuditFilter) -> None:
    for what, name in (("tenant", wanted.tenant), ("actor", wanted.actor), ("action", wanted.action)):
        if name is not None:
            named(what, name)
    if wanted.since is not None and wanted.until is not None and wanted.since >= wanted.until:
        raise AdminError("'since' must be before 'until'")


def _place(cursor: str) -> AuditPlace:
    at, entry_id = key_of(cursor, tuple[datetime, str])
    return AuditPlace(at, entry_id)
