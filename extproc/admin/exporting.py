"""Export all tenants as documents that `apply` takes back: applying an export shows no difference."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from extproc.core.request.identity import TenantId, is_name
from extproc.ports.documents import FIELDS, Document, plain
from extproc.ports.tenants import TenantStore


@dataclass(frozen=True, slots=True)
class Exported:
    """Hold one tenant's document: its name and the fields that Tokenweir knows, in JSON form.

    Versions and dates are left out: they belong to the store. So are fields of other programs.
    """

    tenant: TenantId
    document: Document


async def exported(tenants: TenantStore) -> AsyncIterator[Exported]:
    """Yield all tenants by name, but for documents without a usable name: no request is bound by them."""
    async for document in tenants.scan():
        tenant = document.get("tenant_id")
        if isinstance(tenant, str) and is_name(tenant):
            fields = {
                name: plain(value) for name, value in document.items() if name in FIELDS and value is not None
            }
            yield Exported(TenantId(tenant), {"tenant_id": tenant, **fields})
