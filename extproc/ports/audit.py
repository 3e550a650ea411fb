"""Declare the audit log: who changed what, when, from where and why. It is append-only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from urllib.parse import quote

from extproc.core.request.identity import TenantId
from extproc.ports.documents import Document


class ActorKind(StrEnum):
    """Say how an actor is known.

    `direct`: somebody wrote into MongoDB past Tokenweir, so the name is not known. `tokenweir`: Tokenweir itself.
    """

    OS_USER = "os-user"
    TOKEN = "token"  # noqa: S105 - a kind, no secret
    JWT = "jwt"
    DIRECT = "direct"
    TOKENWEIR = "tokenweir"


@dataclass(frozen=True, slots=True)
class Actor:
    """Name who makes a change. `origin` is the place that it comes from: a host name, or a client's address.

    `name` is the operating system's user, the id of a machine's token, or the verified subject of a JWT.
    """

    name: str
    kind: ActorKind
    origin: str


class EntryState(StrEnum):
    """Say whether the change of an entry is known to be made.

    `pending` and `refused` occur only on a MongoDB without transactions, where the entry is written before its
    change. A pending entry whose change can't be seen is not known to be done; a refused one was not done.
    """

    DONE = "done"
    PENDING = "pending"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Describe one change. `before` and `after` are the whole documents; None: there is none.

    `action` is noun and verb, such as `tenant.set`. `subject` names what is changed if it is not the tenant
    itself, such as a limit or a token. `version` is the version of the tenant's document after the change; None
    where no document has one. `number` counts the changes of one tenant's document from 1. For these changes the
    store sets `number`, and `id`, which is made of tenant and number.
    """

    id: str
    at: datetime
    actor: Actor
    action: str
    tenant: str | None
    subject: str | None = None
    before: Document | None = None
    after: Document | None = None
    note: str | None = None
    version: int | None = None
    number: int | None = None
    state: EntryState = EntryState.DONE


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Select entries. All that are given must fit. `since` is inclusive, `until` is exclusive.

    `action` may be a whole action, or the noun before the dot. `actor` is an actor's name.
    """

    tenant: str | None = None
    actor: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def fits(self, entry: AuditEntry) -> bool:
        """Return whether the entry is selected."""
        return (
            self.tenant in (None, entry.tenant)
            and self.actor in (None, entry.actor.name)
            and self.action in (None, entry.action, entry.action.partition(".")[0])
            and (self.since is None or entry.at >= self.since)
            and (self.until is None or entry.at < self.until)
        )


@dataclass(frozen=True, slots=True)
class AuditPlace:
    """Name the place of an entry in the order of the log: by instant, then by id."""

    at: datetime
    id: str


@dataclass(frozen=True, slots=True)
class Audited:
    """Hold what the log says about a tenant's document now: the newest entry, and its number.

    `digests` has the digest of the document after the newest change that is known to be made, and of those after
    the pending ones behind it. None stands for a deleted document.
    """

    entry: str
    number: int
    digests: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Hold the entry of a change that was found, and what the log said about the tenant before."""

    entry: AuditEntry
    after: Audited | None


def direct_entry(tenant: str, before: Document | None, after: Document | None, at: datetime) -> AuditEntry:
    """Return the entry of a change that somebody made in MongoDB itself, and that was found at `at`."""
    return AuditEntry(
        id="",
        at=at,
        actor=Actor("unknown", ActorKind.DIRECT, "MongoDB"),
        action="tenant.direct",
        tenant=tenant,
        before=before,
        after=after,
        note="made in MongoDB itself, at this time or before",
    )


def document_entry_id(tenant: str, number: int) -> str:
    """Return the id of the entry with this number among the changes of a tenant's document."""
    return f"{quote(tenant, safe='@')}:{number}"


class AuditLog(Protocol):
    """Store audit entries (`admin_audit`). Every call raises `StoreError`.

    Entries of changes to tenants' documents are written by `TenantStore`, in the transaction of the change.
    """

    async def append(self, entry: AuditEntry) -> None:
        """Write the entry of a change that is no change of a tenant's document. A known id is written once."""

    async def note(self, found: Sequence[Found]) -> int:
        """Write what was found of tenants' documents, but for tenants that have a newer entry by now. Return the
        number of entries written. Of several that find the same at once, one writes it.
        """

    async def entries(
        self, wanted: AuditFilter, at_most: int, after: AuditPlace | None = None
    ) -> list[AuditEntry]:
        """Return entries, newest first, those behind `after` only."""

    async def entry(self, entry_id: str) -> AuditEntry | None:
        """Return one entry, or None."""

    async def audited(self, tenants: Iterable[TenantId] | None = None) -> dict[TenantId, Audited]:
        """Return what the log says about each of these tenants that it has; None: about all."""
