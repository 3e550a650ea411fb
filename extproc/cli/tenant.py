"""`tokenweir tenant list|show|set|delete`."""

import re
import sys
from typing import Annotated

import typer

from extproc.admin.service import AdminError, TenantView
from extproc.cli import output
from extproc.cli.root import Json, with_admin
from extproc.tables import visible

app = typer.Typer(help="Tenants and their limits.", no_args_is_help=True)

_COLUMNS = ("tenant", "sa_limit", "ip_limit", "timezone", "problem")
_NONE = "none"

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
SaLimit = Annotated[
    str | None,
    typer.Option("--sa-limit", metavar="TOKENS|none", help="Tokens a day per service account."),
]
IpLimit = Annotated[
    str | None,
    typer.Option("--ip-limit", metavar="TOKENS|none", help="Tokens a day per service account + client IP."),
]


@app.command("list", epilog="Example: tokenweir tenant list --json")
def list_(context: typer.Context, json: Json = False) -> None:
    """List tenants that have limits of their own."""
    views = with_admin(context, lambda admin: admin.tenants())
    if json:
        output.as_json(views)
    else:
        output.as_table(
            _COLUMNS, map(_row, views), "No tenant has limits of its own; the defaults bind everybody."
        )


@app.command(epilog="Example: tokenweir tenant show tenant01")
def show(context: typer.Context, tenant: Name, json: Json = False) -> None:
    """Show one tenant's limits. Exit code 3 where it has none of its own."""
    _print(with_admin(context, lambda admin: admin.tenant(tenant)), json)


@app.command(
    "set",
    epilog="""
Examples:

    tokenweir tenant set tenant01 --sa-limit 12000 --ip-limit 400

    tokenweir tenant set tenant01 --ip-limit none
""",
)
def set_(
    context: typer.Context,
    tenant: Name,
    sa_limit: SaLimit = None,
    ip_limit: IpLimit = None,
    json: Json = False,
) -> None:
    """Set limits; the ones not named stay. In effect on every replica within 5 seconds."""
    given = {"sa_limit": sa_limit, "ip_limit": ip_limit}
    changes = {name: _amount(name, text) for name, text in given.items() if text is not None}
    if not changes:
        raise AdminError("nothing to set: give --sa-limit, --ip-limit or both")
    view, new = with_admin(context, lambda admin: admin.set_tenant(tenant, changes))
    if not json:
        typer.echo(f"{'Created' if new else 'Updated'} tenant '{tenant}'.")
    _print(view, json)


@app.command(epilog="Example: tokenweir tenant delete tenant01 --yes")
def delete(
    context: typer.Context,
    tenant: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: Json = False,
) -> None:
    """Delete a tenant's limits: the defaults bind it then. Its usage and ledger stay."""
    if not yes:
        _ask(tenant)
    with_admin(context, lambda admin: admin.delete_tenant(tenant))
    if json:
        output.as_json({"deleted": tenant})
    else:
        typer.echo(f"Deleted the limits of tenant '{tenant}'.")


def _ask(tenant: str) -> None:
    # On stderr: stdout is the result's. No answer (nobody there) is a no.
    typer.echo(visible(f"Delete the limits of tenant '{tenant}'? [y/N]: "), err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AdminError("nothing was deleted; --yes deletes without asking")


def _amount(name: str, text: str) -> int | None:
    if text == _NONE:
        return None
    # Longer numbers than that are refused by their value; Python refuses to read some thousands of digits.
    if not re.fullmatch("[0-9]{1,30}", text):
        option = f"--{name.replace('_', '-')}"
        raise AdminError(f"{option} must be a whole number of tokens or 'none', not {text[:40]!r}")
    return int(text)


def _print(view: TenantView, json: bool) -> None:
    if json:
        output.as_json(view)
    else:
        output.as_table(_COLUMNS, [_row(view)], "")


def _row(view: TenantView) -> tuple[object, ...]:
    return (view.tenant, view.sa_limit, view.ip_limit, view.timezone, view.problem)
