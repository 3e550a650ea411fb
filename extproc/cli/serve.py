"""Define `tokenweir serve`."""

import asyncio
import ctypes
from typing import Final

import typer

from extproc.cli.root import serving_settings_of
from extproc.observe import logs

try:
    import uvloop
except ImportError:  # not on every platform
    uvloop = None  # type: ignore[assignment]

# <malloc.h> of glibc: so much freed memory stays with the process at the most; objects up to so many bytes use it.
_TRIM_THRESHOLD: Final = (-1, 64 << 20)
_MMAP_THRESHOLD: Final = (-3, 32 << 20)

EXAMPLES = """
Examples:

    tokenweir -c tokenweir.yaml serve

    TOKENWEIR_SERVER__ADDRESS=unix:/run/tokenweir/ext_proc.sock tokenweir serve
"""


def serve(context: typer.Context) -> None:
    """Run the external processor until SIGTERM or Ctrl-C; then drain."""
    from extproc import serve as serving

    settings = serving_settings_of(context)
    logs.set_up(settings.log.level)
    _keep_freed_memory()
    code = asyncio.run(serving.serve(settings)) if uvloop is None else uvloop.run(serving.serve(settings))
    raise typer.Exit(code)


def _keep_freed_memory() -> None:
    """Keep freed memory for the next large body: fresh pages for a copy of 4 MB take the event loop 2 to 5 ms."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        for option, value in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(option, value)
