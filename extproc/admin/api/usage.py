"""Serve reports of usage: sums of the ledger, in tokens and money."""

import io
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from extproc.admin.access import Role
from extproc.admin.api.operation import Call, Operation, Parameters, Reply, Tenancy
from extproc.admin.api.parameters import Address, Date, Name
from extproc.admin.paging import MAX_PAGE
from extproc.admin.report_rows import (
    COLUMNS,
    ReportedRow,
    ReportedSums,
    csv_cells_of,
    reported_row,
    reported_sums,
)
from extproc.core.request.endpoints import Endpoint
from extproc.ports.reports import By, Grain, Measure, ReportFilter, UsageRow
from extproc.terminal.csv_cells import csv_writer

CSV: Final = "text/csv"


class Format(StrEnum):
    """Select the form of a report."""

    JSON = "json"
    CSV = "csv"


class WhichUsage(Parameters, kw_only=True):
    tenant: Name | None = None
    service_account: Name | None = None
    client_ip: Address | None = None
    model: Name | None = None
    endpoint: Endpoint | None = None
    since: Date | None = None
    until: Date | None = None
    by: Annotated[By, Meta(description="What there is a row for.")] = By.TENANT


class WhichReport(WhichUsage, kw_only=True):
    grain: Annotated[Grain, Meta(description="Length of a period.")] = Grain.DAY
    format: Annotated[Format, Meta(description="CSV: the next page is in `x-next-cursor`.")] = Format.JSON
    at_most: Annotated[int, Meta(ge=1, le=MAX_PAGE, description="Rows at most.")] = 1000
    cursor: Annotated[str, Meta(max_length=4096, description="The `cursor` of the page before.")] | None = None


class TopUsage(WhichUsage, kw_only=True):
    measure: Annotated[Measure, Meta(description="The sum that ranks them.")] = Measure.USAGE
    at_most: Annotated[int, Meta(ge=1, le=1000, description="Rows at most.")] = 10


class UsageOf(Parameters, kw_only=True):
    service_account: Name | None = None


class UsageReport(Struct):
    """Hold a page of a report. `incomplete`: entries of the ledger are still being added to the sums."""

    rows: list[ReportedRow]
    incomplete: bool
    cursor: str | None = None


class CurrentUsage(Struct):
    """Hold what a tenant, or one of its service accounts, uses: today and this month, by the tenant's clock."""

    tenant: str
    service_account: str | None
    date: str
    month: str
    today: ReportedSums
    this_month: ReportedSums
    models: list[ReportedRow]
    incomplete: bool


async def report(call: Call) -> Reply:
    query: WhichReport = call.query
    usage, currency = call.services.usage, call.services.currency
    page = await usage.report(query.by, query.grain, _filter(query), query.at_most, query.cursor)
    if query.format is Format.CSV:
        more = {"x-next-cursor": page.cursor} if page.cursor is not None else {}
        return Reply(text=_csv(page.rows, currency), media_type=CSV, headers=more)
    rows = [reported_row(each, currency) for each in page.rows]
    return Reply(UsageReport(rows, await usage.incomplete(query.by, _filter(query)), page.cursor))


async def top(call: Call) -> Reply:
    query: TopUsage = call.query
    usage, wanted = call.services.usage, _filter(query)
    rows = await usage.top(query.by, wanted, query.measure, query.at_most)
    incomplete = await usage.incomplete(query.by, wanted)
    return Reply(UsageReport([reported_row(each, call.services.currency) for each in rows], incomplete))


async def of(call: Call) -> Reply:
    usage, currency = call.services.usage, call.services.currency
    now = await usage.of(call.tenant, call.query.service_account)
    return Reply(
        CurrentUsage(
            now.tenant,
            now.service_account,
            now.date,
            now.month,
            reported_sums(now.today, currency),
            reported_sums(now.this_month, currency),
            [reported_row(each, currency) for each in now.models],
            await usage.incomplete(None, ReportFilter(service_account=call.query.service_account)),
        )
    )


def _filter(query: WhichUsage) -> ReportFilter:
    return ReportFilter(
        query.tenant, query.service_account, query.client_ip, query.model, query.endpoint, query.since, query.until
    )


def _csv(rows: Sequence[UsageRow], currency: str) -> bytes:
    """Return a page as CSV."""
    stream = io.StringIO()
    writer = csv_writer(stream)
    writer.writerow(COLUMNS)
    writer.writerows(csv_cells_of(row, currency) for row in rows)
    return stream.getvalue().encode()


OPERATIONS = (
    Operation(
        "reportUsage", "GET", "/v1/usage/report", "Report usage per period, the newest period first.",
        Role.VIEWER, Tenancy.QUERY, report, UsageReport, WhichReport, tag="usage", also=(CSV,),
    ),
    Operation(
        "topUsage", "GET", "/v1/usage/top", "Rank tenants, service accounts, client IPs, models or endpoints.",
        Role.VIEWER, Tenancy.QUERY, top, UsageReport, TopUsage, tag="usage",
    ),
    Operation(
        "showUsage", "GET", "/v1/tenants/{tenant}/usage", "Show what a tenant or service account uses now.",
        Role.VIEWER, Tenancy.PATH, of, CurrentUsage, UsageOf, tag="usage",
    ),
)  # fmt: skip
