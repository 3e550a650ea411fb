"""Declare the store of the tenants' limits, and the view of the limits for the request path."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from extproc.core.quota.binding import Policy
from extproc.core.request.identity import TenantId
from extproc.ports.audit import AuditEntry
from extproc.ports.documents import Document


class Limits(Protocol):
    """Give the request path the tenants' limits from memory, without I/O."""

    def policy(self, tenant: TenantId) -> Policy:
        """Return the tenant's current policy; the defaults if nobody configured the tenant. Never raise."""

    def tenants(self) -> Collection[TenantId]:
        """Return the tenants that somebody configured."""


@dataclass(frozen=True, slots=True)
class TenantWrite:
    """Describe one change of `TenantStore.write`. `fields` None: remove the tenant. The rest is as in `update`."""

    tenant: TenantId
    fields: Document | None
    version: int | None
    audit: AuditEntry


# Changes that are written in one transaction.
TOGETHER: Final = 500
Wrote = Callable[[int], None]


def tell_nobody(written: int) -> None:
    """Tell nobody."""
    del written


class TenantStore(Protocol):
    """Store the limits of all tenants (`tenantLimitation`). Every call raises `StoreError`."""

    async def documents(self) -> list[Document]:
        """Return all documents as they are stored."""

    async def document(self, tenant: TenantId) -> Document | None:
        """Return one tenant's document, or None."""

    def scan(self, after: TenantId | None = None) -> AsyncGenerator[Document, None]:
        """Yield one document per tenant, by name, those behind `after` only. Close it if you stop early."""

    async def update(
        self, tenant: TenantId, fields: Document, version: int | None = None, audit: AuditEntry | None = None
    ) -> bool:
        """Set fields of the tenant's document; a field that is None is removed, all others stay. Return True if it
        is new.

        Each update adds 1 to the document's `version`. With `version` (0: no document, or a document without a
        version) the update applies to that version only: otherwise raise `ConflictError` and write nothing. A
        change by another program is detected only if that program also adds to `version`.

        `audit` is written in the same transaction. Without transactions it is written first, as pending.
        """

    async def delete(self, tenant: TenantId, version: int | None = None, audit: AuditEntry | None = None) -> bool:
        """Remove the tenant. Return False if there was none. `version` and `audit` as in `update`."""

    async def write(self, writes: Sequence[TenantWrite], wrote: Wrote = tell_nobody) -> None:
        """Make many changes with their audit entries: `TOGETHER` in one transaction where there are transactions,
        else one after the other. `wrote` is told the number of those that are written.

        Raise `ConflictError`, which names a tenant, if one has another version: it and those that are written with
        it stay as they are.
        """

    def changes(self) -> AsyncIterator[None]:
        """Yield once when watching starts, then whenever limits may have changed.

        If the iterator ends or raises `StoreError`, watching is not possible (at the moment): use polling.
        """

    async def aclose(self) -> None:
        """Close the connections."""
