"""Create all indexes of the database."""

from collections.abc import Callable

from extproc.stores.mongo.audit import MongoAudit
from extproc.stores.mongo.client import Mongo
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.tenants import MongoTenants
from extproc.stores.mongo.tokens import MongoTokens


async def create_indexes(tenant_of: Callable[[str], str | None], mongo: Mongo) -> None:
    """Create those that are missing. Raise `StoreError`, for example if existing data is not unique."""
    audit = MongoAudit(mongo)
    for store in (
        MongoLedger(mongo, tenant_of),
        MongoRecords(mongo),
        MongoTenants(mongo, audit),
        audit,
        MongoTokens(mongo),
    ):
        await store.create_indexes()
