"""Apply whole documents: compare them with the stored ones, then write what differs, with its audit entries.

A tenant is written whole or not at all. Many tenants are written in several transactions: a process that is killed
in between leaves some of them as they were, and the same call again writes the rest, as applying is idempotent.
"""

import asyncio
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from extproc.admin.auditing import audited, differences
from extproc.admin.change import Change, FieldChange
from extproc.admin.documents import merged, one_form, refuse_labels
from extproc.admin.errors import AdminError, StaleVersionError
from extproc.admin.names import named
from extproc.admin.views import NOTHING_RAISED, raises_any, version_of
from extproc.core.quota.binding import Policy
from extproc.core.quota.policies import BadDocument, Defaults, policy_from
from extproc.core.request.identity import TenantId
from extproc.ports.base import ConflictError
from extproc.ports.documents import BOOKKEEPING, FIELDS, Document, plain
from extproc.ports.tenants import TenantStore, TenantWrite

# Up to so many tenants are asked for one by one; more are read with all others.
_ONE_BY_ONE: Final = 20
_SLICE: Final = 100
_PROBLEMS_AT_MOST: Final = 50

# Told what is done of how many.
Progress = Callable[[str, int, int], None]


class Verdict(StrEnum):
    """Name the effect of applying a document."""

    CREATED = "created"
    CHANGED = "changed"
    DELETED = "deleted"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Planned:
    """Describe the effect of applying a document to one tenant. `before` is the stored document that it was
    planned on; `fields` is what to write, None to delete it.

    `notes` are hints for the document's author that do not prevent applying.
    """

    tenant: TenantId
    verdict: Verdict
    changes: tuple[FieldChange, ...]
    fields: Document | None
    before: Document | None
    notes: tuple[str, ...] = ()


def no_progress(doing: str, done: int, of: int) -> None:
    """Tell nobody."""
    del doing, done, of


async def plan(
    tenants: TenantStore,
    defaults: Defaults,
    documents: Sequence[object],
    now: datetime,
    *,
    prune: str | None = None,
    progress: Progress = no_progress,
) -> list[Planned]:
    """Compare documents with the stored ones. Raise `AdminError` with a line for each that can't be used.

    With `prune`, all these documents become managed by that name, and the stored documents that are managed by it
    and are not among them are to be deleted.
    """
    if prune is not None:
        named("label of --prune", prune)
    if not documents:
        raise AdminError("there is no document in it")
    planning = _Planning(defaults, now, prune, await _stored(tenants, documents, whole=prune is not None), tenants)
    planned: list[Planned] = []
    problems: list[AdminError] = []
    seen: set[TenantId] = set()
    for number, document in enumerate(documents, start=1):
        try:
            each = await planning.of(document, number)
            refuse_twice(each.tenant, seen)
            seen.add(each.tenant)
            planned.append(each)
        except AdminError as error:
            problems.append(error)
        if number % _SLICE == 0:
            progress("compared", number, len(documents))
            await asyncio.sleep(0)
    if problems:
        raise _all_of(problems)
    return planned + planning.left(seen)


def _all_of(problems: Sequence[AdminError]) -> AdminError:
    lines = [str(problem) for problem in problems[:_PROBLEMS_AT_MOST]]
    if len(problems) > _PROBLEMS_AT_MOST:
        lines.append(f"and {len(problems) - _PROBLEMS_AT_MOST} more")
    stale = all(isinstance(problem, StaleVersionError) for problem in problems)
    return (StaleVersionError if stale else AdminError)("\n".join([*lines, "nothing was written"]))


async def carry_out(
    tenants: TenantStore,
    planned: Sequence[Planned],
    change: Change,
    now: datetime,
    *,
    progress: Progress = no_progress,
) -> None:
    """Write what was planned. Raise `StaleVersionError` if someone else changed a tenant meanwhile: it and those
    that are written with it stay as they are.
    """
    writes = [_write(each, change, now) for each in planned if each.verdict is not Verdict.UNCHANGED]
    writes.sort(key=lambda each: each.tenant)
    written = 0

    def wrote(number: int) -> None:
        nonlocal written
        written = number
        progress("written", number, len(writes))

    if not writes:
        return
    try:
        await tenants.write(writes, wrote)
    except ConflictError as error:
        raise StaleVersionError(
            f"{error}: apply again; written before: {written} of {len(writes)} tenants"
        ) from None


def _write(planned: Planned, change: Change, now: datetime) -> TenantWrite:
    before = planned.before
    fields = planned.fields
    stored = before if before is not None else {"tenant_id": planned.tenant}
    after = merged(stored, fields) if fields is not None else None
    entry = audited(change, now, action="tenant.apply", tenant=planned.tenant, before=before, after=after)
    version = version_of(before) if before is not None else 0
    return TenantWrite(planned.tenant, fields, version, entry)


