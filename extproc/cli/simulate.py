"""Define `tokenweir simulate`, and share its report with `usage shadow`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from extproc import app as composition
from extproc.admin import replay
from extproc.admin.replay import Proposal, proposal_from
from extproc.admin.service import MAX_ROWS, Admin, checked_filter
from extproc.cli import output
from extproc.cli.files import read_value
from extproc.cli.ledger_file import read_ledger
from extproc.cli.root import Json, settings_of, with_admin
from extproc.core.quota.ledger import Entry
from extproc.core.quota.simulation_report import Report
from extproc.ports.ledger import UsageFilter

EXAMPLES = """
Examples:

    tokenweir simulate --limits proposed.yaml --since 2026-01-01

    tokenweir usage export --tenant tenant01 > ledger.jsonl

    tokenweir simulate --limits proposed.yaml --ledger ledger.jsonl --json
"""
COLUMNS = ("tenant", "service account", "client IP", "limit", "requests", "tokens", "first", "last")

Tenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant.")]
Since = Annotated[str | None, typer.Option("--since", metavar="YYYY-MM-DD", help="From this date on.")]
Until = Annotated[str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="Up to this date.")]
LedgerFile = Annotated[
    str | None,
    typer.Option("--ledger", metavar="FILE", help="JSON lines of `usage export` or mongoexport; not MongoDB."),
]
Top = Annotated[int, typer.Option("--top", min=1, max=MAX_ROWS, help="Rows at most.")]


def simulate(
    context: typer.Context,
    limits: Annotated[
        str,
        typer.Option(
            "--limits", metavar="FILE", help="Proposed limits: documents, or `default` and `tenants`. `-`: stdin."
        ),
    ],
    ledger: LedgerFile = None,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    top: Top = 20,
    json: Json = False,
) -> None:
    """Replay the ledger against proposed limits: show the denied callers, the times and the tokens.

    Tenants without a proposal keep their stored limits. With `--ledger` no store is asked, and they get the
    default of the file or of the settings. Nothing is changed. Counting starts with the first replayed request, so
    give whole windows.
    """
    settings = settings_of(context)
    wanted = checked_filter(UsageFilter(tenant, None, None, since, until))
    proposal = proposal_from(read_value(limits), composition.defaults(settings))
    models = composition.models(settings)

    async def run(entries: AsyncIterator[Entry]) -> Report:
        with _progress() as told:
            return await replay.simulate(entries, proposal, models, told)

    async def from_store(admin: Admin) -> tuple[Report, datetime | None]:
        proposal.keep(await admin.documents())
        return await run(admin.replay(wanted)), await admin.gone_before(wanted)

    report, gone = (
        (asyncio.run(run(_from_file(ledger, wanted))), None)
        if ledger is not None
        else with_admin(context, from_store)
    )
    _note_problems(proposal)
    print_report(report, top, gone, json=json, newly=True)


def report_shadows(
    context: typer.Context, wanted: UsageFilter, ledger: str | None
) -> tuple[Report, datetime | None]:
    """Return the denials that shadow limits really counted, and before when entries are gone, as
    `Admin.gone_before`.
    """
    wanted = checked_filter(wanted)

    async def run(entries: AsyncIterator[Entry]) -> Report:
        with _progress() as told:
            return await replay.shadowed(entries, told)

    if ledger is not None:
        return asyncio.run(run(_from_file(ledger, wanted))), None

    async def from_store(admin: Admin) -> tuple[Report, datetime | None]:
        return await run(admin.replay(wanted)), await admin.gone_before(wanted)

    return with_admin(context, from_store)


def print_report(report: Report, top: int, gone: datetime | None, *, json: bool, newly: bool) -> None:
    """Print the sums and the denied callers. `newly`: also requests that were really denied and would be
    admitted. `gone`: before this instant entries are gone.
    """
    output.note_gone(gone)
    sums = {
        "requests": report.requests,
        "tokens": report.tokens,
        "denied": report.denied,
        "denied_tokens": report.denied_tokens,
    }
    if newly:
        sums |= {
            "newly_admitted": report.newly_admitted,
            "newly_admitted_tokens": report.newly_admitted_tokens,
        }
    rows = replay.ranked(report)
    shown = [
        {
            "tenant": who.tenant,
            "service_account": who.service_account,
            "client_ip": who.client_ip,
            "limit": who.limit,
            "requests": toll.requests,
            "tokens": toll.tokens,
            "first": output.instant(toll.first),
            "last": output.instant(toll.last),
        }
        for who, toll in rows[:top]
    ]
    if len(rows) > top:
        output.note(f"There is more: these are the first {top} of {len(rows)} rows. Use --top.")
    if json:
        before = output.instant(gone) if gone is not None else None
        output.as_json({"summary": sums, "denied": shown, "entries_gone_before": before})
        return
    output.as_table([name.replace("_", " ") for name in sums], [list(sums.values())], "")
    typer.echo()
    output.as_table(COLUMNS, [list(row.values()) for row in shown], "Nobody would have been denied.")


async def _from_file(name: str, wanted: UsageFilter) -> AsyncIterator[Entry]:
    for entry in read_ledger(name, wanted):
        yield entry


def _note_problems(proposal: Proposal) -> None:
    for tenant, problem in sorted(proposal.problems.items()):
        output.note(
            f"Fields of the stored limits of tenant '{tenant}' can't be used ({problem}): their defaults bind."
        )


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Show a counter on stderr if it is a terminal; else nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} requests"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda taken: progress.update(task, completed=taken)
