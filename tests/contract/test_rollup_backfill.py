"""How entries that were written without rollups get into them: each once, whatever stops the job."""

import asyncio
import random

import pytest
from pymongo.errors import AutoReconnect

from extproc.ports.base import StoreError
from extproc.ports.reports import By, Grain, ReportFilter, Sums, sums_of
from extproc.stores.mongo import rollup_backfill
from extproc.stores.mongo.documents import entry_document
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.reports import MongoSums
from extproc.stores.mongo.rollup_backfill import RollupBackfill
from tests.sizes import sized

from .test_reports import TENANTS, some_entry

ALL = ReportFilter()


# In the quick form a batch of the job is smaller, and so are the ledgers that take more than one.
BATCH = sized(50, 500)


@pytest.fixture(autouse=True)
def batches(monkeypatch):
    assert rollup_backfill._BATCH == 500
    monkeypatch.setattr(rollup_backfill, "_BATCH", BATCH)


@pytest.fixture
async def ledger(mongo):
    ledger = MongoLedger(mongo)
    await ledger.create_indexes()
    return ledger


async def written_before(mongo, count, seed=1):
    """Entries of an earlier version."""
    chosen = random.Random(seed)
    made = [some_entry(chosen, TENANTS) for _ in range(count)]
    await mongo.collection("token_ledger").insert_many([entry_document(each) for each in made])
    await mongo.collection("token_migrations").delete_many({})
    return made


async def finish(*jobs):
    while not all([await job.step() for job in jobs]):
        pass


async def totals(mongo):
    """The totals of each grain, and of the rows of all tenants."""
    sums = MongoSums(mongo)
    found = [await sums.total(ALL)]
    for grain in Grain:
        for by in (By.TENANT, By.MODEL, By.ENDPOINT):
            rows = await sums.report(by, grain, ALL, 10_000)
            found.append(sum((row.sums for row in rows), Sums()))
    return set(found)


def expected(made):
    return {sum(map(sums_of, made), Sums())}


async def test_entries_of_earlier_versions_are_added_and_reports_say_so_until_then(ledger, mongo):
    made = await written_before(mongo, BATCH + 100)
    sums, job = MongoSums(mongo), RollupBackfill(mongo, "r1")
    assert (await sums.missing()).entries
    later = [some_entry(random.Random(2), TENANTS)]
    await ledger.append(later)
    await finish(job)
    assert not (await sums.missing()).entries
    assert await totals(mongo) == expected([*made, *later])


async def test_the_job_waits_for_replicas_of_earlier_versions_and_looks_again_after_them(ledger, mongo):
    replicas = mongo.collection("token_replicas")
    job, sums = RollupBackfill(mongo, "r1"), MongoSums(mongo)
    await MongoRecords(mongo).heartbeat("r1")
    await finish(job)
    assert not (await sums.missing()).entries
    await replicas.insert_one({"_id": "old", "beats": 1, "daily_usage": "by_tenant"})
    made = await written_before(mongo, 5)
    assert await job.step()
    assert (await sums.missing()).entries
    await replicas.delete_one({"_id": "old"})
    await finish(job)
    assert await totals(mongo) == expected(made)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param("bulk_write", marks=pytest.mark.thorough),
        "update_many",
        pytest.param("update_one", marks=pytest.mark.thorough),
    ],
)
async def test_a_job_that_stops_anywhere_adds_nothing_twice(ledger, mongo, stop, monkeypatch):
    made = await written_before(mongo, 40)
    chosen = random.Random(stop)
    from pymongo.asynchronous.collection import AsyncCollection

    whole = getattr(AsyncCollection, stop)

    async def failing(collection, *arguments, **options):
        if chosen.random() < 0.3:
            raise AutoReconnect("before it was sent")
        result = await whole(collection, *arguments, **options)
        if chosen.random() < 0.3:
            raise AutoReconnect("after it was done")
        return result

    monkeypatch.setattr(AsyncCollection, stop, failing)
    for attempt in range(300):
        try:
            await RollupBackfill(mongo, "r1").step()
        except StoreError:
            continue
        if attempt > 50 and not (await MongoSums(mongo).missing()).entries:
            break
    monkeypatch.undo()
    await finish(RollupBackfill(mongo, "r1"))
    assert await totals(mongo) == expected(made)


@pytest.mark.thorough
async def test_a_job_that_was_held_up_changes_nothing_when_it_goes_on(ledger, mongo):
    made = await written_before(mongo, 30)
    first, second = RollupBackfill(mongo, "r1"), RollupBackfill(mongo, "r2")
    state = mongo.collection("token_migrations")
    held_up, went_on = asyncio.Event(), asyncio.Event()
    add = first._add

    async def slow(batch, ids):
        await held_up.wait()
        await add(batch, ids)
        went_on.set()
        await asyncio.Event().wait()

    first._add = slow
    task = asyncio.create_task(finish(first))
    while not ((await state.find_one({"_id": "usage_rollups"})) or {}).get("ids"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await state.update_one({"_id": "usage_rollups"}, {"$unset": {"until": ""}})
    await second.step()
    held_up.set()
    await went_on.wait()
    task.cancel()
    await state.update_one({"_id": "usage_rollups"}, {"$unset": {"until": ""}})
    await finish(second)
    assert await totals(mongo) == expected(made)


async def test_two_jobs_at_once_add_each_entry_once(ledger, mongo):
    made = await written_before(mongo, BATCH + 200)
    await asyncio.gather(
        finish(RollupBackfill(mongo, "r1", lease_s=0.0)), finish(RollupBackfill(mongo, "r2", lease_s=0.0))
    )
    await finish(RollupBackfill(mongo, "r3", lease_s=0.0))
    assert await totals(mongo) == expected(made)
