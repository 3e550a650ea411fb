"""Declare the store of the tenants' limits, and the view of the limits for the request path."""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from extproc.core.quota.binding import Policy
from extproc.core.request.identity import TenantId


class Limits(Protocol):
    """Give the request path the tenants' limits from memory, without I/O."""

    def policy(self, tenant: TenantId) -> Policy:
        """Return the tenant's current policy; the defaults if nobody configured the tenant. Never raise."""


Document = Mapping[str, object]


class TenantStore(Protocol):
    """Store the limits of all tenants (`tenantLimitation`). Every call raises `StoreError`."""

    async def documents(self) -> list[Document]:
        """Return all documents as they are stored."""

    async def document(self, tenant: TenantId) -> Document | None:
        """Return one tenant's document, or None."""

    async def update(self, tenant: TenantId, fields: Document, version: int | None = None) -> bool:
        """Set fields of the tenant's document; a field that is None is removed, all others stay. Return True if it
        is new.

        Each update adds 1 to the document's `version`. With `version` (0: no document, or a document without a
        version) the update applies to that version only: otherwise raise `ConflictError` and write nothing. A
        change by another program is detected only if that program also adds to `version`.
        """

    async def delete(self, tenant: TenantId) -> bool:
        """Remove the tenant. Return False if there was none."""

    def changes(self) -> AsyncIterator[None]:
        """Yield once when watching starts, then whenever limits may have changed.

        If the iterator ends or raises `StoreError`, watching is not possible (at the moment): use polling.
        """

    async def aclose(self) -> None:
        """Close the connections."""
