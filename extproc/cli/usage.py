"""`tokenweir usage daily|top`."""

from typing import Annotated

import typer

from extproc.admin.service import MAX_ROWS, By
from extproc.cli import output
from extproc.cli.root import Json, with_admin
from extproc.ports import UsageFilter

app = typer.Typer(help="What was used.", no_args_is_help=True)

Tenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant.")]
Account = Annotated[str | None, typer.Option("--service-account", "--sa", help="Only this service account.")]
IP = Annotated[str | None, typer.Option("--client-ip", "--ip", help="Only this client IP.")]
Since = Annotated[str | None, typer.Option("--since", metavar="YYYY-MM-DD", help="From this date on.")]
Until = Annotated[str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="Up to this date.")]

Rows = Annotated[int, typer.Option("--limit", min=1, max=MAX_ROWS, help="Rows at most.")]

_DAILY = (
    "date", "tenant", "service account", "client IP", "usage", "input", "output", "cached", "requests", "denied",
    "estimated",
)  # fmt: skip


@app.command(
    epilog="""
Examples:

    tokenweir usage daily --since 2026-01-01 --tenant tenant01

    tokenweir usage daily --sa console@zone-prod.example.com --json
"""
)
def daily(
    context: typer.Context,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    since: Since = None,
    until: Until = None,
    limit: Rows = 1000,
    json: Json = False,
) -> None:
    """Show usage per service account, client IP and date, newest first."""
    wanted = UsageFilter(tenant, service_account, client_ip, since, until)
    days = with_admin(context, lambda admin: admin.daily(wanted, limit + 1))
    if len(days) > limit:
        output.note(f"There is more: these are the first {limit} rows. Use a filter or --limit.")
        days = days[:limit]
    if json:
        output.as_json(days)
        return
    rows = (
        (
            d.date, d.tenant, d.service_account, d.client_ip, d.usage, d.input, d.output, d.cached, d.requests,
            d.denied, d.estimated,
        )
        for d in days
    )  # fmt: skip
    output.as_table(_DAILY, rows, "No usage on record that fits.")


@app.command(
    epilog="""
Examples:

    tokenweir usage top --by service-account --since 2026-01-01

    tokenweir usage top --by client-ip --limit 5 --json
"""
)
def top(
    context: typer.Context,
    by: Annotated[By, typer.Option("--by", help="What to sum up by.")] = By.SERVICE_ACCOUNT,
    limit: Rows = 10,
    tenant: Tenant = None,
    service_account: Account = None,
    client_ip: IP = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
) -> None:
    """Show who used the most."""
    wanted = UsageFilter(tenant, service_account, client_ip, since, until)
    ranked = with_admin(context, lambda admin: admin.top(wanted, by, limit))
    if json:
        output.as_json(ranked)
        return
    rows = ((r.name, r.usage, r.input, r.output, r.requests, r.denied) for r in ranked)
    columns = (by.value.replace("-", " ").replace("ip", "IP"), "usage", "input", "output", "requests", "denied")
    output.as_table(columns, rows, "No usage on record that fits.")
