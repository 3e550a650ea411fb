"""Store the tenants' limits in `tenantLimitation`, and watch for changes."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import DeleteOne, InsertOne, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError
from pymongo.results import UpdateResult

from extproc.core.request.identity import TenantId
from extproc.ports.audit import Audited, AuditEntry, EntryState, direct_entry
from extproc.ports.base import ConflictError
from extproc.ports.documents import Document, digest
from extproc.ports.tenants import TOGETHER, TenantWrite, Wrote, tell_nobody
from extproc.stores.mongo.audit import MongoAudit, entry_document, numbered
from extproc.stores.mongo.client import AUDIT, TENANTS, WRITE, Mongo, Named, only_duplicates, translated
from extproc.stores.pieces import in_pieces

_BATCH: Final = 1000
_RANGE_FROM: Final = 100
_OURS = {"_id": 0}


class MongoTenants:
    """Implement `ports.TenantStore`."""

    _documents = Named(TENANTS)
    _entries = Named(AUDIT)

    def __init__(self, mongo: Mongo, audit: MongoAudit | None = None) -> None:
        self._mongo = mongo
        self._audit = audit if audit is not None else MongoAudit(mongo)
        self._transactions: bool | None = None

    async def create_indexes(self) -> None:
        """Create missing indexes. Raise `StoreError`."""
        async with translated():
            await self._documents.create_index([("tenant_id", 1), ("_id", 1)])

    async def documents(self) -> list[Document]:
        async with translated():
            # Sorted, so that of two documents for one tenant the same one counts on every replica.
            return [d async for d in self._documents.find({}, _OURS).sort("_id", 1)]

    async def document(self, tenant: TenantId) -> Document | None:
        async with translated():
            # Read the last document: it counts if other programs left several.
            return await self._documents.find_one({"tenant_id": {"$eq": tenant}}, _OURS, sort=[("_id", -1)])

    async def scan(self, after: TenantId | None = None) -> AsyncGenerator[Document, None]:
        which = {"tenant_id": {"$gt": after}} if after is not None else {}
        found = self._documents.find(which, _OURS, batch_size=_BATCH).sort([("tenant_id", 1), ("_id", 1)])
        last: dict[str, Any] | None = None
        try:
            while True:
                async with translated():
                    batch = await found.to_list(_BATCH)
                for document in batch:
                    # Of several for one tenant the last one counts.
                    if last is not None and last.get("tenant_id") != document.get("tenant_id"):
                        yield last
                    last = document
                if not batch:
                    break
            if last is not None:
                yield last
        finally:
            with suppress(PyMongoError):
                await found.close()

    async def update(
        self, tenant: TenantId, fields: Document, version: int | None = None, audit: AuditEntry | None = None
    ) -> bool:
        if audit is not None:
            await self.write([TenantWrite(tenant, fields, version, audit)])
            return audit.before is None
        return await self._update_alone(tenant, _update_of(fields, None), version)

    async def _update_alone(self, tenant: TenantId, update: dict[str, Any], version: int | None) -> bool:
        async with translated():
            if version is not None:
                return await self._update_version(tenant, update, version)
            try:
                result = await self._update(tenant, update)
            except DuplicateKeyError:  # another writer created the tenant at the same moment: it exists now
                result = await self._update(tenant, update)
        return result.upserted_id is not None

    async def _update(self, tenant: TenantId, update: dict[str, Any]) -> UpdateResult:
        # With an `_id` of our own, the server refuses a second document for a new tenant.
        new = update | {"$setOnInsert": {"_id": tenant}}
        return await self._documents.update_many({"tenant_id": {"$eq": tenant}}, new, upsert=True)

    async def _update_version(self, tenant: TenantId, update: dict[str, Any], version: int) -> bool:
        whose: dict[str, Any] = {"tenant_id": {"$eq": tenant}}
        if (await self._documents.update_many(whose | {"version": _at(version)}, update)).matched_count:
            return False
        if version:
            raise _conflict(tenant)
        # No version in the filter: an upsert would add a second document beside one of another version.
        new = {"$setOnInsert": {**update["$set"], "version": 1, "_id": tenant}}
        try:
            made = await self._documents.update_one(whose, new, upsert=True)
        except DuplicateKeyError:
            raise _conflict(tenant) from None
        if made.upserted_id is None:
            raise _conflict(tenant)
        return True

    async def delete(self, tenant: TenantId, version: int | None = None, audit: AuditEntry | None = None) -> bool:
        if audit is not None:
            await self.write([TenantWrite(tenant, None, version, audit)])
            return True
        whose: dict[str, Any] = {"tenant_id": {"$eq": tenant}}
        async with translated():
            if version is not None:
                deleted = await self._documents.delete_many(whose | {"version": _at(version)})
                if not deleted.deleted_count and await self._documents.find_one(whose, {"_id": 1}) is not None:
                    raise _conflict(tenant)
            else:
                deleted = await self._documents.delete_many(whose)
        return deleted.deleted_count > 0

    async def write(self, writes: Sequence[TenantWrite], wrote: Wrote = tell_nobody) -> None:
        if self._transactions is None:
            transactions = await self._mongo.has_transactions()
            # This may be the first write of all.
            await self.create_indexes()
            await self._audit.create_indexes()
            self._transactions = transactions
        written = 0
        async with translated():
            # Once for all: the number of an entry shows whether a newer one was written meanwhile.
            audited = await self._audit.audited([each.tenant for each in writes])
            for some in in_pieces(writes, TOGETHER if self._transactions else 1):
                if self._transactions:
                    await self._write_together(some, audited)
                else:
                    await self._write_in_turn(some[0], audited)
                written += len(some)
                wrote(written)

    async def _write_together(self, writes: Sequence[TenantWrite], audited: Mapping[TenantId, Audited]) -> None:
        """Write changes and entries in one transaction. Writers of one tenant conflict, and one is repeated."""

        async def write(session: AsyncClientSession) -> None:
            ids, entries = await self._entries_of(writes, audited, session)
            changes = [change for each in writes for change in _changes(each, ids.get(each.tenant, []))]
            await self._documents.bulk_write(changes, session=session, ordered=False)
            await self._entries.insert_many([entry_document(entry) for entry in entries], session=session)

        async with self._mongo.writing_session() as session:
            try:
                await session.with_transaction(write, write_concern=WRITE)
            except (BulkWriteError, DuplicateKeyError) as error:
                if isinstance(error, BulkWriteError) and not only_duplicates(error):
                    raise
                # Somebody made a tenant or its next entry at the same moment.
                raise _conflict(", ".join(each.tenant for each in writes[:3])) from None

    async def _write_in_turn(self, write: TenantWrite, audited: Mapping[TenantId, Audited]) -> None:
        """Write the entry as pending, then the change, then that it is done. Killed in between, the entry stays
        pending: who reads it looks whether the change was made.
        """
        _, (*direct, entry) = await self._entries_of([write], audited, None)
        try:
            await self._entries.insert_many(
                [*map(entry_document, direct), entry_document(replace(entry, state=EntryState.PENDING))]
            )
        except BulkWriteError as error:
            if only_duplicates(error):
                raise _conflict(write.tenant) from None
            raise
        whose: dict[str, Any] = {"_id": entry.id}
        try:
            if write.fields is None:
                if not await self.delete(write.tenant, write.version):
                    raise _conflict(write.tenant)
            else:
                await self._update_alone(write.tenant, _update_of(write.fields, write.audit), write.version)
        except ConflictError:
            await self._entries.update_one(whose, {"$set": {"state": EntryState.REFUSED.value}})
            raise
        await self._entries.update_one(whose, {"$unset": {"state": ""}})

    async def _entries_of(
        self,
        writes: Sequence[TenantWrite],
        audited: Mapping[TenantId, Audited],
        session: AsyncClientSession | None,
    ) -> tuple[dict[str, list[Any]], list[AuditEntry]]:
        """Return the ids of the documents by tenant, and the entries with their numbers: before each one that of a
        direct change that is not noted yet.

        Raise `ConflictError` if a document is not as the entry says that it was before. `audited` was read after
        these documents and before now, so a change that it does not know yet has another document, or the number.
        """
        names = sorted(each.tenant for each in writes)
        stored: dict[str, dict[str, Any]] = {}
        ids: dict[str, list[Any]] = {}
        # Of many, a range: an embedded store compares each document with a whole list of names.
        which = {"$in": names} if len(names) < _RANGE_FROM else {"$gte": names[0], "$lte": names[-1]}
        async for document in self._documents.find({"tenant_id": which}, session=session).sort("_id", 1):
            ids.setdefault(document["tenant_id"], []).append(document.pop("_id"))
            stored[document["tenant_id"]] = document  # the last one counts
        entries: list[AuditEntry] = []
        for each in writes:
            _require_as_before(each, stored.get(each.tenant))
            known = audited.get(each.tenant)
            number = known.number + 1 if known is not None else 1
            if known is not None and digest(each.audit.before) not in known.digests:
                before = await self._entries.find_one({"_id": known.entry}, {"after": 1}, session=session)
                direct = direct_entry(each.tenant, (before or {}).get("after"), each.audit.before, each.audit.at)
                entries.append(numbered(direct, number))
                number += 1
            entries.append(numbered(each.audit, number))
        return ids, entries

    async def changes(self) -> AsyncIterator[None]:
        async with translated(), await self._documents.watch(max_await_time_ms=1000) as stream:
            yield
            while stream.alive:
                if await stream.try_next() is not None:
                    yield

    async def aclose(self) -> None:
        await self._mongo.aclose()


def _conflict(tenant: str) -> ConflictError:
    return ConflictError(f"tenant '{tenant}' was changed meanwhile")


def _at(version: int) -> dict[str, Any]:
    """Return the condition on the field `version`. None: the field is missing."""
    return {"$eq": version} if version else {"$in": [0, None]}


def _update_of(fields: Document, audit: AuditEntry | None) -> dict[str, Any]:
    """Return the update of a document. Without an entry nobody is known to have made it, so no name stays."""
    fields = {**fields, "updated_at": datetime.now(UTC), "updated_by": audit.actor.name if audit else None}
    kept = {name: value for name, value in fields.items() if value is not None}
    update: dict[str, Any] = {"$set": kept, "$inc": {"version": 1}}
    gone = {name: "" for name, value in fields.items() if value is None}
    if gone:
        update["$unset"] = gone
    return update


def _changes(write: TenantWrite, ids: list[Any]) -> list[Any]:
    """Return the operations of one change. The transaction has seen that the documents with these ids are as
    expected.
    """
    if write.fields is None:
        return [DeleteOne({"_id": each}) for each in ids]
    update = _update_of(write.fields, write.audit)
    if ids:
        return [UpdateOne({"_id": each}, update) for each in ids]
    return [InsertOne({"_id": write.tenant, "tenant_id": write.tenant, **update["$set"], "version": 1})]


def _require_as_before(write: TenantWrite, document: Mapping[str, Any] | None) -> None:
    expected = write.audit.before
    same = digest(document) == digest(expected)
    if same and document is not None and write.version is not None:
        same = document.get("version") in ((write.version,) if write.version else (0, None))
    if not same:
        raise _conflict(write.tenant)
