"""Print tenants and their limits as tables."""

from collections.abc import Iterable
from datetime import UTC, datetime

import typer

from extproc.admin.documents import Source
from extproc.admin.edits import mode_of
from extproc.admin.views import TenantDetail, TenantLimit, TenantView
from extproc.cli import output
from extproc.core.quota.limits import Limit

_COLUMNS = (
    "tenant", "sa_limit", "ip_limit", "timezone", "problem", "suspended", "suspended_accounts", "top_ups",
    "limits", "mode", "on_store_failure", "labels",
)  # fmt: skip
_LIMIT_COLUMNS = ("binds", "scope", "unit", "window", "amount", "mode", "model", "endpoint", "from")
_TOP_UP_COLUMNS = ("top-up for", "scope", "unit", "window", "amount", "model", "endpoint", "until", "id", "note")


def print_views(views: Iterable[TenantView], empty: str) -> None:
    """Print one line per tenant."""
    output.as_table(_COLUMNS, [_cells(view) for view in views], empty)


def _cells(view: TenantView) -> tuple[object, ...]:
    shown = {
        "suspended_accounts": ", ".join(view.suspended_accounts),
        "top_ups": view.top_ups or None,
        "labels": ", ".join(f"{name}={value}" for name, value in view.labels.items()),
    }
    return tuple(shown.get(column, getattr(view, column)) for column in _COLUMNS)


def print_detail(detail: TenantDetail) -> None:
    print_views([detail.view], "")
    if detail.view.problem is not None:
        output.note(output.unusable(f"Fields of the document can't be used ({detail.view.problem})"))
    typer.echo()
    output.as_table(_LIMIT_COLUMNS, map(_limit_row, detail.limits), "No limit binds.")
    if detail.terms:
        typer.echo()
        terms = [
            (each.service_account, "yes" if each.unlimited else None, each.suspended) for each in detail.terms
        ]
        output.as_table(("service account", "unlimited", "suspended"), terms, "")
    if detail.top_ups:
        typer.echo()
        top_ups = [
            (each.service_account or "all", each.scope.value, each.unit.value, each.window.value, each.amount,
             each.model, ", ".join(each.endpoints), output.instant(datetime.fromtimestamp(each.until, UTC)),
             each.id, note)
            for each, note in zip(detail.top_ups, detail.top_up_notes, strict=True)
        ]  # fmt: skip
        output.as_table(_TOP_UP_COLUMNS, top_ups, "")


def print_limits(limits: Iterable[TenantLimit], empty: str) -> None:
    """Print one line per limit, with its tenant."""
    output.as_table(
        ("tenant", *_LIMIT_COLUMNS), [(each.tenant, *_limit_row(each.source)) for each in limits], empty
    )


def limit_document(listed: TenantLimit) -> dict[str, object]:
    """Return a limit as `limit list --json` prints it, with the fields of the admin API."""
    limit, source = listed.source.limit, listed.source
    return {
        "tenant": listed.tenant,
        "scope": limit.scope,
        "window": limit.window,
        "amount": limit.amount,
        "unit": limit.unit,
        "mode": limit.mode,
        "shadow": limit.shadow,
        "model": limit.model,
        "endpoint": list(limit.endpoints),
        "service_account": source.whose,
        "field": source.field,
    }


def _limit_row(source: Source) -> tuple[object, ...]:
    return (source.whose or "all", *limit_cells(source.limit), source.field or "(default)")


def limit_cells(limit: Limit) -> tuple[object, ...]:
    """Return the cells: scope, unit, window, amount, mode, model, endpoint."""
    mode = f"shadow of {limit.mode.value}" if limit.shadow else mode_of(limit)
    endpoints = ", ".join(limit.endpoints)
    return (limit.scope.value, limit.unit.value, limit.window.value, limit.amount, mode, limit.model, endpoints)
