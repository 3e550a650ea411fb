"""Define `tokenweir message-dumper`."""

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from extproc.envoy.serving import BindError
from extproc.observe import logs
from extproc.settings.dumper import DumperSettings, DumperSettingsError, load
from extproc.settings.load import SettingsError

if TYPE_CHECKING:
    from extproc.dumper.sinks import Sink

app = typer.Typer(help="Receive the messages of KServe's inference logger.", no_args_is_help=True)


@app.callback()
def message_dumper() -> None:
    """Receive the messages of KServe's inference logger."""


@app.command(
    epilog="""
Examples:

    tokenweir message-dumper serve --listen 0.0.0.0:8080

    TOKENWEIR_DUMPER_S3_BUCKET=messages tokenweir message-dumper serve --sink s3 --bodies none
"""
)
def serve(
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address to listen on; by default 127.0.0.1:8080.")
    ] = None,
    sink: Annotated[
        str | None, typer.Option(metavar="stdout|s3|mongo", help="Destination of messages; by default stdout.")
    ] = None,
    bodies: Annotated[
        str | None,
        typer.Option(metavar="full|none", help="Include bodies (full) or leave them out (none); by default full."),
    ] = None,
) -> None:
    """Receive CloudEvents of requests and answers, and print or store them, until SIGTERM or Ctrl-C; then drain.

    Further settings are variables, TOKENWEIR_DUMPER_...: see docs/message-dumper.md. Bodies contain users' texts,
    which are personal data. Needs `pip install 'tokenweir[dumper]'`.
    """
    try:
        settings = load(os.environ, {"listen": listen, "sink": sink, "bodies": bodies})
    except DumperSettingsError as error:
        raise SettingsError(str(error)) from None
    logs.set_up(settings.log_level)
    raise typer.Exit(asyncio.run(_run(settings)))


async def _run(settings: DumperSettings) -> int:
    from extproc.dumper.service import DumperOptions
    from extproc.dumper.service import serve as run
    from extproc.web.listening import ListenError

    options = DumperOptions(
        listen=settings.listen,
        max_body_bytes=settings.max_body_bytes,
        queue_bytes=settings.queue_bytes,
        keep_bodies=settings.bodies == "full",
        drain_s=settings.drain_s,
    )
    try:
        return await run(options, lambda: _sink(settings))
    except ListenError as error:
        raise BindError(f"listen: {error}") from None


def _sink(settings: DumperSettings) -> "Sink":
    """Build the sink that the settings name. Import only that sink's driver."""
    if settings.sink == "s3":
        from extproc.dumper.s3 import S3Options, S3Sink

        return S3Sink(
            S3Options(
                bucket=settings.s3_bucket or "",
                prefix=settings.s3_prefix,
                endpoint=settings.s3_endpoint,
                region=settings.s3_region,
                parallel=settings.s3_parallel,
                timeout_s=settings.timeout_s,
            )
        )
    if settings.sink == "mongo":
        from extproc.dumper.mongo import MongoSink, MongoSinkOptions

        return MongoSink(
            MongoSinkOptions(
                url=settings.mongo_secret_url,
                database=settings.mongo_database,
                collection=settings.mongo_collection,
                ttl_days=settings.mongo_ttl_days,
                timeout_s=settings.timeout_s,
            )
        )
    from extproc.dumper.sinks import StdoutSink

    return StdoutSink(settings.print_bytes)
