"""Serve limits in their general form, and top-ups."""

import secrets
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final

from msgspec import Meta, Struct, field
from msgspec.structs import astuple

from extproc.admin.access import ForbiddenError, Role
from extproc.admin.api.operation import Call, Operation, Paged, Parameters, Reply, Tenancy, Writing
from extproc.admin.api.problems import Problem, invalid
from extproc.admin.api.tenants import Amount, Text, changed
from extproc.admin.change import Changed
from extproc.admin.documents import Source
from extproc.admin.edits import Selector
from extproc.admin.errors import NotFoundError
from extproc.admin.paging import Page, cursor_of, key_of
from extproc.admin.views import LimitFilter
from extproc.core.quota.binding import TopUp
from extproc.core.quota.limits import MAX_AMOUNT, Limit, Mode, Scope, Unit, Window
from extproc.core.quota.policies import METERED, DocumentMode
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import MAX_NAME_CHARS

_MAX_KEY_CHARS: Final = 64
Account = Annotated[str, Meta(max_length=MAX_NAME_CHARS, description="The service account whose limit it is.")]
Glob = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS, description="Only models that match.")]


Kinds = Annotated[list[Endpoint], Meta(description="Only these kinds of endpoint.")]


class WhichLimit(Writing, kw_only=True):
    scope: Scope
    window: Window
    unit: Unit = Unit.TOKENS
    model: Glob | None = None
    endpoint: Kinds = field(default_factory=list)
    mode: DocumentMode | None = None
    service_account: Account | None = None


class NewLimit(Struct, forbid_unknown_fields=True):
    """Describe a limit. Without `service_account` it is the tenant's, for all of its accounts."""

    scope: Scope
    window: Window
    amount: Amount
    unit: Unit = Unit.TOKENS
    model: Glob | None = None
    endpoint: Kinds = field(default_factory=list)
    mode: DocumentMode | None = None
    shadows: Mode | None = None
    note: Annotated[str, Meta(max_length=1000)] | None = None
    service_account: Text | None = None


class ShownLimit(Struct):
    """Describe a limit that can bind. `field` is its place in the document; null: it is a default.

    `service_account` is whose it is; null: all of them, "(others)": those that are not listed.
    """

    scope: Scope
    window: Window
    amount: int
    unit: Unit
    mode: Mode
    shadow: bool
    model: str | None
    endpoint: list[Endpoint]
    service_account: str | None
    field: str | None


class LimitOfTenant(ShownLimit, kw_only=True):
    """Describe a limit that can bind, and whose tenant's it is."""

    tenant: str


class ListLimits(Paged, kw_only=True):
    """Select limits: all that are given must fit."""

    scope: Scope | None = None
    window: Window | None = None
    unit: Unit | None = None
    service_account: Account | None = None
    own: Annotated[bool, Meta(description="Only limits of documents, without the defaults.")] = False


class NewTopUp(Struct, forbid_unknown_fields=True):
    """Raise limits of one scope, window and unit by `amount`, until an instant."""

    amount: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)]
    until: Annotated[datetime, Meta(tz=True, description="With a time zone, such as 2026-03-01T00:00:00Z.")]
    scope: Scope = Scope.SERVICE_ACCOUNT
    window: Window = Window.DAY
    unit: Unit = Unit.TOKENS
    service_account: Text | None = None
    model: Glob | None = None
    endpoint: Kinds = field(default_factory=list)


class ShownTopUp(Struct):
    """Describe a top-up in force. One without `id` can't be cancelled by itself."""

    id: str | None
    amount: int
    until: datetime
    scope: Scope
    window: Window
    unit: Unit
    service_account: str | None
    model: str | None
    endpoint: list[Endpoint]


async def list_limits(call: Call) -> Reply:
    query: Paged = call.query
    detail = await call.services.admin.limits.detail(call.tenant)
    first = key_of(query.cursor, int) if query.cursor is not None else 0
    if first < 0:
        raise invalid("the cursor can't be read", "cursor")
    rows = tuple(_shown(each) for each in detail.limits[first : first + query.at_most])
    after = first + len(rows)
    return Reply(Page(rows, cursor_of(after) if after < len(detail.limits) else None), detail.view.version)


async def list_all_limits(call: Call) -> Reply:
    query: ListLimits = call.query
    wanted = LimitFilter(query.scope, query.window, query.unit, query.service_account, query.own)
    limits = call.services.admin.limits
    page = await limits.listed(call.caller.tenants, wanted, query.at_most, query.cursor)
    rows = (LimitOfTenant(*astuple(_shown(each.source)), tenant=each.tenant) for each in page.rows)
    return Reply(Page(tuple(rows), page.cursor))


async def add_limit(call: Call) -> Reply:
    body: NewLimit = call.body
    account = _own_account(call, body.service_account)
    _metered(body.endpoint)
    selector = Selector(
        body.scope,
        body.window,
        body.unit,
        body.model,
        tuple(body.endpoint),
        body.mode.value if body.mode else None,
    )
    further = {"shadows": body.shadows.value if body.shadows else None, "note": body.note}
    limits = call.services.admin.limits
    return changed(
        await limits.add_limit(call.tenant, selector, body.amount, further, account=account, change=call.writing)
    )


async def remove_limit(call: Call) -> Reply:
    query: WhichLimit = call.query
    account = _own_account(call, query.service_account)
    mode = query.mode.value if query.mode else None
    selector = Selector(query.scope, query.window, query.unit, query.model, tuple(query.endpoint), mode)
    return changed(await call.services.admin.limits.remove_limit(call.tenant, selector, account, call.writing))


