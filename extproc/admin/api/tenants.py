"""Serve tenants: their documents, and the terms of their service accounts."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from extproc.admin.access import Role
from extproc.admin.api.operation import Call, Operation, Paged, Reply, Tenancy, Writing
from extproc.admin.api.problems import invalid
from extproc.admin.change import Changed
from extproc.admin.errors import NotFoundError
from extproc.admin.paging import Page, cursor_of, key_of
from extproc.admin.views import TenantDetail, TenantFilter, TenantView, TermsView
from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.limits import MAX_AMOUNT, Mode
from extproc.core.quota.policies import DocumentMode
from extproc.core.request.identity import MAX_NAME_CHARS
from extproc.ports.documents import plain

Amount = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
Text = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]


class ListTenants(Paged, kw_only=True):
    name: Annotated[str, Meta(max_length=MAX_NAME_CHARS, description="A glob, such as `team-*`.")] | None = None
    label: Annotated[str, Meta(max_length=600, description="NAME or NAME=VALUE.")] | None = None
    mode: DocumentMode | None = None
    suspended: Annotated[bool, Meta(description="The tenant or one of its accounts is suspended.")] | None = None
    problem: Annotated[bool, Meta(description="Something in its document can't be used.")] | None = None


class ShownTenant(Struct):
    """Describe a tenant: what is in effect, and its whole document as it is stored."""

    tenant: TenantView
    document: dict[str, Any]


class TenantDocument(Struct, omit_defaults=True):
    """Describe the fields of a tenant's document (docs/limits.md). A field that is missing is removed."""

    tenant_id: Text | None = None
    sa_limit: Amount | None = None
    ip_limit: Amount | None = None
    ratelimitEachSAPerMinute: Amount | None = None  # noqa: N815 - the document's own name
    ratelimitIPPerMinute: Amount | None = None  # noqa: N815
    limits: list[dict[str, Any]] | None = None
    unlimited: bool | None = None
    suspended: Text | None = None
    mode: DocumentMode | None = None
    shadows: Mode | None = None
    timezone: str | None = None
    service_accounts: list[dict[str, Any]] | None = None
    unknown_service_accounts: dict[str, Any] | None = None
    top_ups: list[dict[str, Any]] | None = None
    models: Any = None
    weights: Any = None
    min_output_tokens: Amount | None = None
    on_store_failure: StoreFailure | None = None
    labels: dict[str, str] | None = None
    note: str | None = None


