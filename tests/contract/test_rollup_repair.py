"""How rollups are corrected by the ledger, beside writers."""

import asyncio
import random

import pytest

from extproc.ports.reports import By, Grain, ReportFilter, Sums
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.rollup_repair import MongoRollupRepair

from .conftest import Settled
from .test_reports import TENANTS, some_entry
from .test_rollup_backfill import expected, totals


@pytest.fixture
async def ledger(mongo):
    ledger = MongoLedger(mongo)
    await ledger.create_indexes()
    return ledger


async def rebuilt(mongo, made, *, dry_run=False):
    repair, lacked = MongoRollupRepair(mongo), Sums()
    dates = {each.date for each in made} | {Grain.HOUR.period(each)[:10] for each in made}
    for date in sorted(dates):
        lacked += await repair.rebuild(date, dry_run=dry_run)
    for month in sorted({each.date[:7] for each in made}):
        await repair.rebuild_month(month, dry_run=dry_run)
    return lacked


async def append(ledger, mongo, made):
    await ledger.append(made)
    await Settled(mongo).missing()


async def test_rollups_that_are_right_stay_as_they_are(ledger, mongo):
    made = [some_entry(random.Random(1), TENANTS) for _ in range(20)]
    await append(ledger, mongo, made)
    assert await rebuilt(mongo, made) == Sums()
    assert await mongo.collection("usage_rollups").count_documents({"slot": 9}) == 0


@pytest.mark.parametrize(
    "damage", ["lost", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("doubled", "text"))]
)
async def test_damaged_rollups_are_as_the_ledger_again(ledger, mongo, damage):
    chosen = random.Random(2)
    made = [some_entry(chosen, TENANTS) for _ in range(30)]
    await append(ledger, mongo, made)
    rollups = mongo.collection("usage_rollups")
    for row in await rollups.find({}).to_list():
        if chosen.random() < 0.5:
            continue
        if damage == "lost":
            await rollups.delete_one({"_id": row["_id"]})
        elif damage == "doubled":
            await rollups.update_one({"_id": row["_id"]}, {"$inc": {"usage": 7, "requests": 3}})
        else:
            await rollups.update_one({"_id": row["_id"]}, {"$set": {"usage": "much", "models": "none"}})
    broken = await totals(mongo)
    assert broken != expected(made)
    await rebuilt(mongo, made, dry_run=True)
    assert await totals(mongo) == broken
    assert await rebuilt(mongo, made) != Sums()
    assert await totals(mongo) == expected(made)
    assert await rebuilt(mongo, made) == Sums()


async def test_a_broken_row_keeps_no_entry_out_of_the_ledger(replica_set):
    ledger = MongoLedger(replica_set)
    await ledger.create_indexes()
    made = [some_entry(random.Random(3), TENANTS)]
    await ledger.append(made)
    await replica_set.collection("usage_rollups").update_many({}, {"$set": {"usage": "much", "denied": "much"}})
    more = [some_entry(random.Random(3), TENANTS)]  # for the same rows
    await ledger.append(more)
    assert await rebuilt(replica_set, made) == Sums(usage=made[0].charge)
    assert await totals(replica_set) == expected([*made, *more])


async def test_writers_beside_a_rebuild_lose_nothing(replica_set):
    ledgers = [MongoLedger(replica_set) for _ in range(2)]
    await ledgers[0].create_indexes()
    chosen = random.Random(4)
    made = [some_entry(chosen, TENANTS) for _ in range(60)]
    await ledgers[0].append(made[:20])
    await replica_set.collection("usage_rollups").delete_many({"grain": "day"})

    async def write(ledger, some):
        for each in some:
            await ledger.append([each])

    await asyncio.gather(write(ledgers[0], made[20:40]), write(ledgers[1], made[40:]), rebuilt(replica_set, made))
    await rebuilt(replica_set, made)
    assert await totals(replica_set) == expected(made)
    rows = await Settled(replica_set).report(By.TENANT, Grain.MONTH, ReportFilter(), 100)
    assert sum((row.sums for row in rows), Sums()) in expected(made)
