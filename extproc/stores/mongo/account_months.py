"""Keep the months of service accounts: the sums of daily usage by tenant, service account and month.

A row is one month, slot, tenant and service account. The slot is that of the rollups of the same transaction, so
the rows of a month and slot add up to the rollup of all tenants of that month and slot. Rows can be read from the
largest on, by each measure. The document of `MIGRATIONS` about rollups says from which month on they are complete:
daily usage may have rows of earlier dates that the ledger never had.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from pymongo import ASCENDING, DESCENDING, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_concern import ReadConcern

from extproc.ports.reports import SUM_NAMES, Measure
from extproc.stores.mongo.client import ACCOUNT_MONTHS, DAILY, MIGRATIONS, WRITE, Mongo, Named
from extproc.stores.mongo.documents import DayKey
from extproc.stores.mongo.rollups import ADDED_LATER, CORRECTED, STATE

ACCOUNTS_FROM: Final = "accounts_from"
"""Name the field with the first month whose rows are complete; "" for all months."""

AccountKey = tuple[str, str, str]  # month, tenant, service account


class AccountMonths:
    """Make indexes, and correct rows by daily usage."""

    _accounts = Named(ACCOUNT_MONTHS)
    _daily = Named(DAILY)
    _state = Named(MIGRATIONS)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def create_indexes(self) -> None:
        """Create missing indexes. Raises the driver's exceptions."""
        for measure in Measure:
            await self._accounts.create_index(
                [("at", ASCENDING), ("slot", ASCENDING), (measure.value, DESCENDING)]
            )
        await self._accounts.create_index([("tenant_id", ASCENDING), ("at", ASCENDING)])
        await self._accounts.create_index([("serviceAccount", ASCENDING), ("at", ASCENDING)])

    async def sum_again(self, tenant: str, accounts: Sequence[str], month: str) -> None:
        """Make the rows of service accounts what daily usage has of a month; safe to repeat.

        A writer that adds meanwhile adds to a row that is deleted here, and is repeated, or to another one. On a
        standalone server nothing says so: there the rows up to this month do not count any more.
        """

        async def write(session: AsyncClientSession | None) -> None:
            for account in accounts:
                await self._sum_again((month, tenant, account), session)

        if await self._mongo.has_transactions():
            async with self._mongo.writing_session() as session:
                await session.with_transaction(write, write_concern=WRITE)
            return
        await self._state.update_one({"_id": STATE}, {"$max": {ACCOUNTS_FROM: _after(month)}})
        await write(None)

    async def rebuild(self, month: str, *, dry_run: bool) -> Counter[str]:
        """Correct the rows of a month by daily usage. Return what they lacked; negative: too much.

        As long as entries of the month may have to be added to the rows, nothing is corrected. On a standalone
        server rows can't be compared with days: there the rows up to this month do not count any more.
        """
        lacked: Counter[str] = Counter()
        if not await self._mongo.has_transactions():
            if not dry_run:
                await self._state.update_one({"_id": STATE}, {"$max": {ACCOUNTS_FROM: _after(month)}})
            return lacked
        found: dict[AccountKey, dict[str, int]] = {}
        for tenant in await self._tenants(month):

            async def correct(session: AsyncClientSession, tenant: str = tenant) -> None:
                found.clear()
                found.update(await self._lacking(month, tenant, session))
                if found and not dry_run:
                    updates = account_updates(found, CORRECTED)
                    await self._accounts.bulk_write(updates, session=session, ordered=False)

            async with self._mongo.writing_session() as session:
                await session.with_transaction(correct, read_concern=ReadConcern("snapshot"), write_concern=WRITE)
            for sums in found.values():
                lacked.update(sums)
        return lacked

    async def _tenants(self, month: str) -> list[str]:
        found: set[str] = set()
        for collection, rows in ((self._daily, _dates(month)), (self._accounts, {"at": month})):
            stages = [{"$match": rows}, {"$group": {"_id": "$tenant_id"}}]
            async for row in await collection.aggregate(stages):
                if isinstance(row["_id"], str):
                    found.add(row["_id"])
        return sorted(found)

    async def _lacking(
        self, month: str, tenant: str, session: AsyncClientSession
    ) -> dict[AccountKey, dict[str, int]]:
        """Return what the rows of a tenant lack of one snapshot's daily usage."""
        state = await self._state.find_one({"_id": STATE}, session=session) or {}
        if not state.get("done") or state.get("ids"):
            return {}
        wanted: dict[str, Counter[str]] = {}
        sums = {name: {"$sum": f"${name}"} for name in SUM_NAMES}
        whose = {"tenant_id": {"$eq": tenant}}
        for collection, rows, sign in ((self._daily, _dates(month), 1), (self._accounts, {"at": month}, -1)):
            stages: list[dict[str, Any]] = [{"$match": whose | rows}]
            stages.append({"$group": {"_id": "$serviceAccount", **sums}})
            async for row in await collection.aggregate(stages, session=session):
                if isinstance(row["_id"], str):
                    counts = wanted.setdefault(row["_id"], Counter())
                    counts.update({name: sign * int(row[name]) for name in SUM_NAMES})
        lacking = {(month, tenant, name): {n: v for n, v in row.items() if v} for name, row in wanted.items()}
        return {key: row for key, row in lacking.items() if row}

    async def _sum_again(self, key: AccountKey, session: AsyncClientSession | None) -> None:
        month, tenant, account = key
        whose = {"serviceAccount": {"$eq": account}} | _dates(month)
        sums = dict.fromkeys(SUM_NAMES, 0)
        async for row in self._daily.find(whose, session=session):
            if row.get("tenant_id") == tenant:
                for name in SUM_NAMES:
                    sums[name] += row.get(name, 0)
        mine = {"serviceAccount": {"$eq": account}, "at": month, "tenant_id": {"$eq": tenant}}
        await self._accounts.delete_many(mine | {"slot": {"$ne": CORRECTED}}, session=session)
        its_id = {"_id": _row_id(key, CORRECTED)}
        if any(sums.values()):
            row = _row_fields(key, CORRECTED) | sums
            await self._accounts.replace_one(its_id, row, upsert=True, session=session)
        else:
            await self._accounts.delete_one(its_id, session=session)


