"""What only the records in MongoDB must do: other versions' data, round trips, what is forgotten, and faults."""

import asyncio
import contextlib
import logging
import time
from datetime import datetime, timedelta

import pytest
from pymongo import monitoring
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from extproc.core.quota.ledger import Charge
from extproc.ports.base import StoreError
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.client import BUCKETS, DAILY, LEDGER, OPEN, REPLICA_MARKS, REPLICAS, Mongo, MongoOptions
from extproc.stores.mongo.documents import entry_document
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from tests.sizes import sized

from .reservations import NOW, entry, reservation

ALL = UsageFilter()
LATER = int(NOW.timestamp()) + 3600


@pytest.fixture
async def records(mongo):
    records = MongoRecords(mongo)
    await records.create_indexes()
    return records


@pytest.mark.parametrize(
    "body", [b"{}", b"\xff", "text", 5, None, b'{"id": "r", "deadline": "soon"}', b"[" * 100_000]
)
async def test_what_this_version_can_not_read_is_told_and_left_out(records, mongo, body, caplog):
    made = reservation()
    await records.save([made])
    await mongo.collection(OPEN).insert_one({"_id": "other", "body": body})
    with caplog.at_level(logging.ERROR):
        assert await records.saved() == [made]
    (record,) = caplog.records
    assert record.reservation == "other"
    assert await mongo.collection(OPEN).count_documents({}) == 2


async def test_what_a_newer_version_added_to_a_reservation_does_not_matter(records, mongo):
    made = reservation()
    await records.save([made])
    document = await mongo.collection(OPEN).find_one({})
    newer = document["body"].replace(b"{", b'{"new": [1],', 1)
    await mongo.collection(OPEN).update_one({}, {"$set": {"body": newer}})
    assert await records.saved() == [made]


async def test_what_everybody_forgot_goes_some_time(records, mongo):
    await records.save([reservation()])
    await records.heartbeat("a")
    await records.note_saved_until("a", NOW)
    await MongoLedger(mongo).append([entry(charges=(Charge("a", LATER, 5),))])
    found = {}
    for name in (OPEN, REPLICAS, REPLICA_MARKS, BUCKETS):
        async for index in await mongo.collection(name).list_indexes():
            if "expireAfterSeconds" in index:
                (field,) = index["key"]
                found[name] = (field, index["expireAfterSeconds"])
        document = await mongo.collection(name).find_one({})
        assert document is None or isinstance(document[found[name][0]], datetime)
    day = 24 * 3600
    month = ("at", 35 * day)
    assert found == {OPEN: month, REPLICA_MARKS: month, REPLICAS: ("at", day), BUCKETS: ("until", day)}


async def test_a_mark_that_arrives_late_replaces_no_later_one(records, mongo, monkeypatch):
    late, now = MongoRecords(mongo), time.monotonic_ns()
    await records.note_saved_until("a", NOW)
    monkeypatch.setattr(time, "monotonic_ns", lambda: now - 10)
    await late.note_saved_until("a", NOW + timedelta(seconds=9))
    assert await records.saved_until() == {"a": NOW}


async def test_a_mark_is_acknowledged_by_a_majority_and_its_journal(records, mongo_url, mongo):
    seen = []

    class Listener(monitoring.CommandListener):
        def started(self, event):
            if event.command_name == "update":
                seen.append((event.command["update"], event.command["writeConcern"]))

        def succeeded(self, event): ...

        def failed(self, event): ...

    listeners = monitoring._LISTENERS.command_listeners
    listeners.append(listener := Listener())
    try:
        watched = Mongo(MongoOptions(mongo_url, mongo._database.name, timeout_s=30.0))
    finally:
        listeners.remove(listener)
    await MongoRecords(watched).note_saved_until("a", NOW)
    await watched.aclose()
    assert seen == [(REPLICA_MARKS, {"w": "majority", "j": True})]


@pytest.mark.parametrize("damage", [{"saved_until": "soon"}, {"saved_until": 5}, {}])
async def test_a_mark_that_somebody_broke_says_nothing_and_the_next_one_mends_it(records, mongo, damage):
    await records.note_saved_until("a", NOW)
    await mongo.collection(REPLICA_MARKS).replace_one({"_id": "a"}, damage)
    await mongo.collection(REPLICA_MARKS).insert_one({"_id": 5} | damage)
    assert await records.saved_until() == {}
    await records.note_saved_until("a", NOW)
    assert await records.saved_until() == {"a": NOW}


async def test_hundreds_are_kept_renewed_and_dropped_in_a_few_round_trips(records, mongo_url, mongo):
    seen = []

    class Listener(monitoring.CommandListener):
        def started(self, event):
            seen.append(event.command_name)

        def succeeded(self, event): ...

        def failed(self, event): ...

    listeners = monitoring._LISTENERS.command_listeners
    listeners.append(listener := Listener())
    try:
        watched = Mongo(MongoOptions(mongo_url, mongo._database.name, timeout_s=30.0))
    finally:
        listeners.remove(listener)
    records = MongoRecords(watched)
    made = [reservation() for _ in range(sized(500, 1000))]
    await records.save(made)
    await records.save(made)
    await records.outcomes([each.id for each in made])
    await records.drop([each.id for each in made])
    await watched.aclose()
    assert len(seen) <= 25, seen