class TenantFields(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Set fields of a tenant's document. A field that is missing stays; null removes it."""

    sa_limit: Amount | None = None
    ip_limit: Amount | None = None
    ratelimitEachSAPerMinute: Amount | None = None  # noqa: N815
    ratelimitIPPerMinute: Amount | None = None  # noqa: N815
    mode: DocumentMode | None = None
    shadows: Mode | None = None
    timezone: str | None = None
    min_output_tokens: Amount | None = None
    unlimited: bool | None = None
    on_store_failure: StoreFailure | None = None
    labels: dict[str, str | None] | None = None
    note: str | None = None


class Suspension(Struct, forbid_unknown_fields=True):
    """Say why nothing is admitted any more; callers read it."""

    reason: Text


async def list_tenants(call: Call) -> Reply:
    query: ListTenants = call.query
    wanted = TenantFilter(query.name, query.suspended, query.mode, query.label, query.problem)
    limits = call.services.admin.limits
    if call.caller.tenants is None:
        return Reply(await limits.views(wanted, query.at_most, query.cursor))
    after = key_of(query.cursor, str) if query.cursor is not None else ""
    rows: list[TenantView] = []
    for name in sorted(each for each in call.caller.tenants if each > after):
        try:
            view = (await limits.detail(name)).view
        except NotFoundError:
            continue
        if wanted.fits(view):
            rows.append(view)
        if len(rows) > query.at_most:
            return Reply(Page(tuple(rows[:-1]), cursor_of(rows[-2].tenant)))
    return Reply(Page(tuple(rows)))


async def show_tenant(call: Call) -> Reply:
    detail = await call.services.admin.limits.detail(call.tenant)
    return Reply(ShownTenant(detail.view, _document(detail)), detail.view.version)


async def put_tenant(call: Call) -> Reply:
    document: dict[str, object] = call.body
    if document.setdefault("tenant_id", call.tenant) != call.tenant:
        raise invalid("'tenant_id' must be the tenant in the path", "tenant_id")
    document.pop("version", None)  # If-Match has it
    return changed(await call.services.admin.replace(document, call.writing))


async def patch_tenant(call: Call) -> Reply:
    fields: Mapping[str, object] = call.body
    if fields.get("unlimited") is False:
        fields = {**fields, "unlimited": None}
    return changed(await call.services.admin.limits.set(call.tenant, fields, call.writing))


async def delete_tenant(call: Call) -> Reply:
    return changed(await call.services.admin.limits.delete(call.tenant, call.writing))


async def suspend_tenant(call: Call) -> Reply:
    limits = call.services.admin.limits
    return changed(await limits.suspend(call.tenant, call.body.reason, None, call.writing))


async def resume_tenant(call: Call) -> Reply:
    return changed(await call.services.admin.limits.resume(call.tenant, None, call.writing))


async def list_accounts(call: Call) -> Reply:
    query: Paged = call.query
    detail = await call.services.admin.limits.detail(call.tenant)
    after = key_of(query.cursor, str) if query.cursor is not None else ""
    found = sorted(
        (each for each in detail.terms if each.service_account > after), key=lambda each: each.service_account
    )
    rows = tuple(found[: query.at_most])
    cursor = cursor_of(rows[-1].service_account) if len(found) > len(rows) else None
    return Reply(Page(rows, cursor), detail.view.version)


async def suspend_account(call: Call) -> Reply:
    account = call.path["service_account"]
    limits = call.services.admin.limits
    return changed(await limits.suspend(call.tenant, call.body.reason, account, call.writing))


async def resume_account(call: Call) -> Reply:
    account = call.path["service_account"]
    return changed(await call.services.admin.limits.resume(call.tenant, account, call.writing))


def changed(done: Changed) -> Reply:
    """Answer a write: what it has done, and the new version. A dry run has no new version."""
    return Reply(done, done.version if not done.dry_run else None)


def _document(detail: TenantDetail) -> dict[str, Any]:
    shown = plain(detail.document)
    return shown if isinstance(shown, dict) else {}


_TENANT = "/v1/tenants/{tenant}"
_ACCOUNT = _TENANT + "/service-accounts/{service_account}/suspension"

OPERATIONS = (
    Operation(
        "listTenants", "GET", "/v1/tenants", "List tenants that have limits of their own, by name.",
        Role.VIEWER, Tenancy.ROWS, list_tenants, Page[TenantView], ListTenants, tag="tenants",
    ),
    Operation(
        "showTenant", "GET", _TENANT, "Show a tenant and its document. The ETag is its version.",
        Role.VIEWER, Tenancy.PATH, show_tenant, ShownTenant, tag="tenants", versioned_answer=True,
    ),
    Operation(
        "putTenant", "PUT", _TENANT, "Replace a tenant's whole document, or create it.",
        Role.ADMIN, Tenancy.PATH, put_tenant, Changed, Writing, TenantDocument,
        free=True, versioned=True, tag="tenants",
    ),
    Operation(
        "patchTenant", "PATCH", _TENANT, "Set fields of a tenant's document; null removes one.",
        Role.ADMIN, Tenancy.PATH, patch_tenant, Changed, Writing, TenantFields,
        free=True, versioned=True, tag="tenants",
    ),
    Operation(
        "deleteTenant", "DELETE", _TENANT, "Delete a tenant's limits: the defaults bind it. Its usage stays.",
        Role.ADMIN, Tenancy.PATH, delete_tenant, Changed, Writing, versioned=True, tag="tenants",
    ),
    Operation(
        "suspendTenant", "PUT", _TENANT + "/suspension", "Suspend a tenant: nothing of it is admitted.",
        Role.ADMIN, Tenancy.PATH, suspend_tenant, Changed, Writing, Suspension, versioned=True, tag="tenants",
    ),
    Operation(
        "resumeTenant", "DELETE", _TENANT + "/suspension", "End the suspension of a tenant.",
        Role.ADMIN, Tenancy.PATH, resume_tenant, Changed, Writing, versioned=True, tag="tenants",
    ),
    Operation(
        "listServiceAccounts", "GET", _TENANT + "/service-accounts",
        "List service accounts with terms of their own, by name.",
        Role.VIEWER, Tenancy.PATH, list_accounts, Page[TermsView], Paged,
        tag="service accounts", versioned_answer=True,
    ),
    Operation(
        "suspendServiceAccount", "PUT", _ACCOUNT, "Suspend a service account: nothing of it is admitted.",
        Role.TEAM_LEAD, Tenancy.PATH, suspend_account, Changed, Writing, Suspension,
        versioned=True, tag="service accounts",
    ),
    Operation(
        "resumeServiceAccount", "DELETE", _ACCOUNT, "End the suspension of a service account.",
        Role.TEAM_LEAD, Tenancy.PATH, resume_account, Changed, Writing, versioned=True, tag="service accounts",
    ),
)  # fmt: skip
