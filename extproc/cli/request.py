"""Define `tokenweir request show|list`."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Final, TypeVar

import typer

from extproc import app as composition
from extproc.admin.money import price_text
from extproc.admin.paging import MAX_PAGE, Page
from extproc.admin.request_story import BoundLimit, Place, RequestStory
from extproc.admin.requests import Requests
from extproc.cli import output, values
from extproc.cli.building import build_requests
from extproc.cli.root import Json, refuse_memory, settings_of
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.ports.requests import RequestFilter
from extproc.settings.model import Settings

T = TypeVar("T")

app = typer.Typer(help="Look up single requests.", no_args_is_help=True)

_LIST = (
    "ended at", "tenant", "service account", "client IP", "endpoint", "model", "outcome", "count", "reason",
    "held", "charged", "refused by", "id", "request id",
)  # fmt: skip
_LIMITS = ("limit", "window", "unit", "of", "amount", "used", "held", "needed", "charged", "resets at", "")


@app.callback()
def request() -> None:
    """Look up single requests."""


@app.command(
    epilog="""
Examples:

    tokenweir request show 0b6f2a5e-4c1d-9f43-8a6e-2f0c8f2d9b11

    tokenweir request show 6f1c2b0e9a7d4f53b8e0c1d2a3948576 --json
"""
)
def show(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="ID", help="The `x-request-id` that the client saw, or the id of a reservation."),
    ],
    json: Json = False,
) -> None:
    """Show the whole story of a request: its limits, what was held and charged, by whom, and how it ended.

    Finds requests in the ledger, requests that have ended and wait for it, and requests that run.
    """
    refuse_memory("redis.url", settings_of(context).redis.url)
    stories = with_requests(context, lambda requests: requests.show(name))
    if json:
        output.as_json(stories)
        return
    if len(stories) > 1:
        output.note(f"{len(stories)} requests came with this id; the last to end comes first.")
    for story in stories:
        _print(story, settings_of(context))


@app.command(
    "list",
    epilog="""
Examples:

    tokenweir request list --tenant tenant01 --outcome denied --since 2h

    tokenweir request list --model llama-3 --since 2026-03-01T08:00Z --until 2026-03-01T09:00Z --json
