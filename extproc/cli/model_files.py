"""Share options between the commands of `tokenweir model`, and open the model of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from extproc.onboarding import charts, files
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.layering import overlaid

RELEASE: Final = "my-model"
NAMESPACE: Final = "default"

File = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A values file, or a Flux HelmRelease; `-`: stdin.", show_default=False),
]
Chart = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(charts.MODEL_CHARTS),
        help="The chart. By default taken from the HelmRelease, the comment at the top, or the file's keys.",
        autocompletion=lambda: list(charts.MODEL_CHARTS),
    ),
]
Release = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The release's name; selects one of several HelmReleases in a file."),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="The release's namespace.")
]
Base = Annotated[
    list[str] | None,
    typer.Option(
        "--base",
        "-b",
        metavar="FILE",
        help="Values below: the platform's, or the HelmRelease that FILE patches. May be repeated.",
    ),
]
Helm = Annotated[
    str | None,
    typer.Option(metavar="PROGRAM", help="The helm program; by default TOKENWEIR_HELM, then the one on PATH."),
]


@dataclass(frozen=True, slots=True)
class Opened:
    """Hold a model with the values of the options.

    `below`: the values below its own. `partial`, `elsewhere`: as in `files.Model`, for all layers together.
    """

    model: files.Model
    chart: str
    release: str
    namespace: str
    below: Mapping[str, Any]
    partial: bool
    elsewhere: bool

    @property
    def values(self) -> dict[str, Any]:
        """Return its own values over those below."""
        return overlaid(self.below, self.model.values)


def checked(chart: str | None) -> str | None:
    """Return the option's value. Raise `OnboardingError` for an unknown chart."""
    if chart is not None:
        charts.chart_path(chart)
    return chart


def opened(
    model: files.Model,
    chart: str | None = None,
    release: str | None = None,
    namespace: str | None = None,
    base: list[str] | None = None,
) -> Opened:
    """Return the model as it is rendered: an option overrides the file, and the file overrides a base."""
    beneath = [files.one(files.load(name), name, chart, release or model.release) for name in base or ()]
    below: dict[str, Any] = {}
    for each in beneath:
        below = overlaid(below, each.values)
    told = next((each.chart for each in (model, *reversed(beneath)) if each.told), None)
    # The keys of a base can also show that it uses a chart with canaries.
    guessed = next((each.chart for each in (model, *beneath) if each.chart == charts.WITH_CANARY), model.chart)
    names = [each.release for each in (model, *reversed(beneath)) if each.release]
    places = [each.namespace for each in (model, *reversed(beneath)) if each.namespace]
    return Opened(
        model=model,
        chart=chart or told or guessed,
        release=release or next(iter(names), RELEASE),
        namespace=namespace or next(iter(places), NAMESPACE),
        below=below,
        partial=model.partial and not any(_is_whole(each) for each in beneath),
        elsewhere=any(each.elsewhere for each in (model, *beneath)),
    )


def _is_whole(base: files.Model) -> bool:
    """Return whether a patch on this base is complete: the platform's values alone are no model."""
    return (base.helmrelease and not base.partial) or "inferenceservice" in base.values


def open_file(
    file: str,
    chart: str | None = None,
    release: str | None = None,
    namespace: str | None = None,
    base: list[str] | None = None,
) -> Opened:
    """Return the one model of a file. Raise `OnboardingError`."""
    if [file, *(base or [])].count(files.STDIN) > 1:
        raise OnboardingError("stdin can be read once only: give '-' once")
    model = files.one(files.load(file), file, checked(chart), release)
    return opened(model, chart, release, namespace, base)
