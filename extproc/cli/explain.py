"""`tokenweir explain`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from extproc.admin.service import Explanation
from extproc.cli import output
from extproc.cli.root import Json, refuse_memory, settings_of, with_admin
from extproc.core.identity import UNKNOWN_IP
from extproc.core.quota import BucketState

EXAMPLES = """
Examples:

    tokenweir explain tenant01 console@zone-prod.example.com 15.65.196.24

    tokenweir explain tenant01 console@zone-prod.example.com --json
"""


def explain(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    service_account: Annotated[str, typer.Argument(help="The service account.")],
    client_ip: Annotated[str, typer.Argument(help="The client IP.")] = UNKNOWN_IP,
    json: Json = False,
) -> None:
    """Show which limits bind an identity now: used, held, remaining, reset."""
    refuse_memory("redis.url", settings_of(context).redis.url)
    found = with_admin(context, lambda admin: admin.explain(tenant, service_account, client_ip))
    if json:
        output.as_json(_document(found))
        return
    if found.problem is not None:
        output.note(f"The stored limits can't be used ({found.problem}): the defaults bind.")
    elif not found.known:
        output.note(f"Tenant '{tenant}' has no limits of its own: the defaults bind.")
    rows = (tuple(_row(state).values()) for state in found.states)
    output.as_table(
        ("limit", "window", "amount", "used", "held", "remaining", "resets at"), rows, "No limit binds."
    )


def _document(found: Explanation) -> dict[str, object]:
    return {
        "tenant": found.identity.tenant,
        "service_account": found.identity.service_account,
        "client_ip": found.identity.client_ip,
        "limits_of_its_own": found.known,
        "problem": found.problem,
        "limits": [_row(state) for state in found.states],
    }


def _row(state: BucketState) -> dict[str, object]:
    limit = state.bucket.limit
    return {
        "limit": limit.scope.value,
        "window": limit.window.value,
        "amount": limit.amount,
        "used": state.count.used,
        "held": state.count.held,
        "remaining": state.remaining,
        "resets_at": datetime.fromtimestamp(state.bucket.interval.end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
