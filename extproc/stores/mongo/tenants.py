"""Store the tenants' limits in `tenantLimitation`, and watch for changes."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from pymongo.errors import DuplicateKeyError
from pymongo.results import UpdateResult

from extproc.core.request.identity import TenantId
from extproc.ports.base import ConflictError
from extproc.ports.tenants import Document
from extproc.stores.mongo.client import TENANTS, Mongo, Named, translated

_OURS = {"_id": 0}


class MongoTenants:
    """Implement `ports.TenantStore`."""

    _documents = Named(TENANTS)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def documents(self) -> list[Document]:
        async with translated():
            # Sorted, so that of two documents for one tenant the same one counts on every replica.
            return [d async for d in self._documents.find({}, _OURS).sort("_id", 1)]

    async def document(self, tenant: TenantId) -> Document | None:
        async with translated():
            # Read the last document: it counts if other programs left several.
            return await self._documents.find_one({"tenant_id": {"$eq": tenant}}, _OURS, sort=[("_id", -1)])

    async def update(self, tenant: TenantId, fields: Document, version: int | None = None) -> bool:
        kept = {name: value for name, value in fields.items() if value is not None}
        update: dict[str, Any] = {"$set": kept | {"updated_at": datetime.now(UTC)}, "$inc": {"version": 1}}
        gone = {name: "" for name, value in fields.items() if value is None}
        if gone:
            update["$unset"] = gone
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
        stands = {"$eq": version} if version else {"$in": [0, None]}  # None: the field is missing
        whose = {"tenant_id": {"$eq": tenant}}
        if (await self._documents.update_many(whose | {"version": stands}, update)).matched_count:
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

    async def delete(self, tenant: TenantId) -> bool:
        async with translated():
            result = await self._documents.delete_many({"tenant_id": {"$eq": tenant}})
        return result.deleted_count > 0

    async def changes(self) -> AsyncIterator[None]:
        async with translated(), await self._documents.watch(max_await_time_ms=1000) as stream:
            yield
            while stream.alive:
                if await stream.try_next() is not None:
                    yield

    async def aclose(self) -> None:
        await self._mongo.aclose()


def _conflict(tenant: TenantId) -> ConflictError:
    return ConflictError(f"tenant '{tenant}' was changed meanwhile")
