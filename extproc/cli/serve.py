"""Define `tokenweir serve`."""

import asyncio

import typer

from extproc.cli.root import serving_settings_of
from extproc.observe import logs
from extproc.serve import serve as run

try:
    import uvloop
except ImportError:  # not on every platform
    uvloop = None  # type: ignore[assignment]

EXAMPLES = """
Examples:

    tokenweir -c tokenweir.yaml serve

    TOKENWEIR_SERVER__ADDRESS=unix:/run/tokenweir/ext_proc.sock tokenweir serve
"""


def serve(context: typer.Context) -> None:
    """Run the external processor until SIGTERM or Ctrl-C; then drain."""
    settings = serving_settings_of(context)
    logs.set_up(settings.log.level)
    code = asyncio.run(run(settings)) if uvloop is None else uvloop.run(run(settings))
    raise typer.Exit(code)
