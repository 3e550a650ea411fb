"""The ledger, daily usage and the buckets' sums stay one, whatever fails between an entry and its acknowledgement."""

import asyncio
import os
import random
import signal
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pymongo import monitoring
from pymongo.errors import OperationFailure

from extproc.core.quota.ledger import Charge
from extproc.core.quota.settlement import Outcome
from extproc.local import parts
from extproc.local.ports import HOST, free_ports
from extproc.ports.base import StoreError
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.client import LEDGER, Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from tests.changing import replace
from tests.missing import missing
from tests.sizes import sampled

from .reservations import NOW, entry, who

ALL = UsageFilter()
LATER = int(NOW.timestamp()) + 3600
NAME = "faults"


def made(count, seed=1):
    """Entries of a few accounts of one tenant, each with its own bucket and one that all share."""
    dice = random.Random(seed)
    return [
        entry(
            charge,
            identity=who(account=(account := f"sa{dice.randrange(4)}")),
            charges=(Charge(account, LATER, charge), Charge("all", LATER, charge)),
        )
        for charge in (dice.randint(1, 99) for _ in range(count))
    ]


def of_accounts(entries):
    sums = {}
    for each in entries:
        account = each.identity.service_account
        sums[account] = sums.get(account, 0) + each.charge
    return sums


async def agree(mongo, expected):
    """Ledger = what was appended = daily usage = what is used of buckets."""
    ledger, records = MongoLedger(mongo), MongoRecords(mongo)
    written = [each async for each in ledger.replay(ALL)]
    assert sorted(each.id for each in written) == sorted(each.id for each in expected)
    assert {each.id: each.charge for each in written} == {each.id: each.charge for each in expected}
    accounts = of_accounts(expected)
    days = await ledger.daily(ALL, 100)
    assert {day.service_account: day.usage for day in days} == accounts
    assert sum(day.requests for day in days) == len(expected)
    used = {each.key: each.amount for each in await records.used(NOW)}
    assert used == accounts | {"all": sum(accounts.values())}


async def until_written(ledger, entries):
    """Appends as whoever delivers does: again after every transient fault."""
    while True:
        try:
            return await ledger.append(entries)
        except StoreError as error:
            if not error.transient:
                raise
            await asyncio.sleep(0.02)


def overlapping(entries, seed, batch=50):
    """All entries in batches, some of them in several, in another order for each seed."""
    dice = random.Random(seed)
    shuffled = dice.sample(entries, len(entries))
    return [shuffled[max(0, i - dice.randint(0, 10)) : i + batch] for i in range(0, len(shuffled), batch)]


@asynccontextmanager
async def several(url, database, count=3):
    clients = [Mongo(MongoOptions(url, database)) for _ in range(count)]
    try:
        yield [MongoLedger(each) for each in clients]
    finally:
        for each in clients:
            await each.aclose()


async def write(ledger, batches):
    for batch in batches:
        await until_written(ledger, batch)


# ---------------------------------------------------------------- one way


@pytest.mark.parametrize("outcome", [Outcome.EXPIRED, Outcome.RELEASED, Outcome.ESTIMATED, Outcome.DENIED])
async def test_an_entry_that_is_written_never_changes(mongo, outcome):
    ledger = MongoLedger(mongo)
    (first,) = entries = made(1)
    await ledger.append(entries)
    before = await mongo.collection(LEDGER).find_one({})
    other = replace(first, outcome=outcome, charge=9000, charges=(Charge("all", LATER, 9000),), reason="other")
    for batch in ([other], [other, first], [first, other]):
        await ledger.append(batch)
    assert await mongo.collection(LEDGER).find_one({}) == before
    await agree(mongo, entries)


async def test_of_two_ends_in_one_batch_the_first_stands(mongo):
    (first,) = entries = made(1)
    await MongoLedger(mongo).append([first, replace(first, outcome=Outcome.EXPIRED, charge=9000)])
    await agree(mongo, entries)


