"""Define `tokenweir model ui`."""

import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from extproc.cli import output
from extproc.cli.model_files import Base, Chart, Helm, Namespace, Release, checked, opened
from extproc.onboarding import files
from extproc.onboarding.charts import WITH_CANARY
from extproc.web.listening import ListenError

EXAMPLES = """
Examples:

    tokenweir model ui

    tokenweir model ui models/qwen/values.yaml --release qwen --namespace models

    tokenweir model ui --chart kserve-model --no-browser --port 8090
"""


def ui(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Values, or a Flux HelmRelease, to begin with.")
    ] = None,
    chart: Chart = None,
    release: Release = None,
    namespace: Namespace = None,
    base: Base = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
    helm: Helm = None,
) -> None:
    """Fill in a model's values in a form in your browser, with a live preview of the rendering.

    The form offers files: values.yaml, the rendered objects, a Flux HelmRelease, a patch for `git apply`. The
    command writes no file itself and never talks to a cluster. It listens on 127.0.0.1 until Ctrl-C; the printed
    address has the access key. Needs `pip install 'tokenweir[models]'`.
    """
    from extproc.onboarding.errors import OnboardingError, PartMissing

    try:
        from extproc.onboarding.ui import server
        from extproc.onboarding.ui.desk import Desk
        from extproc.onboarding.ui.opened import open_file
    except ModuleNotFoundError as missing:
        raise PartMissing(f"{missing.name} is missing: pip install 'tokenweir[models]'") from None
    found = open_file(file, checked(chart), release)
    about = opened(found.model or _nothing(), chart, release, namespace, base)
    desk = Desk(found, about.chart, about.release, about.namespace, helm, about.below)

    def tell(address: str) -> None:
        typer.echo(f"The form: {address}")
        output.note("It gives files and changes nothing. Ctrl-C ends it.")
        if browser and _has_window():
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    try:
        server.run(desk, port, tell)
    except ListenError as error:
        raise OnboardingError(str(error)) from None


def _nothing() -> files.Model:
    """Return an empty model, for a start without a file."""
    return files.one(f"# chart {WITH_CANARY}\n{{}}\n", "a new file")


def _has_window() -> bool:
    """Return whether there is a desktop. Without one, Python would start a text browser in this terminal."""
    named = any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
    return named or sys.platform in {"darwin", "win32"}
