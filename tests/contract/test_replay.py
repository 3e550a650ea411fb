"""The ledger from its beginning, and updates of a tenant's document that were made on another one."""

import asyncio
from datetime import datetime, timedelta

import pytest

from extproc.ports.base import ConflictError, StoreError
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo import ledger as mongo_ledger
from extproc.stores.mongo.client import LEDGER, TENANTS, Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.tenants import MongoTenants
from tests.changing import replace

from .reservations import NOW, entry, short, who

ALL = UsageFilter()


def admitted(seconds, **further):
    made = entry(**further)
    at = NOW + timedelta(seconds=seconds)
    return replace(made, admitted_at=at, ended_at=at + timedelta(seconds=100 - seconds))


async def replay(ledger, wanted=ALL):
    return [each async for each in ledger.replay(wanted)]


async def test_a_replay_is_the_whole_ledger_oldest_admission_first(ledger):
    made = [admitted(seconds, charge=seconds) for seconds in (30, 10, 20, 0)]
    await ledger.append(made)
    assert await replay(ledger) == sorted(made, key=lambda each: each.admitted_at)
    assert await replay(ledger) == await replay(ledger)


async def test_of_an_empty_ledger_there_is_nothing_to_replay(ledger):
    assert await replay(ledger) == []


async def test_entries_of_one_instant_have_one_order(ledger):
    made = [admitted(0) for _ in range(20)]
    await ledger.append(made[10:])
    await ledger.append(made[:10])
    assert [each.id for each in await replay(ledger)] == sorted(each.id for each in made)


async def test_a_replay_is_of_what_was_asked_for(ledger):
    at = datetime.fromisoformat("2026-03-02T12:00:00+00:00")
    made = [
        replace(entry(n, identity=who(*identity), date=date), admitted_at=at + timedelta(hours=hours), ended_at=at)
        for n, (identity, date, hours) in enumerate(
            [
                (("t1", "a", "1"), "2026-03-01", -26),  # 10:00 in UTC
                (("t1", "a", "2"), "2026-03-02", -26),  # the same instant where it is tomorrow already
                (("t2", "b", "1"), "2026-03-02", 0),
                (("t2", "b", "1"), "2026-03-02", 23),  # where it is still yesterday
                (("t2", "b", "1"), "2026-03-03", 24),
            ],
            start=1,
        )
    ]
    await ledger.append(made)
    cases = {
        UsageFilter(): [1, 2, 3, 4, 5],
        UsageFilter(tenant="t1"): [1, 2],
        UsageFilter(service_account="b", client_ip="1"): [3, 4, 5],
        UsageFilter(since="2026-03-02"): [2, 3, 4, 5],
        UsageFilter(until="2026-03-02"): [1, 2, 3, 4],
        UsageFilter(since="2026-03-02", until="2026-03-02"): [2, 3, 4],
        UsageFilter(tenant=""): [],
    }
    for wanted, charges in cases.items():
        assert sorted(each.charge for each in await replay(ledger, wanted)) == charges, wanted


async def test_a_reader_that_stops_early_leaves_nothing_behind(ledger):
    await ledger.append([admitted(n) for n in range(5)])
    entries = ledger.replay(ALL)
    assert (await anext(entries)).admitted_at == NOW
    await entries.aclose()
    assert len(await replay(ledger)) == 5


# ---------------------------------------------------------------- MongoDB only


async def test_a_replay_of_several_batches_loses_and_repeats_nothing(replica_set, monkeypatch):
    monkeypatch.setattr(mongo_ledger, "_BATCH", 7)
    ledger = MongoLedger(replica_set)
    made = [admitted(n) for n in range(45)]
    await ledger.append(made)
    assert await replay(ledger) == made


async def test_a_slow_reader_is_not_timed_out(replica_set, mongo_replica_set, monkeypatch):
    monkeypatch.setattr(mongo_ledger, "_BATCH", 2)
    ledger = MongoLedger(replica_set)
    made = [admitted(n) for n in range(8)]
    await ledger.append(made)
    impatient = Mongo(MongoOptions(mongo_replica_set, replica_set._database.name, timeout_s=2.0))
    found = []
    async for each in MongoLedger(impatient).replay(ALL):
        found.append(each)
        await asyncio.sleep(0.3)  # the driver's time-out has no clock of ours
    await impatient.aclose()
    assert found == made


async def test_a_replay_is_read_from_an_index(replica_set):
    ledger = MongoLedger(replica_set)
    await ledger.create_indexes()
    keys = [list(index["key"]) async for index in await replica_set.collection(LEDGER).list_indexes()]
    assert ["admitted_at", "_id"] in keys


@pytest.mark.parametrize(
    "change", [{"state": "eaten"}, {"usage": None}, {"admitted_at": "today"}, {"$unset": {"model": 1}}]
)
async def test_what_is_no_entry_is_named(replica_set, change):
    ledger = MongoLedger(replica_set)
    made = entry()
    await ledger.append([made])
    await replica_set.collection(LEDGER).update_one({}, change if "$unset" in change else {"$set": change})
    with pytest.raises(StoreError, match=f"document '{made.id}' of the ledger is no entry") as caught:
        await replay(ledger)
    assert not caught.value.transient


async def test_a_replay_from_a_server_that_is_not_there_is_a_transient_fault(refusing_mongo):
    with pytest.raises(StoreError) as caught:
        await replay(MongoLedger(refusing_mongo))
    assert caught.value.transient


# ---------------------------------------------------------------- updates on a version


async def test_every_update_adds_one_to_the_version(tenants):
    await tenants.update("a", short(1, None))
    await tenants.update("a", short(2, None))
    assert (await tenants.document("a"))["version"] == 2


async def test_an_update_on_the_version_that_stands_is_written(tenants):
    assert await tenants.update("a", short(1, None), 0) is True
    assert await tenants.update("a", short(2, None), 1) is False
    document = await tenants.document("a")
    assert (document["sa_limit"], document["version"]) == (2, 2)


@pytest.mark.parametrize("version", [0, 1, 3])
async def test_an_update_on_another_version_is_a_conflict_and_writes_nothing(tenants, version):
    await tenants.update("a", short(1, None))
    await tenants.update("a", short(2, None))
    with pytest.raises(ConflictError):
        await tenants.update("a", short(9, 9), version)
    (document,) = await tenants.documents()
    assert (document["sa_limit"], document["version"], "ip_limit" in document) == (2, 2, False)


async def test_an_update_of_a_tenant_that_was_deleted_meanwhile_is_a_conflict(tenants):
    await tenants.update("a", short(1, None))
    await tenants.delete("a")
    with pytest.raises(ConflictError):
        await tenants.update("a", short(2, None), 1)
    assert await tenants.documents() == []


async def test_of_many_that_read_and_write_at_once_no_change_is_lost(tenants):
    async def add():
        while True:
            document = await tenants.document("a") or {}
            try:
                return await tenants.update(
                    "a", {"sa_limit": document.get("sa_limit", 0) + 1}, document.get("version", 0)
                )
            except ConflictError:
                continue

    await tenants.update("a", {"sa_limit": 0})
    await asyncio.gather(*(add() for _ in range(8)))
    assert (await tenants.document("a"))["sa_limit"] == 8


async def test_a_document_that_somebody_wrote_without_a_version_has_version_0(replica_set):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    await collection.insert_one({"tenant_id": "a", "sa_limit": 1})
    assert await tenants.update("a", {"sa_limit": 2}, 0) is False
    assert [(d["sa_limit"], d["version"]) for d in await tenants.documents()] == [(2, 1)]
