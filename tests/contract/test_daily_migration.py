"""A collection of daily usage that version 0.1 wrote becomes one row per tenant: in use, and beside version 0.1."""

import asyncio
import itertools
import os
import signal
import sys
from datetime import UTC, datetime

import pytest
from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError

from extproc.core.quota.settlement import Outcome
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.client import DAILY, DAILY_ASIDE, LEDGER, MIGRATIONS, REPLICAS
from extproc.stores.mongo.daily_migration import DailyMigration
from extproc.stores.mongo.documents import ModelNames, entry_document, increments
from extproc.stores.mongo.ledger import MongoLedger, former_index
from extproc.stores.mongo.records import MongoRecords

from .reservations import entry, who
from .servers import until

ALL = UsageFilter()
FORMER = ("serviceAccount", "clientIP", "date")
SUMS = ("usage", "input", "output", "cached", "requests", "denied", "estimated", "price")
_names = itertools.count(1)

# As a store of version 0.1 has it: the unique index, and the row of the first tenant with the usage of all.
DAY = {"serviceAccount": "anonymous", "clientIP": "10.0.0.1", "date": "2026-03-01"}
MERGED = DAY | {
    "tenant_id": "t1", "usage": 130, "input": 65, "output": 65, "cached": 32, "requests": 3, "price": 0,
    "estimated": 0, "models": {"m": 130},
}  # fmt: skip


class Former:
    """A replica of version 0.1: its index, its heartbeat, and its writes, statement by statement."""

    def __init__(self, mongo):
        self._client = mongo.client
        self._daily, self._ledger = mongo.collection(DAILY), mongo.collection(LEDGER)
        self._replicas = mongo.collection(REPLICAS)
        self._name = f"former-{next(_names)}"

    async def start(self):
        await self._daily.create_index([(name, 1) for name in FORMER], unique=True)
        await self._daily.create_index([("tenant_id", 1), ("date", -1)])
        await self.heartbeat()

    async def heartbeat(self):
        beaten = {"$inc": {"beats": 1}, "$set": {"at": datetime.now(UTC)}}
        await self._replicas.update_one({"_id": self._name}, beaten, upsert=True)

    async def append(self, *entries):
        updates = [
            UpdateOne(dict(zip(FORMER, key[1:], strict=True)), self._change(key, sums), upsert=True)
            for key, sums in sorted(increments(entries, ModelNames()).items())
        ]

        async def write(session):
            await self._ledger.insert_many([entry_document(each) for each in entries], session=session)
            await self._daily.bulk_write(updates, session=session, ordered=False)

        async with self._client.start_session() as session:
            await session.with_transaction(write)

    async def end(self):
        await self._replicas.delete_one({"_id": self._name})

    @staticmethod
    def _change(key, sums):
        return {"$inc": sums, "$setOnInsert": {"tenant_id": key[0]}}


def of(tenant, charge=10, account="anonymous", **further):
    return entry(charge, identity=who(tenant, account), **further)


def migration(mongo, tenant_of=lambda account: None, **options):
    return DailyMigration(mongo, tenant_of, f"replica-{next(_names)}", **options)


async def rows(mongo):
    """The rows as they are stored, by tenant and account."""
    found = await mongo.collection(DAILY).find({}, {"_id": 0}).to_list()
    result = {(row.get("tenant_id"), row["serviceAccount"]): row for row in found}
    assert len(result) == len(found)
    return result


async def usages(mongo):
    return {key: row["usage"] for key, row in (await rows(mongo)).items()}


async def agrees_with_the_ledger(mongo):
    """Whether each tenant's row is the sum of its entries, in every part."""
    ledger = MongoLedger(mongo)
    sums = increments(await ledger.entries(ALL, 10_000), ModelNames())
    stored = await mongo.collection(DAILY).find({}, {"_id": 0}).to_list()
    found = {tuple(row[name] for name in ("tenant_id", *FORMER)): row for row in stored}
    expected = {
        key: {name: each.get(name, 0) for name in SUMS}
        | {"models": {name.removeprefix("models."): n for name, n in each.items() if name.startswith("models.")}}
        for key, each in sums.items()
    }
    return expected == {
        key: {name: row.get(name, 0) for name in SUMS} | {"models": row.get("models", {})}
        for key, row in found.items()
    }


