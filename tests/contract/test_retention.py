"""Entries of the ledger go by age: the index that deletes them, and what still must be right when they are gone."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import pytest
from pymongo.errors import OperationFailure

from extproc.core.quota.ledger import SHORTEST_RETENTION, Charge
from extproc.ports.base import StoreError
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo import retention
from extproc.stores.mongo.client import DAILY, DAILY_BY_TENANT, LEDGER, MIGRATIONS
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.retention import INDEX, LedgerRetention
from tests.changing import replace

from .reservations import NOW, entry

ALL = UsageFilter()
DAY = timedelta(days=1)
DAY_S = 24 * 3600
MIN_DAYS = SHORTEST_RETENTION.days


@pytest.fixture
async def split(mongo):
    """A database whose daily usage is kept by tenant."""
    await mongo.collection(MIGRATIONS).insert_one({"_id": DAILY_BY_TENANT, "done": True})
    return mongo


@pytest.fixture
def warnings(caplog):
    def read():
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    return read


async def indexes(mongo):
    """Name -> seconds after which it deletes, of the indexes on the end of an entry alone."""
    found = await mongo.collection(LEDGER).index_information()
    return {n: i.get("expireAfterSeconds") for n, i in found.items() if list(i["key"]) == [("ended_at", 1)]}


def aged(days, **further):
    at = NOW - days * DAY
    return replace(entry(7, **further), admitted_at=at, ended_at=at)


async def test_the_index_follows_the_setting(split):
    for days, expected in [(90, {INDEX: 90 * DAY_S}), (40, {INDEX: 40 * DAY_S}), (None, {}), (None, {})]:
        for _ in range(2):
            assert await LedgerRetention(split, days).apply()
            assert await indexes(split) == expected


async def test_without_the_setting_no_index_is_made(split):
    assert await LedgerRetention(split).apply()
    assert await indexes(split) == {}
    assert await MongoLedger(split).gone_before(NOW) is None


@pytest.mark.parametrize("before", [None, 60])
async def test_replicas_that_start_at_once_agree(split, before):
    await LedgerRetention(split, before).apply()
    assert all(await asyncio.gather(*(LedgerRetention(split, 90).apply() for _ in range(6))))
    assert await indexes(split) == {INDEX: 90 * DAY_S}
    assert all(await asyncio.gather(*(LedgerRetention(split, None).apply() for _ in range(6))))
    assert await indexes(split) == {}


async def test_replicas_with_different_settings_leave_one_of_them(split, warnings):
    assert all(await asyncio.gather(*(LedgerRetention(split, days).apply() for days in (40, 90) * 3)))
    assert list((await indexes(split)).values()) in ([40 * DAY_S], [90 * DAY_S])
    assert warnings() == []


async def test_nothing_is_deleted_while_daily_usage_is_still_split_by_the_ledger(mongo):
    waits = LedgerRetention(mongo, 40)
    assert not await waits.apply()
    await mongo.collection(MIGRATIONS).insert_one({"_id": DAILY_BY_TENANT, "done": False})
    assert not await waits.apply()
    assert await indexes(mongo) == {}
    running = asyncio.create_task(LedgerRetention(mongo, 40, retry_s=0.01).run())
    await mongo.collection(MIGRATIONS).update_one({}, {"$set": {"done": True}})
    await running
    assert await indexes(mongo) == {INDEX: 40 * DAY_S}


@pytest.mark.parametrize("options", [{}, {"expireAfterSeconds": 5 * DAY_S}])
async def test_an_index_of_somebody_else_on_the_same_field_gets_the_setting(split, options):
    await split.collection(LEDGER).create_index("ended_at", **options)
    assert await LedgerRetention(split, 40).apply()
    assert await indexes(split) == {"ended_at_1": 40 * DAY_S}


async def test_an_index_of_somebody_else_that_deletes_is_told_of_and_not_removed(split, warnings):
    await split.collection(LEDGER).create_index("ended_at", expireAfterSeconds=50 * DAY_S)
    assert await LedgerRetention(split).apply()
    assert await indexes(split) == {"ended_at_1": 50 * DAY_S}
    assert warnings() == ["mongodb: an index that Tokenweir did not make deletes entries of the ledger"]
    assert await MongoLedger(split).gone_before(NOW) == NOW - 50 * DAY


async def test_an_index_that_deletes_some_entries_only_is_not_taken_for_ours(split):
    some = {"partialFilterExpression": {"state": "denied"}}
    await split.collection(LEDGER).create_index("ended_at", name="denied", expireAfterSeconds=DAY_S, **some)
    assert await MongoLedger(split).gone_before(NOW) is None


async def test_another_index_with_our_name_is_a_warning_and_no_crash(split, warnings):
    await split.collection(LEDGER).create_index("held", name=INDEX)
    assert await LedgerRetention(split, 40).apply()
    assert await indexes(split) == {}
    assert warnings() == [
        "mongodb: an index is in the way: ledger retention stays as it was; drop the index, and restart"
    ]


@pytest.mark.parametrize(
    ("before", "days", "right"), [(None, 40, "createIndex"), (60, 40, "collMod"), (60, None, "dropIndex")]
)
async def test_a_user_without_the_right_is_warned_with_its_name(
    split, monkeypatch, warnings, *, before, days, right
):
    await LedgerRetention(split, before).apply()
    found = await indexes(split)

    async def unauthorized(*_):
        raise OperationFailure(f"not authorized on test to execute command {right}", 13)

    monkeypatch.setattr(LedgerRetention, "_change", unauthorized)
    assert await LedgerRetention(split, days).apply()
    assert await indexes(split) == found
    assert warnings() == [
        f"mongodb: the user lacks the right {right} on token_ledger: ledger retention stays as it was"
    ]


async def test_a_server_that_makes_no_ttl_index_of_another_one_is_a_warning(split, monkeypatch, warnings):
    await split.collection(LEDGER).create_index("ended_at")

    async def refused(*_):
        raise OperationFailure("no expireAfterSeconds field to update", 72)

    monkeypatch.setattr(LedgerRetention, "_change", refused)
    assert await LedgerRetention(split, 40).apply()
    assert len(warnings()) == 1
    assert "drop the index" in warnings()[0]


async def test_a_failure_that_passes_is_tried_again(split, monkeypatch, warnings):
    change, failures = LedgerRetention._change, [OperationFailure("not primary", 10107)]

    async def fails_once(*arguments):
        if failures:
            raise failures.pop()
        await change(*arguments)

    monkeypatch.setattr(LedgerRetention, "_change", fails_once)
    await LedgerRetention(split, 40, retry_s=0.01).run()
    assert await indexes(split) == {INDEX: 40 * DAY_S}
    assert warnings() == ["mongodb: ledger retention not applied yet: tried again"]


async def test_what_is_gone_stays_gone_when_the_setting_is_raised_or_removed(split):
    ledger = MongoLedger(split)
    await LedgerRetention(split, 40).apply()
    assert await ledger.gone_before(NOW) == NOW - 40 * DAY
    for days in (300, None, 90):
        await LedgerRetention(split, days).apply()
        gone = await ledger.gone_before(NOW)
        assert abs(gone - (datetime.now(UTC) - 40 * DAY)) < timedelta(minutes=10)
    # One day, what the present index deletes is more.
    assert await ledger.gone_before(NOW + 365 * DAY) == NOW + 275 * DAY


@pytest.mark.parametrize("damage", ["soon", None, 5])
async def test_a_note_that_somebody_broke_says_nothing(split, damage):
    await split.collection(MIGRATIONS).insert_one({"_id": "ledger_retention", "gone_before": damage})
    assert await MongoLedger(split).gone_before(NOW) is None


async def test_an_entry_that_was_deleted_is_not_written_twice(split):
    ledger = MongoLedger(split)
    young, old = aged(1, date="2026-03-02"), aged(60)
    await ledger.append([young, old])
    before = await ledger.daily(ALL, 10)
    await LedgerRetention(split, 40).apply()
    await split.collection(LEDGER).delete_one({"_id": old.id})  # as MongoDB does within a minute
    with pytest.raises(StoreError, match="are gone by ledger retention, and this may be one of them") as caught:
        await ledger.append([old])
    assert not caught.value.transient  # so it is set aside, and delays no other
    with pytest.raises(StoreError, match="ledger retention"):  # its end was not known: it ended once more
        await ledger.append([replace(old, ended_at=NOW)])
    await ledger.append([young])
    assert await ledger.daily(ALL, 10) == before
    assert [each.id for each in await ledger.entries(ALL, 10)] == [young.id]


async def test_any_replica_knows_what_is_gone_whatever_its_setting(split):
    """The settings of the one that writes are not asked."""
    await LedgerRetention(split, 40).apply()
    await LedgerRetention(split, None).apply()
    with pytest.raises(StoreError, match="ledger retention"):
        await MongoLedger(split).append([aged(60)])


async def test_an_old_entry_is_taken_where_nothing_was_deleted(split):
    ledger = MongoLedger(split)
    await ledger.append([aged(900)])
    await LedgerRetention(split, 90).apply()
    await ledger.append([aged(87, date="2026-03-02")])
    assert len(await ledger.entries(ALL, 10)) == 2


async def test_entries_are_refused_two_days_before_they_may_be_deleted(split):
    await LedgerRetention(split, MIN_DAYS).apply()
    ledger = MongoLedger(split)
    hours = 2 / 24  # the tests may have begun long ago
    await ledger.append([aged(MIN_DAYS - 2 - hours)])
    with pytest.raises(StoreError, match="ledger retention"):
        await ledger.append([aged(MIN_DAYS - 2 + hours)])


async def test_usual_entries_need_no_look(split, monkeypatch):
    await LedgerRetention(split, MIN_DAYS).apply()
    monkeypatch.setattr(LedgerRetention, "gone_before", None)
    await MongoLedger(split).append([aged(0), aged(MIN_DAYS - 3)])


async def test_what_is_used_does_not_need_entries_that_may_be_deleted(split):
    """The bucket whose window is open for the longest time."""
    ledger, records = MongoLedger(split), MongoRecords(split)
    await LedgerRetention(split, MIN_DAYS).apply()
    until = int((NOW + DAY).timestamp())
    first = aged(31, charges=(Charge("month", until, 7),))
    await ledger.append([first])
    (seconds,) = (await indexes(split)).values()
    assert first.ended_at + timedelta(seconds=seconds) >= NOW + 7 * DAY
    assert [each.amount for each in await records.used(NOW)] == [7]


@pytest.mark.thorough
@pytest.mark.timeout(300)
async def test_the_server_deletes_entries_and_nothing_else(split, monkeypatch):
    ledger = MongoLedger(split)
    await ledger.append([aged(1, date="2026-03-02"), aged(60)])
    before = await ledger.daily(ALL, 10)
    await LedgerRetention(split, 40).apply()
    async with asyncio.timeout(200):  # it looks once a minute
        while await split.collection(LEDGER).count_documents({}) > 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(1)
    assert await ledger.daily(ALL, 10) == before
    assert await split.collection(DAILY).count_documents({}) == 2
    assert retention.INDEX in await indexes(split)
