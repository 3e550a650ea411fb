"""Define `tokenweir limit list|add|remove`, which `tokenweir tenant limit` is too."""

from typing import Annotated

import typer

from extproc.admin.edits import Selector
from extproc.admin.paging import Page
from extproc.admin.tenants import TenantLimits
from extproc.admin.views import ANY_LIMIT, LimitFilter, TenantLimit
from extproc.cli import audit, output, values
from extproc.cli.changing import DryRun, IfVersion, Note, change, print_changed
from extproc.cli.root import Json, with_admin
from extproc.cli.tenant_tables import limit_document, print_limits
from extproc.core.quota.limits import Mode, Unit, Window
from extproc.core.quota.policies import METERED, DocumentMode

app = typer.Typer(help="Limits in their general form.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
Count = Annotated[Unit, typer.Option("--unit", help="Unit that it counts.")]
Model = Annotated[str | None, typer.Option("--model", metavar="GLOB", help="Only models that match this name.")]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        metavar="KIND",
        help=f"Only this kind of endpoint; may be repeated: {', '.join(METERED)}.",
        autocompletion=values.endpoint_names,
    ),
]
Account = Annotated[
    str | None,
    typer.Option("--service-account", "--sa", help="A limit of this service account, instead of the tenant's."),
]


@app.command(
    "list",
    epilog="""
Examples:

    tokenweir limit list

    tokenweir tenant limit list tenant01 --json

    tokenweir limit list --own --scope service_account --unit requests --limit 20
""",
)
def list_(
    context: typer.Context,
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant's limits.", show_default=False)
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option("--scope", help="Only limits of this scope.", autocompletion=values.scope_names),
    ] = None,
    window: Annotated[Window | None, typer.Option("--window", help="Only limits of this window.")] = None,
    unit: Annotated[Unit | None, typer.Option("--unit", help="Only limits that count this unit.")] = None,
    service_account: Annotated[
        str | None, typer.Option("--service-account", "--sa", help="Only limits of this service account's own.")
    ] = None,
    own: Annotated[bool, typer.Option("--own", help="Only limits of documents, without the defaults.")] = False,
    limit: audit.Rows = 1000,
    cursor: audit.Cursor = None,
    json: Json = False,
) -> None:
    """List the limits that can bind, by tenant: of all tenants that have limits of their own, or of one.

    Exit code 3 if the tenant that is named has none: the defaults bind it.
    """
    counted_by = values.scope(scope) if scope is not None else None
    wanted = LimitFilter(counted_by, window, unit, service_account, own)
    page = with_admin(context, lambda admin: _listed(admin.limits, tenant, wanted, limit, cursor))
    if json:
        output.as_json({"limits": [limit_document(each) for each in page.rows], "cursor": page.cursor})
    else:
        print_limits(page.rows, "No limit fits." if wanted != ANY_LIMIT else "No tenant has limits of its own.")
        output.note_cursor(page.cursor)


async def _listed(
    limits: TenantLimits, tenant: str | None, wanted: LimitFilter, at_most: int, cursor: str | None
) -> Page[TenantLimit]:
    if tenant is not None:
        await limits.detail(tenant)  # which says that there is none
    return await limits.listed((tenant,) if tenant is not None else None, wanted, at_most, cursor)


@app.command(
    epilog="""
Examples:

    tokenweir limit add tenant01 tenant:5M/month

    tokenweir tenant limit add tenant01 service_account:100/minute --unit requests --endpoint embeddings

    tokenweir tenant limit add tenant01 service_account+model:20000/day --model 'llama-*' --mode shadow
"""
)
def add(
    context: typer.Context,
    tenant: Name,
    limit: Annotated[
        str, typer.Argument(metavar="SCOPE:AMOUNT/WINDOW", help="Such as service_account:12000/day.")
    ],
    unit: Count = Unit.TOKENS,
    model: Model = None,
    endpoint: Kinds = None,
    mode: Annotated[
        DocumentMode | None, typer.Option("--mode", help="Rule of admission; by default the tenant's mode.")
    ] = None,
    shadows: Annotated[
        Mode | None, typer.Option("--shadows", help="With `--mode shadow`: the mode that it tries out.")
    ] = None,
    service_account: Account = None,
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Add a limit. If one counts the same, it gets the new amount; its counts stay.

    Creates the tenant if it does not exist. The default token limits end once the tenant has a token limit of its
    own that binds all requests.
    """
    scope, amount, window = values.limit(limit)
    kinds = values.endpoints(endpoint)
    selector = Selector(scope, window, unit, model, kinds, mode.value if mode is not None else None)
    further = {"shadows": shadows.value if shadows is not None else None}
    made = change(note, if_version, dry_run=dry_run)
    done = with_admin(
        context,
        lambda admin: admin.limits.add_limit(
            tenant, selector, amount, further, account=service_account, change=made
        ),
    )
    print_changed(done, json)


@app.command(
    epilog="""
Examples:

    tokenweir limit remove tenant01 service_account/minute --unit requests

    tokenweir tenant limit remove tenant01 tenant/month
"""
)
def remove(
    context: typer.Context,
    tenant: Name,
    limit: Annotated[str, typer.Argument(metavar="SCOPE/WINDOW", help="Such as service_account/day.")],
    unit: Count = Unit.TOKENS,
    model: Model = None,
    endpoint: Kinds = None,
    mode: Annotated[
        DocumentMode | None, typer.Option("--mode", help="Selects one, if it exists in several modes.")
    ] = None,
    service_account: Account = None,
    note: Note = None,
    if_version: IfVersion = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove a limit, named by the options that added it. Exit code 3 if it does not exist."""
    scope, window = values.selector(limit)
    kinds = values.endpoints(endpoint)
    selector = Selector(scope, window, unit, model, kinds, mode.value if mode is not None else None)
    made = change(note, if_version, dry_run=dry_run)
    done = with_admin(context, lambda admin: admin.limits.remove_limit(tenant, selector, service_account, made))
    print_changed(done, json)
