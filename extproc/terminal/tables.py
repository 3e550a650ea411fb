"""Print tables for people: one line a row, as wide as it needs to be."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table to stdout. Numbers are right-aligned.

    No line is folded, in a narrow terminal or in a pipe: a name in pieces can't be searched or copied.
    """
    lines = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        numeric = all(isinstance(line[index], int | None) for line in lines)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(_cell(value)) for value in line))  # Text: names are not markup
    console = Console(highlight=False)
    unbounded = console.options.update(width=1_000_000)
    console.width = Measurement.get(console, unbounded, table).maximum
    console.print(table, crop=False)


def visible(text: str) -> str:
    """Return the text with all characters written out that a terminal would act on: control, format, unpaired."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else visible(str(value))
