"""Define `tokenweir audit list|show`, and print the history of a tenant."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from extproc.admin.auditing import differences
from extproc.admin.paging import MAX_PAGE, Page
from extproc.cli import output, values
from extproc.cli.changing import print_field_changes
from extproc.cli.root import Json, with_admin
from extproc.ports.audit import AuditEntry, AuditFilter, EntryState
from extproc.ports.documents import plain
from extproc.terminal.tables import visible

app = typer.Typer(help="Who changed what, when, from where and why.", no_args_is_help=True)

Rows = Annotated[int, typer.Option("--limit", min=1, max=MAX_PAGE, help="Rows at most.")]
Cursor = Annotated[str | None, typer.Option("--cursor", help="Where to go on: as the call before printed it.")]

_COLUMNS = ("id", "at", "actor", "kind", "from", "action", "tenant", "subject", "version", "note")


@app.command(
    "list",
    epilog="""
Examples:

    tokenweir audit list --tenant tenant01

    tokenweir audit list --actor ann --action tenant.top_up --since -7d
""",
)
def list_(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only changes of this tenant.")] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Only changes by this actor.")] = None,
    action: Annotated[
        str | None,
        typer.Option("--action", help="Only this action: tenant.set; or all of a noun: tenant."),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="INSTANT|-TIME", help="From then on: 2026-03-01T00:00Z, -7d.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="INSTANT|-TIME", help="Before then.")] = None,
    limit: Rows = 50,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """List changes, newest first."""
    now = datetime.now(UTC)
    wanted = AuditFilter(
        tenant,
        actor,
        action,
        values.instant("--since", since, now) if since is not None else None,
        values.instant("--until", until, now) if until is not None else None,
    )
    page = with_admin(context, lambda admin: admin.history.entries(wanted, limit, cursor))
    print_page(page, "No change is in the audit log.", json)


@app.command(epilog="Example: tokenweir audit show tenant01:3")
def show(
    context: typer.Context,
    entry: Annotated[str, typer.Argument(metavar="ID", help="The entry's id, as `audit list` prints it.")],
    json: Json = False,
) -> None:
    """Show one change whole: what was before, and what after. Exit code 3 if there is no such entry."""
    found = with_admin(context, lambda admin: admin.history.entry(entry))
    if json:
        output.as_json(entry_document(found))
        return
    output.as_table(_COLUMNS, [_row(found)], "")
    _note_state([found])
    typer.echo()
    changes = differences(found.before or {}, found.after or {})
    if changes:
        print_field_changes(changes)
    else:
        typer.echo("No field differs.")


def print_page(page: Page[AuditEntry], empty: str, json: bool) -> None:
    """Print entries, and how to go on."""
    if json:
        output.as_json({"entries": [entry_document(each) for each in page.rows], "cursor": page.cursor})
        return
    output.as_table(_COLUMNS, [_row(each) for each in page.rows], empty)
    _note_state(page.rows)
    output.note_cursor(page.cursor)


def entry_document(entry: AuditEntry) -> dict[str, object]:
    """Return an entry as `--json` prints it."""
    return {
        "id": entry.id,
        "at": plain(entry.at),
        "actor": {"name": entry.actor.name, "kind": entry.actor.kind.value, "origin": entry.actor.origin},
        "action": entry.action,
        "tenant": entry.tenant,
        "subject": entry.subject,
        "version": entry.version,
        "note": entry.note,
        "state": _STATES[entry.state],
        "changes": [
            {"field": each.field, "before": each.before, "after": each.after}
            for each in differences(entry.before or {}, entry.after or {})
        ],
        "before": plain(entry.before),
        "after": plain(entry.after),
    }


_STATES = {
    EntryState.DONE: "done",
    EntryState.PENDING: "not known to be done",
    EntryState.REFUSED: "not done",
}


def _row(entry: AuditEntry) -> tuple[object, ...]:
    actor = entry.actor
    return (
        entry.id, output.instant(entry.at), actor.name, actor.kind.value, actor.origin, entry.action, entry.tenant,
        entry.subject, entry.version, entry.note,
    )  # fmt: skip


def _note_state(entries: Sequence[AuditEntry]) -> None:
    for each in entries:
        if each.state is not EntryState.DONE:
            output.note(visible(f"{each.id}: {_STATES[each.state]}"))
