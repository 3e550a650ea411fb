"""Define `tokenweir usage report|top|of|month`."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from extproc.admin.errors import AdminError
from extproc.admin.money import price_text
from extproc.admin.paging import MAX_PAGE
from extproc.admin.report_rows import reported_row, reported_sums
from extproc.admin.usage import Rebuilt, UsageAdmin, UsageNow, of_month
from extproc.admin.usage import rebuild as rebuild_month
from extproc.app import Stores
from extproc.cli import output
from extproc.cli.report_files import Format, Shape, places_of, print_rows, write_rows
from extproc.cli.root import Json, on_stores, settings_of, with_usage
from extproc.ports.reports import By, Grain, Measure, ReportFilter, Sums, UsageRow

Tenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant.")]
Account = Annotated[str | None, typer.Option("--service-account", "--sa", help="Only this service account.")]
IP = Annotated[str | None, typer.Option("--client-ip", "--ip", help="Only this client IP.")]
Model = Annotated[str | None, typer.Option("--model", help="Only this model.")]
Endpoint = Annotated[str | None, typer.Option("--endpoint", help="Only this endpoint, such as embeddings.")]
Since = Annotated[str | None, typer.Option("--since", metavar="YYYY-MM-DD", help="From this date on.")]
Until = Annotated[str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="Up to this date.")]
Form = Annotated[Format, typer.Option("--format", help="Form of the output; CSV, JSON and Parquet have all rows.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of stdout.")]
ByKey = Annotated[By, typer.Option("--by", help="What there is a row for.")]

_PROGRESS_S: Final = 2.0
_INCOMPLETE: Final = (
    "Entries of the ledger are still being added to the reports (after an upgrade, or on a standalone MongoDB): "
    "these sums are too small until that is done."
)


REPORT_EXAMPLES: Final = """
Examples:

    tokenweir usage report --by model --grain month

    tokenweir usage report --by service-account --tenant tenant01 --since 2026-01-01 --format csv -o january.csv
"""
MONTH_EXAMPLES: Final = """
Examples:

    tokenweir usage month 2026-01

    tokenweir usage month 2026-01 --by service-account --tenant tenant01 --json
"""
TOP_EXAMPLES: Final = """
Examples:

    tokenweir usage top --by model --since 2026-01-01

    tokenweir usage top --by tenant --measure price --limit 5 --json
"""
OF_EXAMPLES: Final = """
Examples:

    tokenweir usage of tenant01

    tokenweir usage of tenant01 console@zone-prod.example.com --json
"""


REBUILD_EXAMPLES: Final = """
Examples:

    tokenweir usage rebuild 2026-01 --dry-run

    tokenweir usage rebuild 2026-01
"""


def report(
    context: typer.Context,
    by: ByKey = By.TENANT,
    grain: Annotated[Grain, typer.Option("--grain", help="Length of a period.")] = Grain.DAY,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    model: Model = None,
    endpoint: Endpoint = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=MAX_PAGE, help="Rows at most; 1000 for a table.")
    ] = None,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Begin where the page before ended.")] = None,
    form: Form = Format.TABLE,
    path: Output = None,
    json: Json = False,
) -> None:
    """Show usage per period and tenant, service account, client IP, model or endpoint, the newest period first."""
    wanted = ReportFilter(tenant, service_account, client_ip, model, endpoint, since, until)
    _report(context, by, grain, wanted, limit, cursor, Format.JSON if json else form, path)


def month(
    context: typer.Context,
    month: Annotated[str, typer.Argument(metavar="YYYY-MM", help="The month; the present one by default.")] = "",
    by: ByKey = By.TENANT,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    model: Model = None,
    endpoint: Endpoint = None,
    form: Form = Format.TABLE,
    path: Output = None,
    json: Json = False,
) -> None:
    """Show a month's usage per tenant, service account, client IP, model or endpoint, and its total."""
    month = month or f"{datetime.now(UTC):%Y-%m}"
    wanted = of_month(ReportFilter(tenant, service_account, client_ip, model, endpoint), month)
    form = Format.JSON if json else form
    _report(context, by, Grain.MONTH, wanted, None, None, form, path)
    if form is Format.TABLE:
        total = with_usage(context, lambda usage: usage.total(wanted))
        currency = settings_of(context).cost.currency
        money = f", price {price_text(total.price, 2)} {currency}" if total.price else ""
        output.note(
            f"Total of {month}: usage {total.usage}, requests {total.requests}, denied {total.denied}{money}."
        )


def top(
    context: typer.Context,
    by: ByKey = By.SERVICE_ACCOUNT,
    measure: Annotated[Measure, typer.Option("--measure", help="What the largest have most of.")] = Measure.USAGE,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_PAGE, help="Rows at most.")] = 10,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    model: Model = None,
    endpoint: Endpoint = None,
    since: Since = None,
    until: Until = None,
    form: Form = Format.TABLE,
    path: Output = None,
    json: Json = False,
) -> None:
    """Show the largest users, models or endpoints."""
    wanted = ReportFilter(tenant, service_account, client_ip, model, endpoint, since, until)
    shape = replace(_shape(context, by), periods=False)

    async def read(usage: UsageAdmin) -> tuple[tuple[UsageRow, ...], bool]:
        return await usage.top(by, wanted, measure, limit), await usage.incomplete(by, wanted)

    rows, incomplete = with_usage(context, read)
    if incomplete:
        output.note(_INCOMPLETE)
    form = Format.JSON if json else form
    if form is Format.TABLE:
        print_rows(shape, rows)
        return

    async def pages() -> AsyncIterator[Sequence[UsageRow]]:
        yield rows

    asyncio.run(write_rows(form, shape, pages(), path))


