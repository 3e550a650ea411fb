"""Define `tokenweir ledger waiting|aside`."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
import typer

from extproc.admin.journal import SetAside
from extproc.admin.service import MAX_ROWS
from extproc.cli import output
from extproc.cli.root import FAULT, Json, with_journal

app = typer.Typer(help="Entries that are not yet in the ledger.", no_args_is_help=True)

_TEXT_SHOWN = 80


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """Hold the answer of `ledger waiting --json`."""

    waiting: int
    oldest_s: float
    aside: int


@dataclass(frozen=True, slots=True)
class AsideRow:
    """Hold an element of `ledger aside --json`; `entry` is the journal's JSON, null if the text is no JSON."""

    id: str
    tenant: str
    service_account: str
    client_ip: str
    date: str
    outcome: str
    charge: int
    reason: str
    written: bool | None
    entry: msgspec.Raw | None
    text: str


@app.command(
    epilog="""
Examples:

    tokenweir ledger waiting

    tokenweir ledger waiting --json
"""
)
def waiting(context: typer.Context, json: Json = False) -> None:
    """Show how many entries wait for the ledger, the age of the oldest one, and how many were set aside."""
    backlog = with_journal(context, lambda journal: journal.backlog())
    row = WaitingRow(backlog.waiting, round(backlog.oldest_s, 3), backlog.aside)
    if json:
        output.as_json(row)
        return
    output.as_table(["waiting", "oldest (s)", "set aside"], [(row.waiting, row.oldest_s, row.aside)], "")


@app.command(
    epilog="""
Examples:

    tokenweir ledger aside

    tokenweir ledger aside --json > aside.json

    tokenweir ledger aside --write

Exit codes: 0 done, 1 something was refused again, or a store can't be reached, 2 wrong use.
"""
)
def aside(
    context: typer.Context,
    write: Annotated[
        bool, typer.Option("--write", help="Write them to the ledger again, after the cause is corrected.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_ROWS, help="Entries at most.")] = 1000,
    json: Json = False,
) -> None:
    """Show the entries that the ledger refused permanently, with the reason, oldest first.

    These entries are charged to their limits, but are missing in the ledger and in daily usage. `--write` tries
    each of them again. Entries that are written are no longer set aside. Nothing is counted twice, however often
    you repeat it.
    """
    found = with_journal(context, lambda journal: journal.write(limit) if write else journal.set_aside(limit))
    rows = [_row(each) for each in found]
    if json:
        output.as_json(rows)
    else:
        _print(rows, written=write)
    if len(found) == limit:
        output.note(f"There may be more: these are the first {limit}. Use --limit.")
    refused = sum(each.written is False for each in found)
    if write and found:
        output.note(f"{len(found) - refused} written, {refused} refused again.")
    if refused:
        raise typer.Exit(FAULT)


def _print(rows: list[AsideRow], *, written: bool) -> None:
    columns = ["date", "tenant", "service account", "client IP", "outcome", "charge", "id", "reason"]
    cells: list[list[object]] = [
        [
            r.date,
            r.tenant,
            r.service_account,
            r.client_ip,
            r.outcome,
            r.charge,
            r.id or r.text[:_TEXT_SHOWN],
            r.reason,
        ]
        for r in rows
    ]
    if written:
        columns.append("written")
        for row, line in zip(rows, cells, strict=True):
            line.append("yes" if row.written else "no")
    output.as_table(columns, cells, "Nothing was set aside.")


def _row(each: SetAside) -> AsideRow:
    entry, text = each.entry, each.aside.text
    if entry is None:
        return AsideRow("", "", "", "", "", "", 0, each.reason, each.written, _raw(text), text)
    who = entry.identity
    return AsideRow(
        id=entry.id,
        tenant=who.tenant,
        service_account=who.service_account,
        client_ip=who.client_ip,
        date=entry.date,
        outcome=entry.outcome.value,
        charge=entry.charge,
        reason=each.reason,
        written=each.written,
        entry=_raw(text),
        text=text,
    )


def _raw(text: str) -> msgspec.Raw | None:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return msgspec.Raw(text.encode())
