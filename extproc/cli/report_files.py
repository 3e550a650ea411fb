"""Write the rows of a report: a table for people; CSV, JSON and Parquet for programs.

Money is the exact decimal of billionths of a unit, never a floating-point number.
"""

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import msgspec

from extproc.admin.errors import AdminError
from extproc.admin.money import PLACES, price_text
from extproc.admin.report_rows import COLUMNS, TOKENS, csv_cells_of, reported_row, values_of
from extproc.cli import output
from extproc.ports.reports import UsageRow
from extproc.terminal.csv_cells import csv_writer
from extproc.terminal.tables import print_table


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
    columns, lines = [*shape.head(), *TOKENS], []
    for row in rows:
        line: list[object] = [*shape.key(row), *(getattr(row.sums, name) for name in TOKENS)]
        lines.append([*line, price_text(row.sums.price, places)] if any(prices) else line)
    print_table([*columns, f"price ({shape.currency})"] if any(prices) else columns, lines)


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
    writer.writerow(COLUMNS)
    async for rows in pages:
        writer.writerows(csv_cells_of(row, shape.currency) for row in rows)


async def _write_json(shape: Shape, pages: Rows, stream: TextIO) -> None:
    before = "[\n"
    async for rows in pages:
        for row in rows:
            stream.write(before + "  " + msgspec.json.encode(reported_row(row, shape.currency)).decode())
            before = ",\n"
    stream.write("[]\n" if before == "[\n" else "\n]\n")


async def _write_parquet(shape: Shape, pages: Rows, path: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise AdminError("Parquet needs pyarrow: pip install 'tokenweir[reports]'") from None
    text, whole, money = pa.string(), pa.int64(), pa.decimal128(38, PLACES)
    types = [text, text, text, *(whole for _ in TOKENS), money, text]
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    try:
        with parquet.ParquetWriter(path, schema) as writer:
            async for rows in pages:
                lines = [dict(zip(COLUMNS, values_of(row, shape.currency), strict=True)) for row in rows]
                writer.write_table(pa.Table.from_pylist(lines, schema=schema))
    except OSError as error:
        raise AdminError(f"--output: {path}: {error.strerror or error}") from None
