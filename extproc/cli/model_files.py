"""What the commands of `tokenweir model` share: options, and the model that a file has."""

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
        help="The chart. By default what the HelmRelease or the comment at the file's top says, or its keys tell.",
        autocompletion=lambda: list(charts.MODEL_CHARTS),
    ),
]
Release = Annotated[
    str | None, typer.Option(metavar="NAME", help="The release's name; of several HelmReleases in a file, which.")
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
        help="Values beneath: the platform's, or the HelmRelease that FILE is a patch of. May be repeated.",
    ),
]
Helm = Annotated[
    str | None, typer.Option(metavar="PROGRAM", help="The helm to render with; also TOKENWEIR_HELM, else PATH's.")
]


@dataclass(frozen=True, slots=True)
class Opened:
    """A model with what the options say of it.

    `below`: the values beneath its own. `partial`, `elsewhere`: as of a model, of all of it together.
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
        """Its own over those beneath."""
        return overlaid(self.below, self.model.values)


def checked(chart: str | None) -> str | None:
    """The option's value. Raises `OnboardingError` for a name that is none."""
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
    """The model as it is rendered: what an option says wins over what the file says, and that over a base."""
    beneath = [files.one(files.load(name), name, chart, release or model.release) for name in base or ()]
    below: dict[str, Any] = {}
    for each in beneath:
        below = overlaid(below, each.values)
    told = next((each.chart for each in (model, *reversed(beneath)) if each.told), None)
    # A base that only names a canary's chart by its keys tells it too.
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
    """Whether a patch on top of it lacks nothing: the platform's values alone don't make a model."""
    return (base.helmrelease and not base.partial) or "inferenceservice" in base.values


def open_file(
    file: str,
    chart: str | None = None,
    release: str | None = None,
    namespace: str | None = None,
    base: list[str] | None = None,
) -> Opened:
    """The one model of a file. Raises `OnboardingError`."""
    if [file, *(base or [])].count(files.STDIN) > 1:
        raise OnboardingError("stdin can be read once only: give '-' once")
    model = files.one(files.load(file), file, checked(chart), release)
    return opened(model, chart, release, namespace, base)
