"""Write the ledger and daily usage. Daily usage is never incremented without its ledger entry.

On a replica set (or mongos) both are written in one transaction, which knows an entry by its id: repeating a batch
changes nothing. A standalone server has no transactions: there the ledger is written first, and the affected days
are then summed again from the ledger. The result is as exact, but costs more for days with many entries.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from pymongo import ASCENDING, DESCENDING, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from extproc.core.quota.ledger import Entry
from extproc.ports.base import StoreError
from extproc.ports.ledger import DailyUsage, UsageFilter
from extproc.stores.mongo.account_months import (
    ACCOUNTS_FROM,
    AccountMonths,
    account_sums,
    account_updates,
    complete_from,
)
from extproc.stores.mongo.client import (
    ACCOUNT_MONTHS,
    BUCKETS,
    DAILY,
    LEDGER,
    MIGRATIONS,
    ROLLUPS,
    WRITE,
    Mongo,
    Named,
    only_duplicates,
    translated,
)
from extproc.stores.mongo.client import Collection as MongoCollection
from extproc.stores.mongo.documents import (
    DAY_FIELDS,
    FORMER_DAY_FIELDS,
    SHARED,
    DayKey,
    ModelNames,
    admission_query,
    bucket_sums,
    daily_usage,
    day_filter,
    day_key,
    document_entry,
    entry_document,
    former_filter,
    increments,
    query,
    readable_entries,
    total,
)
from extproc.stores.mongo.mending import Mending
from extproc.stores.mongo.requests import NEWEST, OF_A_TENANT
from extproc.stores.mongo.retention import LedgerRetention
from extproc.stores.mongo.rollups import (
    ROLLED,
    STATE,
    UNROLLED,
    RollupIndexes,
    RollupNames,
    Slots,
    rollup_sums,
    rollup_updates,
)
from extproc.stores.pieces import in_pieces

_ADMISSION = [("admitted_at", ASCENDING), ("_id", ASCENDING)]
_BATCH = 1000
_TRIES = 5
_AT_ONCE = 100
_LONGEST_DAYS = 2048
_ROLLED = {ROLLED: 1}
_UNROLLED = {UNROLLED: True}


Still = Callable[[], bool]


def _require(still: Still | None) -> None:
    """Raise a transient `StoreError` if the write may not be done any more."""
    if still is not None and not still():
        raise StoreError("the write came too late: it is repeated", transient=True)


def _unknown_tenant(account: str) -> None:
    """Derive no tenant from a service account."""
    del account


class MongoLedger:
    """Implement `ports.Ledger` and `ports.UsageReports`."""

    _ledger = Named(LEDGER)
    _daily = Named(DAILY)
    _buckets = Named(BUCKETS)
    _rollups = Named(ROLLUPS)
    _accounts = Named(ACCOUNT_MONTHS)
    _state = Named(MIGRATIONS)

    def __init__(self, mongo: Mongo, tenant_of: Callable[[str], str | None] = _unknown_tenant) -> None:
        """Take rows of daily usage without a tenant for those of `tenant_of` their service account."""
        self._mongo = mongo
        self._tenant_of = tenant_of
        self._transactions: bool | None = None
        self._mending = Mending(mongo, transactions=True)
        self._retention = LedgerRetention(mongo)
        self._models = ModelNames()
        self._names = RollupNames()
        self._slots = Slots()

    async def create_indexes(self) -> None:
        """Create missing indexes. Raise `StoreError`, for example if existing data is not unique."""
        async with translated():
            if (
                await former_index(self._daily) is None
            ):  # else `DailyMigration` makes the index, beside version 0.1
                await self._daily.create_index([(name, ASCENDING) for name in DAY_FIELDS], unique=True)
            await self._daily.create_index([("tenant_id", ASCENDING), ("date", DESCENDING)])
            await self._daily.create_index([("date", DESCENDING)])
            await self._daily.create_index([("clientIP", ASCENDING), ("date", DESCENDING)])
            await self._ledger.create_index([(name, ASCENDING) for name in FORMER_DAY_FIELDS])
            for keys in (NEWEST, OF_A_TENANT, [("request_id", ASCENDING)]):
                await self._ledger.create_index(keys)
            await self._ledger.create_index(_ADMISSION)
            await self._ledger.create_index(UNROLLED, sparse=True)  # empty on a replica set
            await RollupIndexes(self._mongo).create()
            await AccountMonths(self._mongo).create_indexes()
            await self._begin_rollups()

    async def _begin_rollups(self) -> None:
        """Note that nothing is to be added to rollups later, if the ledger is empty."""
        if (
            await self._state.find_one({"_id": STATE}, {"_id": 1}) is None
            and await self._ledger.find_one() is None
        ):
            empty = await self._daily.find_one() is None
            new = {"done": True, ACCOUNTS_FROM: "" if empty else complete_from(datetime.now(UTC))}
            await self._state.update_one({"_id": STATE}, {"$setOnInsert": new}, upsert=True)

    async def append(self, entries: Sequence[Entry], still: Still | None = None) -> None:
        if not entries:
            return
        if self._transactions is None:
            self._transactions = await self._mongo.has_transactions()
            self._mending = Mending(self._mongo, transactions=self._transactions)
        unique = list({entry.id: entry for entry in reversed(entries)}.values())
        unique.reverse()
        await self._retention.refuse_gone(unique)
        async with translated():
            if self._transactions:
                await self._write_new(unique, still)
            else:
                await self._write_and_sum(unique, still)

    async def daily(self, wanted: UsageFilter, at_most: int) -> list[DailyUsage]:
        fits, newest = query(wanted), [("date", DESCENDING), ("usage", DESCENDING)]
        if not {"tenant_id", "serviceAccount", "clientIP"} & fits.keys():
            return await self._newest(wanted, at_most)
        async with translated():
            if wanted.tenant is None or await self._daily.find_one({"tenant_id": None}, {"_id": 1}) is None:
                found = self._daily.find(fits).sort(newest).limit(at_most)
                return [daily_usage(document, self._tenant_of) async for document in found]
            # Not migrated yet: some of the rows without a tenant may be this tenant's.
            rows: list[DailyUsage] = []
            async for document in self._daily.find(fits | {"tenant_id": {"$in": [wanted.tenant, None]}}).sort(
                newest
            ):
                row = daily_usage(document, self._tenant_of)
                rows += [row] if row.tenant == wanted.tenant else []
                if len(rows) == at_most:
                    break
        return rows

    async def _newest(self, wanted: UsageFilter, at_most: int) -> list[DailyUsage]:
        """Return the newest rows of all tenants. Some dates at a time: some servers read all that fits first."""
        rows: list[DailyUsage] = []
        for first, last in _stretches(wanted.since, wanted.until):
            dates = query(UsageFilter(since=first, until=last))
            found = self._daily.find(dates).sort([("date", DESCENDING), ("usage", DESCENDING)])
            async with translated():
                documents = await found.limit(at_most - len(rows)).to_list()
            rows += [daily_usage(document, self._tenant_of) for document in documents]
            if len(rows) >= at_most:
                break
        return rows

    async def entries(self, wanted: UsageFilter, at_most: int) -> list[Entry]:
        async with translated():
            found = self._ledger.find(query(wanted)).sort("ended_at", DESCENDING)
            documents = await found.to_list(at_most)
        return [_read(document) for document in documents]

    async def replay(self, wanted: UsageFilter) -> AsyncIterator[Entry]:
        # The client's time-out applies to each batch. The reader decides how long all batches take.
        found = self._ledger.find(admission_query(wanted), batch_size=_BATCH).sort(_ADMISSION)
        try:
            while True:
                async with translated():
                    batch = await found.to_list(_BATCH)
                if not batch:
                    return
                for document in batch:
                    yield _read(document)
        finally:
            with suppress(PyMongoError):
                await found.close()

    async def gone_before(self, now: datetime) -> datetime | None:
        return await self._retention.gone_before(now)

    async def aclose(self) -> None:
        await self._mongo.aclose()

    async def _write_new(self, entries: Sequence[Entry], still: Still | None) -> None:
        """Write the entries that the ledger does not have yet. Handles repeated calls and concurrent writers."""
        refused = False
        shared: Collection[DayKey] = ()
        for _ in range(_TRIES):
            try:
                await self._write_together(entries, shared, still)
            except BulkWriteError as error:
                if only_duplicates(error):
                    entries = await self._unknown(entries)
                    shared = await self._shared(entries)
                elif not await self._mending.mend(_rows(entries, shared)):
                    if refused:
                        raise
                    refused = True  # another writer may have mended the document meanwhile: try once more
            else:
                return
        # Only a majority's entries count as known. An entry that is written but not yet on a majority is neither
        # new nor known.
        raise StoreError("MongoDB: the same entries are being written by others", transient=True)

    async def _write_together(
        self, entries: Sequence[Entry], shared: Collection[DayKey], still: Still | None
    ) -> None:
        if not entries:
            return

        documents = [entry_document(e) | _ROLLED for e in entries]
        added = increments(entries, self._models)
        days, sums = _day_updates(added, shared), _bucket_updates(entries)
        rows, accounts = rollup_sums(entries, self._names), account_sums(added)

        async def write(session: AsyncClientSession) -> None:
            with self._slots.lent() as slot:
                await add(session, slot)

        async def add(session: AsyncClientSession, slot: int) -> None:
            # The sums first: replicas conflict there, and find it out before they have sent all entries.
            await self._daily.bulk_write(days, session=session, ordered=False)
            if sums:
                await self._buckets.bulk_write(sums, session=session, ordered=False)
            await self._rollups.bulk_write(rollup_updates(rows, slot), session=session, ordered=False)
            if accounts:
                await self._accounts.bulk_write(account_updates(accounts, slot), session=session, ordered=False)
            await self._ledger.insert_many(documents, session=session)
            _require(still)  # the commit is sent next; a fault here aborts

        async with self._mongo.writing_session() as session:
            await session.with_transaction(write, write_concern=WRITE)

    async def _unknown(self, entries: Sequence[Entry]) -> list[Entry]:
        ids = [entry.id for entry in entries]
        known = {d["_id"] async for d in self._ledger.find({"_id": {"$in": ids}}, {"_id": 1})}
        return [entry for entry in entries if entry.id not in known]

    async def _shared(self, entries: Sequence[Entry]) -> set[DayKey]:
        """Return the days whose own row the unique index of version 0.1 refuses, because of another tenant's."""
        if await former_index(self._daily) is None:
            return set()
        days = sorted(set(map(day_key, entries)))
        tenants: dict[tuple[str, ...], object] = {}
        for some in in_pieces(days, _AT_ONCE):
            async for row in self._daily.find(
                {"$or": [former_filter(day) for day in some]}, dict.fromkeys(DAY_FIELDS, 1)
            ):
                tenants[tuple(row[name] for name in FORMER_DAY_FIELDS)] = row.get("tenant_id")
        # Of several tenants without a row yet, the first one gets it.
        return {day for day in days if tenants.setdefault(day[1:], day[0]) != day[0]}

    async def _write_and_sum(self, entries: Sequence[Entry], still: Still | None) -> None:
        _require(still)  # not asked again for the sums: they follow what is in the ledger
        try:
            await self._ledger.insert_many(
                [entry_document(e, summed=False) | _UNROLLED for e in entries], ordered=False
            )
        except BulkWriteError as error:
            if not only_duplicates(error):
                raise
        for key in dict.fromkeys(map(day_key, entries)):
            await self._sum_day(key, day_filter(key), {})

    async def _sum_day(self, key: DayKey, day: Mapping[str, Any], further: Mapping[str, Any]) -> None:
        # In order, so that the same models have sums of their own each time.
        found = self._ledger.find(day).sort([("ended_at", ASCENDING), ("_id", ASCENDING)])
        whole = readable_entries(await found.to_list())
        await self._mending.mend([day])
        sums = total(increments(whole, ModelNames()).values())
        try:
            # Sums only grow: of two concurrent sums the larger one saw more of the ledger.
            await self._daily.update_one(day, {"$max": sums, **further}, upsert=True)
        except DuplicateKeyError:
            if further or await former_index(self._daily) is None:
                raise
            # Another tenant's row has the key of version 0.1.
            await self._sum_day(key, former_filter(key), _sharing(key))


