"""Make the audit entry of a change to a tenant's document, and say which fields it changes."""

import secrets
from datetime import datetime

from extproc.admin.change import Change, FieldChange
from extproc.admin.views import version_of
from extproc.core.request.identity import TenantId
from extproc.ports.audit import AuditEntry
from extproc.ports.documents import BOOKKEEPING, Document, plain

_ID_BYTES = 12


def new_id() -> str:
    """Return the id of a new entry: never drawn twice."""
    return secrets.token_hex(_ID_BYTES)


def differences(before: Document, after: Document) -> tuple[FieldChange, ...]:
    """Return the fields that differ, by name, without those that describe the document itself."""
    names = sorted((before.keys() | after.keys()) - BOOKKEEPING)
    pairs = ((name, plain(before.get(name)), plain(after.get(name))) for name in names)
    return tuple(FieldChange(name, old, new) for name, old, new in pairs if old != new)


def audited(
    change: Change,
    at: datetime,
    *,
    action: str,
    tenant: TenantId,
    before: Document | None,
    after: Document | None,
    subject: str | None = None,
) -> AuditEntry:
    """Return the entry of a change that makes `after` of `before`; None: no document."""
    version = (version_of(before or {}) or 0) + 1 if after is not None else None
    return AuditEntry(
        id=new_id(),
        at=at,
        actor=change.actor,
        action=action,
        tenant=tenant,
        subject=subject,
        before=before,
        after={**after, "version": version} if after is not None else None,
        note=change.note,
        version=version,
    )