@pytest.fixture
async def former(replica_set):
    replica = Former(replica_set)
    await replica.start()
    return replica


@pytest.fixture
async def ledger(replica_set, former):
    """A replica of this version beside one of version 0.1."""
    ledger = MongoLedger(replica_set)
    await ledger.create_indexes()
    await MongoRecords(replica_set).heartbeat("this")
    return ledger


async def test_a_store_that_version_0_1_left_is_split_by_tenant(replica_set):
    daily = replica_set.collection(DAILY)
    await daily.create_index([(name, 1) for name in FORMER], unique=True)
    made = [of("t1", 60), of("t2", 40), of("t2", 30), of("t2", 5, account="alone")]
    await replica_set.collection(LEDGER).insert_many([entry_document(each) for each in made])
    alone = {"serviceAccount": "alone", "tenant_id": "t2", "usage": 5, "input": 3, "output": 2, "cached": 1}
    alone |= {"requests": 1, "price": 0, "estimated": 0, "models": {"m": 5}}
    await daily.insert_many([dict(MERGED), MERGED | alone])
    assert await migration(replica_set).step()
    assert await usages(replica_set) == {
        ("t1", "anonymous"): 60,
        ("t2", "anonymous"): 70,
        ("t2", "alone"): 5,
    }
    assert await agrees_with_the_ledger(replica_set)
    assert await replica_set.collection(DAILY_ASIDE).find({}, {"_id": 0}).to_list() == [MERGED]
    assert await former_index(daily) is None
    with pytest.raises(DuplicateKeyError):
        await daily.insert_one(DAY | {"tenant_id": "t2"})


async def test_beside_version_0_1_both_write_and_nothing_is_lost(replica_set, former, ledger):
    await former.append(of("t1", 1), of("t2", 2))
    await ledger.append([of("t3", 4), of("t1", 8), of("t4", 16, account="new"), of("t5", 32, account="new")])
    await former.append(of("t5", 64, account="new"), of("t2", 128))
    await ledger.append([of("t2", 256)])
    await former.start()  # one of its pods starts again
    assert not await migration(replica_set).step()
    assert sum(day.usage for day in await ledger.daily(ALL, 100)) == 511
    await former.end()
    assert await migration(replica_set).step()
    assert await agrees_with_the_ledger(replica_set)
    await ledger.append([of("t1", 1), of("t9", 2, account="new")])
    assert await agrees_with_the_ledger(replica_set)
    assert all("shared" not in row for row in (await rows(replica_set)).values())


async def test_what_a_paused_replica_of_version_0_1_writes_later_is_put_right(replica_set, former, ledger):
    await ledger.append([of("t1", 100)])
    await former.end()
    assert await migration(replica_set).step()
    await ledger.append([of("t2", 50)])
    await former.heartbeat()
    await former.append(of("t2", 10), of("t3", 20), of("t4", 5, account="new"))
    assert not await agrees_with_the_ledger(replica_set)
    assert not await migration(replica_set).step()
    await former.end()
    assert await migration(replica_set).step()
    assert await agrees_with_the_ledger(replica_set)


async def test_version_0_1_that_makes_its_index_again_is_waited_for_again(replica_set, former, ledger):
    await former.end()
    assert await migration(replica_set).step()
    await ledger.append([of("t1", 1)])
    await former.start()
    await ledger.append([of("t2", 2)])
    assert (await rows(replica_set))["t1", "anonymous"]["shared"]
    assert not await migration(replica_set).step()
    await former.end()
    assert await migration(replica_set).step()
    assert await agrees_with_the_ledger(replica_set)


