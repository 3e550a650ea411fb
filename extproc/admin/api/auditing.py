"""Serve the audit log: who changed what, when, from where and why."""

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

from extproc.admin.access import Role
from extproc.admin.api.instants import INSTANT, instant
from extproc.admin.api.operation import Call, Operation, Paged, Parameters, Reply, Tenancy
from extproc.admin.api.parameters import Name
from extproc.admin.errors import NotFoundError
from extproc.admin.paging import Page
from extproc.ports.audit import ActorKind, AuditEntry, AuditFilter, EntryState
from extproc.ports.documents import plain


class WhichChanges(Paged, kw_only=True):
    tenant: Name | None = None
    actor: Annotated[str, Meta(max_length=256, description="The name of who made the change.")] | None = None
    action: Annotated[str, Meta(max_length=64, description="Such as tenant.set, or only tenant.")] | None = None
    since: Annotated[str, INSTANT, Meta(description="Inclusive, with a time zone.")] | None = None
    until: Annotated[str, INSTANT, Meta(description="Exclusive, with a time zone.")] | None = None


class ShownActor(Struct):
    """Name who made a change, how that is known, and from where it came."""

    name: str
    kind: ActorKind
    origin: str


class ShownEntry(Struct):
    """Describe one change. `before` and `after` are whole documents; null: there is none."""

    id: str
    at: datetime
    actor: ShownActor
    action: str
    tenant: str | None
    subject: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    note: str | None
    version: int | None
    state: EntryState


async def list_changes(call: Call) -> Reply:
    query: WhichChanges = call.query
    since, until = instant("since", query.since), instant("until", query.until)
    wanted = AuditFilter(query.tenant, query.actor, query.action, since, until)
    page = await call.services.admin.history.entries(wanted, query.at_most, query.cursor)
    return Reply(Page(tuple(_shown(each) for each in page.rows), page.cursor))


async def show_change(call: Call) -> Reply:
    entry = await call.services.admin.history.entry(call.path["entry"])
    # An entry without a tenant, such as that of a token, is for those who see all tenants.
    if call.caller.tenants is not None and entry.tenant not in call.caller.tenants:
        raise NotFoundError(f"there is no audit entry '{entry.id}'; 'audit list' lists those that there are")
    return Reply(_shown(entry))


def _shown(entry: AuditEntry) -> ShownEntry:
    actor = ShownActor(entry.actor.name, entry.actor.kind, entry.actor.origin)
    before: Any = plain(entry.before)
    after: Any = plain(entry.after)
    return ShownEntry(
        entry.id, entry.at, actor, entry.action, entry.tenant, entry.subject, before, after, entry.note,
        entry.version, entry.state,
    )  # fmt: skip


OPERATIONS = (
    Operation(
        "listChanges", "GET", "/v1/audit", "List changes, newest first.",
        Role.VIEWER, Tenancy.QUERY, list_changes, Page[ShownEntry], WhichChanges, tag="audit",
    ),
    Operation(
        "showChange", "GET", "/v1/audit/{entry}", "Show one change.",
        Role.VIEWER, Tenancy.ROWS, show_change, ShownEntry, Parameters, tag="audit",
    ),
)  # fmt: skip