def _stretches(since: str | None, until: str | None) -> Iterator[tuple[str | None, str | None]]:
    """Divide dates, both inclusive, into stretches that grow, the newest first; None: any date."""
    first, last = since or "", until
    day, days = min(last or "9999", (datetime.now(UTC) - timedelta(days=1)).date().isoformat()), 1
    while first < day and days < _LONGEST_DAYS:
        yield day, last
        last = (date.fromisoformat(day) - timedelta(days=1)).isoformat()
        day, days = (date.fromisoformat(day) - timedelta(days=days)).isoformat(), days * 2
    if last is None or first <= last:
        yield since, last


async def former_index(daily: MongoCollection) -> str | None:
    """Return the name of the unique index of version 0.1, which has no tenant; None if there is none."""
    for name, index in (await daily.index_information()).items():
        if index.get("unique") and {field for field, _ in index["key"]} == set(FORMER_DAY_FIELDS):
            return name
    return None


def _read(document: dict[str, Any]) -> Entry:
    """Return the entry of a document. Raise `StoreError` if another program wrote it."""
    try:
        entry = document_entry(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_entry(document, repr(error)) from error
    if not isinstance(entry.admitted_at, datetime) or not isinstance(entry.ended_at, datetime):
        raise _no_entry(document, "its dates")
    return entry


def _no_entry(document: dict[str, Any], why: str) -> StoreError:
    return StoreError(f"document {document['_id']!r} of the ledger is no entry: {why}", transient=False)


def _rows(entries: Sequence[Entry], shared: Collection[DayKey]) -> list[dict[str, Any]]:
    days = dict.fromkeys(map(day_key, entries))
    return [former_filter(day) if day in shared else day_filter(day) for day in days]


def _day_updates(days: Mapping[DayKey, dict[str, int]], shared: Collection[DayKey]) -> list[UpdateOne]:
    # Sorted, so that two replicas that write the same days can't deadlock.
    return [
        UpdateOne(former_filter(key), {"$inc": sums, **_sharing(key)}, upsert=True)
        if key in shared
        else UpdateOne(day_filter(key), {"$inc": sums}, upsert=True)
        for key, sums in sorted(days.items())
    ]


@lru_cache(maxsize=4096)
def _escaped(tenant: str) -> str:
    """Return the name in a form that can't equal another name plus a part of a key."""
    return quote(tenant, safe="")


def _sharing(key: DayKey) -> dict[str, Any]:
    return {"$set": {SHARED: True}, "$setOnInsert": {"tenant_id": key[0]}}


def _bucket_updates(entries: Sequence[Entry]) -> list[UpdateOne]:
    return [
        UpdateOne(
            {"_id": f"{_escaped(tenant)}:{key}"},
            {
                "$inc": {"used": amount},
                "$max": {"until": datetime.fromtimestamp(until, UTC)},
                "$setOnInsert": {"tenant_id": tenant, "key": key},
            },
            upsert=True,
        )
        for (tenant, key), (amount, until) in sorted(bucket_sums(entries).items())
    ]
