"""Describe the rows of a report once, for API and command line: JSON, and the columns of CSV and Parquet."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from msgspec import Struct

from extproc.admin.money import price_text
from extproc.ports.reports import SUM_NAMES, Sums, UsageRow
from extproc.terminal.csv_cells import cells

TOKENS: Final = tuple(name for name in SUM_NAMES if name != "price")
COLUMNS: Final = ("period", "name", "tenant", *TOKENS, "price", "currency")


class ReportedSums(Struct, kw_only=True):
    """Hold sums in tokens and requests. `usage` is what was charged; `price` is an exact decimal."""

    usage: int
    input: int
    output: int
    cached: int
    requests: int
    denied: int
    estimated: int
    price: str
    price_billionths: int
    currency: str


class ReportedRow(ReportedSums):
    """Hold the sums of one name in one period. `tenant` is that of a service account."""

    period: str | None
    name: str
    tenant: str | None


def reported_sums(sums: Sums, currency: str) -> ReportedSums:
    """Return sums as programs get them."""
    return ReportedSums(
        usage=sums.usage,
        input=sums.input,
        output=sums.output,
        cached=sums.cached,
        requests=sums.requests,
        denied=sums.denied,
        estimated=sums.estimated,
        price=price_text(sums.price),
        price_billionths=sums.price,
        currency=currency,
    )


def reported_row(row: UsageRow, currency: str) -> ReportedRow:
    """Return a row as programs get it."""
    sums = reported_sums(row.sums, currency)
    named = {name: getattr(sums, name) for name in ReportedSums.__struct_fields__}
    return ReportedRow(row.period, row.name, row.tenant, **named)


def values_of(row: UsageRow, currency: str) -> list[object]:
    """Return the values of `COLUMNS`. The price is an exact decimal."""
    tokens = [getattr(row.sums, name) for name in TOKENS]
    return [row.period, row.name, row.tenant, *tokens, Decimal(price_text(row.sums.price)), currency]


def csv_cells_of(row: UsageRow, currency: str) -> Sequence[object]:
    """Return the cells of a line of CSV. No text of it is taken for a formula, and the price is a number."""
    *values, price, currency = values_of(row, currency)  # type: ignore[assignment]
    return [*cells(values), f"{price:f}", *cells([currency])]
