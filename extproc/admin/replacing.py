"""Replace one tenant's whole document."""

from collections.abc import Mapping
from datetime import datetime

from extproc.admin.applying import Verdict, carry_out, plan
from extproc.admin.change import Change, Changed
from extproc.admin.documents import merged
from extproc.admin.tenants import require_version
from extproc.admin.views import version_of, view_of
from extproc.core.quota.policies import Defaults
from extproc.ports.tenants import TenantStore


async def replace_document(
    tenants: TenantStore, defaults: Defaults, document: Mapping[str, object], change: Change, now: datetime
) -> Changed:
    """Replace the document of the tenant that it names, or create it. Fields of other programs stay.

    Raise `AdminError` for a document that can't be used, and `StaleVersionError`.
    """
    (planned,) = await plan(tenants, defaults, [document], now)
    before = planned.before if planned.before is not None else {"tenant_id": planned.tenant}
    require_version(planned.tenant, before, change)
    after = merged(before, planned.fields or {})
    if planned.verdict is not Verdict.UNCHANGED:
        after = {**after, "version": (version_of(before) or 0) + 1}
        if not change.dry_run:
            await carry_out(tenants, [planned], change, now)
    new = planned.verdict is Verdict.CREATED
    view = view_of(after, defaults, now)
    return Changed(planned.tenant, new, version_of(after), planned.changes, view, change.dry_run)
