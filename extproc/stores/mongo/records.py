"""Keep the durable records beside the ledger: open reservations, live replicas, and sums of used amounts."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

import msgspec
from bson.binary import Binary
from msgspec.structs import replace
from pymongo import ASCENDING, DeleteOne, ReplaceOne, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.base import StoreError
from extproc.ports.epochs import Used
from extproc.ports.generation import Generation
from extproc.stores.mongo.client import (
    BUCKETS,
    BY_TENANT,
    GENERATION,
    LEDGER,
    OPEN,
    REPLICA_MARKS,
    REPLICAS,
    WITH_ROLLUPS,
    Mongo,
    Named,
    only_duplicates,
    translated,
)
from extproc.stores.pieces import in_pieces

# Normally, the process that ended a reservation deletes it, or a rebuild that finds its end in the ledger. Any
# other one is deleted once even a month's window, in any time zone, is over.
_KEPT: Final = timedelta(days=35)
# A live replica beats every few seconds. After a day a dead replica that nobody noticed no longer matters.
_REMEMBERED: Final = timedelta(days=1)
# Sums are kept longer than any clock error.
_LATE: Final = timedelta(days=1)
# The size of one call, which must fit into the client's time-out on a busy server too.
_AT_ONCE: Final = 250
_THE_LEDGER: Final = "ledger"  # the only document of `GENERATION`


_log = logging.getLogger(__name__)
_reservations: Final = msgspec.json.Decoder(Reservation)


class MongoRecords:
    """Implement `ports.Records`. Every call is safe to repeat. `used` is consistent with the writes of
    `append`.
    """

    _ledger = Named(LEDGER)
    _buckets = Named(BUCKETS)
    _open = Named(OPEN)
    _replicas = Named(REPLICAS)
    _marks = Named(REPLICA_MARKS)
    _generation = Named(GENERATION)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def create_indexes(self) -> None:
        """Create missing indexes. Raise `StoreError`."""
        async with translated():
            await self._ledger.create_index("counts_until", sparse=True)
            await self._buckets.create_index("until", expireAfterSeconds=int(_LATE.total_seconds()))
            await self._open.create_index("at", expireAfterSeconds=int(_KEPT.total_seconds()))
            await self._replicas.create_index("at", expireAfterSeconds=int(_REMEMBERED.total_seconds()))
            await self._marks.create_index("at", expireAfterSeconds=int(_KEPT.total_seconds()))

    async def outcomes(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Outcome]:
        found: dict[ReservationId, Outcome] = {}
        async with translated():
            for some in in_pieces(list(dict.fromkeys(ids)), _AT_ONCE):
                async for document in self._ledger.find({"_id": {"$in": some}}, {"state": 1}):
                    found[document["_id"]] = Outcome(document["state"])
        return found

    async def used(self, now: datetime) -> list[Used]:
        async with translated():
            found = [_summed(d) async for d in self._buckets.find({"until": {"$gt": now}})]
            # Entries that a standalone server wrote, or this server before it became a replica set.
            found += [_used(d) async for d in await self._ledger.aggregate(_unsummed(now))]
        return _merged(found)

    async def used_of(self, buckets: Sequence[tuple[TenantId, str]], now: datetime) -> list[int] | None:
        sums: dict[tuple[TenantId, str], int] = {}
        async with translated():
            if await self._ledger.find_one({"counts_until": {"$gt": now.timestamp()}}, {"_id": 1}) is not None:
                return None
            for some in in_pieces(buckets, _AT_ONCE):
                ids = [f"{sign}{quote(tenant, safe='')}:{key}" for tenant, key in some for sign in ("", "+")]
                async for document in self._buckets.find({"_id": {"$in": ids}, "until": {"$gt": now}}):
                    each = _summed(document)
                    sums[each.tenant, each.key] = sums.get((each.tenant, each.key), 0) + each.amount
        return [sums.get(bucket, 0) for bucket in buckets]

    async def corrections(self, now: datetime) -> list[Used]:
        async with translated():
            found = self._buckets.find({"correction": True, "until": {"$gt": now}})
            return [_summed(document) async for document in found]

    async def correct(self, corrections: Sequence[Used]) -> None:
        async with translated():
            for some in in_pieces(corrections, _AT_ONCE):
                await self._buckets.bulk_write([_correction(each) for each in some], ordered=False)

    async def advance(self, noted: int) -> Generation | None:
        wanted: dict[str, Any] = {"_id": _THE_LEDGER}
        if noted:  # else there may be no document yet
            wanted["number"] = {"$gte": noted}
        async with translated():
            found = await self._generation.find_one_and_update(
                wanted, {"$max": {"number": noted + 1}}, upsert=not noted, return_document=ReturnDocument.AFTER
            )
            if found is None:  # too low, or others write at this moment
                found = await self._generation.find_one({"_id": _THE_LEDGER}) or {"number": -1}
        number, corrected = int(found["number"]), int(found.get("corrected", 0))
        return Generation(number, corrected) if number >= noted else None

    async def corrected(self, noted: int) -> None:
        raised = {"$max": {"number": noted + 1, "corrected": noted + 1}}
        async with translated():
            await self._generation.update_one({"_id": _THE_LEDGER}, raised, upsert=True)

    async def save(self, reservations: Sequence[Reservation]) -> None:
        now = datetime.now(UTC)
        async with translated():
            for some in in_pieces(list({each.id: each for each in reservations}.values()), _AT_ONCE):
                documents = [_document(each, now) for each in some]
                # Most are new, and an insert costs a tenth of a replace.
                if known := await self._insert(documents):
                    await self._open.bulk_write([_replacement(each) for each in known], ordered=False)

    async def drop(self, ids: Sequence[ReservationId]) -> None:
        async with translated():
            for some in in_pieces(ids, _AT_ONCE):
                await self._open.bulk_write([DeleteOne({"_id": {"$eq": each}}) for each in some], ordered=False)

    async def saved(self) -> list[Reservation]:
        async with translated():
            documents = await self._open.find({}, {"body": 1}).sort("_id", ASCENDING).to_list()
        return [each for each in map(_reservation, documents) if each is not None]

    async def which_saved(self, ids: Sequence[ReservationId]) -> set[ReservationId]:
        found: set[ReservationId] = set()
        async with translated():
            for some in in_pieces(list(dict.fromkeys(ids)), _AT_ONCE):
                found.update([d["_id"] async for d in self._open.find({"_id": {"$in": some}}, {"_id": 1})])
        return found

    async def note_saved_until(self, replica: str, until: datetime) -> None:
        # One process writes this document. Its calls are numbered by a clock that never goes back, so that a
        # call which arrives late replaces no later one.
        number = time.monotonic_ns()
        sessions = self._mongo.ready_sessions()
        mark = {"saved_until": until, "number": number, "at": datetime.now(UTC), "sessions": sessions}
        earlier = {"_id": {"$eq": replica}, "number": {"$not": {"$gte": number}}}
        async with translated():
            with suppress(DuplicateKeyError):  # a later call came first
                await self._marks.update_one(earlier, {"$set": mark}, upsert=True)

    async def abort_writes_of(self, replica: str) -> None:
        async with translated():
            mark = await self._marks.find_one({"_id": {"$eq": replica}}, {"sessions": 1})
            sessions = (mark or {}).get("sessions")
            if isinstance(sessions, list) and sessions:
                # Needs no right: whoever has the same user may end its sessions' transactions.
                try:
                    await self._mongo.client.admin.command("killSessions", [{"id": each} for each in sessions])
                except OperationFailure as error:  # another user's sessions: MongoDB ends them after a minute
                    _log.warning(
                        "mongodb: transactions of a dead replica can't be ended: its entries may wait a minute",
                        extra={"replica": replica, "error": str(error)[:200]},
                    )

    async def saved_until(self) -> dict[str, datetime]:
        async with translated():
            marks = await self._marks.find({}, {"saved_until": 1}).to_list()
        # A mark that another program wrote says nothing.
        found = {mark["_id"]: mark.get("saved_until") for mark in marks}
        return {replica: until for replica, until in found.items() if isinstance(until, datetime)}

    async def heartbeat(self, replica: str) -> dict[str, int]:
        async with translated():
            # A repeated beat only confirms that the replica is alive: nothing is summed from it.
            beaten = {"$inc": {"beats": 1}, "$set": {"at": datetime.now(UTC)} | BY_TENANT | WITH_ROLLUPS}
            await self._replicas.update_one({"_id": {"$eq": replica}}, beaten, upsert=True)
            return {d["_id"]: d["beats"] async for d in self._replicas.find({}, {"beats": 1})}

    async def _insert(self, documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Insert documents. Return those that were already there."""
        try:
            await self._open.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            if not only_duplicates(error):
                raise
            return [documents[each["index"]] for each in error.details["writeErrors"]]
        return []

    async def deregister(self, replica: str) -> None:
        async with translated():
            await self._replicas.delete_one({"_id": {"$eq": replica}})


