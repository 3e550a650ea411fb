"""Apply whole documents: plan the changes per tenant, then write all of them or none."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from extproc.admin.auditing import audited
from extproc.admin.change import Change, FieldChange
from extproc.admin.documents import merged
from extproc.admin.errors import AdminError
from extproc.admin.views import NOTHING_RAISED, raises_any, version_of
from extproc.core.quota.binding import Policy
from extproc.core.quota.policies import BadDocument, Defaults, policy_from
from extproc.core.request.identity import TenantId
from extproc.ports.base import ConflictError
from extproc.ports.documents import BOOKKEEPING, FIELDS, Document, plain
from extproc.ports.tenants import TenantStore


class Verdict(StrEnum):
    """Name the effect of applying a document."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Planned:
    """Describe the effect of applying a document to one tenant. `version` is the stored version that it was
    planned on.

    `notes` are hints for the document's author that do not prevent applying.
    """

    tenant: TenantId
    verdict: Verdict
    changes: tuple[FieldChange, ...]
    fields: Document
    version: int | None
    before: Document | None
    notes: tuple[str, ...] = ()


async def plan(
    tenants: TenantStore, defaults: Defaults, documents: Sequence[object], now: datetime
) -> list[Planned]:
    """Compare documents with the stored ones. Raise `AdminError` with a line for each that can't be used."""
    problems: list[str] = []
    planned: list[Planned] = []
    seen: set[TenantId] = set()
    for number, document in enumerate(documents, start=1):
        try:
            policy = _policy(document, number, defaults)
            tenant = policy.tenant
            refuse_twice(tenant, seen)
            seen.add(tenant)
            compared = _compared(tenant, document, await tenants.document(tenant))  # type: ignore[arg-type]
            planned.append(replace(compared, notes=_notes(policy, now)))
        except AdminError as error:
            problems.append(str(error))
    if problems:
        raise AdminError("\n".join([*problems, "nothing was written"]))
    if not planned:
        raise AdminError("there is no document in it")
    return planned


async def carry_out(tenants: TenantStore, planned: Sequence[Planned], change: Change, now: datetime) -> None:
    """Write what was planned. Raise `AdminError` if someone else changed a tenant meanwhile."""
    for number, each in enumerate(planned):
        if each.verdict is Verdict.UNCHANGED:
            continue
        try:
            before = each.before
            after = merged(before if before is not None else {"tenant_id": each.tenant}, each.fields)
            entry = audited(change, now, action="tenant.apply", tenant=each.tenant, before=before, after=after)
            await tenants.update(each.tenant, each.fields, each.version, entry)
        except ConflictError as error:
            written = [other.tenant for other in planned[:number] if other.verdict is not Verdict.UNCHANGED]
            so_far = f"; written before: {', '.join(written)}" if written else ""
            raise AdminError(f"{error}: apply again{so_far}") from None


def refuse_twice(tenant: TenantId, seen: Container[TenantId]) -> None:
    """Raise `AdminError` if two documents are for one tenant: only one of them would count."""
    if tenant in seen:
        raise AdminError(f"tenant '{tenant}' is given twice")


def _policy(document: object, number: int, defaults: Defaults) -> Policy:
    if not isinstance(document, Mapping) or not all(isinstance(name, str) for name in document):
        raise AdminError(f"document {number}: must be an object with 'tenant_id' and limits")
    read = policy_from(document, defaults)
    if isinstance(read, BadDocument):
        whose = f"tenant '{read.tenant}'" if read.tenant is not None else f"document {number}"
        raise AdminError(f"{whose}: {read.message}")
    return read


def _notes(policy: Policy, now: datetime) -> tuple[str, ...]:
    """Note top-ups without effect. One that is over may stay in a file for long, but a mistake looks the same."""
    return tuple(
        f"tenant '{policy.tenant}': 'top_ups[{number}]' raises nothing: "
        f"{'it is over' if top_up.until <= now.timestamp() else NOTHING_RAISED}"
        for number, top_up in enumerate(policy.top_ups)
        if not raises_any(policy, top_up, now)
    )


def _compared(tenant: TenantId, document: Document, stored: Document | None) -> Planned:
    before = stored if stored is not None else {}
    _refuse_unknown(tenant, document, before)
    _refuse_stale(tenant, document, stored)
    # Known fields become those of the document, or are removed. Fields of other programs stay.
    names = sorted((FIELDS | document.keys()) - BOOKKEEPING)
    changes = tuple(
        FieldChange(name, plain(before.get(name)), plain(document.get(name)))
        for name in names
        if plain(before.get(name)) != plain(document.get(name))
    )
    verdict = Verdict.CREATED if stored is None else Verdict.CHANGED if changes else Verdict.UNCHANGED
    fields = {change.field: document.get(change.field) for change in changes}
    return Planned(tenant, verdict, changes, fields, version_of(before), stored)


def _refuse_unknown(tenant: TenantId, document: Document, before: Document) -> None:
    """Refuse unknown fields: a misspelled limit would silently not bind. Fields that are already stored may
    stay.
    """
    for name in sorted(document.keys() - FIELDS - BOOKKEEPING - before.keys()):
        raise AdminError(f"tenant '{tenant}': '{name}' is no field; use {', '.join(sorted(FIELDS))}")


def _refuse_stale(tenant: TenantId, document: Document, stored: Document | None) -> None:
    given = document.get("version")
    if stored is None or given is None or plain(given) == plain(stored.get("version", 0)):
        return
    raise AdminError(
        f"tenant '{tenant}': was changed since: its version is {plain(stored.get('version', 0))}, not "
        f"{plain(given)}; show it again, or take 'version' out to overwrite it"
    )
