"""Declares where the limits of tenants are kept, and how the request path sees them."""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from extproc.core.quota.binding import Policy
from extproc.core.request.identity import TenantId


class Limits(Protocol):
    """The tenants' limits, at hand: no I/O, for the request path."""

    def policy(self, tenant: TenantId) -> Policy:
        """What binds the tenant now; the defaults where nobody configured it. Never raises."""


Document = Mapping[str, object]


class TenantStore(Protocol):
    """The stored limits of all tenants (`tenantLimitation`). Every call raises `StoreError`."""

    async def documents(self) -> list[Document]:
        """All documents, as they are stored."""

    async def document(self, tenant: TenantId) -> Document | None:
        """One tenant's document, or None."""

    async def update(self, tenant: TenantId, fields: Document, version: int | None = None) -> bool:
        """Writes fields of the tenant's document and keeps all others; one that is None goes. True: it is new.

        Each update adds 1 to the document's `version`. With `version` (0: there is no document, or it has none)
        nothing is written to any other: raises `ConflictError` then. Who edits a document by other means is only
        seen where they add to it too.
        """

    async def delete(self, tenant: TenantId) -> bool:
        """Removes the tenant; False where there was none."""

    def changes(self) -> AsyncIterator[None]:
        """Yields once at the start of watching, then whenever limits may have changed.

        An end or a `StoreError` means that watching is not possible (now): ask by polling.
        """

    async def aclose(self) -> None:
        """Gives connections back."""
