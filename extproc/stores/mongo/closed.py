"""Keep closed months: one document each, and one for each of its rows. Only an erasure changes a name in them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from extproc.ports.audit import Actor, ActorKind
from extproc.ports.reports import SUM_NAMES, ClosedErasure, ClosedMonth, Place, Sums, UsageRow
from extproc.stores.mongo.client import CLOSED, CLOSED_ROWS, WRITE, Mongo, Named, translated

_AT_ONCE: Final = 1000
_ORDER: Final = [("close", ASCENDING), ("name", ASCENDING), ("tenant_id", ASCENDING)]


class MongoClosedMonths:
    """Implement `ports.ClosedMonths`.

    The rows are written first, then the month, which names them by its checksum. Rows of a close that did not get
    so far belong to no month; the next close of the same sums takes their place.
    """

    _months = Named(CLOSED)
    _rows = Named(CLOSED_ROWS)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def add(self, closed: ClosedMonth, rows: Sequence[UsageRow]) -> bool:
        close = _close(closed)
        async with translated():
            if await self._months.find_one({"_id": closed.month}, {"_id": 1}) is not None:
                return False
            await self._rows.create_index(_ORDER)
            await self._rows.delete_many({"close": close})
            for start in range(0, len(rows), _AT_ONCE):
                await self._rows.insert_many([_row_document(close, row) for row in rows[start : start + _AT_ONCE]])
            try:
                await self._months.insert_one(_document(closed))
            except DuplicateKeyError:
                return False
        return True

    async def all(self, at_most: int, after: str | None = None) -> list[ClosedMonth]:
        behind = {"_id": {"$lt": after}} if after is not None else {}
        async with translated():
            found = await self._months.find(behind).sort("_id", DESCENDING).limit(at_most).to_list()
        return [_closed(document) for document in found]

    async def find(self, month: str) -> ClosedMonth | None:
        async with translated():
            found = await self._months.find_one({"_id": month})
        return _closed(found) if found is not None else None

    async def rows(self, month: str, at_most: int, after: Place | None = None) -> list[UsageRow]:
        closed = await self.find(month)
        if closed is None:
            return []
        wanted: dict[str, Any] = {"close": _close(closed)}
        if after is not None:
            later = [{"name": {"$gt": after.name}}]
            later.append({"name": {"$eq": after.name}, "tenant_id": {"$gt": after.tenant or ""}})
            wanted["$or"] = later
        async with translated():
            found = await self._rows.find(wanted).sort(_ORDER).limit(at_most).to_list()
        return [_row(document, month) for document in found]

    async def months_of(self, tenant: str, names: Sequence[str]) -> list[str]:
        months = []
        async with translated():
            async for document in self._months.find({}):
                whose = {"tenant_id": {"$eq": tenant}, "name": {"$in": list(names)}}
                if await self._rows.find_one({"close": _close(_closed(document))} | whose, {"_id": 1}) is not None:
                    months.append(document["_id"])
        return sorted(months)

    async def erase(self, month: str, tenant: str, name: str, erasure: ClosedErasure) -> bool:
        async def write(session: AsyncClientSession | None) -> bool:
            document = await self._months.find_one({"_id": month}, session=session)
            closed = _closed(document) if document is not None else None
            if closed is None:
                return False
            if erasure.pseudonym not in [each.pseudonym for each in closed.erasures]:
                # One more erasure at the same moment: the number of them, and so the checksum, is another one.
                same = {"_id": month, f"erasures.{len(closed.erasures)}": {"$exists": False}}
                noted = {"$push": {"erasures": asdict(erasure)}}
                if (
                    closed.checksum_now != erasure.before
                    or not (await self._months.update_one(same, noted, session=session)).matched_count
                ):
                    return False
            whose = {"close": _close(closed), "name": {"$eq": name}, "tenant_id": {"$eq": tenant}}
            await self._rows.update_many(whose, {"$set": {"name": erasure.pseudonym}}, session=session)
            return True

        async with translated():
            if not await self._mongo.has_transactions():
                return await write(None)
            async with self._mongo.writing_session() as session:
                return await session.with_transaction(write, write_concern=WRITE)


def _close(closed: ClosedMonth) -> str:
    return f"{closed.month}:{closed.closed_at:%Y%m%dT%H%M%S}:{closed.checksum}"


def _document(closed: ClosedMonth) -> dict[str, Any]:
    return {
        "_id": closed.month,
        "closed_at": closed.closed_at,
        "closed_by": {**asdict(closed.closed_by), "kind": closed.closed_by.kind.value},
        "note": closed.note,
        "currency": closed.currency,
        "checksum": closed.checksum,
        "rows": closed.rows,
        "total": asdict(closed.total),
        "erasures": [asdict(each) for each in closed.erasures],
    }


def _closed(document: Mapping[str, Any]) -> ClosedMonth:
    by = document["closed_by"]
    return ClosedMonth(
        month=document["_id"],
        closed_at=document["closed_at"],
        closed_by=Actor(by["name"], ActorKind(by["kind"]), by["origin"]),
        note=document["note"],
        currency=document["currency"],
        checksum=document["checksum"],
        rows=document["rows"],
        total=Sums(**{name: int(document["total"][name]) for name in SUM_NAMES}),
        erasures=tuple(
            ClosedErasure(each["at"], each["pseudonym"], each["before"], each["after"])
            for each in document.get("erasures", ())
        ),
    )


def _row_document(close: str, row: UsageRow) -> dict[str, Any]:
    return {"close": close, "name": row.name, "tenant_id": row.tenant or "", **asdict(row.sums)}


def _row(document: Mapping[str, Any], month: str) -> UsageRow:
    sums = Sums(**{name: int(document.get(name, 0)) for name in SUM_NAMES})
    return UsageRow(month, document["name"], document["tenant_id"] or None, sums)
