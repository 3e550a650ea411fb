"""Find single requests in the ledger."""

from typing import Any

from pymongo import DESCENDING

from extproc.core.quota.ledger import Entry
from extproc.ports.requests import RequestFilter, RequestPlace
from extproc.stores.mongo.client import LEDGER, Mongo, Named, translated
from extproc.stores.mongo.documents import readable_entries

# `MongoLedger.create_indexes` makes the indexes for these, with and without a tenant.
NEWEST = [("ended_at", DESCENDING), ("_id", DESCENDING)]
OF_A_TENANT = [("tenant_id", DESCENDING), *NEWEST]
_FIELDS = {
    "outcome": "state",
    "tenant": "tenant_id",
    "service_account": "serviceAccount",
    "client_ip": "clientIP",
    "model": "model",
    "endpoint": "endpoint",
}


class MongoRequests:
    """Implement `ports.RequestRecords`. Leave out documents of other programs that are no entries."""

    _ledger = Named(LEDGER)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def of_id(self, name: str, at_most: int) -> list[Entry]:
        wanted = {"$or": [{"_id": {"$eq": name}}, {"request_id": {"$eq": name}}]}
        async with translated():
            return readable_entries(await self._ledger.find(wanted).sort(NEWEST).to_list(at_most))

    async def newest(self, wanted: RequestFilter, at_most: int, after: RequestPlace | None = None) -> list[Entry]:
        async with translated():
            return readable_entries(await self._ledger.find(_query(wanted, after)).sort(NEWEST).to_list(at_most))


def _query(wanted: RequestFilter, after: RequestPlace | None) -> dict[str, Any]:
    """Return the filter as a query. Values only stand behind `$eq`, so a name can't inject an operator."""
    named = {field: getattr(wanted, name) for name, field in _FIELDS.items()}
    query: dict[str, Any] = {field: {"$eq": str(value)} for field, value in named.items() if value is not None}
    bounds = {"$gte": wanted.since, "$lt": wanted.until}
    if ended := {operator: at for operator, at in bounds.items() if at is not None}:
        query["ended_at"] = ended
    if after is not None:
        behind = [{"ended_at": {"$lt": after.ended_at}}, {"ended_at": after.ended_at, "_id": {"$lt": after.id}}]
        # The bound stands beside the alternatives too: then one range of the index is read.
        query["$and"] = [{"ended_at": {"$lte": after.ended_at}}, {"$or": behind}]
    return query
