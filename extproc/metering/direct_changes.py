"""Notice changes that somebody made to tenants' documents in MongoDB itself, and note them in the audit log.

A document is compared with the log only when it differs from the one that was seen before: nothing is asked while
nothing changes. Every replica may notice the same change; the log takes one entry of it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

from extproc.core.request.identity import TenantId
from extproc.ports.audit import (
    Actor,
    ActorKind,
    Audited,
    AuditEntry,
    AuditLog,
    Found,
    direct_entry,
)
from extproc.ports.documents import Document, digest
from extproc.ports.tenants import TenantStore

_log = logging.getLogger(__name__)
# The entry that says since when all changes are audited.
BEGAN: Final = "audit-began"
# So many documents are looked at before others get a turn of the event loop.
_SLICE: Final = 200
# A document that keeps changing while it is compared is looked at again after the next change.
_TRIES: Final = 5


class DirectChanges:
    """Compare documents with the audit log. `origin` names this process in the entries of Tokenweir itself."""

    def __init__(self, tenants: TenantStore, audit: AuditLog, now: Callable[[], datetime], origin: str) -> None:
        self._tenants = tenants
        self._audit = audit
        self._now = now
        self._actor = Actor("tokenweir", ActorKind.TOKENWEIR, origin)
        self._seen: dict[TenantId, Document] | None = None

    async def notice(self, documents: Sequence[Document]) -> int:
        """Compare all tenants' documents with the log. Return the number of entries written. Raise `StoreError`;
        the same documents are then compared again next time.
        """
        # Of several documents for one tenant the last one counts.
        now = {TenantId(str(document.get("tenant_id"))): document for document in documents}
        written = await (self._first(now) if self._seen is None else self._next(now, self._seen))
        self._seen = now
        return written

    async def _first(self, documents: dict[TenantId, Document]) -> int:
        audited = await self._audit.audited()
        if await self._audit.entry(BEGAN) is None:
            found = [
                Found(self._found(tenant, document), None)
                for tenant, document in documents.items()
                if tenant not in audited
            ]
            written = await self._audit.note(found)
            await self._audit.append(self._began())
            return written
        suspects = {tenant for tenant in audited.keys() - documents.keys() if None not in audited[tenant].digests}
        return await self._note(suspects | await self._differing(documents, audited))

    async def _next(self, documents: dict[TenantId, Document], before: dict[TenantId, Document]) -> int:
        changed: dict[TenantId, Document] = {}
        for number, (tenant, document) in enumerate(documents.items(), start=1):
            if before.get(tenant) != document:
                changed[tenant] = document
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        gone = before.keys() - documents.keys()
        if not changed and not gone:
            return 0
        audited = await self._audit.audited([*changed, *gone])
        suspects = {tenant for tenant in gone if tenant in audited and None not in audited[tenant].digests}
        return await self._note(suspects | await self._differing(changed, audited))

    async def of(self, tenant: TenantId) -> int:
        """Compare one tenant's document with the log. Return the number of entries written. Raise `StoreError`."""
        return await self._note({tenant}) if await self._audit.entry(BEGAN) is not None else 0

    async def _differing(
        self, documents: dict[TenantId, Document], audited: dict[TenantId, Audited]
    ) -> set[TenantId]:
        suspects: set[TenantId] = set()
        for number, (tenant, document) in enumerate(documents.items(), start=1):
            known = audited.get(tenant)
            if known is None or digest(document) not in known.digests:
                suspects.add(tenant)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return suspects

    async def _note(self, suspects: Iterable[TenantId]) -> int:
        """Note what differs, unless the log changed while it was compared: then the change was one of ours."""
        found = [each for tenant in sorted(suspects) if (each := await self._compared(tenant)) is not None]
        written = await self._audit.note(found) if found else 0
        for each in found if written else ():
            _log.warning("limits: a document was changed in MongoDB itself", extra={"tenant": each.entry.tenant})
        return written

    async def _compared(self, tenant: TenantId) -> Found | None:
        for _ in range(_TRIES):
            before = (await self._audit.audited([tenant])).get(tenant)
            document = await self._tenants.document(tenant)
            after = (await self._audit.audited([tenant])).get(tenant)
            if before == after:
                break
        else:
            return None
        if after is None:
            return Found(direct_entry(tenant, None, document, self._now()), None) if document is not None else None
        if digest(document) in after.digests:
            return None
        newest = await self._audit.entry(after.entry)
        return Found(direct_entry(tenant, newest.after if newest else None, document, self._now()), after)

    def _found(self, tenant: TenantId, document: Document) -> AuditEntry:
        note = "found as it is: all changes before were made before auditing began"
        return AuditEntry("", self._now(), self._actor, "tenant.found", tenant, after=document, note=note)

    def _began(self) -> AuditEntry:
        return AuditEntry(BEGAN, self._now(), self._actor, "audit.began", None)