async def test_of_two_ends_that_race_one_stands_and_alone_is_counted(mongo, mongo_url):
    (first,) = made(1)
    second = replace(first, outcome=Outcome.EXPIRED, charge=9000, charges=(Charge("all", LATER, 9000),))
    async with several(mongo_url, mongo._database.name) as (one, other, _):
        await one.create_indexes()
        await asyncio.gather(until_written(one, [first]), until_written(other, [second]))
        (stands,) = await one.entries(ALL, 10)
    assert stands in (first, second)
    (day,) = await MongoLedger(mongo).daily(ALL, 10)
    assert (day.usage, day.requests) == (stands.charge, 1)
    used = await MongoRecords(mongo).used(NOW)
    assert {each.key: each.amount for each in used} == {each.key: each.amount for each in stands.charges}


# ---------------------------------------------------------------- repeated, overlapping, concurrent


async def test_three_that_write_overlapping_batches_at_once_count_each_entry_once(mongo, mongo_url):
    entries = made(300)
    async with several(mongo_url, mongo._database.name) as ledgers:
        await ledgers[0].create_indexes()
        await asyncio.gather(*(write(ledger, overlapping(entries, n)) for n, ledger in enumerate(ledgers)))
    await agree(mongo, entries)


async def test_transactions_that_fail_in_passing_are_repeated_as_a_whole(replica_set, monkeypatch):
    ledger, entries, dice = MongoLedger(replica_set), made(200), random.Random(3)
    failures = 0

    def failing(call):
        async def fails_at_times(*arguments, **options):
            nonlocal failures
            result = await call(*arguments, **options)
            if dice.random() < 0.4:
                failures += 1
                raise OperationFailure("in passing", 112, {"errorLabels": ["TransientTransactionError"]})
            return result

        return fails_at_times

    for name in ("_ledger", "_daily", "_buckets"):
        collection = getattr(ledger, name)
        method = "insert_many" if name == "_ledger" else "bulk_write"
        replaced = {method: failing(getattr(collection, method))}
        monkeypatch.setattr(ledger, name, _With(collection, **replaced))
    for batch in overlapping(entries, 1, batch=20):
        await ledger.append(batch)
    assert failures
    await agree(replica_set, entries)


async def test_who_always_meets_others_that_write_the_same_may_try_again(replica_set, monkeypatch):
    ledger, entries = MongoLedger(replica_set), made(3)
    await ledger.append(entries)

    async def nothing_yet(some):  # the others' are not on a majority so far
        return list(some)

    monkeypatch.setattr(ledger, "_unknown", nothing_yet)
    with pytest.raises(StoreError, match="by others") as caught:
        await ledger.append(entries)
    assert caught.value.transient
    await agree(replica_set, entries)


# ---------------------------------------------------------------- faults of the server and on the way to it


async def test_a_transaction_is_committed_on_a_majority_and_in_the_journal(mongo_replica_set):
    seen = []

    class Listener(monitoring.CommandListener):
        def started(self, event):
            if event.command_name == "commitTransaction":
                seen.append(event.command["writeConcern"])

        def succeeded(self, event): ...

        def failed(self, event): ...

    listener = Listener()
    monitoring_listeners = monitoring._LISTENERS.command_listeners
    monitoring_listeners.append(listener)
    try:
        async with several(mongo_replica_set, f"{NAME}_concern", 1) as (ledger,):
            await ledger.append(made(1))
    finally:
        monitoring_listeners.remove(listener)
    assert seen == [{"w": "majority", "j": True}]


@pytest.mark.parametrize("lost", sampled([2, 1, 4], quick=1))
async def test_a_batch_whose_commit_was_not_answered_counts_once(mongo_replica_set, replica_set, lost):
    entries = made(60)
    async with _proxy(mongo_replica_set) as proxy:
        url = f"mongodb://{HOST}:{proxy.port}/?directConnection=true"
        async with several(url, replica_set._database.name, 1) as (ledger,):
            await ledger.create_indexes()
            for batch in overlapping(entries, 2, batch=20):
                proxy.to_lose = lost
                await until_written(ledger, batch)
        assert proxy.lost >= 3
    await agree(replica_set, entries)


