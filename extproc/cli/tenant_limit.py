"""Define `tokenweir limit add|remove`, which `tokenweir tenant limit` is too."""

from typing import Annotated

import typer

from extproc.admin.edits import Selector
from extproc.cli import values
from extproc.cli.changing import DryRun, IfVersion, Note, change, print_changed
from extproc.cli.root import Json, with_admin
from extproc.core.quota.limits import Mode, Unit
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