async def list_top_ups(call: Call) -> Reply:
    detail = await call.services.admin.limits.detail(call.tenant)
    return Reply(Page(tuple(_top_up(each) for each in detail.top_ups)), detail.view.version)


async def add_top_up(call: Call) -> Reply:
    body: NewTopUp = call.body
    key = call.key if call.key is not None else f"api-{secrets.token_hex(8)}"
    _metered(body.endpoint)
    item: dict[str, object] = {
        "id": key,
        "scope": body.scope.value,
        "window": body.window.value,
        "unit": body.unit.value,
        "amount": body.amount,
        "until": body.until.astimezone(UTC),
    }
    kinds = [each.value for each in body.endpoint] or None
    further = {"service_account": body.service_account, "model": body.model, "endpoint": kinds}
    item |= {name: value for name, value in further.items() if value is not None}
    return changed(await call.services.admin.limits.top_up(call.tenant, item, call.writing))


async def made_before(call: Call, key: str) -> Reply | None:
    """Return the answer to a repeated top-up: it is there already. Raise `Problem` if it was another one."""
    try:
        detail = await call.services.admin.limits.detail(call.tenant)
    except NotFoundError:
        return None
    known = next((each for each in detail.top_ups if each.id == key), None)
    if known is None:
        return None
    body: NewTopUp = call.body
    same = _top_up(known) == ShownTopUp(
        key, body.amount, body.until.astimezone(UTC), body.scope, body.window, body.unit, body.service_account,
        body.model, sorted(body.endpoint),
    )  # fmt: skip
    if not same:
        detail_text = f"the Idempotency-Key '{key}' was used for another top-up: take a new one"
        raise Problem(HTTPStatus.CONFLICT, "key-used", detail_text, field="Idempotency-Key")
    view = detail.view
    return changed(Changed(call.tenant, False, view.version, (), view, call.query.dry_run))


async def cancel_top_up(call: Call) -> Reply:
    return changed(await call.services.admin.limits.cancel_top_up(call.tenant, call.path["top_up"], call.writing))


def _own_account(call: Call, account: str | None) -> str | None:
    """Return the account. A team lead changes limits of single accounts only, never those of the whole tenant."""
    if account is None and not call.caller.role.covers(Role.ADMIN):
        raise ForbiddenError("limits of the whole tenant need the role 'admin': name a 'service_account'")
    return account


def _metered(kinds: list[Endpoint]) -> None:
    if any(each not in METERED for each in kinds):
        raise invalid(f"'endpoint' must be of {', '.join(METERED)}", "endpoint")


def _shown(source: Source) -> ShownLimit:
    limit: Limit = source.limit
    return ShownLimit(
        limit.scope, limit.window, limit.amount, limit.unit, limit.mode, limit.shadow, limit.model,
        list(limit.endpoints), source.whose, source.field,
    )  # fmt: skip


def _top_up(top_up: TopUp) -> ShownTopUp:
    until = datetime.fromtimestamp(top_up.until, UTC)
    return ShownTopUp(
        top_up.id, top_up.amount, until, top_up.scope, top_up.window, top_up.unit, top_up.service_account,
        top_up.model, list(top_up.endpoints),
    )  # fmt: skip


_LIMITS = "/v1/tenants/{tenant}/limits"
_TOP_UPS = "/v1/tenants/{tenant}/top-ups"

OPERATIONS = (
    Operation(
        "listAllLimits", "GET", "/v1/limits", "List the limits of all tenants that have limits of their own.",
        Role.VIEWER, Tenancy.ROWS, list_all_limits, Page[LimitOfTenant], ListLimits, tag="limits",
    ),
    Operation(
        "listLimits", "GET", _LIMITS, "List the limits that can bind a tenant, the defaults too.",
        Role.VIEWER, Tenancy.PATH, list_limits, Page[ShownLimit], Paged, tag="limits", versioned_answer=True,
    ),
    Operation(
        "addLimit", "POST", _LIMITS, "Add a limit. If one counts the same, it gets the new amount.",
        Role.TEAM_LEAD, Tenancy.PATH, add_limit, Changed, Writing, NewLimit, versioned=True, tag="limits",
    ),
    Operation(
        "removeLimit", "DELETE", _LIMITS, "Remove a limit.",
        Role.TEAM_LEAD, Tenancy.PATH, remove_limit, Changed, WhichLimit, versioned=True, tag="limits",
    ),
    Operation(
        "listTopUps", "GET", _TOP_UPS, "List the top-ups of a tenant.",
        Role.VIEWER, Tenancy.PATH, list_top_ups, Page[ShownTopUp], Parameters,
        tag="top-ups", versioned_answer=True,
    ),
    Operation(
        "addTopUp", "POST", _TOP_UPS, "Raise limits until an instant.",
        Role.ADMIN, Tenancy.PATH, add_top_up, Changed, Writing, NewTopUp,
        versioned=True, tag="top-ups", repeated=made_before,
    ),
    Operation(
        "cancelTopUp", "DELETE", _TOP_UPS + "/{top_up}", "Cancel a top-up.",
        Role.ADMIN, Tenancy.PATH, cancel_top_up, Changed, Writing, versioned=True, tag="top-ups",
    ),
)  # fmt: skip
