"""Write the rows of a report: a table for people; CSV, JSON and Parquet for programs.

Money is the exact decimal of billionths of a unit, never a floating-point number.
"""

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from extproc.admin.errors import AdminError
from extproc.admin.money import PLACES, price_text
from extproc.cli import output
from extproc.ports.reports import SUM_NAMES, Sums, UsageRow
from extproc.terminal.csv_cells import cells, csv_writer
from extproc.terminal.tables import print_table

_TOKENS: Final = tuple(name for name in SUM_NAMES if name != "price")
_COLUMNS: Final = ("period", "name", "tenant", *_TOKENS, "price", "currency")


class Format(StrEnum):
    """Select the form of a report."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Shape:
    """Say which columns rows have: `name` is what rows are named by, such as `model`."""

    name: str
    currency: str
    periods: bool = True
    tenants: bool = False

    def head(self) -> list[str]:
        """Return the columns that identify a row."""
        return [*(["period"] if self.periods else []), self.name, *(["tenant"] if self.tenants else [])]

    def key(self, row: UsageRow) -> list[str | None]:
        """Return the values of these columns."""
        return [*([row.period] if self.periods else []), row.name, *([row.tenant] if self.tenants else [])]


Rows = AsyncIterator[Sequence[UsageRow]]
Write = Callable[[Rows], Any]


def places_of(prices: Sequence[int]) -> int:
    """Return the places that all prices of a column fit in, two at least."""
    return max((len(price_text(price, 2).partition(".")[2]) for price in prices), default=2)


def print_rows(shape: Shape, rows: Sequence[UsageRow]) -> None:
    """Print a table. It has a column of money if any row has some."""
    if not rows:
        output.note("No usage on record that fits.")
        return
    prices = [row.sums.price for row in rows]
    places = places_of(prices)
    columns, lines = [*shape.head(), *_TOKENS], []
    for row in rows:
        line: list[object] = [*shape.key(row), *(getattr(row.sums, name) for name in _TOKENS)]
        lines.append([*line, price_text(row.sums.price, places)] if any(prices) else line)
    print_table([*columns, f"price ({shape.currency})"] if any(prices) else columns, lines)


@dataclass(frozen=True, slots=True)
class ReportRow:
    """Hold a row of a report as programs get it. `tenant` is null unless the rows are service accounts."""

    period: str | None
    name: str
    tenant: str | None
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


def record(shape: Shape, row: UsageRow) -> dict[str, object]:
    """Return a row as JSON has it: the fields of `ReportRow`."""
    named = {"period": row.period, "name": row.name, "tenant": row.tenant}
    return named | sums_record(row.sums, shape.currency)


def sums_record(sums: Sums, currency: str) -> dict[str, object]:
    """Return sums as JSON has them."""
    tokens: dict[str, object] = {name: getattr(sums, name) for name in _TOKENS}
    return tokens | {"price": price_text(sums.price), "price_billionths": sums.price, "currency": currency}


async def write_rows(form: Format, shape: Shape, pages: Rows, path: Path | None) -> None:
    """Write all rows to a file, or to stdout. Raise `AdminError` if the form can't be written there."""
    if form is Format.PARQUET:
        if path is None:
            raise AdminError("Parquet is not text: name a file by --output")
        await _write_parquet(shape, pages, path)
        return
    write = _write_csv if form is Format.CSV else _write_json
    if path is None:
        await write(shape, pages, sys.stdout)
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            await write(shape, pages, stream)
    except OSError as error:
        raise AdminError(f"--output: {path}: {error.strerror}") from None


async def _write_csv(shape: Shape, pages: Rows, stream: TextIO) -> None:
    writer = csv_writer(stream)
    writer.writerow(_COLUMNS)
    async for rows in pages:
        for row in rows:
            *line, price, currency = _line(shape, row)
            writer.writerow([*cells(line), f"{price:f}", *cells([currency])])  # the price is a number


def _line(shape: Shape, row: UsageRow) -> list[object]:
    """Return the values of `_COLUMNS`. The price is an exact decimal."""
    tokens = [getattr(row.sums, name) for name in _TOKENS]
    return [row.period, row.name, row.tenant, *tokens, Decimal(price_text(row.sums.price)), shape.currency]


async def _write_json(shape: Shape, pages: Rows, stream: TextIO) -> None:
    before = "[\n"
    async for rows in pages:
        for row in rows:
            stream.write(before + "  " + msgspec.json.encode(record(shape, row)).decode())
            before = ",\n"
    stream.write("[]\n" if before == "[\n" else "\n]\n")


async def _write_parquet(shape: Shape, pages: Rows, path: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise AdminError("Parquet needs pyarrow: pip install 'tokenweir[reports]'") from None
    text, whole, money = pa.string(), pa.int64(), pa.decimal128(38, PLACES)
    types = [text, text, text, *(whole for _ in _TOKENS), money, text]
    schema = pa.schema(list(zip(_COLUMNS, types, strict=True)))
    try:
        with parquet.ParquetWriter(path, schema) as writer:
            async for rows in pages:
                lines = [dict(zip(_COLUMNS, _line(shape, row), strict=True)) for row in rows]
                writer.write_table(pa.Table.from_pylist(lines, schema=schema))
    except OSError as error:
        raise AdminError(f"--output: {path}: {error.strerror or error}") from None
