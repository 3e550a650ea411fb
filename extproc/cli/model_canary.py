"""Define `tokenweir model canary start|shift|promote|abort`: edits of the file, which reach the cluster through
Git.
"""

import difflib
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from extproc.cli import model_files, output
from extproc.cli.root import Json
from extproc.onboarding import canary, files, writing
from extproc.onboarding.canary import canary_of
from extproc.onboarding.layering import look, spell
from extproc.terminal.tables import visible

app = typer.Typer(help="Edit a canary in the values file; comments and order stay.", no_args_is_help=True)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]
Load = Annotated[
    int,
    typer.Option("--primary-load", metavar="PERCENT", help="Percentage of requests for the primary, 0 to 100."),
]


@app.command(
    epilog="""
Examples:

    tokenweir model canary start values.yaml --storage hf://Qwen/Qwen3-14B-AWQ --primary-load 90

    tokenweir model canary start values.yaml --tag v2
"""
)
def start(
    file: model_files.File,
    storage: Annotated[str | None, typer.Option(metavar="URI", help="The canary's model.")] = None,
    image: Annotated[str | None, typer.Option(help="The canary's image.")] = None,
    tag: Annotated[str | None, typer.Option(help="The canary's tag of the same image.")] = None,
    primary_load: Load = 90,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Begin a canary: another model, another image, or another tag of its image. Exit code 2 if one runs."""
    model_files.checked(chart)

    def edit(text: str) -> str:
        return canary.start(
            text,
            storage=storage,
            image=image,
            tag=tag,
            primary_load=primary_load,
            release=release,
            chart=chart,
            source=file,
        )

    _edit(file, edit, (chart, release), dry_run=dry_run, json=json)


@app.command(
    epilog="""
Examples:

    tokenweir model canary shift values.yaml --primary-load 50

    tokenweir model canary shift apps/qwen.yaml --primary-load 0 --dry-run
"""
)
def shift(
    file: model_files.File,
    primary_load: Load,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Change the share of requests that the canary gets."""
    model_files.checked(chart)
    _edit(
        file,
        lambda text: canary.shift(text, primary_load, release=release, chart=chart, source=file),
        (chart, release),
        dry_run=dry_run,
        json=json,
    )


@app.command(epilog="Example: tokenweir model canary promote values.yaml")
def promote(
    file: model_files.File,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make the canary the primary: the primary gets its model or image, and the canary ends."""
    model_files.checked(chart)
    _edit(
        file,
        lambda text: canary.promote(text, release=release, chart=chart, source=file),
        (chart, release),
        dry_run=dry_run,
        json=json,
    )


@app.command(epilog="Example: tokenweir model canary abort values.yaml")
def abort(
    file: model_files.File,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """End the canary: the primary stays as it is and gets all requests."""
    model_files.checked(chart)
    _edit(
        file,
        lambda text: canary.abort(text, release=release, chart=chart, source=file),
        (chart, release),
        dry_run=dry_run,
        json=json,
    )


def _edit(
    file: str,
    edit: Callable[[str], str],
    chosen: tuple[str | None, str | None],
    *,
    dry_run: bool,
    json: bool,
) -> None:
    """Edit the file in place; for stdin print the result to stdout."""
    before = files.load(file)
    after = edit(before)
    if file != files.STDIN and not dry_run and after != before:
        writing.replace(file, before, after)
    if json:
        output.as_json(_document(file, before, after, chosen, dry_run=dry_run))
        return
    if file == files.STDIN and not dry_run:
        sys.stdout.write(after)
        return
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), file, file, lineterm="", n=2)
    colours = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}
    for line in lines:
        typer.secho(visible(line), fg=colours.get(line[:1]))
    if after == before:
        output.note("Nothing to change: it says so already.")
    elif dry_run:
        output.note("Nothing was written: --dry-run.")
    else:
        output.note(f"{file} is edited. Nothing is applied: commit it, as any other change.")


def _document(
    file: str, before: str, after: str, chosen: tuple[str | None, str | None], *, dry_run: bool
) -> dict[str, object]:
    values = files.one(after, file, *chosen).values
    return {
        "file": file,
        "changed": after != before,
        "written": after != before and not dry_run and file != files.STDIN,
        "primary_load": look(values, "primaryLoad"),
        "canary": {spell(path): value for path, value in canary_of(values).items()},
    }