async def test_a_former_replica_that_appears_in_the_middle_makes_it_start_again(replica_set, former, ledger):
    await former.append(of("t1"), of("t2"))
    await former.end()
    first = migration(replica_set)
    migrate = first._migrate

    async def interrupted():
        await migrate()
        await former.heartbeat()
        assert not await migration(replica_set).step()
        await former.append(of("t3"))
        await former.end()
        return 0

    first._migrate = interrupted
    assert not await first.step()
    assert not await agrees_with_the_ledger(replica_set)
    first._migrate = migrate
    assert await first.step()
    assert await agrees_with_the_ledger(replica_set)


async def test_several_replicas_that_migrate_at_once_repeat_nothing(replica_set, former, ledger):
    for n in range(5):
        date = f"2026-03-0{n + 1}"
        await former.append(of("t1", 1, date=date), of("t2", 2, date=date), of("t3", 4, date=date))
    await former.end()

    async def writes():
        for n in range(10):
            await ledger.append([of(f"t{n % 4}", 8, date=f"2026-03-0{n % 5 + 1}")])

    several = [migration(replica_set, lease_s=0.0) for _ in range(3)]
    await asyncio.gather(*(each._migrate() for each in several), writes())
    assert await several[0].step()
    assert await agrees_with_the_ledger(replica_set)


async def test_one_replica_migrates_and_the_others_wait_for_its_lease(replica_set, former):
    await former.end()
    first, second = migration(replica_set), migration(replica_set)
    assert await first._leased()
    assert not await second.step()
    assert await first.step()
    assert await second.step()


async def test_an_operator_that_holds_the_lease_keeps_the_way_back_open(replica_set, former, ledger):
    """As docs/install.md says."""
    held = {"$set": {"by": "operator", "until": datetime(2100, 1, 1, tzinfo=UTC)}}
    state = replica_set.collection(MIGRATIONS)
    await state.update_one({"_id": "daily_usage_by_tenant"}, held, upsert=True)
    assert not await migration(replica_set).step()
    await former.end()
    await ledger.append([of("t1", 1), of("t2", 2)])
    assert not await migration(replica_set).step()
    assert await former_index(replica_set.collection(DAILY)) is not None
    await Former(replica_set).start()
    assert len(await rows(replica_set)) == 1
    await replica_set.collection(REPLICAS).delete_many({})
    await state.delete_one({"_id": "daily_usage_by_tenant"})
    assert await migration(replica_set).step()
    assert await agrees_with_the_ledger(replica_set)


@pytest.mark.parametrize(
    ("account", "entries", "owner"),
    [
        ("console@zone-prod.example.com", [], "zone-prod"),
        ("console@zone-prod.example.com", ["t1", "t2"], "zone-prod"),
        ("sa", ["t1"], "t1"),
        ("sa", ["t1", "t2"], "anonymous"),
        ("sa", [], "anonymous"),
    ],
)
async def test_a_row_without_a_tenant_goes_to_the_tenant_that_its_account_leads_to(
    replica_set, former, account, entries, owner
):
    daily = replica_set.collection(DAILY)
    await daily.insert_one(DAY | {"serviceAccount": account, "usage": 500.0, "note": "theirs"})
    await former.append(*(of(tenant, 10, account) for tenant in entries), of("t8", account="other"))
    await former.end()
    assert await migration(replica_set, {"console@zone-prod.example.com": "zone-prod"}.get).step()
    expected = dict.fromkeys([owner, *entries], 0) | dict.fromkeys(entries, 10)
    expected[owner] += 500
    found = await usages(replica_set)
    assert found == {(tenant, account): usage for tenant, usage in expected.items()} | {("t8", "other"): 10}
    assert (await daily.find_one({"note": "theirs"}))["tenant_id"] == owner


async def test_a_row_without_a_tenant_is_added_to_the_row_that_its_tenant_has(replica_set):
    ledger = MongoLedger(replica_set)
    await ledger.create_indexes()
    await replica_set.collection(DAILY).insert_one(DAY | {"usage": 500.0})
    await ledger.append([of("t1", 7)])
    assert await migration(replica_set).step()
    assert await usages(replica_set) == {("t1", "anonymous"): 507}
    assert await replica_set.collection(DAILY_ASIDE).count_documents({}) == 2


