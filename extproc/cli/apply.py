"""Define `tokenweir apply`, which `tokenweir tenant apply` is too."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from extproc.admin.applying import Planned, Verdict
from extproc.admin.errors import AdminError
from extproc.cli import output
from extproc.cli.changing import Note, change, change_rows
from extproc.cli.files import read_documents
from extproc.cli.root import DIFFERENCES, FAULT, WRONG_USE, CommandError, Json, with_admin
from extproc.settings.load import SettingsError

EXAMPLES: Final = """
Examples:

    tokenweir apply -f tenants/ --dry-run

    tokenweir apply -f tenants/ --prune team-a --note 'deploy 4711'

    tokenweir tenant apply -f tenants.yaml

    tokenweir tenant show tenant01 --json | tokenweir tenant apply -f -
"""

_ROWS_AT_MOST: Final = 200
_PROGRESS_S: Final = 2.0
_DRY: Final = frozenset({"--dry-run", "--check"})


class DryRunError(CommandError):
    """Report wrong use of a dry run: its exit code 2 means that there are differences."""


class Command(TyperCommand):
    """Let wrong options of a dry run end with exit code 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the arguments that are left. Raise what the library raises for wrong ones."""
        dry = not _DRY.isdisjoint(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if dry and getattr(error, "exit_code", None) == WRONG_USE:
                error.exit_code = FAULT  # type: ignore[attr-defined]
            raise


def apply(
    context: typer.Context,
    file: Annotated[
        list[str],
        typer.Option(
            "--file",
            "-f",
            metavar="FILE|DIR",
            help="Documents as YAML or JSON, or a folder of such files; `-`: stdin. May be repeated.",
        ),
    ],
    prune: Annotated[
        str | None,
        typer.Option(
            "--prune",
            metavar="LABEL",
            help="Mark the documents as managed by LABEL, and delete those that are managed by it and not given.",
        ),
    ] = None,
    note: Note = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            "--check",
            help="Only show what would change. Exit code 2 for differences, 1 for any error.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Replace tenants' documents: a field that is missing in the new document is removed.

    The documents of all files are checked first. If one can't be used, none is written. Other tenants stay
    unchanged. Each tenant is written whole or not at all, many in transactions of 500. If it is killed, call it
    again: what is written already is found unchanged.
    """
    try:
        planned = _planned(context, file, prune, note, dry_run=dry_run)
    except (AdminError, SettingsError) as error:
        if dry_run:
            raise DryRunError(str(error)) from None
        raise
    for text in (text for each in planned for text in each.notes):
        output.note(text)
    different = [each for each in planned if each.verdict is not Verdict.UNCHANGED]
    counts = Counter(each.verdict for each in planned)
    if json:
        output.as_json(
            {
                "dry_run": dry_run,
                "summary": {verdict.value: counts[verdict] for verdict in Verdict},
                "tenants": [_document(each) for each in different],
            }
        )
    else:
        _print(different, counts, dry_run=dry_run)
    if dry_run and different:
        raise typer.Exit(DIFFERENCES)


def _planned(
    context: typer.Context, file: Sequence[str], prune: str | None, note: str | None, *, dry_run: bool
) -> list[Planned]:
    documents = read_documents(file)
    made, progress = change(note, None, dry_run=dry_run), _Progress()
    try:
        return with_admin(context, lambda admin: admin.apply(documents, made, prune=prune, progress=progress))
    except Exception:
        progress.stopped()
        raise


class _Progress:
    """Tell on stderr how far a long call is."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S
        self._written = (0, 0)

    def __call__(self, doing: str, done: int, of: int) -> None:
        if doing == "written":
            self._written = (done, of)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_S
            output.note(f"{doing} {done:,} of {of:,} tenants")

    def stopped(self) -> None:
        """Say what was written before an error."""
        done, of = self._written
        if done:
            output.note(f"written before: {done:,} of {of:,} tenants; apply again to write the rest")


def _print(different: Sequence[Planned], counts: Counter[Verdict], *, dry_run: bool) -> None:
    rows = [row for each in different for row in _rows(each)]
    if rows:
        output.as_table(("tenant", "verdict", "field", "before", "after"), rows[:_ROWS_AT_MOST], "")
        typer.echo()
    if len(rows) > _ROWS_AT_MOST:
        output.note(f"{len(rows) - _ROWS_AT_MOST:,} more lines are left out; --json has them all.")
    typer.echo(", ".join(f"{counts[verdict]:,} {verdict.value}" for verdict in Verdict) + ".")
    if dry_run:
        output.note("Nothing was written: --dry-run.")


def _rows(planned: Planned) -> list[tuple[Any, ...]]:
    who = (planned.tenant, planned.verdict.value)
    if planned.verdict is Verdict.DELETED or not planned.changes:
        return [(*who, None, None, None)]
    return [(*who, *row) for each in planned.changes for row in change_rows(each)]


def _document(planned: Planned) -> dict[str, object]:
    return {
        "tenant": planned.tenant,
        "verdict": planned.verdict.value,
        "changes": [{"field": c.field, "before": c.before, "after": c.after} for c in planned.changes],
    }
