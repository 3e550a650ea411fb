"""Define `tokenweir tenant list|show|set|delete|suspend|resume|top-up|apply`."""

import secrets
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from extproc.admin.errors import AdminError
from extproc.admin.views import ANY_TENANT, TenantFilter
from extproc.cli import apply, audit, output, tenant_limit, values
from extproc.cli.changing import DryRun, IfVersion, Note, change, print_changed
from extproc.cli.root import Json, with_admin
from extproc.cli.tenant_tables import print_detail, print_views
from extproc.core.quota.limits import Mode, Scope, Unit, Window
from extproc.core.quota.policies import DocumentMode
from extproc.ports.documents import plain
from extproc.terminal.tables import visible

app = typer.Typer(help="Tenants and their limits.", no_args_is_help=True)
app.add_typer(tenant_limit.app, name="limit")
app.command("apply", epilog=apply.EXAMPLES, cls=apply.Command)(apply.apply)

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
Account = Annotated[
    str | None, typer.Option("--service-account", "--sa", help="Only this service account of the tenant.")
]


def _amount_option(name: str, help_: str, what: str = "TOKENS") -> object:
    return typer.Option(name, metavar=f"{what}|none", help=help_)


@app.command(
    "list",
    epilog="""
Examples:

    tokenweir tenant list --json

    tokenweir tenant list --name 'zone-*' --suspended

    tokenweir tenant list --label team=search --limit 20
""",
)
def list_(
    context: typer.Context,
    name: Annotated[str | None, typer.Option("--name", metavar="GLOB", help="Only such names.")] = None,
    suspended: Annotated[
        bool | None,
        typer.Option(
            "--suspended/--not-suspended", help="Only tenants that are suspended, as a whole or in part."
        ),
    ] = None,
    mode: Annotated[DocumentMode | None, typer.Option("--mode", help="Only tenants of this mode.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="NAME[=VALUE]", help="Only tenants with this label.")
    ] = None,
    problem: Annotated[
        bool | None, typer.Option("--problem/--no-problem", help="Only tenants with fields that can't be used.")
    ] = None,
    limit: audit.Rows = 1000,
    cursor: audit.Cursor = None,
    json: Json = False,
) -> None:
    """List tenants that have limits of their own, by name."""
    wanted = TenantFilter(name, suspended, mode.value if mode is not None else None, label, problem)
    page = with_admin(context, lambda admin: admin.limits.views(wanted, limit, cursor))
    if json:
        output.as_json(page.rows)
    else:
        none = "No tenant has limits of its own; the defaults bind everybody."
        print_views(page.rows, none if wanted == ANY_TENANT else "No tenant fits.")
    output.note_cursor(page.cursor)


@app.command(epilog="Example: tokenweir tenant history tenant01")
def history(
    context: typer.Context, tenant: Name, limit: audit.Rows = 50, cursor: audit.Cursor = None, json: Json = False
) -> None:
    """Show who changed a tenant's limits, when and why, newest first.

    Changes that were made in MongoDB itself are among them, with the actor kind `direct`.
    """
    page = with_admin(context, lambda admin: admin.history.of_tenant(tenant, limit, cursor))
    audit.print_page(
        page,
        f"Tenant '{tenant}' has no change in the audit log: there was none, or it was before auditing began.",
        json,
    )


@app.command(
    epilog="""
Examples:

    tokenweir tenant show tenant01

    tokenweir tenant show tenant01 --json | tokenweir tenant apply -f -
"""
)
def show(context: typer.Context, tenant: Name, json: Json = False) -> None:
    """Show all limits that bind one tenant. --json prints its whole document, which `tenant apply` can read.

    Exit code 3 if it has no limits of its own.
    """
    detail = with_admin(context, lambda admin: admin.limits.detail(tenant))
    if json:
        if detail.view.problem is not None:
            output.note(output.unusable(f"Fields of the document can't be used ({detail.view.problem})"))
        output.as_json(plain(detail.document))
    else:
        print_detail(detail)


@app.command(
    "set",
    epilog="""
Examples:

    tokenweir tenant set tenant01 --sa-limit 12000 --ip-limit 400

    tokenweir tenant set tenant01 --ip-limit none --each-sa-per-minute 60

    tokenweir tenant set tenant01 --mode shadow --shadows strict --timezone Europe/Berlin
""",
)
def set_(
    context: typer.Context,
    tenant: Name,
    sa_limit: Annotated[
        str | None, _amount_option("--sa-limit", "Tokens a day per service account; in documents `sa_limit`.")
    ] = None,
    ip_limit: Annotated[
        str | None,
        _amount_option("--ip-limit", "Tokens a day per service account + client IP; in documents `ip_limit`."),
    ] = None,
    each_sa_per_minute: Annotated[
        str | None,
        _amount_option(
            "--each-sa-per-minute",
            "Requests a minute per service account; in documents `ratelimitEachSAPerMinute`.",
            "REQUESTS",
        ),
    ] = None,
    ip_per_minute: Annotated[
        str | None,
        _amount_option(
            "--ip-per-minute", "Requests a minute per client IP; in documents `ratelimitIPPerMinute`.", "REQUESTS"
        ),
    ] = None,
    mode: Annotated[DocumentMode | None, typer.Option(help="Mode of limits without a mode of their own.")] = None,
    shadows: Annotated[Mode | None, typer.Option(help="With `--mode shadow`: the mode that it tries out.")] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE|none", help="IANA time zone of the windows.")
    ] = None,
    min_output_tokens: Annotated[
        str | None,
        _amount_option("--min-output-tokens", "Strict mode: a request for which fewer are left is denied."),
    ] = None,
    unlimited: Annotated[
        bool | None,
        typer.Option("--unlimited/--limited", help="Exempt the tenant from the default limits, or not."),
    ] = None,
    on_store_failure: Annotated[
        str | None,
        typer.Option(
            metavar="deny|allow|none",
            help="If Redis is unavailable: deny, or let each replica admit a share of the limits.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE|NAME=none", help="A label for lists; may be repeated."),
    ] = None,
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Set limits; all others stay. Takes effect on every replica within 5 seconds.

    Creates the tenant if it does not exist.
    """
    amounts = {
        "sa_limit": ("--sa-limit", sa_limit, "tokens"),
        "ip_limit": ("--ip-limit", ip_limit, "tokens"),
        "ratelimitEachSAPerMinute": ("--each-sa-per-minute", each_sa_per_minute, "requests"),
        "ratelimitIPPerMinute": ("--ip-per-minute", ip_per_minute, "requests"),
        "min_output_tokens": ("--min-output-tokens", min_output_tokens, "tokens"),
    }
    changes: dict[str, object] = {
        field: values.amount(option, text, what)
        for field, (option, text, what) in amounts.items()
        if text is not None
    }
    if mode is not None:
        changes["mode"] = mode.value
    if shadows is not None:
        changes["shadows"] = shadows.value
    if timezone is not None:
        changes["timezone"] = None if timezone == values.NONE else timezone
    if unlimited is not None:
        changes["unlimited"] = unlimited or None
    if on_store_failure is not None:
        changes["on_store_failure"] = None if on_store_failure == values.NONE else on_store_failure
    if label:
        changes["labels"] = values.labels(label)
    if not changes:
        raise AdminError("nothing to set: give --sa-limit, --ip-limit or another option")
    made = change(note, if_version, dry_run=dry_run)
    print_changed(with_admin(context, lambda admin: admin.limits.set(tenant, changes, made)), json)


@app.command(
    epilog="""
Examples:

    tokenweir tenant suspend tenant01 --reason 'unpaid since January'

    tokenweir tenant suspend tenant01 --service-account batch@zone-prod.example.com --reason 'runaway job'
"""
)
def suspend(
    context: typer.Context,
    tenant: Name,
    reason: Annotated[str, typer.Option(help="The reason that callers read in the answer.")],
    service_account: Account = None,
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Stop admitting requests until `tenant resume`. Takes effect on every replica within 5 seconds.

    Creates the tenant if it does not exist; the default limits then still apply to it.
    """
    made = change(note, if_version, dry_run=dry_run)
    done = with_admin(context, lambda admin: admin.limits.suspend(tenant, reason, service_account, made))
    print_changed(done, json)


@app.command(epilog="Example: tokenweir tenant resume tenant01")
def resume(
    context: typer.Context,
    tenant: Name,
    service_account: Account = None,
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """End a suspension."""
    made = change(note, if_version, dry_run=dry_run)
    done = with_admin(context, lambda admin: admin.limits.resume(tenant, service_account, made))
    print_changed(done, json)


@app.command(
    "top-up",
    epilog="""
Examples:

    tokenweir tenant top-up tenant01 --amount 50000 --until +2h

    tokenweir tenant top-up tenant01 --amount 1000000 --until 2026-03-01T00:00Z --scope tenant --window month

    tokenweir tenant top-up tenant01 --amount 100 --until +1h --window minute --unit requests --endpoint embeddings
""",
)
def top_up(
    context: typer.Context,
    tenant: Name,
    amount: Annotated[str, typer.Option(metavar="NUMBER", help="Amount to add, such as 50000 or 50k.")],
    until: Annotated[
        str, typer.Option(metavar="INSTANT|+TIME", help="End of the top-up: 2026-03-01T00:00Z, +2h, +3d.")
    ],
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="Scope of the limits to raise.", autocompletion=values.scope_names)
    ] = Scope.SERVICE_ACCOUNT.value,
    window: Annotated[Window, typer.Option(help="Their window.")] = Window.DAY,
    unit: Annotated[Unit, typer.Option(help="Their unit.")] = Unit.TOKENS,
    model: Annotated[str | None, typer.Option(metavar="GLOB", help="Their model, if they have one.")] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="All of their kinds of endpoint, if they have some; may be repeated.",
            autocompletion=values.endpoint_names,
        ),
    ] = None,
    service_account: Account = None,
    top_up_id: Annotated[
        str | None,
        typer.Option("--id", help="Its id; by default a new one. An id that is there already is refused."),
    ] = None,
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Raise limits until an instant. Expired top-ups are removed from the document.

    The same top-up twice adds twice, unless you give it an id: a repeated call with the same --id adds nothing.
    --note is kept beside the top-up too.

    Creates the tenant if it does not exist; the default limits then still apply to it.
    """
    item: dict[str, object] = {
        "scope": values.scope(scope).value,
        "window": window.value,
        "unit": unit.value,
        "amount": values.positive("--amount", amount),
        "until": values.instant("--until", until, datetime.now(UTC)),
    }
    kinds = [kind.value for kind in values.endpoints(endpoint)]
    further = {"service_account": service_account, "model": model, "endpoint": kinds or None, "note": note}
    item |= {name: value for name, value in further.items() if value is not None}
    item["id"] = top_up_id if top_up_id is not None else secrets.token_hex(4)
    made = change(note, if_version, dry_run=dry_run)
    print_changed(with_admin(context, lambda admin: admin.limits.top_up(tenant, item, made)), json)


@app.command(
    "cancel-top-up", epilog="Example: tokenweir tenant cancel-top-up tenant01 3f9a2c1d --note 'sale is over'"
)
def cancel_top_up(
    context: typer.Context,
    tenant: Name,
    top_up_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, as `tenant show` prints it.")],
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """End a top-up before its time. Exit code 3 if there is none with this id."""
    made = change(note, if_version, dry_run=dry_run)
    print_changed(with_admin(context, lambda admin: admin.limits.cancel_top_up(tenant, top_up_id, made)), json)


@app.command(epilog="Example: tokenweir tenant delete tenant01 --yes")
def delete(
    context: typer.Context,
    tenant: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Delete a tenant's limits: the defaults then apply to it. The tenant's usage and ledger stay."""
    if not yes and not dry_run:
        _ask(tenant)
    made = change(note, if_version, dry_run=dry_run)
    print_changed(with_admin(context, lambda admin: admin.limits.delete(tenant, made)), json)


def _ask(tenant: str) -> None:
    # Ask on stderr, because stdout is for the result. No answer (nobody there) means no.
    typer.echo(visible(f"Delete the limits of tenant '{tenant}'? [y/N]: "), err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AdminError("nothing was deleted; --yes deletes without asking")