async def test_usage_that_the_ledger_does_not_know_stays_with_the_tenant_of_the_row(replica_set, former):
    await former.append(of("t1", 60), of("t2", 40), of("t2", 30))
    await replica_set.collection(LEDGER).delete_many({"charge": {"$in": [60, 30]}})
    await former.end()
    assert await migration(replica_set).step()
    assert await usages(replica_set) == {("t1", "anonymous"): 90, ("t2", "anonymous"): 40}


async def test_a_new_store_is_done_at_once_and_a_migrated_one_is_not_read_again(replica_set):
    ledger = MongoLedger(replica_set)
    await ledger.create_indexes()
    once = migration(replica_set)
    assert await once.step()
    once._migrate = None
    assert await once.step()
    assert (await replica_set.collection(MIGRATIONS).find_one({}))["done"]


async def test_denied_estimated_and_priced_requests_are_split_too(replica_set, former):
    await former.append(
        of("t1", 5, price=7),
        of("t2", 0, outcome=Outcome.DENIED),
        of("t2", 3, outcome=Outcome.ESTIMATED, price=9, model="other.model"),
        of("t3", 4, model="$m"),
    )
    await former.end()
    assert await migration(replica_set).step()
    assert await agrees_with_the_ledger(replica_set)


async def test_a_standalone_server_is_migrated_too(mongo_standalone, mongo):
    daily = mongo.collection(DAILY)
    await daily.create_index([(name, 1) for name in FORMER], unique=True)
    ledger = MongoLedger(mongo)
    await ledger.create_indexes()
    await ledger.append([of("t1", 1), of("t2", 2), of("t1", 4)])
    assert await usages(mongo) == {("t1", "anonymous"): 7}
    assert await migration(mongo).step()
    await ledger.append([of("t2", 8)])
    assert await agrees_with_the_ledger(mongo)


async def test_it_keeps_on_looking_and_outlives_an_outage(replica_set, refusing_mongo, former, ledger):
    await former.append(of("t1"), of("t2"))
    away = asyncio.create_task(migration(refusing_mongo, every_s=0.01).run())
    here = asyncio.create_task(migration(replica_set, every_s=0.01).run())
    await former.end()
    await until(lambda: agrees_with_the_ledger(replica_set), 60.0)
    assert not away.done()
    pending = {away, here}
    while pending:  # the driver may swallow a cancellation on Python 3.11
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)


_MIGRATE = """
import asyncio, sys
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.daily_migration import DailyMigration

async def main():
    mongo = Mongo(MongoOptions(sys.argv[1], sys.argv[2], timeout_s=30.0))
    migration = DailyMigration(mongo, lambda account: None, "killed")
    rebuild, left = migration._rebuild, [int(sys.argv[3])]

    async def slowly(day):
        left[0] -= 1
        if left[0] < 0:
            print("now", flush=True)
            await asyncio.sleep(60)
        return await rebuild(day)

    migration._rebuild = slowly
    await migration.step()

asyncio.run(main())
"""


@pytest.mark.parametrize("rebuilt", [0, 2])
async def test_killed_in_the_middle_another_replica_goes_on_when_the_lease_is_over(
    replica_set, mongo_replica_set, former, rebuilt
):
    for day in range(1, 5):
        await former.append(of("t1", day, date=f"2026-03-0{day}"), of("t2", 10, date=f"2026-03-0{day}"))
    await former.end()
    arguments = (mongo_replica_set, replica_set._database.name, str(rebuilt))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _MIGRATE, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(120):
            assert await child.stdout.readline() == b"now\n"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
    assert not await agrees_with_the_ledger(replica_set)
    assert not await migration(replica_set).step()
    over = {"$set": {"until": datetime(2026, 1, 1, tzinfo=UTC)}}
    await replica_set.collection(MIGRATIONS).update_one({}, over)
    assert await migration(replica_set).step()
    assert await agrees_with_the_ledger(replica_set)


async def test_at_each_look_it_is_told_whether_no_replica_of_version_0_1_runs(replica_set, former):
    told = []
    looks = migration(replica_set, alone=told.append)
    await looks.step()
    await former.end()
    await looks.step()
    assert told == [False, True]
