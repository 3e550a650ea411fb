"""Define `tokenweir erase`."""

import asyncio
from typing import Annotated

import typer

from extproc import app as composition
from extproc.admin.change import Change
from extproc.admin.erasing import Erased, Erasing
from extproc.admin.errors import AdminError
from extproc.cli import output
from extproc.cli.changing import DryRun, Note, os_user
from extproc.cli.root import WRONG_USE, Json, refuse_memory, settings_of
from extproc.core.request.identity import TenantId
from extproc.ports.erasure import NameKind
from extproc.settings.model import Settings
from extproc.terminal.tables import visible

EXAMPLES = """
Examples:

    tokenweir erase --tenant tenant01 --service-account jane@zone-prod.example.com --before 2026-01-01 --dry-run

    tokenweir erase --tenant tenant01 --client-ip 15.65.196.24 --before 2026-01-01 --yes --note "request 4711"
"""


def erase(
    context: typer.Context,
    tenant: Annotated[str, typer.Option(help="The person's tenant.")],
    before: Annotated[
        str,
        typer.Option(metavar="YYYY-MM-DD", help="Erase in records of earlier dates; two days ago at the latest."),
    ],
    service_account: Annotated[
        str | None, typer.Option("--service-account", "--sa", help="The service account to erase.")
    ] = None,
    client_ip: Annotated[str | None, typer.Option("--client-ip", "--ip", help="The client IP to erase.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    note: Note = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Replace a person's name by a random pseudonym in ledger, daily usage, closed months and audit log.

    All sums stay; the checksum of a closed month changes, and the month notes it.
    It can't be undone: nothing keeps which pseudonym was whose. A command that was killed is repeated as it was.
    """
    if (service_account is None) == (client_ip is None):
        raise AdminError("give either --service-account or --client-ip")
    kind = NameKind.SERVICE_ACCOUNT if service_account is not None else NameKind.CLIENT_IP
    name = service_account or client_ip or ""
    settings = settings_of(context)
    refuse_memory("mongo.url", settings.mongo.url)
    actor = os_user()
    if not yes and not dry_run:
        planned, _ = asyncio.run(_erase(settings, tenant, kind, name, before, Change(actor, note, dry_run=True)))
        output.note(_summary(planned))
        if not typer.confirm("Erase it? This can't be undone", err=True):
            output.note("Nothing was erased.")
            raise typer.Exit(WRONG_USE)
    found, named = asyncio.run(_erase(settings, tenant, kind, name, before, Change(actor, note, dry_run=dry_run)))
    if json:
        output.as_json(found)
    else:
        typer.echo(visible(_summary(found)))
    for day, until in sorted(found.running.items()):
        output.note(f"{day} stays as it is: a window of it runs until {output.instant(until)}.")
    if named:
        output.note("The tenant's limits still have the name: see `tokenweir tenant show`.")


async def _erase(
    settings: Settings, tenant: str, kind: NameKind, name: str, before: str, change: Change
) -> tuple[Erased, bool]:
    """Return what was erased, and whether the tenant's document still has the name."""
    stores = composition.build_stores(settings)
    if stores.erasure is None:  # a store in memory does not come here
        raise AdminError("nothing is stored that could be erased")
    try:
        erasing = Erasing(
            stores.erasure,
            stores.audit,
            stores.months,
            composition.SystemClock().now,
            ipv6_prefix=settings.identity.ipv6_prefix,
        )
        found = await erasing.erase(tenant, kind, name, before, change)
        document = await stores.tenants.document(TenantId(tenant))
        return found, document is not None and name in str(dict(document))
    finally:
        await stores.aclose()


def _summary(found: Erased) -> str:
    sums = found.sums
    months = f" Closed months with the name: {', '.join(found.closed_months)}." if found.closed_months else ""
    records = f"{sums.entries} ledger entries ({sums.charge} tokens charged) of {len(found.dates)} dates"
    if found.dry_run:
        return f"Would erase the name in {records}, in daily usage, and in {sums.others} other documents.{months}"
    if not found.changed:
        return "Nothing has the name any more." if found.resumed else "No record of these dates has the name."
    return (
        f"Erased in {found.changed} documents; it is {found.pseudonym} now. Sums are as before: {records}.{months}"
    )
