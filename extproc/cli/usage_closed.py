"""Define `tokenweir usage close` and `tokenweir usage closed list|show|verify`."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from extproc.admin.closing import Closing
from extproc.admin.money import price_text
from extproc.admin.paging import MAX_PAGE
from extproc.admin.report_rows import reported_sums
from extproc.cli import output
from extproc.cli.changing import DryRun, Note, change
from extproc.cli.report_files import Format, Shape, print_rows, write_rows
from extproc.cli.root import FAULT, Json, with_closing
from extproc.ports.reports import ClosedMonth, UsageRow

app = typer.Typer(help="Show closed months.", no_args_is_help=True)

Month = Annotated[str, typer.Argument(metavar="YYYY-MM", help="The month.")]

CLOSE_EXAMPLES: Final = """
Examples:

    tokenweir usage close 2026-01 --dry-run

    tokenweir usage close 2026-01 --note "invoice run 7"
"""


def close(
    context: typer.Context, month: Month, note: Note = None, dry_run: DryRun = False, json: Json = False
) -> None:
    """Freeze a month's usage per tenant and service account, with a checksum. Only `erase` changes it: names."""
    closed = with_closing(context, lambda closing: closing.close(month, change(note, None, dry_run=dry_run)))
    if json:
        output.as_json(_record(closed))
        return
    done, total = "would be closed" if dry_run else "is closed", closed.total
    typer.echo(
        f"{closed.month} {done}: {closed.rows} rows, usage {total.usage}, requests {total.requests}, "
        f"price {price_text(total.price, 2)} {closed.currency}, sha256 {closed.checksum}"
    )


@app.command(
    "list",
    epilog="""
Examples:

    tokenweir usage closed list

    tokenweir usage closed list --json
""",
)
def list_closed(context: typer.Context, json: Json = False) -> None:
    """Show the closed months, the newest first."""
    months = with_closing(context, lambda closing: closing.closed()).rows
    if json:
        output.as_json([_record(each) for each in months])
        return
    columns = [
        "month",
        "closed at",
        "by",
        "rows",
        "usage",
        "requests",
        "price",
        "currency",
        "sha256",
        "erased",
        "note",
    ]
    rows = [
        (
            each.month, output.instant(each.closed_at), each.closed_by.name, each.rows, each.total.usage,
            each.total.requests, price_text(each.total.price, 2), each.currency, each.checksum_now,
            len(each.erasures), each.note,
        )
        for each in months
    ]  # fmt: skip
    output.as_table(columns, rows, "No month is closed.")


@app.command(
    epilog="""
Examples:

    tokenweir usage closed show 2026-01

    tokenweir usage closed show 2026-01 --format csv --output january.csv
"""
)
def show(
    context: typer.Context,
    month: Month,
    form: Annotated[Format, typer.Option("--format", help="Form of the output.")] = Format.TABLE,
    path: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of stdout.")] = None,
    json: Json = False,
) -> None:
    """Show the rows of a closed month: of each tenant as a whole, and of each of its service accounts."""
    form = Format.JSON if json else form

    async def read(closing: Closing) -> None:
        closed = await closing.found(month)
        shape = Shape("name", closed.currency, tenants=True)
        if form is Format.TABLE:
            page = await closing.show(month)
            print_rows(shape, page.rows)
            if page.cursor is not None:
                output.note(f"There is more: these are the first {MAX_PAGE} rows. --format csv has all.")
            return
        await write_rows(form, shape, _pages(closing, month), path)

    with_closing(context, read)


@app.command(
    epilog="""
Examples:

    tokenweir usage closed verify 2026-01

    tokenweir usage closed verify 2026-01 --json
"""
)
def verify(context: typer.Context, month: Month, json: Json = False) -> None:
    """Check a closed month against its checksum (exit code 1: changed), and show what came after the close."""
    verified = with_closing(context, lambda closing: closing.verify(month))
    closed, difference = verified.closed, verified.difference
    if json:
        record: dict[str, Any] = {"intact": verified.intact, **_record(closed)}
        record["difference"] = reported_sums(difference, closed.currency)
        output.as_json(record)
    else:
        typer.echo(
            f"{closed.month}: {'its rows have the checksum' if verified.intact else 'ITS ROWS WERE CHANGED'}"
        )
        for each in closed.erasures:
            typer.echo(
                f"{output.instant(each.at)}: a person was erased, {each.pseudonym} since then; no sum changed; "
                f"sha256 {each.before} became {each.after}"
            )
        typer.echo(
            f"since the close: usage {difference.usage:+}, requests {difference.requests:+}, "
            f"denied {difference.denied:+}, price {price_text(difference.price, 2)} {closed.currency}"
        )
    if not verified.intact:
        raise typer.Exit(FAULT)


async def _pages(closing: Closing, month: str) -> AsyncIterator[Sequence[UsageRow]]:
    cursor: str | None = None
    while True:
        page = await closing.show(month, MAX_PAGE, cursor)
        yield page.rows
        cursor = page.cursor
        if cursor is None:
            return


def _record(closed: ClosedMonth) -> dict[str, object]:
    return {
        "month": closed.month,
        "closed_at": output.instant(closed.closed_at),
        "closed_by": closed.closed_by,
        "note": closed.note,
        "checksum": closed.checksum,
        "checksum_now": closed.checksum_now,
        "erasures": closed.erasures,
        "rows": closed.rows,
        **msgspec.structs.asdict(reported_sums(closed.total, closed.currency)),
    }
