"""A document of daily usage that somebody broke keeps no entry out of the ledger."""

import asyncio
import logging

import pytest

from extproc.core.quota.settlement import Outcome
from extproc.ports.base import StoreError
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.client import DAILY, DAILY_ASIDE, LEDGER
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.mending import is_broken
from tests.changing import replace

from .reservations import entry, who

ALL = UsageFilter()
MIB = 1024 * 1024
KEY = {"tenant_id": "acme", "serviceAccount": "sa", "clientIP": "10.0.0.1", "date": "2026-03-01"}
BROKEN = [
    {"usage": "500"},
    {"usage": None},
    {"usage": {"$n": 1}},
    {"usage": True},
    {"usage": 2**63 - 1},
    {"requests": []},
    {"price": "dear"},
    {"models": "m"},
    {"models": ["m"]},
    {"models": {"m": "many"}},
    {"models": {"m": 2**63 - 1}},
]


@pytest.fixture
async def ledger(mongo):
    ledger = MongoLedger(mongo)
    await ledger.create_indexes()
    return ledger


async def breaks(mongo, damage):
    daily = mongo.collection(DAILY)
    await daily.update_one(KEY, {"$set": damage}, upsert=True)
    return await daily.find_one(KEY)


async def of_day(mongo):
    document = await mongo.collection(DAILY).find_one(KEY)
    return {name: document.get(name, 0) for name in ("usage", "requests", "denied", "price", "models")}


@pytest.mark.parametrize("damage", BROKEN)
async def test_a_day_that_can_not_be_added_to_is_summed_anew(ledger, mongo, damage, caplog):
    await ledger.append([entry(5), entry(0, outcome=Outcome.DENIED)])
    broken = await breaks(mongo, damage | {"note": "theirs"})
    with caplog.at_level(logging.ERROR):
        await ledger.append([entry(6, price=3), entry(7, identity=who(account="other"))])
    await ledger.append([entry(8, model="n")])
    assert await of_day(mongo) == {
        "usage": 19,
        "requests": 3,
        "denied": 1,
        "price": 3,
        "models": {"m": 11, "n": 8},
    }
    (kept,) = [d async for d in mongo.collection(DAILY_ASIDE).find({}, {"_id": 0})]
    assert kept == {name: value for name, value in broken.items() if name != "_id"}
    assert (await mongo.collection(DAILY).find_one(KEY))["note"] == "theirs"
    assert [record.getMessage() for record in caplog.records] == [
        "mongodb: a daily usage document can't be incremented: copied aside and summed from the ledger"
    ]


async def test_what_is_a_number_stays_with_what_the_ledger_never_knew(replica_set):
    ledger = MongoLedger(replica_set)
    await breaks(replica_set, {"usage": 500, "models": "m"})
    await ledger.append([entry(5)])
    assert await of_day(replica_set) == {"usage": 505, "requests": 1, "denied": 0, "price": 0, "models": {"m": 5}}


async def test_a_day_that_was_broken_before_the_first_entry_starts_from_the_ledger(ledger, mongo):
    await breaks(mongo, {"usage": "500"})
    await ledger.append([entry(5)])
    assert (await of_day(mongo))["usage"] == 5
    assert await mongo.collection(DAILY_ASIDE).count_documents({"usage": "500"}) == 1


async def test_a_document_that_is_full_keeps_our_sums(replica_set):
    ledger = MongoLedger(replica_set)
    await ledger.append([entry(5)])
    daily = replica_set.collection(DAILY)
    document = await daily.find_one(KEY)
    room = 16 * MIB - 200 - len(document["tenant_id"])
    await daily.update_one(KEY, {"$set": {"theirs": "x" * (room - 300)}})
    await ledger.append([entry(6, model="a name that does not fit any more" * 20)])
    document = await daily.find_one(KEY)
    assert (document["usage"], document["requests"], "theirs" in document) == (11, 2, False)
    assert sum(document["models"].values()) == 11
    assert document["tenant_id"] == "acme"
    assert await replica_set.collection(DAILY_ASIDE).count_documents({"theirs": {"$exists": True}}) == 1


async def test_several_that_meet_a_broken_day_at_once_lose_and_repeat_nothing(replica_set):
    ledgers = [MongoLedger(replica_set) for _ in range(3)]
    await ledgers[0].create_indexes()
    await ledgers[0].append([entry(5)])
    await breaks(replica_set, {"usage": "500"})

    async def append(ledger):
        made = [entry(1)]
        while True:
            try:
                return await ledger.append(made)
            except StoreError as error:
                if not error.transient:
                    raise

    await asyncio.gather(*(append(ledger) for ledger in ledgers for _ in range(4)))
    assert (await of_day(replica_set))["usage"] == 17
    assert await replica_set.collection(LEDGER).count_documents({}) == 13


async def test_what_somebody_else_wrote_into_the_ledger_is_left_out_of_a_day(ledger, mongo):
    await ledger.append([entry(5)])
    await mongo.collection(LEDGER).insert_one(KEY | {"usage": 1000})
    await breaks(mongo, {"usage": "500"})
    await ledger.append([entry(6)])
    assert (await of_day(mongo))["usage"] == 11


async def test_a_bad_entry_beside_a_broken_day_is_still_refused(replica_set):
    ledger = MongoLedger(replica_set)
    await breaks(replica_set, {"usage": "500"})
    bad = entry(1, model="m" * 17 * MIB)
    with pytest.raises(StoreError) as caught:
        await ledger.append([bad])
    assert not caught.value.transient


@pytest.mark.parametrize("document", [{}, {"usage": 5}, {"usage": 5.0, "models": {}}, {"other": "text"}])
def test_what_can_be_added_to_is_not_broken(document):
    assert not is_broken(KEY | document)


# ---------------------------------------------------------------- entries that MongoDB refuses


@pytest.mark.parametrize(
    "bad",
    [
        {"held": 2**70},
        {"charge": 2**63},
        {"price": -(2**63) - 1},
        {"status": "\ud800"},
        {"model": "m" * 17 * MIB},
        {"reason": object()},
        {"shadow": ("x" * 17 * MIB,)},
    ],
    ids=lambda bad: next(iter(bad)),
)
async def test_an_entry_that_can_not_be_stored_is_refused_for_good_and_those_beside_it_are_written(ledger, bad):
    wrong, good = replace(entry(1), **bad), [entry(2), entry(3)]
    for batch in ([wrong], [good[0], wrong, good[1]]):
        with pytest.raises(StoreError) as caught:
            await ledger.append(batch)
        assert not caught.value.transient
    for each in good:
        await ledger.append([each])
    (day,) = await ledger.daily(ALL, 10)
    assert (day.usage, day.requests) == (5, 2)


@pytest.mark.parametrize("name", ["\0", "a\0b", "$", "", ".", "a" * 10_000, "\x1b[31m", "\r\n"])
async def test_any_text_can_be_stored(ledger, name):
    made = entry(5, identity=who(name, name, name), model=name, shadow=(name,))
    await ledger.append([made])
    assert await ledger.entries(ALL, 10) == [made]
    assert [(day.service_account, day.usage) for day in await ledger.daily(ALL, 10)] == [(name, 5)]
