"""Rename a caller in the ledger, in daily usage and in the audit log: the one exception to "never changed".

Rollups name no caller. Keys of buckets contain names: they are rewritten in the entries; the sums of the buckets
themselves are deleted a day after their windows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from pymongo import UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from extproc.core.quota.limits import read_key
from extproc.ports.erasure import ErasableDates, ErasureJob, ErasureSums, NameKind
from extproc.stores.mongo.account_months import AccountMonths
from extproc.stores.mongo.client import (
    AUDIT,
    DAILY,
    DAILY_ASIDE,
    DAILY_BY_TENANT,
    LEDGER,
    MIGRATIONS,
    WRITE,
    Mongo,
    Named,
    translated,
)
from extproc.stores.mongo.documents import DAY_FIELDS
from extproc.stores.pieces import in_pieces

_FIELDS: Final = {NameKind.SERVICE_ACCOUNT: "serviceAccount", NameKind.CLIENT_IP: "clientIP"}
_JOB: Final = "erasure"
_AT_ONCE: Final = 200
_DATES_AT_ONCE: Final = 100
_MERGED: Final = "merged_from"  # on a standalone server: the row that was added to this one


class MongoErasure:
    """Implement `ports.ErasureStore`."""

    _ledger = Named(LEDGER)
    _daily = Named(DAILY)
    _aside = Named(DAILY_ASIDE)
    _audit = Named(AUDIT)
    _jobs = Named(MIGRATIONS)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._accounts = AccountMonths(mongo)

    async def is_possible(self) -> bool:
        async with translated():
            state = await self._jobs.find_one({"_id": DAILY_BY_TENANT}) or {}
            return bool(state.get("done")) or await self._daily.find_one({}) is None

    async def unfinished(self, tenant: str, kind: NameKind, name: str) -> ErasureJob | None:
        wanted = {"job": _JOB, "tenant_id": {"$eq": tenant}, "kind": kind.value, "name": {"$eq": name}}
        async with translated():
            found = await self._jobs.find_one(wanted)
        if found is None:
            return None
        return ErasureJob(found["_id"], tenant, kind, name, found["pseudonym"], found["before"])

    async def begin(self, job: ErasureJob) -> None:
        said = {"name": job.name, "pseudonym": job.pseudonym, "before": job.before}
        document = {"job": _JOB, "tenant_id": job.tenant, "kind": job.kind.value, **said}
        async with translated():
            await self._jobs.update_one({"_id": job.id}, {"$set": document}, upsert=True)

    async def finish(self, job: ErasureJob) -> None:
        async with translated():
            await self._jobs.delete_one({"_id": job.id, "job": _JOB})

    async def dates(self, job: ErasureJob, now: datetime) -> ErasableDates:
        whose = {
            "tenant_id": {"$eq": job.tenant},
            _FIELDS[job.kind]: {"$in": [job.name, job.pseudonym]},
            "date": {"$lt": job.before},
        }
        dates, running = set[str](), dict[str, datetime]()
        async with translated():
            async for row in await self._ledger.aggregate([{"$match": whose}, {"$group": {"_id": "$date"}}]):
                dates.add(row["_id"])
            # Rows whose entries are deleted by age.
            async for day in self._daily.find(whose, {"date": 1}):
                dates.add(day["date"])
            for steps in _latest_ends(int(now.timestamp())):
                async for row in await self._ledger.aggregate([{"$match": whose}, *steps]):
                    until = datetime.fromtimestamp(int(row["until"]), UTC)
                    running[row["_id"]] = max(until, running.get(row["_id"], until))
        ended = dates - running.keys()
        return ErasableDates(tuple(sorted(ended)), running)

    async def sums(self, job: ErasureJob, dates: Sequence[str]) -> ErasureSums:
        entries = charge = price = requests = usage = others = 0
        async with translated():
            for some in in_pieces(dates, _DATES_AT_ONCE):
                wanted = self._of(job, some, job.name, job.pseudonym)
                of_ledger = {
                    "entries": {"$sum": 1},
                    "charge": {"$sum": "$charge"},
                    "price": {"$sum": {"$ifNull": ["$price", 0]}},
                }
                async for row in await self._ledger.aggregate(
                    [{"$match": wanted}, {"$group": {"_id": None, **of_ledger}}]
                ):
                    entries, charge, price = (
                        entries + int(row["entries"]),
                        charge + int(row["charge"]),
                        price + int(row["price"]),
                    )
                async for day in self._daily.find(wanted, {"usage": 1, "requests": 1}):
                    usage, requests = usage + _number(day.get("usage")), requests + _number(day.get("requests"))
                others += await self._aside.count_documents(self._of(job, some, job.name))
            others += sum([1 async for _ in self._named_in_audit(job)])
        return ErasureSums(entries, charge, price, requests, usage, others)

    async def rename(self, job: ErasureJob, dates: Sequence[str]) -> int:
        changed = 0
        async with translated():
            for some in in_pieces(dates, _DATES_AT_ONCE):
                changed += await self._rename_entries(job, some)
                changed += await self._rename_days(job, some)
                if job.kind is NameKind.SERVICE_ACCOUNT:
                    for month in sorted({day[:7] for day in some}):
                        await self._accounts.sum_again(job.tenant, [job.name, job.pseudonym], month)
                new = {"$set": {_FIELDS[job.kind]: job.pseudonym}}
                changed += (await self._aside.update_many(self._of(job, some, job.name), new)).modified_count
            changed += await self._rename_in_audit(job)
        return changed

    def _of(self, job: ErasureJob, dates: Sequence[str], *names: str) -> dict[str, Any]:
        whose = {"tenant_id": {"$eq": job.tenant}, _FIELDS[job.kind]: {"$in": list(names)}}
        return whose | {"date": {"$in": list(dates)}}

    async def _rename_entries(self, job: ErasureJob, dates: Sequence[str]) -> int:
        changed = 0
        fields = {"charges": 1, "refused_by": 1}
        while found := await self._ledger.find(self._of(job, dates, job.name), fields).to_list(_AT_ONCE):
            updates = [UpdateOne({"_id": each["_id"]}, {"$set": _renamed_entry(job, each)}) for each in found]
            await self._ledger.bulk_write(updates, ordered=False)
            changed += len(found)
        return changed

    async def _rename_days(self, job: ErasureJob, dates: Sequence[str]) -> int:
        changed = 0
        field = _FIELDS[job.kind]
        async for row in self._daily.find(self._of(job, dates, job.name)):
            mine = {"_id": row["_id"], field: row[field]}
            try:
                await self._daily.update_one(mine, {"$set": {field: job.pseudonym}})
            except DuplicateKeyError:  # entries came late, after an earlier try had renamed the row
                await self._merge(row, {**{name: row[name] for name in DAY_FIELDS}, field: job.pseudonym})
            changed += 1
        return changed

    async def _merge(self, row: dict[str, Any], into: dict[str, Any]) -> None:
        """Add a row of daily usage to another one, and delete it."""
        if await self._mongo.has_transactions():
            async with self._mongo.writing_session() as session:
                await session.with_transaction(lambda inner: self._move(row, into, inner), write_concern=WRITE)
            return
        # The mark tells a second try that the sums are there already.
        added = {"$inc": dict(_numbers(row)), "$set": {_MERGED: row["_id"]}}
        await self._daily.update_one(into | {_MERGED: {"$ne": row["_id"]}}, added)
        await self._daily.delete_one({"_id": row["_id"]})
        await self._daily.update_one(into, {"$unset": {_MERGED: ""}})

    async def _move(self, row: dict[str, Any], into: dict[str, Any], session: AsyncClientSession) -> None:
        present = await self._daily.find_one({"_id": row["_id"]}, session=session)
        if present is not None:
            await self._daily.update_one(into, {"$inc": dict(_numbers(present))}, session=session)
            await self._daily.delete_one({"_id": row["_id"]}, session=session)

    async def _rename_in_audit(self, job: ErasureJob) -> int:
        changed = 0
        async for entry in self._named_in_audit(job):
            new = {name: _renamed(entry[name], job) for name in _AUDITED if name in entry}
            await self._audit.update_one({"_id": entry["_id"]}, {"$set": new})
            changed += 1
        return changed

    async def _named_in_audit(self, job: ErasureJob) -> Any:
        """Yield the entries about the tenant that contain the name and whose change is done."""
        before = datetime.fromisoformat(job.before).replace(tzinfo=UTC)
        wanted = {"tenant_id": {"$eq": job.tenant}, "at": {"$lt": before}, "state": None}
        async for entry in self._audit.find(wanted, dict.fromkeys(_AUDITED, 1)):
            if any(_renamed(entry[name], job) != entry[name] for name in _AUDITED if name in entry):
                yield entry


def _latest_ends(now: int) -> Iterable[list[dict[str, Any]]]:
    """Yield pipelines that find the dates with a window that runs, and the latest end of one."""
    for each in ("charges", "refused_by"):
        runs = {"$match": {f"{each}.u": {"$gt": now}}}
        yield [
            runs,
            *([{"$unwind": "$charges"}] if each == "charges" else []),
            {"$group": {"_id": "$date", "until": {"$max": f"${each}.u"}}},
        ]


_AUDITED: Final = ("subject", "before", "after", "note")


def _renamed_entry(job: ErasureJob, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an entry that change."""
    changed: dict[str, Any] = {_FIELDS[job.kind]: job.pseudonym}
    if entry.get("charges"):
        changed["charges"] = [{**each, "k": _renamed_key(each["k"], job)} for each in entry["charges"]]
    if entry.get("refused_by"):
        refused = entry["refused_by"]
        changed["refused_by"] = {**refused, "k": _renamed_key(refused["k"], job)}
    return changed


def _renamed_key(key: str, job: ErasureJob) -> str:
    """Return a bucket's key with the pseudonym where the name stands; other keys as they are."""
    name = read_key(key)
    if name is None or job.kind.value not in name.scope.names:
        return key
    place = name.scope.names.index(job.kind.value)
    if len(name.parts) <= place or name.parts[place] != job.name:
        return key
    parts = (*name.parts[:place], job.pseudonym, *name.parts[place + 1 :])
    head = key.split(":", 3)[:3]
    return ":".join([*head, *(quote(part, safe="@") for part in parts)])


def _renamed(value: object, job: ErasureJob) -> object:
    """Return a value with the pseudonym in place of the name, where the name stands as a word of its own."""
    match value:
        case str():
            return _word(job.name).sub(job.pseudonym, value) if job.name in value else value
        case Mapping():
            return {name: _renamed(inner, job) for name, inner in value.items()}
        case list():
            return [_renamed(inner, job) for inner in value]
        case _:
            return value


@lru_cache(maxsize=16)
def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w@.:/-]){re.escape(name)}(?![\w@:/-]|\.\w)")


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, int | float]]:
    """Yield the sums of a row, those of its models too."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