def account_sums(days: Mapping[DayKey, Mapping[str, int]]) -> dict[AccountKey, dict[str, int]]:
    """Return what increments of daily usage add to the months of service accounts."""
    rows: dict[AccountKey, dict[str, int]] = {}
    for (tenant, account, _, date), sums in days.items():
        row = rows.setdefault((date[:7], tenant, account), {})
        for name in SUM_NAMES:
            if value := sums.get(name, 0):
                row[name] = row.get(name, 0) + value
    return {key: row for key, row in rows.items() if row}


def account_updates(rows: Mapping[AccountKey, Mapping[str, int]], slot: int) -> list[UpdateOne]:
    """Return the updates that add to rows, in the same order for all writers."""
    return [
        UpdateOne(
            {"_id": _row_id(key, slot)},
            {"$inc": dict(rows[key]), "$setOnInsert": _row_fields(key, slot)},
            upsert=True,
        )
        for key in sorted(rows)
    ]


def updates_of_batch(rows: Mapping[AccountKey, Mapping[str, int]], batch: int) -> list[UpdateOne]:
    """Return the updates that add a numbered batch of earlier entries: each row takes a batch once."""
    return [
        UpdateOne(
            {"_id": _row_id(key, ADDED_LATER), "batch": {"$not": {"$gte": batch}}},
            {"$inc": dict(sums), "$set": {"batch": batch}, "$setOnInsert": _row_fields(key, ADDED_LATER)},
            upsert=True,
        )
        for key, sums in rows.items()
    ]


def account_rows(rows: Mapping[AccountKey, Mapping[str, int]], slot: int) -> Iterable[dict[str, Any]]:
    """Yield rows as the writer makes them, for programs that fill an empty store."""
    for key, sums in rows.items():
        yield {"_id": _row_id(key, slot), **_row_fields(key, slot), **sums}


def complete_from(now: datetime) -> str:
    """Return the first month of which all entries are written from now on: in no time zone has it begun."""
    return _after(f"{now + timedelta(days=1):%Y-%m}")


def _dates(month: str) -> dict[str, Any]:
    return {"date": {"$gte": f"{month}-01", "$lte": f"{month}-31"}}


def _after(month: str) -> str:
    year, number = divmod(int(month[:4]) * 12 + int(month[5:7]), 12)
    return f"{year:04}-{number + 1:02}"


def _row_id(key: AccountKey, slot: int) -> str:
    """Return the `_id` of a row. Only the service account, which stands last, can have any characters."""
    month, tenant, account = key
    return f"{month}|{slot}|{quote(tenant, safe='')}|{account}"


def _row_fields(key: AccountKey, slot: int) -> dict[str, Any]:
    month, tenant, account = key
    return {"at": month, "slot": slot, "tenant_id": tenant, "serviceAccount": account}
