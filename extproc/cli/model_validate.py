"""Define `tokenweir model validate`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from extproc.cli import model_files, output
from extproc.cli.root import WRONG_USE, Json
from extproc.onboarding import checking, files, helm, schema_problems
from extproc.onboarding.checking import Level, Problem
from extproc.onboarding.errors import HelmMissing, HelmRefused, OnboardingError
from extproc.onboarding.layering import unspell
from extproc.onboarding.problem import error
from extproc.terminal.tables import visible

EXAMPLES = """
Examples:

    tokenweir model validate values.yaml

    tokenweir model validate models/*.yaml --base platform.yaml --json

    tokenweir model validate apps/staging/qwen.yaml --base apps/base/qwen.yaml --strict
"""
INVALID = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Hold the result for one model of a file. `unrendered`: why it could not be rendered; `unread`: or read."""

    file: str
    release: str | None
    chart: str | None
    problems: list[tuple[Problem, int | None]]
    rendered: bool = False
    unrendered: str = ""
    unread: bool = False

    def valid(self, *, strict: bool) -> bool:
        levels = {problem.level for problem, _ in self.problems}
        return not (Level.ERROR in levels or (strict and levels))


def validate(
    file: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Values files, or Flux HelmReleases; `-`: stdin.")
    ],
    base: model_files.Base = None,
    chart: model_files.Chart = None,
    release: model_files.Release = None,
    namespace: model_files.Namespace = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    render: Annotated[
        bool, typer.Option("--render/--no-render", help="Render files without errors, if helm is installed.")
    ] = True,
    helm: model_files.Helm = None,
    json: Json = False,
) -> None:
    """Check values by the chart's schema, by rules, and by rendering them. Needs no cluster.

    Exit code 1 if there are errors, 2 if a file can't be read. Needs `pip install 'tokenweir[models]'`.
    """
    model_files.checked(chart)
    if [*file, *(base or [])].count(files.STDIN) > 1:
        raise OnboardingError("stdin can be read once only: give '-' once")
    for name in (each for each in base or () if each != files.STDIN):
        files.models(files.load(name), name, chart)  # an unreadable base is no problem of a file
    verdicts = [
        each for name in file for each in _verdicts(name, base, chart, release, namespace, helm, render=render)
    ]
    if json:
        output.as_json([_document(each, strict=strict) for each in verdicts])
    else:
        for each in verdicts:
            _print(each, strict=strict)
        for why in dict.fromkeys(each.unrendered for each in verdicts if each.unrendered):
            output.note(f"Not rendered: {visible(why)}")
    if any(each.unread for each in verdicts):
        raise typer.Exit(WRONG_USE)
    if not all(each.valid(strict=strict) for each in verdicts):
        raise typer.Exit(INVALID)


def _verdicts(
    name: str,
    base: list[str] | None,
    chart: str | None,
    release: str | None,
    namespace: str | None,
    program: str | None,
    *,
    render: bool,
) -> list[Verdict]:
    try:
        found = files.models(files.load(name), name, chart)
        if len(found) > 1 and release is not None:
            found = [files.one(files.load(name), name, chart, release)]
        opened = [
            model_files.opened(each, chart, release if len(found) == 1 else each.release, namespace, base)
            for each in found
        ]
    except OnboardingError as wrong:
        problem = error("", str(wrong).removeprefix(f"{name}: "), "")
        return [Verdict(name, release, chart, [(problem, None)], unread=True)]
    return [_verdict(name, each, program, render=render) for each in opened]


def _verdict(name: str, opened: model_files.Opened, program: str | None, *, render: bool) -> Verdict:
    model = opened.model
    told = opened.release != model_files.RELEASE
    found = checking.problems(
        opened.chart,
        opened.values,
        opened.release if told else None,
        opened.namespace if told else None,
        partial=opened.partial,
        elsewhere=opened.elsewhere,
    )
    rendered, unrendered = False, ""
    if any(each.message.endswith(schema_problems.LATER) for each in found):
        unrendered = f"{name}: the chart refuses what Flux has yet to fill in"
    elif render and not opened.partial and not any(each.level is Level.ERROR for each in found):
        try:
            helm.render(opened.chart, opened.values, opened.release, opened.namespace, program)
            rendered = True
        except HelmMissing as missing:
            if program is not None:
                raise
            unrendered = str(missing)
        except HelmRefused as refusal:
            found.append(error("", str(refusal), "said when it was rendered"))
    with_lines = [(each, model.line_of(unspell(each.path)) if each.path else None) for each in found]
    ordered = sorted(with_lines, key=lambda pair: (pair[0].level is Level.WARNING, pair[1] or 0))
    named = opened.release if told else None
    return Verdict(name, named, opened.chart, ordered, rendered=rendered, unrendered=unrendered)


def _document(verdict: Verdict, *, strict: bool) -> dict[str, object]:
    return {
        "file": verdict.file,
        "release": verdict.release,
        "chart": verdict.chart,
        "valid": verdict.valid(strict=strict),
        "rendered": verdict.rendered,
        "problems": [
            {
                "level": problem.level.value,
                "path": problem.path,
                "line": line,
                "message": problem.message,
                "fix": problem.fix,
            }
            for problem, line in verdict.problems
        ],
    }


def _print(verdict: Verdict, *, strict: bool) -> None:
    for problem, line in verdict.problems:
        where = f"{verdict.file}:{line}" if line else verdict.file
        colour = typer.colors.RED if problem.level is Level.ERROR else typer.colors.YELLOW
        head = f"{visible(where)}: {typer.style(problem.level.value, fg=colour)}: "
        path = f"{problem.path}: " if problem.path else ""
        lines = [visible(each) for each in f"{path}{problem.message}".splitlines()]
        typer.echo(head + "\n    ".join(lines) + (visible(f" ({problem.fix})") if problem.fix else ""))
    if verdict.unread:
        return
    levels = [problem.level for problem, _ in verdict.problems]
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    state = "valid" if verdict.valid(strict=strict) else "invalid"
    counts = [
        f"{count} {what}{'s' * (count != 1)}"
        for count, what in ((errors, "error"), (warnings, "warning"))
        if count
    ]
    named = f" {verdict.release}" if verdict.release else ""
    about = ", ".join([f"chart {verdict.chart}", *(["rendered"] if verdict.rendered else []), *counts])
    typer.echo(visible(f"{verdict.file}:{named} {state} ({about})"))
