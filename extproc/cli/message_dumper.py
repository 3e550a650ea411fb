"""`tokenweir message-dumper`."""

import asyncio
import os
from typing import Annotated

import typer

from extproc.dumper.settings import DumperSettings, DumperSettingsError, load
from extproc.envoy.server import BindError
from extproc.observe import logs
from extproc.settings import SettingsError

app = typer.Typer(help="What takes the messages of KServe's inference logger.", no_args_is_help=True)


@app.callback()
def message_dumper() -> None:
    """What takes the messages of KServe's inference logger."""


@app.command(
    epilog="""
Examples:

    tokenweir message-dumper serve --listen 0.0.0.0:8080

    TOKENWEIR_DUMPER_S3_BUCKET=messages tokenweir message-dumper serve --sink s3 --bodies none
"""
)
def serve(
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to listen; by default 127.0.0.1:8080.")
    ] = None,
    sink: Annotated[
        str | None, typer.Option(metavar="stdout|s3|mongo", help="Where messages go; by default stdout.")
    ] = None,
    bodies: Annotated[
        str | None, typer.Option(metavar="full|none", help="Leave bodies out, or don't; by default full.")
    ] = None,
) -> None:
    """Take CloudEvents of requests and answers, and print or store them, until SIGTERM or Ctrl-C; then drain.

    Further settings are variables, TOKENWEIR_DUMPER_...: see docs/message-dumper.md. Bodies are what users wrote:
    personal data. Needs `pip install 'tokenweir[dumper]'`.
    """
    try:
        settings = load(os.environ, {"listen": listen, "sink": sink, "bodies": bodies})
    except DumperSettingsError as error:
        raise SettingsError(str(error)) from None
    logs.set_up(settings.log_level)
    raise typer.Exit(asyncio.run(_run(settings)))


async def _run(settings: DumperSettings) -> int:
    from extproc.dumper.service import ListenError
    from extproc.dumper.service import serve as run

    try:
        return await run(settings)
    except ListenError as error:
        raise BindError(str(error)) from None
