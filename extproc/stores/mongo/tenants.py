"""`tenantLimitation`: the tenants' limits, and word of their changes."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from extproc.core.identity import TenantId
from extproc.ports import Document, TenantRecord
from extproc.stores.mongo.client import TENANTS, Mongo, translated

_OURS = {"_id": 0}


class MongoTenants:
    """Implements `ports.TenantStore`."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._documents = mongo.collection(TENANTS)

    async def documents(self) -> list[Document]:
        async with translated():
            # Sorted, so that of two documents for one tenant the same one wins on every replica.
            return [d async for d in self._documents.find({}, _OURS).sort("_id", 1)]

    async def document(self, tenant: TenantId) -> Document | None:
        async with translated():
            # The last one: it is the one that binds, where other programs left several.
            return await self._documents.find_one({"tenant_id": {"$eq": tenant}}, _OURS, sort=[("_id", -1)])

    async def put(self, record: TenantRecord) -> bool:
        amounts = {"sa_limit": record.sa_limit, "ip_limit": record.ip_limit}
        update: dict[str, Any] = {
            "$set": {k: v for k, v in amounts.items() if v is not None} | {"updated_at": datetime.now(UTC)},
            "$inc": {"version": 1},
        }
        gone = {k: "" for k, v in amounts.items() if v is None}
        if gone:
            update["$unset"] = gone
        async with translated():
            result = await self._documents.update_many({"tenant_id": {"$eq": record.tenant}}, update, upsert=True)
        return result.upserted_id is not None

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