def _unsummed(now: datetime) -> list[dict[str, Any]]:
    later = {"$gt": now.timestamp()}
    bucket = {"t": "$tenant_id", "k": "$charges.k"}
    return [
        {"$match": {"counts_until": later}},
        {"$project": {"_id": 0, "tenant_id": 1, "charges": 1}},
        {"$unwind": "$charges"},
        {"$match": {"charges.u": later}},
        {"$group": {"_id": bucket, "u": {"$max": "$charges.u"}, "n": {"$sum": "$charges.n"}}},
    ]


def _used(document: dict[str, Any]) -> Used:
    bucket = document["_id"]
    return Used(TenantId(bucket["t"]), bucket["k"], document["u"], document["n"])


def _summed(document: dict[str, Any]) -> Used:
    try:
        tenant, key = TenantId(document["tenant_id"]), document["key"]
        return Used(tenant, key, int(document["until"].timestamp()), int(document["used"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # Taking it for 0 would admit that amount a second time.
        raise StoreError(f"document {document['_id']!r} of {BUCKETS} is no sum", transient=False) from error


def _correction(each: Used) -> UpdateOne:
    return UpdateOne(
        # No tenant's name begins with a plus: it would be escaped.
        {"_id": f"+{quote(each.tenant, safe='')}:{each.key}"},
        {
            "$max": {"used": each.amount, "until": datetime.fromtimestamp(each.until, UTC)},
            "$setOnInsert": {"tenant_id": each.tenant, "key": each.key, "correction": True},
        },
        upsert=True,
    )


def _merged(found: Sequence[Used]) -> list[Used]:
    """Merge the amounts to one per bucket."""
    sums: dict[tuple[TenantId, str], Used] = {}
    for each in found:
        known = sums.get((each.tenant, each.key), Used(each.tenant, each.key, each.until, 0))
        until, amount = max(each.until, known.until), each.amount + known.amount
        sums[each.tenant, each.key] = replace(known, until=until, amount=amount)
    return list(sums.values())


def _document(reservation: Reservation, now: datetime) -> dict[str, Any]:
    body = Binary(msgspec.json.encode(reservation))
    return {"_id": reservation.id, "body": body, "deadline": reservation.deadline, "at": now}


def _replacement(document: dict[str, Any]) -> ReplaceOne[dict[str, Any]]:
    """Return a replacement that matches nothing if a later state is stored, or if the document was deleted."""
    return ReplaceOne({"_id": document["_id"], "deadline": {"$lte": document["deadline"]}}, document)


def _reservation(document: dict[str, Any]) -> Reservation | None:
    """Return the reservation; None if this version can't read it (a newer version or another program wrote it)."""
    try:
        return _reservations.decode(document["body"])
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        _log.error(
            "mongodb: a saved reservation can't be read: it is not restored, and stays stored",
            extra={"reservation": str(document["_id"]), "error": str(error)},
        )
        return None
