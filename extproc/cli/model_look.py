"""Define `tokenweir model render|explain|diff`: show a file's objects, and the values behind them."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from extproc.cli import model_files, output
from extproc.cli.root import Json
from extproc.onboarding import comparing, explaining, files, reading
from extproc.onboarding import helm as runner
from extproc.onboarding.comparing import Change, Difference
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.explaining import Explained
from extproc.onboarding.layering import look, unspell
from extproc.terminal.tables import visible

RENDER_EXAMPLES = """
Examples:

    tokenweir model render values.yaml --release qwen --namespace models

    tokenweir model render apps/staging/qwen.yaml --base platform.yaml --base apps/base/qwen.yaml -o out.yaml

    tokenweir model render values.yaml --json
"""
EXPLAIN_EXAMPLES = """
Examples:

    tokenweir model explain values.yaml --release qwen

    tokenweir model explain values.yaml --base platform.yaml --json
"""
DIFF_EXAMPLES = """
Examples:

    tokenweir model diff values.yaml new-values.yaml

    tokenweir model diff values.yaml --against main

    tokenweir model diff apps/qwen.yaml --against HEAD --exit-code
"""
DIFFERS = 1
_GIT_TIMEOUT_S = 30


def render(
    file: model_files.File,
    base: model_files.Base = None,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    namespace: model_files.Namespace = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file instead of stdout.")
    ] = None,
    helm: model_files.Helm = None,
    json: Json = False,
) -> None:
    """Print the objects of a file, as Helm would install them. Needs helm, and no cluster."""
    opened = model_files.open_file(file, chart, release, namespace, base)
    text = runner.render(opened.chart, opened.values, opened.release, opened.namespace, helm)
    objects = runner.objects(text)
    if out is None:
        output.as_json(objects) if json else typer.echo(text, nl=False)
        return
    try:
        out.write_text(output.json_line(objects) + "\n" if json else text, encoding="utf-8")
    except OSError as wrong:
        raise OnboardingError(f"{out}: can't be written: {wrong.strerror or wrong}") from None
    output.note(f"Wrote {out}: {len(objects)} objects.")


def explain(
    file: model_files.File,
    base: model_files.Base = None,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    namespace: model_files.Namespace = None,
    helm: model_files.Helm = None,
    json: Json = False,
) -> None:
    """Show each object of a file, and the values that it depends on.

    Renders the file without each value in turn, so the result always matches the chart. Needs helm.
    """
    opened = model_files.open_file(file, chart, release, namespace, base)
    place = (opened.release, opened.namespace, helm)
    study = explaining.study(opened.chart, opened.model.values, *place, below=opened.below)
    if json:
        output.as_json(study)
        return
    for each in study.objects:
        typer.echo(
            typer.style(visible(f"{each.kind}/{each.name}"), bold=True)
            + visible(f": {_reason(each, opened.below)}")
        )
        if each.shaped_by:
            typer.echo(visible(f"    shaped by {', '.join(each.shaped_by)}"))
    for path, names in study.withheld.items():
        typer.echo(visible(f"Without {path} there would be {', '.join(names)}"))
    for path, refusal in study.needed.items():
        output.note(f"Without {path} the chart refuses: {' '.join(refusal.split())}")
    if study.idle:
        output.note(f"Nothing changes without: {', '.join(study.idle)}")


def _reason(each: Explained, below: Mapping[str, Any]) -> str:
    if not each.because:
        return "there whatever this file says" if below else "always there"
    places = {
        path: "of the base" if look(below, *unspell(path)) is not None else "on by default"
        for path in each.by_default
    }
    named = [f"{path} ({places[path]})" if path in places else path for path in each.because]
    if each.each_needed:
        return f"for {' and '.join(named)}"
    return f"for {' or '.join(named)}, each of which is enough"


def diff(
    old: Annotated[str, typer.Argument(metavar="FILE", help="A values file, or a Flux HelmRelease.")],
    new: Annotated[str | None, typer.Argument(metavar="[NEW]", help="The file to compare with.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="REV", help="Compare FILE with its content at this revision of Git.")
    ] = None,
    base: model_files.Base = None,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    namespace: model_files.Namespace = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with code 1 if something differs.")] = False,
    helm: model_files.Helm = None,
    json: Json = False,
) -> None:
    """Show the differences between the objects of two files, or of a file and its past in Git. Needs helm."""
    if (new is None) == (against is None):
        raise OnboardingError("compare with what? Give a second file, or --against a revision of Git")
    model_files.checked(chart)
    if [old, new].count(files.STDIN) > 1:
        raise OnboardingError("stdin can be read once only: give '-' once")
    if against is not None:
        sides = [(_at_revision(old, against), f"{against}:{old}"), (files.load(old), old)]
    else:
        sides = [(files.load(name), name) for name in (old, str(new))]
    rendered = []
    for text, source in sides:
        opened = model_files.opened(files.one(text, source, chart, release), chart, release, namespace, base)
        objects = runner.render(opened.chart, opened.values, opened.release, opened.namespace, helm)
        rendered.append(runner.objects(objects))
    found = comparing.compare(rendered[0], rendered[1])
    if json:
        output.as_json(found)
    else:
        _print(found)
    if found and exit_code:
        raise typer.Exit(DIFFERS)


def _print(found: list[Difference]) -> None:
    colours = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}
    for each in found:
        typer.echo(typer.style(visible(f"{each.kind}/{each.name}: {each.change.value}"), bold=True))
        for line in each.diff.splitlines() if each.change is Change.CHANGED else ():
            typer.secho(f"    {visible(line)}", fg=colours.get(line[:1]))
    counts = [(change, sum(each.change is change for each in found)) for change in Change]
    output.note(", ".join(f"{count} {change.value}" for change, count in counts if count) or "No object differs.")


def _at_revision(file: str, revision: str) -> str:
    """Return the file's text at a revision of Git. Raise `OnboardingError`."""
    path = Path(file)
    if file == files.STDIN:
        raise OnboardingError("--against needs a file: stdin has no past")
    words = ["git", "-C", str(path.parent), "show", "--end-of-options", f"{revision}:./{path.name}"]
    try:
        done = subprocess.run(  # noqa: S603 - Git, without a shell
            words, capture_output=True, stdin=subprocess.DEVNULL, timeout=_GIT_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise OnboardingError("--against needs git, and there is none") from None
    except subprocess.TimeoutExpired:
        raise OnboardingError(f"git did not answer within {_GIT_TIMEOUT_S} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OnboardingError(f"{file} at {revision}: {said[0].removeprefix('fatal: ') if said else 'git failed'}")
    return files.decode(done.stdout[: reading.MAX_BYTES + 1], f"{revision}:{file}")
