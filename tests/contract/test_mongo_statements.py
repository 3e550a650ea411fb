"""What the ledger costs in MongoDB: statements of a batch, bytes of documents, and an index for each query.

docs/scaling.md has these figures. They are counts: no time is measured.
"""

from contextlib import contextmanager

import pytest
from bson import encode
from pymongo import monitoring

from benchmarks.ledger_costs import counted, made, sizes
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.client import LEDGER, Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.retention import LedgerRetention

INSERT, COMMIT = "insert token_ledger", "commitTransaction 1"
ROLLUPS, ACCOUNTS = "update usage_rollups", "update usage_account_months"
DAYS, BUCKETS = "update sa_ip_usage_daily", "update token_bucket_usage"


@pytest.fixture
async def watched(replica_set, mongo_replica_set):
    """A client whose statements are counted, and the counts."""
    ledger = MongoLedger(replica_set)
    await ledger.create_indexes()
    await MongoRecords(replica_set).create_indexes()
    with counted() as statements:
        mongo = Mongo(MongoOptions(mongo_replica_set, replica_set._database.name, timeout_s=30.0))
    yield mongo, statements
    await mongo.aclose()


@pytest.mark.parametrize("batch", [1, 10, 100, 500])
@pytest.mark.parametrize("callers", [1, 50])
async def test_a_batch_is_six_commands_whatever_its_size(watched, batch, callers):
    mongo, statements = watched
    ledger = MongoLedger(mongo)
    await ledger.append(made(1, 1, 2))
    statements.commands.clear()
    statements.statements = 0
    await ledger.append(made(batch, callers, 2))
    assert statements.commands == [DAYS, BUCKETS, ROLLUPS, ACCOUNTS, INSERT, COMMIT]
    # An entry each; a row of daily usage and a sum of each of two buckets for each caller.
    days = min(batch, callers)
    limits_per_account = 4  # callers with one service account
    buckets = days + -(-days // limits_per_account)
    rollups = 6  # hour, day and month, of the tenant and of all tenants
    accounts = -(-days // limits_per_account)
    assert statements.statements == batch + days + buckets + rollups + accounts


async def test_holds_are_saved_and_dropped_in_one_command_each(watched):
    mongo, statements = watched
    records = MongoRecords(mongo)
    from benchmarks.ledger_entries import limits, reservation

    held = [reservation(limits(2), caller) for caller in range(100)]
    await mongo.ping()
    statements.commands.clear()
    await records.save(held)
    await records.drop([each.id for each in held])
    assert statements.commands == ["insert token_open", "delete token_open"]


def test_documents_are_not_larger_than_the_documentation_says():
    assert sizes(2)["an entry"] <= 800
    assert sizes(10)["an entry"] <= 1550
    assert max(sizes(2)[each] for each in ("a row of daily usage", "a sum of a bucket")) <= 300


@contextmanager
def queries():
    """The finds and updates of clients that are made inside, with filter and sort."""
    seen = []

    class Listener(monitoring.CommandListener):
        def started(self, event):
            if event.command_name == "find":
                seen.append(
                    (event.command["find"], dict(event.command["filter"]), dict(event.command.get("sort", {})))
                )

        def succeeded(self, event): ...

        def failed(self, event): ...

    listeners = monitoring._LISTENERS.command_listeners
    listeners.append(listener := Listener())
    try:
        yield seen
    finally:
        listeners.remove(listener)


def serves(index, filters, sort):
    """Whether an index finds what is equal, and gives it in order: MongoDB's rule for equality, then sort."""
    equal = {name for name, value in filters.items() if isinstance(value, dict) and "$eq" in value}
    rest = list(index)
    while rest and rest[0][0] in equal and rest[0][0] not in sort:
        rest.pop(0)
    wanted = list(sort.items())
    backwards = [(name, -direction) for name, direction in wanted]
    return rest[: len(wanted)] in (wanted, backwards)


@pytest.mark.parametrize(
    ("wanted", "call"),
    [
        (UsageFilter(tenant="acme"), "entries"),
        (UsageFilter(), "entries"),  # by the index of the retention
        (UsageFilter(), "replay"),
        (UsageFilter(since="2026-01-01"), "replay"),
    ],
)
async def test_reports_read_the_ledger_in_the_order_of_an_index(replica_set, mongo_replica_set, wanted, call):
    with queries() as seen:
        mongo = Mongo(MongoOptions(mongo_replica_set, replica_set._database.name, timeout_s=30.0))
    ledger = MongoLedger(mongo)
    await ledger.create_indexes()
    await replica_set.collection("token_migrations").insert_one({"_id": "daily_usage_by_tenant", "done": True})
    await LedgerRetention(replica_set, 40).apply()
    seen.clear()
    indexes = [each["key"] for each in (await replica_set.collection(LEDGER).index_information()).values()]
    if call == "entries":
        await ledger.entries(wanted, 10)
    else:
        assert [each async for each in ledger.replay(wanted)] == []
    await mongo.aclose()
    (collection, filters, sort), *others = seen
    assert (collection, others) == (LEDGER, [])
    assert any(serves(index, filters, sort) for index in indexes)


async def test_each_index_of_the_ledger_has_its_bytes_in_the_estimate(replica_set):
    from benchmarks.ledger_costs import index_sizes

    await MongoLedger(replica_set).create_indexes()
    await MongoRecords(replica_set).create_indexes()
    found = (await replica_set.collection(LEDGER).index_information()).values()
    names = {", ".join(field for field, _ in index["key"]) for index in found}
    assert names - {"counts_until", "unrolled"} == set(index_sizes(retention=False))  # empty on a replica set


def test_an_entry_is_what_is_measured():
    (entry,) = made(1, 1, 2)
    assert len(entry.charges) == 2
    assert len(encode({"k": entry.charges[0].key})) < 100
