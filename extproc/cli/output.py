"""Print tables for people and JSON for programs."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec
import typer

from extproc.terminal.tables import print_table, visible


def as_json(value: object) -> None:
    """Print one JSON document."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def json_line(value: object) -> str:
    """Return the value as JSON on one line."""
    return msgspec.json.encode(value).decode()


def instant(at: datetime) -> str:
    """Format an instant in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def as_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table. Without rows, print `empty` to stderr."""
    lines = list(rows)
    if lines:
        print_table(columns, lines)
    else:
        note(empty)


def note(text: str) -> None:
    """Print a line to stderr that is not part of the result."""
    typer.echo(visible(text), err=True)


def note_cursor(cursor: str | None) -> None:
    """Print a line to stderr that says how to go on, if there is more."""
    if cursor is not None:
        note(f"There is more: go on with --cursor {cursor}")


def note_gone(before: datetime | None) -> None:
    """Print a line to stderr if entries that were asked for may be deleted."""
    if before is not None:
        note(f"Entries before {instant(before)} are gone by ledger retention: they are missing here.")


def unusable(what: str) -> str:
    """Return a note about fields of stored limits that can't be used."""
    return f"{what}: replicas use their last good values, else the defaults, which are shown here."
