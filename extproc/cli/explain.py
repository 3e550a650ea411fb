"""Define `tokenweir explain`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from extproc.admin.service import Explanation
from extproc.cli import output, values
from extproc.cli.root import Json, refuse_memory, settings_of, with_admin
from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.limits import Limit
from extproc.core.quota.policies import METERED
from extproc.core.quota.reservation import BucketState
from extproc.core.request.addresses import UNKNOWN_IP

EXAMPLES = """
Examples:

    tokenweir explain tenant01 console@zone-prod.example.com 15.65.196.24

    tokenweir explain tenant01 console@zone-prod.example.com --model llama-3 --endpoint embeddings --json
"""
_COLUMNS = (
    "limit",
    "window",
    "amount",
    "used",
    "held",
    "remaining",
    "resets at",
    "unit",
    "mode",
    "model",
    "endpoint",
)


def explain(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    service_account: Annotated[str, typer.Argument(help="The service account.")],
    client_ip: Annotated[str, typer.Argument(help="The client IP.")] = UNKNOWN_IP,
    model: Annotated[
        str | None, typer.Option(help="For this model: needed for the counts of limits on models.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=f"For this kind of endpoint; likewise: {', '.join(METERED)}.",
            autocompletion=values.endpoint_names,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show the limits that bind an identity now: used, held, remaining, reset."""
    refuse_memory("redis.url", settings_of(context).redis.url)
    kind = values.choice("--endpoint", endpoint, METERED) if endpoint is not None else None
    found = with_admin(
        context, lambda admin: admin.explain(tenant, service_account, client_ip, model=model, endpoint=kind)
    )
    if json:
        output.as_json(_document(found))
        return
    if found.problem is not None:
        output.note(output.unusable(f"Fields of the stored limits can't be used ({found.problem})"))
    elif not found.known:
        output.note(f"Tenant '{tenant}' has no limits of its own: the defaults bind.")
    if found.insight.suspended is not None:
        output.note(f"Suspended, nothing is admitted: {found.insight.suspended}")
    rows = [_cells(_row(limit, state), limit) for limit, state in found.insight.limits]
    output.as_table(_COLUMNS, rows, "No limit binds.")
    if found.on_store_failure is StoreFailure.ALLOW:
        output.note("While Redis can't be asked, each replica admits a share of them by itself.")
    if any(state is None for _, state in found.insight.limits):
        output.note("Limits without counts depend on what is asked for: give --model or --endpoint.")


def _document(found: Explanation) -> dict[str, object]:
    return {
        "tenant": found.identity.tenant,
        "service_account": found.identity.service_account,
        "client_ip": found.identity.client_ip,
        "limits_of_its_own": found.known,
        "problem": found.problem,
        "suspended": found.insight.suspended,
        "on_store_failure": found.on_store_failure.value,
        "limits": [_row(limit, state) for limit, state in found.insight.limits],
    }


def _row(limit: Limit, state: BucketState | None) -> dict[str, object]:
    return {
        "limit": limit.scope.value,
        "window": limit.window.value,
        "amount": limit.amount,
        "used": state.count.used if state is not None else None,
        "held": state.count.held if state is not None else None,
        "remaining": state.remaining if state is not None else None,
        "resets_at": _end(state) if state is not None else None,
        "unit": limit.unit.value,
        "mode": limit.mode.value,
        "shadow": limit.shadow,
        "model": limit.model,
        "endpoints": list(limit.endpoints),
    }


def _end(state: BucketState) -> str:
    return output.instant(datetime.fromtimestamp(state.bucket.interval.end, UTC))


def _cells(row: dict[str, object], limit: Limit) -> tuple[object, ...]:
    mode = f"shadow of {limit.mode.value}" if limit.shadow else limit.mode.value
    further = {**row, "mode": mode, "endpoints": ", ".join(limit.endpoints)}
    del further["shadow"]
    return tuple(further.values())