async def test_entries_of_an_earlier_version_use_nothing(replica_set):
    document = entry_document(entry(10))
    assert "charges" not in document
    await replica_set.collection(LEDGER).insert_one(document)
    assert await MongoRecords(replica_set).used(NOW) == []
    assert [each.charges for each in await MongoLedger(replica_set).entries(ALL, 1)] == [()]


async def test_what_a_standalone_server_wrote_is_used_beside_what_it_writes_as_a_replica_set(replica_set):
    alone, together = MongoLedger(replica_set), MongoLedger(replica_set)
    alone._transactions = False
    entries = [entry(n, charges=(Charge("a", LATER, n), Charge("b", LATER + n, n))) for n in (1, 2, 4)]
    await alone.append(entries[:2])
    await together.append(entries)
    used = {each.key: (each.until, each.amount) for each in await MongoRecords(replica_set).used(NOW)}
    assert used == {"a": (LATER, 7), "b": (LATER + 4, 7)}


async def test_what_is_used_is_read_from_indexes(records, mongo):
    names = {
        name: [list(index["key"]) async for index in await mongo.collection(name).list_indexes()]
        for name in (LEDGER, BUCKETS)
    }
    assert ["counts_until"] in names[LEDGER]
    assert ["until"] in names[BUCKETS]


@pytest.mark.parametrize("damage", [{"used": "many"}, {"used": None}])
async def test_a_sum_that_somebody_broke_is_a_fault_that_names_it_and_never_counts_as_nothing(replica_set, damage):
    await MongoLedger(replica_set).append([entry(charges=(Charge("a", LATER, 5),))])
    await replica_set.collection(BUCKETS).update_one({}, {"$set": damage})
    with pytest.raises(StoreError, match="acme"):
        await MongoRecords(replica_set).used(NOW)


async def test_a_server_that_is_not_there_is_a_transient_fault(refusing_mongo):
    records = MongoRecords(refusing_mongo)
    calls = (
        records.outcomes(["a"]),
        records.used(NOW),
        records.save([reservation()]),
        records.drop(["a"]),
        records.saved(),
        records.which_saved(["a"]),
        records.note_saved_until("a", NOW),
        records.saved_until(),
        records.heartbeat("a"),
        records.deregister("a"),
    )
    for fault in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(fault, StoreError)
        assert fault.transient


async def test_what_a_dead_replica_has_begun_to_write_is_aborted_and_keeps_nobody_waiting(records, mongo):
    """Otherwise its transaction would stay open for a minute, and nobody else could write the same day."""
    if not await mongo.has_transactions():
        pytest.skip("a standalone server has no transactions")
    ledger = MongoLedger(mongo)
    await ledger.append([entry(1)])
    async with mongo.writing_session() as session:
        await session.start_transaction()
        await mongo.collection(DAILY).update_many({}, {"$inc": {"usage": 10**6}}, session=session)
        await records.note_saved_until("dead", NOW)
        await records.abort_writes_of("of whom nothing is known")
        writing = asyncio.create_task(ledger.append([entry(2)]))
        done, _ = await asyncio.wait({writing}, timeout=0.5)
        assert not done, "it waits for the other one"
        await records.abort_writes_of("dead")
        await asyncio.wait_for(writing, 5)
        with pytest.raises(OperationFailure) as failure:
            await session.commit_transaction()
        assert failure.value.has_error_label("TransientTransactionError")
    assert len(await ledger.entries(ALL, 9)) == 2
    (day,) = await ledger.daily(ALL, 9)
    assert day.usage < 10**6


async def test_sessions_of_another_user_are_left_to_mongodb_and_nothing_fails(records, mongo, caplog, monkeypatch):
    await records.note_saved_until("dead", NOW)

    async def refused(*_args, **_options):
        raise OperationFailure("not authorized", 13)

    monkeypatch.setattr(AsyncDatabase, "command", refused)
    await records.abort_writes_of("dead")
    (message,) = caplog.messages
    assert message.startswith("mongodb: transactions of a dead replica can't be ended")


async def test_the_same_session_writes_again_unless_its_transaction_was_left_open(mongo):
    async with mongo.writing_session() as first:
        pass
    async with mongo.writing_session() as again:
        assert again is first
        if await mongo.has_transactions():
            await again.start_transaction()
            await mongo.collection(DAILY).find_one({}, session=again)
    async with mongo.writing_session() as next_one:
        assert (next_one is first) is not await mongo.has_transactions()


async def test_the_session_of_the_first_transaction_is_known_before_it_is_used(mongo):
    known = mongo.ready_sessions()
    async with mongo.writing_session() as one, mongo.writing_session() as other:
        assert {one.session_id["id"], other.session_id["id"]} < set(known)
        assert len(mongo.ready_sessions()) == len(known) + 2, "as many are ready again"
    assert len(mongo.ready_sessions()) == len(known) + 2


async def test_sessions_that_were_used_long_ago_are_forgotten(mongo):
    async with contextlib.AsyncExitStack() as lent:
        used = [await lent.enter_async_context(mongo.writing_session()) for _ in range(20)]
    async with mongo.writing_session() as again:  # the one that was given back last
        pass
    assert again is used[0]
    known = [each.session_id["id"] for each in (*used[5:], used[0])]
    assert mongo.ready_sessions() == known
