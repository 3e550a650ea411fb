"""Tables for people, JSON for programs."""

from collections.abc import Iterable, Sequence

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def as_json(value: object) -> None:
    """Prints one JSON document."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def as_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Prints a table, one line per row; numbers are right-aligned. Without rows, prints `empty` to stderr."""
    lines = [list(row) for row in rows]
    if not lines:
        note(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        numeric = all(isinstance(line[index], int | None) for line in lines)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(_cell(value)) for value in line))  # Text: names are not markup
    console = Console(highlight=False)
    # As wide as it needs to be, in a narrow terminal and in a pipe: a name in pieces can't be searched or copied.
    unbounded = console.options.update(width=1_000_000)
    console.width = Measurement.get(console, unbounded, table).maximum
    console.print(table, crop=False)


def note(text: str) -> None:
    """Prints a line that is not part of the result, to stderr."""
    typer.echo(visible(text), err=True)


def visible(text: str) -> str:
    """The text with what a terminal would act on (control, format and unpaired characters) written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else visible(str(value))