""",
)
def list_(
    context: typer.Context,
    outcome: Annotated[
        str | None,
        typer.Option(
            metavar="OUTCOME",
            help=f"Only this outcome: {', '.join(Outcome)}.",
            autocompletion=lambda: list(Outcome),
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    service_account: Annotated[
        str | None, typer.Option("--service-account", "--sa", help="Only this service account.")
    ] = None,
    client_ip: Annotated[str | None, typer.Option("--client-ip", "--ip", help="Only this client IP.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model, as the request named it.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Only this kind of endpoint.", autocompletion=lambda: [e.value for e in Endpoint]
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="INSTANT", help="Ended then or later: 2026-03-01T08:00Z, or so long ago: 2h, 3d."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="Ended before; as --since.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="Rows at most.")] = 100,
    cursor: Annotated[
        str | None, typer.Option(help="Go on behind the rows of an earlier list: the cursor that it ended with.")
    ] = None,
    json: Json = False,
) -> None:
    """List the requests of the ledger, the last to end first."""
    now = composition.SystemClock().now()
    wanted = RequestFilter(
        outcome=values.choice("--outcome", outcome, Outcome) if outcome is not None else None,
        tenant=tenant,
        service_account=service_account,
        client_ip=client_ip,
        model=model,
        endpoint=endpoint,
        since=_instant("--since", since, now),
        until=_instant("--until", until, now),
    )

    async def read(requests: Requests) -> tuple[Page[RequestStory], datetime | None]:
        return await requests.find(wanted, limit, cursor), await requests.gone_before(wanted.since)

    page, gone = with_requests(context, read)
    if page.cursor is None:  # else the rows end before those that are gone
        output.note_gone(gone)
    if json:
        output.as_json({"requests": page.rows, "cursor": page.cursor})
        return
    if any(row.count > 1 for row in page.rows):
        output.note("A count above 1: requests that were denied like others of their minute, in one line.")
    output.as_table(_LIST, map(_row, page.rows), "No request on record that fits.")
    if page.cursor is not None:
        output.note(f"There is more: add --cursor {page.cursor}")


def with_requests(context: typer.Context, use: Callable[[Requests], Awaitable[T]]) -> T:
    """Run one use case on the stores of the settings."""
    settings = settings_of(context)
    refuse_memory("mongo.url", settings.mongo.url)

    async def run() -> T:
        stores = composition.build_stores(settings)
        try:
            return await use(build_requests(settings, stores))
        finally:
            await stores.aclose()

    return asyncio.run(run())


def _instant(option: str, text: str | None, now: datetime) -> datetime | None:
    """Return an instant: ISO 8601 (UTC without an offset), or so long ago: 90m, 2h, 3d, 1w."""
    if text is None:
        return None
    return values.instant(option, f"-{text}" if re.fullmatch("[0-9]+[mhdw]", text) else text, now)


def _row(story: RequestStory) -> tuple[object, ...]:
    refused = next((limit for limit in story.limits if limit.refused), None)
    return (
        output.instant(story.ended_at) if story.ended_at is not None else "-",
        story.tenant,
        story.service_account,
        story.client_ip,
        story.endpoint,
        story.model,
        story.outcome or "open",
        story.count,
        story.reason,
        story.held,
        story.charged,
        f"{refused.scope}:{refused.amount}/{refused.window}" if refused is not None else "-",
        story.id,
        story.request_id or "-",
    )


def _print(story: RequestStory, settings: Settings) -> None:
    usage = story.usage
    facts: list[tuple[str, object]] = [
        ("request id", story.request_id or "-"),
        ("reservation", story.id),
        ("tenant", story.tenant),
        ("service account", story.service_account),
        ("client IP", story.client_ip),
        ("endpoint", story.endpoint + (", streamed" if story.stream else "")),
        ("model", story.model or "-"),
        ("outcome", story.outcome or "open"),
        ("reason", story.reason or "-"),
        ("story", story.told),
        ("found", _PLACES[story.place]),
        (
            "admitted at" if story.outcome is not Outcome.DENIED else "refused at",
            output.instant(story.admitted_at),
        ),
        ("ended at", output.instant(story.ended_at) if story.ended_at is not None else "-"),
        ("status", story.status or "-"),
        ("expected", f"{story.prompt_estimate} tokens of prompt, {story.output_estimate} of output"),
        ("held", story.held),
        ("charged", story.charged),
        ("usage", "-" if usage is None else f"{usage.input} input, {usage.output} output, {usage.total} in all"),
        ("reported by", story.reported_by.value),
    ]
    if story.count > 1:
        facts.insert(0, ("requests", f"{story.count}, denied like others of their minute: in one entry"))
    if story.expires_at is not None:
        facts.append(("expires at", output.instant(story.expires_at)))
    if story.price:
        facts.append(("cost", f"{price_text(story.price)} {settings.cost.currency}"))
    if story.would_have_denied:
        facts.append(("shadow limits that would have denied it", ", ".join(story.would_have_denied)))
    output.as_table(tuple(map(str, facts[0])), facts[1:], "")
    typer.echo()
    output.as_table(_LIMITS, map(_limit_cells, story.limits), "No limit bound it, or none is on record.")


_PLACES: Final = {
    Place.LEDGER: "in the ledger",
    Place.WAITING: "it has ended, and waits to be written to the ledger",
    Place.OPEN: "it runs",
}


def _limit_cells(limit: BoundLimit) -> tuple[object, ...]:
    unit = limit.unit + (f" of {limit.model}" if limit.model is not None else "")
    unit += f" at {', '.join(limit.endpoints)}" if limit.endpoints else ""
    numbers = (limit.amount, limit.used, limit.held, limit.needed, limit.charged)
    return (
        limit.scope,
        limit.window,
        unit,
        limit.who or "-",
        *("-" if number is None else number for number in numbers),
        output.instant(limit.resets_at),
        "refused it" if limit.refused else "",
    )
