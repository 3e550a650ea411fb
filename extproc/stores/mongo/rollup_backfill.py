"""Add entries to rollups that were written without: by versions 0.1 and 0.2, and on a standalone server.

Each step adds a batch of entries, exactly once on any server:

1. The document of `token_migrations` gets the next batch's number and the ids of its entries.
2. Each row that the batch adds to takes it once: a row notes the number of the last batch that it took.
3. The entries get the mark `r`, and the document loses the ids.

After a kill, the batch of the document is carried out again. A process that was held up meanwhile changes nothing:
every row that its batch adds to has the number of this batch or of a later one.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pymongo
from pymongo import ASCENDING, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from extproc.ports.base import StoreError
from extproc.stores.mongo.account_months import ACCOUNTS_FROM, account_sums, complete_from, updates_of_batch
from extproc.stores.mongo.client import (
    ACCOUNT_MONTHS,
    LEDGER,
    MIGRATIONS,
    REPLICAS,
    ROLLUPS,
    WITH_ROLLUPS,
    Mongo,
    Named,
    only_duplicates,
    translated,
)
from extproc.stores.mongo.documents import ModelNames, increments, readable_entries
from extproc.stores.mongo.rollups import (
    ADDED_LATER,
    ROLLED,
    STATE,
    UNROLLED,
    RollupNames,
    rollup_sums,
    row_fields,
    row_id,
)
from extproc.timing.periodic import periodically

_EARLIEST: Final = datetime(2024, 1, 1, tzinfo=UTC)  # before the first release
# A read of a large collection takes longer than the time-out of a usual call.
_PATIENCE_S: Final = 3600.0
_BATCH: Final = 500
# Requests come first: a batch takes some ten milliseconds of processor time.
_PAUSE_S: Final = 0.05
_FIRST_WINDOW: Final = timedelta(hours=1)
_LONGEST_WINDOW: Final = timedelta(days=32)
_SHORTEST_WINDOW: Final = timedelta(milliseconds=1)
# Clocks differ, and entries come late.
_BEYOND_NOW: Final = timedelta(days=1)

_log = logging.getLogger(__name__)


class RollupBackfill:
    """Add what is missing, when no replica of version 0.1 or 0.2 runs; and again if one ran later."""

    _ledger = Named(LEDGER)
    _rollups = Named(ROLLUPS)
    _accounts = Named(ACCOUNT_MONTHS)
    _replicas = Named(REPLICAS)
    _state = Named(MIGRATIONS)

    def __init__(self, mongo: Mongo, replica: str, *, every_s: float = 5.0, lease_s: float = 30.0) -> None:
        """Look every `every_s` seconds for something to do. While one replica adds, the others wait."""
        self._mongo = mongo
        self._replica = replica
        self._every_s = every_s
        self._lease = timedelta(seconds=lease_s)
        self._names = RollupNames()
        self._window = _FIRST_WINDOW

    async def run(self) -> None:
        """Add whenever something is missing, until cancelled."""

        def failed(error: StoreError) -> None:
            _log.warning("mongodb: rollups not complete yet: tried again", extra={"error": str(error)})

        async def work() -> None:
            while not await self.step():  # noqa: ASYNC110 - requests come first
                await asyncio.sleep(_PAUSE_S)

        await periodically(work, self._every_s, expected=StoreError, on_failure=failed, jitter=0.2, at_once=True)

    async def step(self) -> bool:
        """Add a batch if it is necessary and possible now. Return whether there is nothing more to do now.

        Raise `StoreError`.
        """
        async with translated():
            state = await self._state.find_one({"_id": STATE}) or {}
            if await self._former_replica_runs():
                if state.get("done") or state.get("place") is not None:
                    again = {"$set": {"done": False}, "$unset": {"place": ""}}
                    await self._state.update_one({"_id": STATE}, again, upsert=True)
                return True
            if state.get("done") and not state.get("ids") and not await self._unrolled(1):
                return True
            if not await self._leased():
                return True
            state = await self._state.find_one({"_id": STATE}) or {}
            with pymongo.timeout(_PATIENCE_S):
                noted = bool(state.get("ids")) or await self._next(state)
            if not noted:
                return bool((await self._state.find_one({"_id": STATE}) or {}).get("done"))
            state = await self._state.find_one({"_id": STATE}) or {}
            if state.get("ids"):
                await self._add(state["batch"], state["ids"])
        return False

    async def _former_replica_runs(self) -> bool:
        unmarked = {name: {"$ne": value} for name, value in WITH_ROLLUPS.items()}
        return await self._replicas.find_one(unmarked, {"_id": 1}) is not None

    async def _leased(self) -> bool:
        """Take or extend the lease. Return whether this replica has it."""
        now = datetime.now(UTC)
        free = [{"replica": self._replica}, {"until": {"$lt": now}}, {"until": {"$exists": False}}]
        mine = {"$set": {"replica": self._replica, "until": now + self._lease}}
        with suppress(DuplicateKeyError):  # it is another replica's
            found = await self._state.update_one({"_id": STATE, "$or": free}, mine, upsert=True)
            return found.matched_count > 0 or found.upserted_id is not None
        return False

    async def _next(self, state: Mapping[str, Any]) -> bool:
        """Note the next batch, or how far the ledger was looked through. Return whether there is a batch."""
        if ids := await self._unrolled(_BATCH):
            return await self._note(state, ids, {})
        if state.get("done"):
            return False
        place = state.get("place") or await self._oldest()
        end = datetime.now(UTC) + _BEYOND_NOW
        if place is None or place >= end:
            complete = {ACCOUNTS_FROM: state.get(ACCOUNTS_FROM, complete_from(datetime.now(UTC)))}
            if await self._note(state, [], {"done": True} | complete):
                _log.info("mongodb: rollups have all entries of the ledger")
            return False
        upto = place + self._window
        # A window as well as a limit: some servers read all that fits before they take some of it.
        missing = {"admitted_at": {"$gte": place, "$lt": upto}, ROLLED: None}
        found = self._ledger.find(missing, {"_id": 1}).limit(_BATCH + 1)
        ids = [document["_id"] for document in await found.to_list()]
        if len(ids) <= _BATCH:
            self._window = min(self._window * 2, _LONGEST_WINDOW)
            return await self._note(state, ids, {"place": upto})
        self._window = max(self._window / 2, _SHORTEST_WINDOW)
        return await self._note(state, ids[:_BATCH], {"place": place})

    async def _note(self, state: Mapping[str, Any], ids: Sequence[Any], further: Mapping[str, Any]) -> bool:
        """Note a batch, unless another replica noted one meanwhile. Return whether there is a batch."""
        before = state.get("batch")
        update: dict[str, Any] = {"$set": {"ids": list(ids), **further, "batch": (before or 0) + 1}}
        if further.get("done"):
            update["$unset"] = {"place": ""}
        noted = await self._state.update_one({"_id": STATE, "batch": before, "replica": self._replica}, update)
        return noted.matched_count > 0 and (bool(ids) or bool(further.get("done")))

    async def _unrolled(self, at_most: int) -> list[Any]:
        """Return ids of entries that a standalone server got."""
        found = self._ledger.find({UNROLLED: True}, {"_id": 1}).limit(at_most)
        return [document["_id"] for document in await found.to_list()]

    async def _oldest(self) -> datetime | None:
        entries = self._ledger.find({"admitted_at": {"$gte": _EARLIEST}}, {"admitted_at": 1})
        found = await entries.sort("admitted_at", ASCENDING).limit(1).to_list()
        return found[0]["admitted_at"] if found else None

    async def _add(self, batch: int, ids: Sequence[Any]) -> None:
        """Carry out a batch, or what is left of it."""
        documents = await self._ledger.find({"_id": {"$in": list(ids)}}).to_list()
        entries = readable_entries(documents)
        rows, accounts = rollup_sums(entries, self._names), account_sums(increments(entries, ModelNames()))
        updates = [
            UpdateOne(
                {"_id": row_id(key, ADDED_LATER), "batch": {"$not": {"$gte": batch}}},
                {"$inc": sums, "$set": {"batch": batch}, "$setOnInsert": row_fields(key, ADDED_LATER)},
                upsert=True,
            )
            for key, sums in rows.items()
        ]
        for collection, some in (
            (self._rollups, updates),
            (self._accounts, updates_of_batch(accounts, batch)),
        ):
            try:
                if some:
                    await collection.bulk_write(some, ordered=False)
            except BulkWriteError as error:
                if not only_duplicates(error):  # a duplicate is a row that has taken the batch
                    raise
        await self._ledger.update_many(
            {"_id": {"$in": list(ids)}}, {"$set": {ROLLED: 1}, "$unset": {UNROLLED: ""}}
        )
        await self._state.update_one({"_id": STATE, "batch": batch}, {"$set": {"ids": []}})
