"""Define `tokenweir admin serve|openapi` and `tokenweir admin token issue|list|revoke`."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Final

import typer

from extproc import app as composition
from extproc.admin.access import Role
from extproc.admin.errors import AdminError
from extproc.admin.tokens import AdminTokens
from extproc.cli import output
from extproc.cli.building import build_doctor, build_explainer, build_requests
from extproc.cli.changing import Note, change
from extproc.cli.root import Json, refuse_memory, settings_of, with_stores
from extproc.cli.use_cases import build_admin, build_usage
from extproc.envoy.serving import BindError
from extproc.observe import logs
from extproc.observe.exposing import expose
from extproc.ports.tokens import AdminToken
from extproc.settings.load import SettingsError
from extproc.settings.model import Settings

app = typer.Typer(help="The admin API, and its tokens for machines.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens for machines.", no_args_is_help=True)
app.add_typer(token_app, name="token")

_LIFETIME: Final = re.compile(r"(\d{1,6})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


@app.command(
    epilog="""
Examples:

    tokenweir -c tokenweir.yaml admin serve

    TOKENWEIR_ADMIN__ADDRESS=127.0.0.1:9000 tokenweir admin serve
"""
)
def serve(context: typer.Context) -> None:
    """Serve the admin API until SIGTERM or Ctrl-C; then finish open requests.

    Its settings are in the section `admin`. It is a process of its own, beside the external processor. Needs `pip
    install 'tokenweir[admin]'`.
    """
    settings = settings_of(context)
    if (problem := settings.admin.exposed()) is not None:
        raise SettingsError(problem)
    refuse_memory("mongo.url", settings.mongo.url)
    refuse_memory("redis.url", settings.redis.url)
    logs.set_up(settings.log.level)
    raise typer.Exit(asyncio.run(_serve(settings)))


@contextmanager
def _metrics(settings: Settings) -> Iterator[None]:
    """Serve the process's metrics, if they have an address. Raise `BindError`."""
    address = settings.admin.metrics_address
    if address is None:
        yield
        return
    from extproc import admin_app

    try:
        close = expose(address, admin_app.admin_metrics(settings))
    except OSError as error:
        raise BindError(f"admin.metrics_address: can't listen on {address}: {error.strerror}") from None
    try:
        yield
    finally:
        close()


async def _serve(settings: Settings) -> int:
    try:
        from extproc import admin_app
        from extproc.admin.api.service import serve as run
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise SettingsError(f"the admin API needs: pip install 'tokenweir[admin]' ({error.name})") from None
    from extproc.web.listening import ListenError

    stores = composition.build_stores(settings)
    try:
        api = admin_app.build_admin_api(
            settings,
            stores,
            admin=build_admin(settings, stores),
            usage=build_usage(settings, stores),
            requests=build_requests(settings, stores),
            explainer=build_explainer(settings, stores),
            doctor=build_doctor(stores),
        )
        with _metrics(settings):
            return await run(admin_app.admin_serving_options(settings), api)
    except ListenError as error:
        raise BindError(f"admin.address: {error}") from None
    finally:
        await stores.aclose()


@app.command(epilog="Example: tokenweir admin openapi > openapi.json")
def openapi() -> None:
    """Print the OpenAPI 3.1 document of the admin API, as `/openapi.json` serves it. Connects to nothing."""
    from extproc.admin.api.openapi import openapi as described
    from extproc.admin.api.operations import OPERATIONS

    output.as_json(described(OPERATIONS))


@token_app.command(
    epilog="""
Examples:

    tokenweir admin token issue --name ci --role viewer --expires 90d

    tokenweir admin token issue --name team-a --role team-lead --tenant tenant01 --tenant tenant02 --expires 12h
"""
)
def issue(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name for people, such as the program that uses it.")],
    role: Annotated[Role, typer.Option(help="Role of who bears it.")],
    expires: Annotated[str, typer.Option(metavar="TIME", help="Time after which it ends: 90d, 12h, 30m.")] = "90d",
    tenant: Annotated[
        list[str] | None,
        typer.Option("--tenant", "--tenants", help="Only this tenant; may be repeated, or a list with commas."),
    ] = None,
    note: Note = None,
    json: Json = False,
) -> None:
    """Issue a token and print it, this once: only its SHA-256 is stored.

    The role `team-lead` needs tenants, `viewer` may have some, `admin` is for all tenants.
    """
    tenants = [part.strip() for each in tenant for part in each.split(",")] if tenant else None
    made_by = change(note, None, dry_run=False)
    done = with_stores(
        context, lambda stores: _tokens(stores).issue(name, role, tenants, _lifetime(expires), made_by)
    )
    if json:
        output.as_json({**_row(done.token), "token": done.text})
        return
    output.note(f"Token '{done.token.id}' of role {role.value} ends at {output.instant(done.token.expires_at)}.")
    output.note("It is shown this once:")
    typer.echo(done.text)


@token_app.command("list", epilog="Example: tokenweir admin token list --json")
def list_(
    context: typer.Context,
    at_most: Annotated[int, typer.Option(min=1, max=1000, help="Rows at most.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="The cursor of the page before.")] = None,
    json: Json = False,
) -> None:
    """List tokens, those issued last first, expired and revoked ones too. Their texts are not stored."""
    page = with_stores(context, lambda stores: _tokens(stores).page(at_most, cursor))
    if json:
        output.as_json({"rows": [_row(each) for each in page.rows], "cursor": page.cursor})
        return
    columns = ("id", "name", "role", "tenants", "issued at", "by", "expires at", "revoked at", "used at")
    rows = [
        [", ".join(value) if isinstance(value, list) else value for value in _row(each).values()]
        for each in page.rows
    ]
    output.as_table(columns, rows, "No token was issued.")
    if page.cursor is not None:
        output.note(f"There is more: --cursor {page.cursor}")


@token_app.command(epilog="Example: tokenweir admin token revoke 3f1c9a0b7d52e864")
def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="ID", help="The id that `admin token list` shows.")],
    note: Note = None,
    json: Json = False,
) -> None:
    """Revoke a token: the next request that bears it is refused. Exit code 3 if there is none in force."""
    made_by = change(note, None, dry_run=False)
    done = with_stores(context, lambda stores: _tokens(stores).revoke(token, made_by))
    if json:
        output.as_json(_row(done))
    else:
        typer.echo(f"Revoked the token '{done.id}'.")


def _tokens(stores: composition.Stores) -> AdminTokens:
    return AdminTokens(stores.tokens, composition.SystemClock().now)


def _lifetime(text: str) -> timedelta:
    found = _LIFETIME.fullmatch(text)
    if found is None:
        raise AdminError(f"--expires must be a time such as 90d, 12h or 30m, not {text!r}")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _row(token: AdminToken) -> dict[str, object]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "tenants": list(token.tenants) if token.tenants is not None else None,
        "issued_at": output.instant(token.issued_at),
        "issued_by": token.issued_by,
        "expires_at": output.instant(token.expires_at),
        "revoked_at": output.instant(token.revoked_at) if token.revoked_at is not None else None,
        "used_at": output.instant(token.used_at) if token.used_at is not None else None,
    }
