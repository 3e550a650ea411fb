"""Share what all commands that write have: who changes, why, on which version; and the print of what changed."""

import getpass
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from extproc.admin.change import Change, Changed, FieldChange
from extproc.cli import output
from extproc.ports.audit import Actor, ActorKind
from extproc.terminal.tables import visible

Note = Annotated[str | None, typer.Option("--note", help="Why: kept in the audit log.")]
IfVersion = Annotated[
    int | None,
    typer.Option(
        "--if-version",
        min=0,
        metavar="VERSION",
        help="Only if the document still has this version, else exit code 4; 0: only if there is none.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]

_NAME_CHARS = 256


def change(note: str | None, if_version: int | None, *, dry_run: bool) -> Change:
    """Return the change of the operating system's user on this host."""
    return Change(os_user(), note, if_version, dry_run)


def os_user() -> Actor:
    """Return the operating system's user and the host. A container's user may have a number only."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        name = "unknown"
    return Actor(_printable(name), ActorKind.OS_USER, _printable(socket.gethostname()))


def _printable(text: str) -> str:
    kept = "".join(each if each.isprintable() else "?" for each in text[:_NAME_CHARS]).strip()
    return kept or "unknown"


def print_changed(changed: Changed, json: bool) -> None:
    """Print what a write has changed."""
    view = changed.view
    if view is not None and view.problem is not None:
        output.note(output.unusable(f"Other fields of the document can't be used ({view.problem})"))
    if json:
        output.as_json(changed)
        return
    if view is not None and view.defaults:
        what = "These defaults bind beside its own limits" if view.limits else _ONLY_DEFAULTS
        output.note(f"{what}: {', '.join(view.defaults)}.")
    typer.echo(visible(_headline(changed)))
    print_field_changes(changed.changes)
    if changed.dry_run:
        output.note("Nothing was written: --dry-run.")


_ONLY_DEFAULTS = "It has no limits of its own; the defaults stay"


def _headline(changed: Changed) -> str:
    if not changed.changes:
        return f"Tenant '{changed.tenant}' is as wanted already: nothing was written."
    if changed.view is None:
        verb = "Would delete" if changed.dry_run else "Deleted"
        return f"{verb} the limits of tenant '{changed.tenant}'."
    verb = {(False, False): "Updated", (True, False): "Created", (False, True): "Would update",
            (True, True): "Would create"}[changed.created, changed.dry_run]  # fmt: skip
    return f"{verb} tenant '{changed.tenant}' (version {changed.version})."


def print_field_changes(changes: Sequence[FieldChange]) -> None:
    """Print one line per value that differs. Of a list, only the items that differ."""
    rows = [row for each in changes for row in change_rows(each)]
    if rows:
        output.as_table(("field", "before", "after"), rows, "")


def change_rows(change: FieldChange) -> list[tuple[str, str | None, str | None]]:
    """Return the rows of one change: field, before, after."""
    return [(field, _cell(before), _cell(after)) for field, before, after in _parts(*_values(change))]


def _values(change: FieldChange) -> tuple[str, object, object]:
    return change.field, change.before, change.after


def _parts(field: str, before: object, after: object) -> list[tuple[str, object, object]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = sorted(before.keys() | after.keys())
        return [
            part
            for name in names
            if before.get(name) != after.get(name)
            for part in _parts(f"{field}.{name}", before.get(name), after.get(name))
        ]
    if isinstance(before, list | None) and isinstance(after, list | None):
        gone = [each for each in before or () if each not in (after or ())]
        new = [each for each in after or () if each not in (before or ())]
        pairs = [(old, _twin(old, new)) for old in gone]
        fresh = [each for each in new if all(each is not twin for _, twin in pairs)]
        return [(f"{field}[]", *pair) for pair in [*pairs, *((None, each) for each in fresh)]] or [
            (field, before, after)
        ]
    return [(field, before, after)]


def _twin(item: object, others: Sequence[object]) -> object:
    """Return the item that one became: of the same name, or with the same scope, window and unit; else None."""
    if not isinstance(item, Mapping):
        return None
    names = ("id", "name", "scope", "window", "unit", "model", "endpoint", "service_account")
    key = [item.get(name) for name in names]
    return next(
        (each for each in others if isinstance(each, Mapping) and [each.get(name) for name in names] == key), None
    )


def _cell(value: object) -> str | None:
    if value is None:
        return None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else output.json_line(value)
