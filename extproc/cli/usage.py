"""Define `tokenweir usage`."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from extproc.admin.money import price_text
from extproc.admin.report_rows import ReportedSums
from extproc.admin.service import MAX_ROWS, Admin
from extproc.cli import output, usage_closed, usage_reports
from extproc.cli.ledger_file import line_of
from extproc.cli.report_files import places_of
from extproc.cli.root import Json, settings_of, with_admin
from extproc.cli.simulate import LedgerFile, Top, print_report, report_shadows
from extproc.cli.usage_reports import IP, Account, Since, Tenant, Until
from extproc.core.quota.ledger import Entry
from extproc.ports.ledger import DailyUsage, UsageFilter

T = TypeVar("T")

app = typer.Typer(help="Show usage and the ledger.", no_args_is_help=True)

app.command("report", epilog=usage_reports.REPORT_EXAMPLES)(usage_reports.report)
app.command("top", epilog=usage_reports.TOP_EXAMPLES)(usage_reports.top)
app.command("of", epilog=usage_reports.OF_EXAMPLES)(usage_reports.of)
app.command("month", epilog=usage_reports.MONTH_EXAMPLES)(usage_reports.month)
app.command("rebuild", epilog=usage_reports.REBUILD_EXAMPLES)(usage_reports.rebuild)
app.command("close", epilog=usage_closed.CLOSE_EXAMPLES)(usage_closed.close)
app.add_typer(usage_closed.app, name="closed")

Rows = Annotated[int, typer.Option("--limit", min=1, max=MAX_ROWS, help="Rows at most.")]

_DAILY = (
    "date", "tenant", "service account", "client IP", "usage", "input", "output", "cached", "requests", "denied",
    "estimated",
)  # fmt: skip


class DailyRow(ReportedSums):
    """Hold a line of `usage daily --json`."""

    tenant: str
    service_account: str
    client_ip: str
    date: str


@dataclass(frozen=True, slots=True)
class EntryRow:
    """Hold a line of `usage entries`."""

    admitted_at: str
    tenant: str
    service_account: str
    client_ip: str
    endpoint: str
    model: str
    outcome: str
    count: int
    reason: str
    held: int
    charge: int
    input: int
    output: int
    status: int
    request_id: str
    id: str


@app.command(
    epilog="""
Examples:

    tokenweir usage daily --since 2026-01-01 --tenant tenant01

    tokenweir usage daily --sa console@zone-prod.example.com --json
"""
)
def daily(
    context: typer.Context,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    since: Since = None,
    until: Until = None,
    limit: Rows = 1000,
    json: Json = False,
) -> None:
    """Show usage per service account, client IP and date, newest first; with its price if models have prices."""
    wanted = UsageFilter(tenant, service_account, client_ip, since, until)
    days = with_admin(context, lambda admin: admin.daily(wanted, limit + 1))
    days = _at_most(days, limit)
    currency = settings_of(context).cost.currency
    if json:
        output.as_json([DailyRow(**_priced(day, currency)) for day in days])
        return
    rows = [
        (
            d.date, d.tenant, d.service_account, d.client_ip, d.usage, d.input, d.output, d.cached, d.requests,
            d.denied, d.estimated,
        )
        for d in days
    ]  # fmt: skip
    _print_priced(_DAILY, rows, [day.price for day in days], currency)


@app.command(
    epilog="""
Examples:

    tokenweir usage entries --tenant tenant01 --limit 20

    tokenweir usage entries --sa console@zone-prod.example.com --since 2026-01-01 --json
"""
)
def entries(
    context: typer.Context,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    since: Since = None,
    until: Until = None,
    limit: Rows = 100,
    json: Json = False,
) -> None:
    """Show the ledger: one line per request, the last to end first."""
    wanted = UsageFilter(tenant, service_account, client_ip, since, until)

    async def read(admin: Admin) -> tuple[list[Entry], datetime | None]:
        return await admin.entries(wanted, limit + 1), await admin.gone_before(wanted)

    found, gone = with_admin(context, read)
    if len(found) <= limit:  # else the rows end before those that are gone
        output.note_gone(gone)
    rows = [_entry_row(entry) for entry in _at_most(found, limit)]
    if any(row.count > 1 for row in rows):
        output.note("A count above 1: requests that were denied like others of their minute, in one line.")
    if json:
        output.as_json(rows)
        return
    columns = [name.replace("_", " ") for name in EntryRow.__dataclass_fields__]
    output.as_table(columns, [tuple(asdict(row).values()) for row in rows], "No request on record that fits.")


@app.command(
    epilog="""
Examples:

    tokenweir usage export --since 2026-01-01 --until 2026-01-31 > ledger.jsonl

    tokenweir usage export --tenant tenant01 | gzip > ledger.jsonl.gz
"""
)
def export(
    context: typer.Context,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    since: Since = None,
    until: Until = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Has no effect: the output is always JSON lines, as mongoexport writes them."),
    ] = False,
) -> None:
    """Write the whole ledger as JSON lines in the order of admission: `simulate --ledger` reads it."""
    del json
    wanted = UsageFilter(tenant, service_account, client_ip, since, until)

    async def write(admin: Admin) -> None:
        output.note_gone(await admin.gone_before(wanted))
        async for entry in admin.replay(wanted):
            sys.stdout.write(line_of(entry) + "\n")  # echo would flush each line

    with_admin(context, write)


@app.command(
    epilog="""
Examples:

    tokenweir usage shadow --since 2026-01-01

    tokenweir usage shadow --ledger ledger.jsonl --json
"""
)
def shadow(
    context: typer.Context,
    ledger: LedgerFile = None,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    since: Since = None,
    until: Until = None,
    top: Top = 20,
    json: Json = False,
) -> None:
    """Show the requests that active shadow limits would have denied, in the form of `simulate`."""
    wanted = UsageFilter(tenant, service_account, client_ip, since, until)
    report, gone = report_shadows(context, wanted, ledger)
    print_report(report, top, gone, json=json, newly=False)


def _at_most(rows: list[T], limit: int) -> list[T]:
    if len(rows) > limit:
        output.note(f"There is more: these are the first {limit} rows. Use a filter or --limit.")
    return rows[:limit]


def _priced(record: DailyUsage, currency: str) -> dict[str, Any]:
    fields = asdict(record)
    price = fields.pop("price")
    return {**fields, "price": price_text(price), "price_billionths": price, "currency": currency}


def _print_priced(
    columns: tuple[str, ...], rows: Sequence[tuple[object, ...]], prices: Sequence[int], currency: str
) -> None:
    """Print a table, with a column for the price if any row has one."""
    if any(prices):
        columns, places = (*columns, f"price ({currency})"), places_of(prices)
        rows = [(*row, price_text(price, places)) for row, price in zip(rows, prices, strict=True)]
    output.as_table(columns, rows, "No usage on record that fits.")


def _entry_row(entry: Entry) -> EntryRow:
    who, usage = entry.identity, entry.usage
    return EntryRow(
        admitted_at=output.instant(entry.admitted_at),
        tenant=who.tenant,
        service_account=who.service_account,
        client_ip=who.client_ip,
        endpoint=entry.endpoint,
        model=entry.model,
        outcome=entry.outcome.value,
        count=entry.count,
        reason=entry.reason,
        held=entry.held,
        charge=entry.charge,
        input=usage.input,
        output=usage.output,
        status=entry.status,
        request_id=entry.request_id,
        id=entry.id,
    )