def refuse_twice(tenant: TenantId, seen: Container[TenantId]) -> None:
    """Raise `AdminError` if two documents are for one tenant: only one of them would count."""
    if tenant in seen:
        raise AdminError(f"tenant '{tenant}' is given twice")


async def _stored(
    tenants: TenantStore, documents: Sequence[object], *, whole: bool
) -> dict[TenantId, Document] | None:
    """Return all stored documents; None if there are so few to compare that each is read by itself."""
    if not whole and len(documents) <= _ONE_BY_ONE:
        return None
    return {TenantId(str(each.get("tenant_id"))): each async for each in tenants.scan()}


class _Planning:
    """Compare documents one by one. `stored` None: read each tenant's from the store."""

    def __init__(
        self,
        defaults: Defaults,
        now: datetime,
        prune: str | None,
        stored: Mapping[TenantId, Document] | None,
        tenants: TenantStore,
    ) -> None:
        self._defaults = defaults
        self._now = now
        self._prune = prune
        self._stored = stored
        self._tenants = tenants

    async def of(self, document: object, number: int) -> Planned:
        """Return the effect of one document. Raise `AdminError`."""
        if not isinstance(document, Mapping) or not all(isinstance(name, str) for name in document):
            raise AdminError(f"document {number}: must be an object with 'tenant_id' and limits")
        read = policy_from(document, self._defaults)
        if isinstance(read, BadDocument) and read.tenant is None:
            raise AdminError(f"document {number}: {read.message}")
        tenant = TenantId(str(document["tenant_id"]))
        stored = self._stored.get(tenant) if self._stored is not None else await self._tenants.document(tenant)
        planned = self._compared(tenant, one_form(document), stored)
        if isinstance(read, Policy):
            return replace(planned, notes=_notes(read, self._now))
        if planned.verdict is not Verdict.UNCHANGED:  # what is stored may stay as it is
            raise AdminError(f"tenant '{tenant}': {read.message}")
        return planned

    def left(self, seen: Container[TenantId]) -> list[Planned]:
        """Return the deletions of documents that are managed by `prune` and were not given."""
        if self._prune is None or self._stored is None:
            return []
        return [
            Planned(tenant, Verdict.DELETED, differences(document, {}), None, document)
            for tenant, document in self._stored.items()
            if document.get("managed_by") == self._prune and tenant not in seen
        ]

    def _compared(self, tenant: TenantId, document: Document, stored: Document | None) -> Planned:
        before = stored if stored is not None else {}
        _refuse_unknown(tenant, document, before)
        _refuse_stale(tenant, document, stored)
        wanted = {**document, "managed_by": self._managed_by(tenant, document, before)}
        # Known fields become those of the document, or are removed. Fields of other programs stay.
        names = sorted((FIELDS | wanted.keys()) - BOOKKEEPING)
        pairs = ((name, plain(before.get(name)), plain(wanted.get(name))) for name in names)
        changes = tuple(FieldChange(name, old, new) for name, old, new in pairs if old != new)
        verdict = Verdict.CREATED if stored is None else Verdict.CHANGED if changes else Verdict.UNCHANGED
        if changes:
            _refuse_values(tenant, wanted)
        return Planned(tenant, verdict, changes, {each.field: wanted.get(each.field) for each in changes}, stored)

    def _managed_by(self, tenant: TenantId, document: Document, before: Document) -> object:
        """Return by whom the document is managed after this. Two sets of files must not both manage a tenant."""
        given, known = document.get("managed_by"), before.get("managed_by")
        if self._prune is None:
            return given if given is not None else known
        for other in (given, known):
            if other not in (None, self._prune):
                raise AdminError(f"tenant '{tenant}' is managed by '{other}', not by '{self._prune}'")
        return self._prune


def _refuse_values(tenant: TenantId, document: Document) -> None:
    """Refuse values that limits are not read from, and that would be of no use."""
    try:
        refuse_labels(document)
    except AdminError as error:
        raise AdminError(f"tenant '{tenant}': {error}") from None
    items = document.get("top_ups")
    ids = (
        [item.get("id") for item in items if isinstance(item, Mapping)] if isinstance(items, (list, tuple)) else []
    )
    given = [each for each in ids if each is not None]
    if len(set(map(str, given))) < len(given):
        raise AdminError(f"tenant '{tenant}': 'top_ups' has an 'id' twice")


def _notes(policy: Policy, now: datetime) -> tuple[str, ...]:
    """Note top-ups without effect. One that is over may stay in a file for long, but a mistake looks the same."""
    return tuple(
        f"tenant '{policy.tenant}': 'top_ups[{number}]' raises nothing: "
        f"{'it is over' if top_up.until <= now.timestamp() else NOTHING_RAISED}"
        for number, top_up in enumerate(policy.top_ups)
        if not raises_any(policy, top_up, now)
    )


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
    raise StaleVersionError(
        f"tenant '{tenant}': was changed since: its version is {plain(stored.get('version', 0))}, not "
        f"{plain(given)}; show it again, or take 'version' out to overwrite it"
    )
