"""Tables for people, JSON for programs."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec
import typer

from extproc.terminal.tables import print_table, visible


def as_json(value: object) -> None:
    """Prints one JSON document."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def json_line(value: object) -> str:
    """JSON on one line."""
    return msgspec.json.encode(value).decode()


def instant(at: datetime) -> str:
    """In UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def as_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Prints a table. Without rows, prints `empty` to stderr."""
    lines = list(rows)
    if lines:
        print_table(columns, lines)
    else:
        note(empty)


def note(text: str) -> None:
    """Prints a line that is not part of the result, to stderr."""
    typer.echo(visible(text), err=True)
