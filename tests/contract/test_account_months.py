"""Months of service accounts are the sums of daily usage, and name the largest accounts exactly."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime

import pytest_asyncio

from extproc.ports.reports import By, Grain, Measure, ReportFilter
from extproc.stores.mongo.account_months import AccountMonths, complete_from
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.reports import MongoSums
from tests.changing import replace

from .conftest import Settled, new_database
from .reservations import NOW, entry, who

ALL = ReportFilter()
MONTH = f"{NOW:%Y-%m}"


@pytest_asyncio.fixture
async def ledger(replica_set):
    made = MongoLedger(replica_set)
    await made.create_indexes()
    return made


def used(chosen, accounts):
    account, address = f"sa{chosen.randrange(accounts)}", f"10.0.0.{chosen.randrange(3)}"
    day = f"{MONTH}-{chosen.randrange(1, 29):02}"
    amount = int(10 * chosen.random() ** -1.5)
    return replace(entry(amount, identity=who(account=account, ip=address)), date=day)


async def months_of(mongo):
    found = Counter()
    async for row in mongo.collection("usage_account_months").find({"at": MONTH}):
        found[row["tenant_id"], row["serviceAccount"]] += row["usage"]
    return found


async def days_of(mongo):
    found = Counter()
    async for row in mongo.collection("sa_ip_usage_daily").find({}):
        found[row["tenant_id"], row["serviceAccount"]] += row["usage"]
    return found


async def test_writers_at_once_leave_the_sums_of_daily_usage_and_the_largest_are_found(ledger, replica_set):
    chosen = random.Random(1)
    batches = [[used(chosen, 12) for _ in range(8)] for _ in range(4)]
    await asyncio.gather(*(ledger.append([*batch, *batches[0]]) for batch in batches))
    days = await days_of(replica_set)
    assert await months_of(replica_set) == days
    sums = MongoSums(replica_set)
    ranked = sorted(days.items(), key=lambda item: (-item[1], item[0][1]))
    top = await sums.top(By.SERVICE_ACCOUNT, ALL, Measure.USAGE, 3)
    assert [((row.tenant, row.name), row.sums.usage) for row in top] == ranked[:3]
    whole = await sums.report(By.SERVICE_ACCOUNT, Grain.MONTH, ReportFilter(tenant="acme"), 100)
    assert {(row.tenant, row.name): row.sums.usage for row in whole} == days


async def test_rows_of_daily_usage_from_before_the_ledger_are_in_reports(replica_set):
    daily = replica_set.collection("sa_ip_usage_daily")
    row = {
        "tenant_id": "acme",
        "serviceAccount": "old",
        "clientIP": "10.0.0.9",
        "date": f"{MONTH}-01",
        "usage": 10**9,
    }
    await daily.insert_one(row)
    ledger = MongoLedger(replica_set)
    await ledger.create_indexes()
    await ledger.append([used(random.Random(1), 3)])
    (top,) = await MongoSums(replica_set).top(By.SERVICE_ACCOUNT, ALL, Measure.USAGE, 1)
    assert (top.name, top.sums.usage) == ("old", 10**9)


async def test_what_is_summed_again_is_daily_usage_and_can_be_repeated(ledger, replica_set):
    await ledger.append([used(random.Random(2), 3) for _ in range(9)])
    daily = replica_set.collection("sa_ip_usage_daily")
    await daily.update_many({"serviceAccount": "sa1"}, {"$set": {"serviceAccount": "erased-1"}})
    for _ in range(2):
        await AccountMonths(replica_set).sum_again("acme", ["sa1", "erased-1"], MONTH)
        assert await months_of(replica_set) == await days_of(replica_set)
    await ledger.append([replace(used(random.Random(3), 1), identity=who(account="erased-1"))])
    assert await months_of(replica_set) == await days_of(replica_set)


async def whole(mongo):
    """Wait until the job that adds entries of earlier versions has found none."""
    await Settled(mongo).missing()


async def test_rows_that_somebody_changed_are_made_as_daily_usage_is_beside_a_writer(ledger, replica_set):
    chosen = random.Random(4)
    await ledger.append([used(chosen, 5) for _ in range(20)])
    await whole(replica_set)
    rows = replica_set.collection("usage_account_months")
    assert await AccountMonths(replica_set).rebuild(MONTH, dry_run=False) == {}
    await rows.delete_many({"serviceAccount": "sa1"})
    await rows.update_many({"serviceAccount": "sa2"}, {"$inc": {"usage": 7}})
    await rows.insert_one(
        {"_id": "x", "at": MONTH, "slot": 1, "tenant_id": "none", "serviceAccount": "a", "usage": 5}
    )
    days = await days_of(replica_set)
    lacked = await AccountMonths(replica_set).rebuild(MONTH, dry_run=True)
    assert lacked["usage"] == days["acme", "sa1"] - 7 * await rows.count_documents({"serviceAccount": "sa2"}) - 5
    assert await months_of(replica_set) != days

    async def write():
        for _ in range(10):
            await ledger.append([used(chosen, 5)])

    await asyncio.gather(write(), AccountMonths(replica_set).rebuild(MONTH, dry_run=False))
    assert +await months_of(replica_set) == await days_of(replica_set)
    assert await AccountMonths(replica_set).rebuild(MONTH, dry_run=False) == {}


async def test_without_transactions_the_rows_of_a_rebuilt_month_do_not_count_any_more(mongo_standalone):
    async with new_database(mongo_standalone) as mongo:
        ledger, sums = MongoLedger(mongo), MongoSums(mongo)
        await ledger.create_indexes()
        await ledger.append([used(random.Random(5), 5) for _ in range(20)])
        await whole(mongo)
        await mongo.collection("usage_account_months").update_many({}, {"$inc": {"usage": 7}})
        assert await AccountMonths(mongo).rebuild(MONTH, dry_run=False) == {}
        rows = await sums.report(By.SERVICE_ACCOUNT, Grain.MONTH, ReportFilter(tenant="acme"), 100)
        assert {(row.tenant, row.name): row.sums.usage for row in rows} == await days_of(mongo)


def test_a_month_is_complete_if_it_has_begun_nowhere():
    assert complete_from(datetime(2026, 1, 30, 23, tzinfo=UTC)) == "2026-02"
    assert complete_from(datetime(2026, 1, 31, 1, tzinfo=UTC)) == "2026-03"
    assert complete_from(datetime(2026, 12, 1, tzinfo=UTC)) == "2027-01"