def of(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    service_account: Annotated[str | None, typer.Argument(help="One of its service accounts.")] = None,
    json: Json = False,
) -> None:
    """Show what a tenant, or one of its service accounts, uses today and this month, and of which models."""

    async def read(usage: UsageAdmin) -> tuple[UsageNow, bool]:
        wanted = ReportFilter(tenant=tenant, service_account=service_account)
        return await usage.of(tenant, service_account), await usage.incomplete(None, wanted)

    now, incomplete = with_usage(context, read)
    if incomplete:
        output.note(_INCOMPLETE)
    currency = settings_of(context).cost.currency
    if json:
        output.as_json(
            {
                "tenant": now.tenant,
                "service_account": now.service_account,
                "date": now.date,
                "month": now.month,
                "today": reported_sums(now.today, currency),
                "this_month": reported_sums(now.this_month, currency),
                "models": [reported_row(row, currency) for row in now.models],
            }
        )
        return
    lines = [("today", now.date, now.today), ("this month", now.month, now.this_month)]
    lines += [("model", row.name, row.sums) for row in now.models]
    _print_lines(lines, currency)


def rebuild(
    context: typer.Context,
    month: Annotated[str, typer.Argument(metavar="YYYY-MM", help="The month.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compare the sums with the ledger.")] = False,
    json: Json = False,
) -> None:
    """Compare the sums of a month with the ledger, and correct them. Safe while requests are served."""
    settings = settings_of(context)

    async def correct(stores: Stores) -> Rebuilt:
        if stores.repair is None:
            raise AdminError("these stores have no rollups")
        gone = await stores.reports.gone_before(datetime.now(UTC))
        return await rebuild_month(stores.repair, month, dry_run=dry_run, gone_before=gone, tell=_Progress())

    done = on_stores(settings, correct)
    lacked, currency = done.lacked, settings.cost.currency
    if json:
        output.as_json({"month": done.month, "dry_run": dry_run, "lacked": reported_sums(lacked, currency)})
        return
    if lacked == Sums():
        typer.echo(f"{done.month}: the sums are those of the ledger")
        return
    verb = "lack" if dry_run else "lacked"
    typer.echo(
        f"{done.month}: the sums {verb} usage {lacked.usage}, requests {lacked.requests}, denied {lacked.denied}, "
        f"price {price_text(lacked.price, 2)} {currency}"
    )


class _Progress:
    """Tell on stderr which date a rebuild compares, every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S

    def __call__(self, date: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_S
            output.note(f"comparing {date}")


def _print_lines(lines: Sequence[tuple[str, str, Sums]], currency: str) -> None:
    prices = [sums.price for _, _, sums in lines]
    places = places_of(prices)
    columns = ["what", "of", "usage", "input", "output", "cached", "requests", "denied", "estimated"]
    rows: list[list[object]] = []
    for what, of_what, sums in lines:
        numbers = [sums.usage, sums.input, sums.output, sums.cached, sums.requests, sums.denied, sums.estimated]
        money = [price_text(sums.price, places)] if any(prices) else []
        rows.append([what, of_what, *numbers, *money])
    output.as_table([*columns, f"price ({currency})"] if any(prices) else columns, rows, "")


def _shape(context: typer.Context, by: By) -> Shape:
    name = {By.CLIENT_IP: "client IP"}.get(by, by.value.replace("-", " "))
    return Shape(name, settings_of(context).cost.currency, tenants=by is By.SERVICE_ACCOUNT)


def _report(
    context: typer.Context,
    by: By,
    grain: Grain,
    wanted: ReportFilter,
    limit: int | None,
    cursor: str | None,
    form: Format,
    path: Path | None,
) -> None:
    shape = _shape(context, by)
    if form is Format.TABLE and path is not None:
        raise AdminError("--output needs --format csv, json or parquet")

    async def show(usage: UsageAdmin) -> None:
        if form is Format.TABLE:
            page = await usage.report(by, grain, wanted, limit or 1000, cursor)
            print_rows(shape, page.rows)
            _note_more(page.cursor)
        else:
            await write_rows(form, shape, pages(usage), path)
        if await usage.incomplete(by, wanted):
            output.note(_INCOMPLETE)

    async def pages(usage: UsageAdmin) -> AsyncIterator[Sequence[UsageRow]]:
        place = cursor
        while True:
            page = await usage.report(by, grain, wanted, limit or MAX_PAGE, place)
            yield page.rows
            place = page.cursor
            if place is None or limit is not None:
                _note_more(place)
                return

    with_usage(context, show)


def _note_more(cursor: str | None) -> None:
    if cursor is not None:
        output.note(f"There is more: use --limit, a filter, or --cursor {cursor}")
