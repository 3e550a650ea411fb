"""Store the audit log in `admin_audit`: an entry is written once, and never deleted.

Entries of changes to a tenant's document are numbered, and the number is part of the `_id`: of several writers one
gets the next number.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING
from pymongo.errors import BulkWriteError, DuplicateKeyError

from extproc.core.request.identity import TenantId
from extproc.ports.audit import (
    Actor,
    ActorKind,
    Audited,
    AuditEntry,
    AuditFilter,
    AuditPlace,
    EntryState,
    Found,
    document_entry_id,
)
from extproc.ports.base import StoreError
from extproc.ports.documents import digest
from extproc.stores.mongo.client import AUDIT, TENANTS, Mongo, Named, only_duplicates, translated
from extproc.stores.pieces import in_pieces

# What is needed of an entry to tell whether a document is as the log says.
_BRIEF: Final = {"tenant_id": 1, "number": 1, "digest": 1, "state": 1}
_NEWEST: Final = [("tenant_id", ASCENDING), ("number", DESCENDING)]
_AT_ONCE: Final = 1000


class MongoAudit:
    """Implement `ports.AuditLog`."""

    _entries = Named(AUDIT)
    _tenants = Named(TENANTS)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._indexed = False

    async def create_indexes(self) -> None:
        """Create missing indexes. Raise `StoreError`."""
        async with translated():
            await self._entries.create_index([("tenant_id", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)])
            await self._entries.create_index([("at", DESCENDING), ("_id", DESCENDING)])
            await self._entries.create_index(_NEWEST)
        self._indexed = True

    async def prepare(self) -> None:
        """Create the indexes before the first write of this process: it may be the first one at all."""
        if not self._indexed:
            await self.create_indexes()

    async def append(self, entry: AuditEntry) -> None:
        await self.prepare()
        async with translated():
            with suppress(DuplicateKeyError):
                await self._entries.insert_one(entry_document(entry))

    async def note(self, found: Sequence[Found]) -> int:
        await self.prepare()
        documents = [
            entry_document(numbered(each.entry, each.after.number + 1 if each.after is not None else 1))
            for each in found
        ]
        written = 0
        async with translated():
            for some in in_pieces(documents, _AT_ONCE):
                try:
                    await self._entries.insert_many(list(some), ordered=False)
                except BulkWriteError as error:
                    if not only_duplicates(error):
                        raise
                    written -= len((error.details or {})["writeErrors"])
                written += len(some)
        return written

    async def entries(
        self, wanted: AuditFilter, at_most: int, after: AuditPlace | None = None
    ) -> list[AuditEntry]:
        newest = [("at", DESCENDING), ("_id", DESCENDING)]
        async with translated():
            found = await self._entries.find(_query(wanted, after)).sort(newest).limit(at_most).to_list()
            return [await self._settled(_read(document)) for document in found]

    async def entry(self, entry_id: str) -> AuditEntry | None:
        async with translated():
            document = await self._entries.find_one({"_id": {"$eq": entry_id}})
            return await self._settled(_read(document)) if document is not None else None

    async def audited(self, tenants: Iterable[TenantId] | None = None) -> dict[TenantId, Audited]:
        async with translated():
            return await self._audited_of(None if tenants is None else list(tenants))

    async def _audited_of(self, names: list[TenantId] | None) -> dict[TenantId, Audited]:
        if names is None or len(names) > _AT_ONCE:
            return await self._newest({"number": {"$gt": 0}})
        if len(names) == 1:
            return await self._newest_of(names[0])
        return await self._newest({"tenant_id": {"$in": names}, "number": {"$gt": 0}})

    async def _newest_of(self, tenant: TenantId) -> dict[TenantId, Audited]:
        which = {"tenant_id": {"$eq": tenant}, "number": {"$gt": 0}}
        row = await self._entries.find_one(which, _BRIEF, sort=[("number", DESCENDING)])
        return {} if row is None else {tenant: await self._audited(tenant, row["_id"], row)}

    async def _newest(self, which: Mapping[str, Any]) -> dict[TenantId, Audited]:
        first = {name: {"$first": f"${name}"} for name in ("number", "digest", "state")}
        stages: list[dict[str, Any]] = [
            {"$match": which},
            {"$project": _BRIEF},
            {"$sort": dict(_NEWEST)},
            {"$group": {"_id": "$tenant_id", "entry": {"$first": "$_id"}, **first}},
        ]
        found: dict[TenantId, Audited] = {}
        async for row in await self._entries.aggregate(stages):
            tenant = TenantId(row["_id"])
            found[tenant] = await self._audited(tenant, row["entry"], row)
        return found

    async def _audited(self, tenant: TenantId, entry: str, row: Mapping[str, Any]) -> Audited:
        digests: tuple[str | None, ...] = (row.get("digest"),)
        if row.get("state") is not None:
            digests = await self._digests(tenant)
        return Audited(entry, row["number"], digests)

    async def _digests(self, tenant: str) -> tuple[str | None, ...]:
        """Return the digests back to the newest change that is known to be made."""
        digests: list[str | None] = []
        which = {"tenant_id": {"$eq": tenant}, "number": {"$gt": 0}}
        async for row in self._entries.find(which, _BRIEF).sort("number", DESCENDING):
            if row.get("state") != EntryState.REFUSED:
                digests.append(row.get("digest"))
            if row.get("state") is None:
                return tuple(digests)
        return (*digests, None)  # the first change of all is pending: there was no document before it

    async def _settled(self, entry: AuditEntry) -> AuditEntry:
        """Return a pending entry as done if its change can be seen: in the document, or in the change after it."""
        if entry.state is not EntryState.PENDING or entry.number is None:
            return entry
        made = digest(entry.after)
        later = {"tenant_id": {"$eq": entry.tenant}, "number": {"$gt": entry.number}, "state": None}
        following = await self._entries.find_one(later, sort=[("number", ASCENDING)])
        if following is not None:
            seen = digest(following.get("before")) == made
        else:
            document = await self._tenants.find_one(
                {"tenant_id": {"$eq": entry.tenant}}, sort=[("_id", DESCENDING)]
            )
            version = document.get("version") if document is not None else None
            seen = digest(document) == made and version == entry.version
        return replace(entry, state=EntryState.DONE) if seen else entry


def numbered(entry: AuditEntry, number: int) -> AuditEntry:
    """Return the entry of a change to a tenant's document, with its number and the id that belongs to it."""
    return replace(entry, id=document_entry_id(entry.tenant or "", number), number=number)


