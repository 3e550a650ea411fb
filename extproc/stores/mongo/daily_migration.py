"""Migrate daily usage to rows per tenant, in use and beside replicas of version 0.1.

docs/architecture.md ("One row of daily usage") describes the steps. Each step can be repeated, by several replicas
at once too: only `token_migrations` says that all are done.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pymongo
from bson import ObjectId
from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, OperationFailure

from extproc.core.request.identity import ANONYMOUS
from extproc.ports.base import StoreError
from extproc.stores.mongo.client import (
    BY_TENANT,
    DAILY,
    DAILY_ASIDE,
    DAILY_BY_TENANT,
    DUPLICATE,
    LEDGER,
    MIGRATIONS,
    REPLICAS,
    WRITE,
    Mongo,
    Named,
    translated,
)
from extproc.stores.mongo.documents import DAY_FIELDS, FORMER_DAY_FIELDS, SHARED, total
from extproc.stores.mongo.ledger import former_index
from extproc.stores.mongo.splitting import ledger_sums, row_fields, row_sums, split, sums_of
from extproc.timing.periodic import periodically

# An index or a scan of a large collection takes longer than the time-out of a usual call.
_PATIENCE_S: Final = 3600.0
_TRIES: Final = 20
# Requests come first: a day takes some milliseconds of processor time.
_PAUSE_S: Final = 0.01
_INDEX_NOT_FOUND: Final = 27

_log = logging.getLogger(__name__)

Former = tuple[str, str, str]  # the values of FORMER_DAY_FIELDS


class DailyMigration:
    """Migrate when no replica of version 0.1 runs, and again if one ran later."""

    _daily = Named(DAILY)
    _aside = Named(DAILY_ASIDE)
    _ledger = Named(LEDGER)
    _replicas = Named(REPLICAS)
    _state = Named(MIGRATIONS)

    def __init__(
        self,
        mongo: Mongo,
        tenant_of: Callable[[str], str | None],
        replica: str,
        *,
        every_s: float = 5.0,
        lease_s: float = 30.0,
        alone: Callable[[bool], None] | None = None,
    ) -> None:
        """Look every `every_s` seconds for something to do. `tenant_of` derives a tenant from a service account.

        While one replica migrates, the others wait; if it stops, they wait `lease_s` seconds. `alone` is told at
        each look whether no replica of version 0.1 runs.
        """
        self._mongo = mongo
        self._tenant_of = tenant_of
        self._replica = replica
        self._every_s = every_s
        self._lease = timedelta(seconds=lease_s)
        self._alone = alone
        self._transactions = True
        self._waiting = False

    async def run(self) -> None:
        """Migrate whenever it is necessary, until cancelled."""

        def failed(error: StoreError) -> None:
            _log.warning("mongodb: daily usage not migrated yet: tried again", extra={"error": str(error)})

        await periodically(
            self.step, self._every_s, expected=StoreError, on_failure=failed, jitter=0.2, at_once=True
        )

    async def step(self) -> bool:
        """Migrate if it is necessary and possible now. Return whether nothing is left to do.

        Raise `StoreError`.
        """
        async with translated():
            state = await self._state.find_one({"_id": DAILY_BY_TENANT}) or {}
            if await self._former_replica_runs():
                await self._wait()
                return False
            self._waiting = False
            if state.get("done") and not await self._daily.find_one({SHARED: True}):
                return True
            if not await self._leased():
                return False
            with pymongo.timeout(_PATIENCE_S):
                self._transactions = await self._mongo.has_transactions()
                rebuilt = await self._migrate()
            done = {"$set": {"done": True, "until": datetime.now(UTC)}}
            since = {
                "_id": DAILY_BY_TENANT,
                "version": state.get("version"),
            }  # or a former replica ran
            finished = await self._state.update_one(since, done)
        if rebuilt or not state.get("done"):
            _log.info("mongodb: daily usage is kept by tenant", extra={"rebuilt": rebuilt})
        return finished.matched_count > 0

    # ------------------------------------------------ when

    async def _former_replica_runs(self) -> bool:
        unmarked = {name: {"$ne": value} for name, value in BY_TENANT.items()}
        runs = await self._replicas.find_one(unmarked, {"_id": 1}) is not None
        if self._alone is not None:
            self._alone(not runs)
        return runs

    async def _wait(self) -> None:
        """Remember that a replica of version 0.1 runs: what it writes must be looked at afterwards."""
        change = {"$set": {"done": False}, "$inc": {"version": 1}}
        await self._state.update_one({"_id": DAILY_BY_TENANT}, change, upsert=True)
        if not self._waiting:
            _log.info("mongodb: a replica of version 0.1 runs: daily usage is split by tenant after its end")
        self._waiting = True

    async def _leased(self) -> bool:
        """Take or renew the lease. Wrong clocks are harmless: then several replicas do the same work."""
        now = datetime.now(UTC)
        mine = {"$or": [{"by": self._replica}, {"until": {"$lt": now}}, {"until": None}]}
        lease = {"$set": {"by": self._replica, "until": now + self._lease}, "$setOnInsert": {"done": False}}
        try:
            taken = await self._state.update_one({"_id": DAILY_BY_TENANT, **mine}, lease, upsert=True)
        except DuplicateKeyError:
            return False
        return taken.matched_count > 0 or taken.upserted_id is not None

    # ------------------------------------------------ steps

    async def _migrate(self) -> int:
        """Carry out all steps. Return how many days of an account and IP were rebuilt."""
        await self._daily.create_index([(name, ASCENDING) for name in DAY_FIELDS], unique=True)
        by_account = [("serviceAccount", ASCENDING), ("date", DESCENDING), ("clientIP", ASCENDING)]
        await self._daily.create_index(by_account)
        await self._daily.create_index(SHARED, sparse=True)
        if (former := await former_index(self._daily)) is not None:
            try:
                await self._daily.drop_index(former)
            except OperationFailure as error:
                if error.code != _INDEX_NOT_FOUND:  # else another replica was faster
                    raise
        await self._name_tenants()
        rebuilt = 0
        for account in await self._accounts_of_several():
            await self._leased()
            async for day in self._days_of_several(account):
                rebuilt += await self._rebuild(day)
                await asyncio.sleep(_PAUSE_S)
        async for row in self._daily.find({SHARED: True}, dict.fromkeys(DAY_FIELDS, 1)):
            rebuilt += await self._rebuild(_former(row))
        return rebuilt

    async def _name_tenants(self) -> None:
        """Give rows without a tenant to the tenant that their service account leads to."""
        accounts = self._daily.aggregate([{"$match": {"tenant_id": None}}, {"$group": {"_id": "$serviceAccount"}}])
        async for each in await accounts:
            await self._leased()
            account = each["_id"]
            tenant = await self._owner(account)
            nameless = {"tenant_id": None, "serviceAccount": {"$eq": account}}
            try:
                await self._daily.update_many(nameless, {"$set": {"tenant_id": tenant}})
            except OperationFailure as error:
                if error.code != DUPLICATE:
                    raise
                async for row in self._daily.find(nameless):
                    await self._join(row, tenant)

    async def _owner(self, account: object) -> str:
        derived = self._tenant_of(account) if isinstance(account, str) else None
        if derived is not None:
            return derived
        known = await self._ledger.distinct("tenant_id", {"serviceAccount": {"$eq": account}})
        return known[0] if len(known) == 1 and isinstance(known[0], str) else ANONYMOUS

    async def _join(self, row: Mapping[str, Any], tenant: str) -> None:
        """Give a row without a tenant to a tenant. If the tenant has a row of that day already, add to it."""
        day = {name: {"$eq": row.get(name)} for name in FORMER_DAY_FIELDS}

        async def write(session: AsyncClientSession | None) -> None:
            nameless = await self._daily.find_one({"_id": row["_id"], "tenant_id": None}, session=session)
            if nameless is None:
                return  # another replica was faster
            own = await self._daily.find_one({"tenant_id": {"$eq": tenant}, **day}, session=session)
            if own is None:
                named = {"$set": {"tenant_id": tenant}}
                await self._daily.update_one({"_id": nameless["_id"]}, named, session=session)
                return
            sums = row_fields(total([row_sums(own), row_sums(nameless)]))
            await self._put_aside([own, nameless], session)
            await self._daily.update_one({"_id": own["_id"]}, {"$set": sums}, session=session)
            await self._daily.delete_one({"_id": nameless["_id"]}, session=session)

        await self._together(write)

    async def _accounts_of_several(self) -> list[str]:
        """Return the service accounts that have more than one tenant, by the ledger and the rows together."""
        found = await self._of_several({}, {"account": "$serviceAccount"})
        return [each["_id"]["account"] async for each in found]

    async def _days_of_several(self, account: str) -> AsyncIterator[Former]:
        """Yield the days of a service account and IP that have more than one tenant, newest first."""
        key = {"ip": "$clientIP", "date": "$date"}
        async for day in await self._of_several({"serviceAccount": account}, key):
            yield account, day["_id"]["ip"], day["_id"]["date"]

    async def _of_several(self, match: Mapping[str, Any], key: Mapping[str, str]) -> Any:
        """Return a cursor over the keys that have more than one tenant in ledger and rows together."""
        text = {"tenant_id": {"$type": "string"}} | {
            field.removeprefix("$"): {"$type": "string"} for field in key.values()
        }
        each: list[dict[str, Any]] = [
            {"$match": match},
            {"$match": text},
            {"$group": {"_id": {**key, "tenant": "$tenant_id"}}},
        ]
        whole = {name: f"$_id.{name}" for name in key}
        several: list[dict[str, Any]] = [
            {"$group": {"_id": whole, "tenants": {"$addToSet": "$_id.tenant"}}},
            {"$match": {"tenants.1": {"$exists": True}}},
            {"$project": {"_id": 1}},
            {"$sort": {"_id.date": DESCENDING}},
        ]
        rows = {"$unionWith": {"coll": DAILY, "pipeline": each}}
        return await self._ledger.aggregate([*each, rows, *several], allowDiskUse=True, batchSize=500)

    async def _rebuild(self, day: Former) -> bool:
        """Split the rows of one service account, IP and date by the ledger. Return whether any row was wrong."""
        former = dict(zip(FORMER_DAY_FIELDS, day, strict=True))
        wrong = False

        async def write(session: AsyncClientSession | None) -> None:
            nonlocal wrong
            rows = await self._daily.find(former, session=session).to_list()
            groups = await (await self._ledger.aggregate(sums_of(former), session=session)).to_list()
            named = {row["tenant_id"]: row for row in rows if isinstance(row.get("tenant_id"), str)}
            before = {tenant: row_sums(row) for tenant, row in named.items()}
            after = split(before, ledger_sums(groups))
            changed = {tenant: sums for tenant, sums in after.items() if sums != before.get(tenant)}
            wrong = bool(changed)
            if changed:
                await self._put_aside(named.values(), session)
            for tenant in changed.keys() | {tenant for tenant, row in named.items() if SHARED in row}:
                own = {"tenant_id": tenant, **former}
                update = {"$set": row_fields(after[tenant]), "$unset": {SHARED: ""}}
                await self._daily.update_one(own, update, upsert=True, session=session)

        await self._together(write)
        return wrong

    async def _put_aside(self, rows: Iterable[Mapping[str, Any]], session: AsyncClientSession | None) -> None:
        copies = [{**row, "_id": ObjectId()} for row in rows]
        if copies:
            await self._aside.insert_many(copies, session=session)

    async def _together(self, write: Callable[[AsyncClientSession | None], Any]) -> None:
        """Carry out writes in one transaction, if the server has transactions."""
        if not self._transactions:
            await write(None)
            return
        for tries_left in reversed(range(_TRIES)):
            try:
                async with self._mongo.client.start_session() as session:
                    await session.with_transaction(write, write_concern=WRITE)
            except DuplicateKeyError:  # a replica made the same row meanwhile
                if not tries_left:
                    raise
            else:
                return


def _former(row: Mapping[str, Any]) -> Former:
    account, ip, date = (str(row.get(name)) for name in FORMER_DAY_FIELDS)
    return account, ip, date
