"""What only the ledger in MongoDB must do: data that was there before, other programs' data, and faults."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from pymongo.errors import OperationFailure

from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Outcome
from extproc.ports.base import StoreError
from extproc.ports.ledger import DailyUsage, UsageFilter
from extproc.stores.mongo.client import DAILY, LEDGER, Mongo, MongoOptions, translated
from extproc.stores.mongo.documents import ModelNames
from extproc.stores.mongo.ledger import MongoLedger
from tests.changing import replace

from .reservations import entry

ALL = UsageFilter()
TALK = {"serviceAccount": "sa", "clientIP": "10.0.0.1", "date": "2026-03-01", "usage": 500}


@pytest.fixture
async def ledger(mongo):
    ledger = MongoLedger(mongo)
    await ledger.create_indexes()
    return ledger


async def test_the_server_tells_whether_it_has_transactions(mongo, mongo_url, mongo_replica_set):
    assert await mongo.has_transactions() is (mongo_url == mongo_replica_set)


async def test_documents_of_the_talk_are_in_reports(ledger, mongo):
    await mongo.collection(DAILY).insert_many([dict(TALK), TALK | {"date": "2026-03-02", "usage": 7.0}])
    assert await ledger.daily(UsageFilter(since="2026-01-01"), 10) == [
        DailyUsage("", "sa", "10.0.0.1", "2026-03-02", 7),
        DailyUsage("", "sa", "10.0.0.1", "2026-03-01", 500),
    ]


async def test_documents_of_the_talk_are_reported_as_their_tenants(mongo):
    ledger = MongoLedger(mongo, {"sa@zone": "zone"}.get)
    accounts = ("sa@zone", "other")
    await mongo.collection(DAILY).insert_many([TALK | {"serviceAccount": account} for account in accounts])
    await mongo.collection(DAILY).insert_one(TALK | {"date": "2026-03-02", "tenant_id": "acme"})
    for tenant, found in {"zone": ["sa@zone"], "": ["other"], "acme": ["sa"]}.items():
        assert [day.service_account for day in await ledger.daily(UsageFilter(tenant=tenant), 1)] == found
    assert len(await ledger.daily(ALL, 2)) == 2


@pytest.mark.parametrize(
    "damage", [{"usage": float("nan")}, {"usage": "many"}, {"usage": None}, {"tenant_id": 5}, {"requests": []}]
)
async def test_a_damaged_document_does_not_spoil_the_report(ledger, mongo, damage):
    await mongo.collection(DAILY).insert_many([TALK | {"clientIP": "1"} | damage, TALK | {"clientIP": "2"}])
    assert 500 in [day.usage for day in await ledger.daily(ALL, 10)]


async def test_an_entry_of_a_later_version_can_be_read(ledger, mongo):
    made = entry(5)
    await ledger.append([made])
    await mongo.collection(LEDGER).update_one({}, {"$set": {"new": 1, "usage.new": 1}})
    assert await ledger.entries(ALL, 1) == [made]
    await ledger.append([entry(6)])
    assert (await ledger.daily(ALL, 1))[0].usage == 11


async def test_an_entry_of_an_earlier_version_can_be_read_and_counts_in_its_day(ledger, mongo):
    made = entry(5)
    await ledger.append([made])
    await mongo.collection(LEDGER).update_one({}, {"$unset": {"cost": 1, "shadow": 1, "price": 1}})
    await mongo.collection(DAILY).update_one({}, {"$unset": {"price": 1}})
    # What it was expected to need is not known any more in parts: it is what was held.
    assert await ledger.entries(ALL, 1) == [replace(made, cost=Cost(0, made.held), shadow=(), price=0)]
    assert [day.price for day in await ledger.daily(ALL, 1)] == [0]
    await ledger.append([entry(6, price=7)])
    assert [(day.usage, day.price) for day in await ledger.daily(ALL, 1)] == [(11, 7)]


async def test_a_price_that_is_no_number_does_not_spoil_the_report(ledger, mongo):
    await mongo.collection(DAILY).insert_one(TALK | {"price": "dear"})
    assert [(day.usage, day.price) for day in await ledger.daily(ALL, 1)] == [(500, 0)]


async def test_daily_usage_says_which_models_were_used(ledger, mongo):
    made = [entry(5, model="a.b"), entry(6, model="a.b"), entry(7, model="$c")]
    await ledger.append(made)
    document = await mongo.collection(DAILY).find_one({})
    assert document["models"] == {"a%2Eb": 11, "%24c": 7}


async def test_made_up_names_of_models_do_not_let_a_day_grow_without_bound(ledger, mongo):
    for first in range(0, 150, 50):
        await ledger.append([entry(2, model=f"made-up-{n}") for n in range(first, first + 50)])
    document = await mongo.collection(DAILY).find_one({})
    assert len(document["models"]) == 101
    assert document["models"]["(other)"] == 100
    assert document["usage"] == sum(document["models"].values()) == 300


def test_models_are_told_apart_by_date_and_old_dates_are_forgotten():
    names = ModelNames(most=1)
    dates = [f"2026-03-{day:02}" for day in range(1, 20)]
    assert [names.field(date, model) for date in dates for model in ("a.b", "b", "a.b")] == [
        "a%2Eb", "(other)", "a%2Eb",
    ] * len(dates)  # fmt: skip
    assert names.field(dates[0], "b") == "b"
    assert names.field(dates[-1], "b") == "(other)"


@pytest.mark.parametrize("status", [0, 404, 500])
async def test_names_of_models_that_no_upstream_confirmed_are_not_kept_per_day(ledger, mongo, status):
    await ledger.append([entry(5, model="made-up", outcome=Outcome.ESTIMATED, status=status)])
    document = await mongo.collection(DAILY).find_one({})
    assert document["usage"] == 5
    assert "models" not in document


async def test_two_that_sum_a_day_at_once_never_leave_the_smaller_sum(mongo_standalone, mongo, monkeypatch):
    if await mongo.has_transactions():
        return  # there days are added to
    slow, fast = MongoLedger(mongo), MongoLedger(mongo)
    read, goes_on = asyncio.Event(), asyncio.Event()
    update_one = slow._daily.update_one

    async def late(*arguments, **options):
        read.set()
        await goes_on.wait()
        return await update_one(*arguments, **options)

    monkeypatch.setattr(slow, "_daily", _With(slow._daily, update_one=late))
    first = asyncio.create_task(slow.append([entry(1)]))
    await read.wait()
    await fast.append([entry(2)])
    goes_on.set()
    await first
    (day,) = await fast.daily(ALL, 10)
    assert (day.usage, day.requests) == (3, 2)


async def test_indexes_are_made_once_and_keep_days_unique(ledger, mongo):
    await ledger.create_indexes()
    await mongo.collection(DAILY).insert_one(dict(TALK))
    with pytest.raises(OperationFailure):
        await mongo.collection(DAILY).insert_one(dict(TALK))


async def test_days_that_are_not_unique_are_a_fault_that_names_the_index(mongo):
    await mongo.collection(DAILY).insert_many([dict(TALK), dict(TALK)])
    with pytest.raises(StoreError, match="tenant_id") as caught:
        await MongoLedger(mongo).create_indexes()
    assert not caught.value.transient


async def test_an_entry_that_can_not_be_written_is_refused_for_good_and_the_others_can_be(ledger):
    good, bad = entry(5), replace(entry(6), held=2**70)
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            await ledger.append([good, bad])
        assert not caught.value.transient
    await ledger.append([good])
    assert [day.usage for day in await ledger.daily(ALL, 10)] == [5]


async def test_many_replicas_that_append_to_one_day_at_once_all_get_through(replica_set, mongo_replica_set):
    others = [Mongo(MongoOptions(mongo_replica_set, replica_set._database.name, timeout_s=30.0)) for _ in range(3)]
    ledgers = [MongoLedger(mongo) for mongo in (replica_set, *others)]
    await ledgers[0].create_indexes()
    await asyncio.gather(*(ledger.append([entry(1)]) for ledger in ledgers for _ in range(4)))
    assert [day.usage for day in await ledgers[0].daily(ALL, 10)] == [16]
    for mongo in others:
        await mongo.aclose()


async def test_a_server_that_is_not_there_is_a_transient_fault(refusing_mongo):
    ledger = MongoLedger(refusing_mongo)
    calls = (
        ledger.append([entry()]),
        ledger.daily(ALL, 1),
    )
    for fault in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(fault, StoreError)
        assert fault.transient


@pytest.mark.parametrize(
    ("code", "labels", "transient"),
    [
        (13, [], True),  # Unauthorized: somebody mends it, and what waits must still be there then
        (18, [], True),  # AuthenticationFailed
        (10107, [], True),  # NotWritablePrimary
        (112, [], True),  # WriteConflict
        (11600, [], True),  # InterruptedAtShutdown
        (2, [], False),  # BadValue
        (14, [], False),  # TypeMismatch
        (28, [], False),  # PathNotViable
        (121, [], False),  # DocumentValidationFailure
        (10334, [], False),  # BSONObjectTooLarge
        (11000, [], False),  # DuplicateKey
        (11000, ["TransientTransactionError"], True),
    ],
)
async def test_a_refusal_is_for_good_only_where_it_lies_in_what_was_sent(code, labels, transient):
    with pytest.raises(StoreError) as caught:
        async with translated():
            raise OperationFailure("no", code, {"errorLabels": labels})
    assert caught.value.transient is transient


class _With:
    """An object with some of its attributes replaced."""

    def __init__(self, inner, **replaced):
        self.__dict__ |= replaced
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


async def test_the_newest_days_of_all_tenants_come_first_whatever_their_dates(ledger, mongo):
    today = datetime.now(UTC).date()
    dates = [(today - timedelta(days=back)).isoformat() for back in (-400, -2, 0, 1, 2, 3, 9, 100, 900, 9000)]
    rows = [
        {"tenant_id": "t", "serviceAccount": f"{n}", "clientIP": "", "date": date, "usage": n}
        for date in dates
        for n in (2, 1)
    ]
    await mongo.collection("sa_ip_usage_daily").insert_many(rows[::-1])
    found = await ledger.daily(UsageFilter(), 100)
    assert [(day.date, day.usage) for day in found] == [(date, n) for date in dates for n in (2, 1)]
    for since, until in ((dates[5], None), (None, dates[3]), (dates[8], dates[2]), (dates[2], dates[2])):
        some = await ledger.daily(UsageFilter(since=since, until=until), 7)
        fits = [day for day in found if (since or "") <= day.date <= (until or "9999")]
        assert some == fits[:7]
