"""Keep the tenants' limits and the audit log in memory. Lost when the process ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import replace

from extproc.core.request.identity import TenantId
from extproc.ports.audit import (
    Audited,
    AuditEntry,
    AuditFilter,
    AuditPlace,
    Found,
    direct_entry,
    document_entry_id,
)
from extproc.ports.base import ConflictError
from extproc.ports.documents import Document, digest
from extproc.ports.tenants import TOGETHER, TenantWrite, Wrote, tell_nobody
from extproc.stores.pieces import in_pieces


class MemoryAudit:
    """Keep the audit log in a list. Implements `ports.AuditLog`."""

    def __init__(self) -> None:
        self._entries: dict[str, AuditEntry] = {}
        self._newest: dict[TenantId, AuditEntry] = {}

    async def append(self, entry: AuditEntry) -> None:
        self._entries.setdefault(entry.id, entry)

    def add(self, tenant: TenantId, entry: AuditEntry) -> None:
        """Add the entry of a change to a tenant's document, behind that of a direct change not noted yet."""
        known = self._audited(tenant)
        if known is not None and digest(entry.before) not in known.digests:
            self._add(tenant, direct_entry(tenant, self._newest[tenant].after, entry.before, entry.at))
        self._add(tenant, entry)

    def _add(self, tenant: TenantId, entry: AuditEntry) -> None:
        newest = self._newest.get(tenant)
        number = 1 + ((newest.number or 0) if newest is not None else 0)
        entry = replace(entry, id=document_entry_id(tenant, number), number=number)
        self._newest[tenant] = self._entries[entry.id] = entry

    async def note(self, found: Sequence[Found]) -> int:
        written = 0
        for each in found:
            tenant = TenantId(each.entry.tenant or "")
            if self._audited(tenant) == each.after:
                self._add(tenant, each.entry)
                written += 1
        return written

    def _audited(self, tenant: TenantId) -> Audited | None:
        newest = self._newest.get(tenant)
        return Audited(newest.id, newest.number or 0, (digest(newest.after),)) if newest is not None else None

    async def entries(
        self, wanted: AuditFilter, at_most: int, after: AuditPlace | None = None
    ) -> list[AuditEntry]:
        found = sorted(filter(wanted.fits, self._entries.values()), key=lambda e: (e.at, e.id), reverse=True)
        return [e for e in found if after is None or (e.at, e.id) < (after.at, after.id)][:at_most]

    async def entry(self, entry_id: str) -> AuditEntry | None:
        return self._entries.get(entry_id)

    async def audited(self, tenants: Iterable[TenantId] | None = None) -> dict[TenantId, Audited]:
        names = list(self._newest if tenants is None else tenants)
        found = ((name, self._audited(name)) for name in names)
        return {name: each for name, each in found if each is not None}


class MemoryTenants:
    """Keep the tenants' limits in a dict. Implements `ports.TenantStore`."""

    def __init__(self, audit: MemoryAudit | None = None) -> None:
        self.audit = audit if audit is not None else MemoryAudit()
        self._documents: dict[TenantId, dict[str, object]] = {}
        self._changed = asyncio.Event()

    async def documents(self) -> list[Document]:
        return [dict(document) for _, document in sorted(self._documents.items())]

    async def document(self, tenant: TenantId) -> Document | None:
        found = self._documents.get(tenant)
        return dict(found) if found is not None else None

    async def scan(self, after: TenantId | None = None) -> AsyncGenerator[Document, None]:
        for tenant in sorted(self._documents):
            if after is None or tenant > after:
                yield dict(self._documents[tenant])

    async def update(
        self, tenant: TenantId, fields: Document, version: int | None = None, audit: AuditEntry | None = None
    ) -> bool:
        new = tenant not in self._documents
        self._require(tenant, version)
        self._write(tenant, fields, audit)
        return new

    async def delete(self, tenant: TenantId, version: int | None = None, audit: AuditEntry | None = None) -> bool:
        if tenant not in self._documents:
            return False
        self._require(tenant, version)
        self._write(tenant, None, audit)
        return True

    async def write(self, writes: Sequence[TenantWrite], wrote: Wrote = tell_nobody) -> None:
        written = 0
        for some in in_pieces(writes, TOGETHER):
            for each in some:
                self._require(each.tenant, each.version)
            for each in some:
                self._write(each.tenant, each.fields, each.audit)
            written += len(some)
            wrote(written)

    def _require(self, tenant: TenantId, version: int | None) -> None:
        if version is not None and self._documents.get(tenant, {}).get("version", 0) != version:
            raise ConflictError(f"tenant '{tenant}' was changed meanwhile")

    def _write(self, tenant: TenantId, fields: Document | None, audit: AuditEntry | None) -> None:
        if fields is None:
            del self._documents[tenant]
        else:
            document = self._documents.setdefault(tenant, {"tenant_id": tenant})
            by = audit.actor.name if audit is not None else None
            for name, value in {**fields, "updated_by": by}.items():
                document.pop(name, None)
                if value is not None:
                    document[name] = value
            document["version"] = document.get("version", 0) + 1  # type: ignore[operator]
        if audit is not None:
            self.audit.add(tenant, audit)
        self._changed.set()

    async def changes(self) -> AsyncIterator[None]:
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""