def entry_document(entry: AuditEntry) -> dict[str, Any]:
    """Return the entry as it is stored. An entry that is done has no `state`."""
    actor = {"name": entry.actor.name, "kind": entry.actor.kind.value, "origin": entry.actor.origin}
    document = {
        "_id": entry.id,
        "at": entry.at,
        "actor": actor,
        "action": entry.action,
        "tenant_id": entry.tenant,
        "subject": entry.subject,
        "before": _stored(entry.before),
        "after": _stored(entry.after),
        "note": entry.note,
        "version": entry.version,
        "number": entry.number,
        "digest": digest(entry.after) if entry.number is not None else None,
        "state": entry.state.value if entry.state is not EntryState.DONE else None,
    }
    return {name: value for name, value in document.items() if value is not None}


def _stored(document: Mapping[str, object] | None) -> dict[str, object] | None:
    return dict(document) if document is not None else None


def _read(document: dict[str, Any]) -> AuditEntry:
    """Return the entry of a document. Raise `StoreError` if another program wrote it."""
    try:
        actor, at = document["actor"], document["at"]
        if not isinstance(at, datetime):
            raise TypeError("its date")  # noqa: TRY301
        return AuditEntry(
            id=document["_id"],
            at=at.astimezone(UTC),
            actor=Actor(actor["name"], ActorKind(actor["kind"]), actor["origin"]),
            action=document["action"],
            tenant=document.get("tenant_id"),
            subject=document.get("subject"),
            before=document.get("before"),
            after=document.get("after"),
            note=document.get("note"),
            version=document.get("version"),
            number=document.get("number"),
            state=EntryState(document.get("state", EntryState.DONE)),
        )
    except (KeyError, TypeError, ValueError) as error:
        text = f"document {document['_id']!r} of the audit log is no entry: {error!r}"
        raise StoreError(text, transient=False) from error


def _query(wanted: AuditFilter, after: AuditPlace | None) -> dict[str, Any]:
    query: dict[str, Any] = {}
    if wanted.tenant is not None:
        query["tenant_id"] = {"$eq": wanted.tenant}
    if wanted.actor is not None:
        query["actor.name"] = {"$eq": wanted.actor}
    if wanted.action is not None:
        noun = {"$gte": f"{wanted.action}.", "$lt": f"{wanted.action}/"}  # all that begin with the noun and a dot
        query["$or"] = [{"action": {"$eq": wanted.action}}, {"action": noun}]
    at = {"$gte": wanted.since, "$lt": wanted.until}
    if any(value is not None for value in at.values()):
        query["at"] = {name: value for name, value in at.items() if value is not None}
    if after is not None:
        behind = [{"at": {"$lt": after.at}}, {"at": after.at, "_id": {"$lt": after.id}}]
        query["$and"] = [{"$or": behind}]
    return query