async def test_whether_a_write_is_still_due_is_asked_last_before_the_commit_and_each_time_anew(
    replica_set, monkeypatch
):
    ledger, steps, answers = MongoLedger(replica_set), [], [True, False]

    def noted(name, method, failures):
        collection = getattr(ledger, name)
        call = getattr(collection, method)

        async def noting(*arguments, **options):
            steps.append(name)
            result = await call(*arguments, **options)
            if failures and failures.pop():
                raise OperationFailure("in passing", 112, {"errorLabels": ["TransientTransactionError"]})
            return result

        monkeypatch.setattr(ledger, name, _With(collection, **{method: noting}))

    def still():
        steps.append("still")
        return answers.pop(0)

    for name, method, failures in (
        ("_ledger", "insert_many", []),
        ("_daily", "bulk_write", [True]),  # the first time
        ("_buckets", "bulk_write", []),
    ):
        noted(name, method, failures)
    entries = made(1)
    await ledger.append(entries, still)
    assert steps == ["_daily", "_daily", "_buckets", "_ledger", "still"]
    with pytest.raises(StoreError, match="too late"):
        await ledger.append(made(1), still)
    await agree(replica_set, entries)


async def test_a_commit_that_was_sent_is_repeated_without_being_asked_again(mongo_replica_set, replica_set):
    entries, asked = made(3), []

    def still():
        asked.append(len(asked))
        return len(asked) == 1

    async with _proxy(mongo_replica_set) as proxy:
        url = f"mongodb://{HOST}:{proxy.port}/?directConnection=true"
        async with several(url, replica_set._database.name, 1) as (ledger,):
            await ledger.create_indexes()
            proxy.to_lose = 2
            await ledger.append(entries, still)
        assert proxy.lost == 2
    assert asked == [0]
    await agree(replica_set, entries)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
async def test_a_server_that_is_killed_in_the_middle_loses_and_repeats_nothing(tmp_path, seed):
    dice = random.Random(seed)
    ports, entries = free_ports(1), made(600, seed)
    server = await _started(tmp_path, ports)
    try:
        async with several(server.url, NAME) as ledgers:
            await ledgers[0].create_indexes()
            await ledgers[0].append(entries[:1])
            await _checkpointed(server.url)
            writing = asyncio.gather(
                *(write(ledger, overlapping(entries, n, batch=15)) for n, ledger in enumerate(ledgers))
            )
            for kills in range(2):
                await asyncio.sleep(dice.uniform(0.02, 0.3))
                assert kills or not writing.done()
                os.killpg(server.process.pid, signal.SIGKILL)
                await server.process.stop()
                server = await _started(tmp_path, ports)
            await writing
        mongo = Mongo(MongoOptions(server.url, NAME))
        await agree(mongo, entries)
        await mongo.aclose()
    finally:
        os.killpg(server.process.pid, signal.SIGKILL)
        await server.process.stop()


async def _checkpointed(url):
    """This store sometimes can't be started again when it is killed before tables it made are in a checkpoint."""
    mongo = Mongo(MongoOptions(url, NAME))
    await mongo.client.admin.command("fsync")
    await mongo.aclose()


async def _started(folder, ports):
    try:
        return await parts.start_mongo_store(folder, *ports)
    except parts.MissingPartError as error:
        missing(str(error))


class _Proxy:
    """Passes bytes on; of commits that are `to_lose`, the server's answer is lost and the connection with it."""

    def __init__(self, url):
        to = urlsplit(url)
        self._to = (to.hostname, to.port)
        self._tasks = set()
        self.to_lose = 0
        self.lost = 0

    async def serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        server, to_server = await asyncio.open_connection(*self._to)
        losing = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, to_server, losing, asks=True))
                group.create_task(self._pass(server, writer, losing, asks=False))
        except* OSError:
            pass
        finally:
            writer.close()
            to_server.close()
            self._tasks.discard(task)

    async def _pass(self, source, sink, losing, *, asks):
        while data := await source.read(65536):
            if asks and self.to_lose and b"commitTransaction" in data:
                self.to_lose -= 1
                losing.set()
            elif not asks and losing.is_set():
                self.lost += 1
                break  # it has answered: it is committed, and nobody hears of it
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError

    def end(self):
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def _proxy(url):
    proxy = _Proxy(url)
    server = await asyncio.start_server(proxy.serve, HOST, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.end()


class _With:
    """An object with some of its attributes replaced."""

    def __init__(self, inner, **replaced):
        self.__dict__ |= replaced
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)
