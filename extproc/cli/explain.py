"""Define `tokenweir explain`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import typer

from extproc import app as composition
from extproc.admin.errors import AdminError
from extproc.admin.explaining import Explained, Explainer, Explanation, Size, Verdict, document_of, limit_row
from extproc.admin.request_story import RequestStory
from extproc.cli import output, values
from extproc.cli.building import build_explainer
from extproc.cli.root import Json, refuse_memory, settings_of
from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.limits import Limit
from extproc.core.quota.policies import METERED
from extproc.settings.model import Settings
from extproc.terminal.tables import visible

# The exit code of a verdict that a request would be refused.
WOULD_BE_DENIED: Final = 5

EXAMPLES = """
Examples:

    tokenweir explain tenant01 console@zone-prod.example.com 15.65.196.24

    tokenweir explain tenant01 console@zone-prod.example.com 15.65.196.24 --tokens 200+800 --model llama-3

    tokenweir explain tenant01 console@zone-prod.example.com --model llama-3 --endpoint embeddings --json

With --tokens, exit codes: 0 it would pass, 5 it would be denied.
"""
_COLUMNS = (
    "limit", "window", "amount", "top-ups", "used", "held", "remaining", "resets at", "unit", "mode", "model",
    "endpoint",
)  # fmt: skip
_DENIALS = ("denied at", "client IP", "model", "limit", "amount", "used", "held", "needed", "count", "request id")


def explain(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    service_account: Annotated[str, typer.Argument(help="The service account.")],
    client_ip: Annotated[
        str | None, typer.Argument(help="The client IP: needed for the counts of limits by client IP.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N|PROMPT+OUTPUT",
            help="Say whether a request of so many tokens would pass. A single number counts as prompt.",
        ),
    ] = None,
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
    ip: Annotated[str | None, typer.Option("--ip", help="The client IP, as an option.")] = None,
    json: Json = False,
) -> None:
    """Show the limits that bind a caller now, its last denials, and whether a request would pass."""
    settings = settings_of(context)
    refuse_memory("redis.url", settings.redis.url)
    refuse_memory("mongo.url", settings.mongo.url)
    if client_ip is not None and ip is not None:
        raise AdminError("give the client IP once: as an argument or as --ip")
    kind = values.choice("--endpoint", endpoint, METERED) if endpoint is not None else None
    address, size = client_ip or ip, _size(tokens)
    found = asyncio.run(
        _explained(
            settings,
            lambda explainer: explainer.explain(
                tenant, service_account, address, model=model, endpoint=kind, size=size
            ),
        )
    )
    if json:
        output.as_json(document_of(found))
    else:
        _print(found, tenant)
    if found.verdict is not None and not found.verdict.passes:
        raise typer.Exit(WOULD_BE_DENIED)


async def _explained(settings: Settings, use: Callable[[Explainer], Awaitable[Explained]]) -> Explained:
    stores = composition.build_stores(settings)
    try:
        return await use(build_explainer(settings, stores))
    finally:
        await stores.aclose()


def _size(text: str | None) -> Size | None:
    if text is None:
        return None
    prompt, plus, answer = text.partition("+")
    return Size(values.whole("--tokens", prompt), values.whole("--tokens", answer) if plus else 0)


def _print(found: Explained, tenant: str) -> None:
    explanation, verdict = found.explanation, found.verdict
    if explanation.problem is not None:
        output.note(output.unusable(f"Fields of the stored limits can't be used ({explanation.problem})"))
    elif not explanation.known:
        output.note(f"Tenant '{tenant}' has no limits of its own: the defaults bind.")
    if explanation.insight.suspended is not None:
        output.note(f"Suspended, nothing is admitted: {explanation.insight.suspended}")
    if verdict is not None:
        typer.echo(visible(verdict.told) + "\n")
    pairs = zip(explanation.insight.limits, explanation.topped_up, strict=True)
    rows = [_cells(limit_row(limit, state, more), limit) for (limit, state), more in pairs]
    output.as_table(_COLUMNS, rows, "No limit binds.")
    if found.denials:
        typer.echo("\nThe last denials:")
        output.as_table(_DENIALS, map(_denial, found.denials), "")
    elif found.denials is None:
        output.note("The last denials could not be read in time; see `tokenweir request list --outcome denied`.")
    _note_what_is_not_known(explanation, verdict)


def _note_what_is_not_known(explanation: Explanation, verdict: Verdict | None) -> None:
    if explanation.on_store_failure is StoreFailure.ALLOW:
        output.note("While Redis can't be asked, each replica admits a share of them by itself.")
    unknown = [limit for limit, state in explanation.insight.limits if state is None]
    if any("client_ip" in limit.scope.names for limit in unknown):
        output.note("Limits by client IP have no counts without one: give the client IP.")
    if any(limit.scope.names and limit.scope.names[-1] in ("model", "endpoint") for limit in unknown):
        output.note("Limits without counts depend on what is asked for: give --model or --endpoint.")
    if verdict is not None and verdict.provisional:
        output.note("Limits that depend on what was not given are left out of the verdict.")


def _cells(row: dict[str, object], limit: Limit) -> tuple[object, ...]:
    mode = f"shadow of {limit.mode.value}" if limit.shadow else limit.mode.value
    further = {**row, "mode": mode, "endpoints": ", ".join(limit.endpoints), "topped_up": row["topped_up"] or "-"}
    del further["shadow"]
    return tuple(further.values())


def _denial(story: RequestStory) -> tuple[object, ...]:
    refused = next((limit for limit in story.limits if limit.refused), None)
    numbers = (refused.amount, refused.used, refused.held, refused.needed) if refused is not None else ("-",) * 4
    name = f"{refused.scope}/{refused.window}" if refused is not None else story.reason
    at = output.instant(story.ended_at or story.admitted_at)
    return (at, story.client_ip, story.model, name, *numbers, story.count, story.request_id or "-")
