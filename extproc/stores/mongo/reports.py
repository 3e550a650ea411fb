"""Sum usage in the store, for reports. Each query touches as few rows as the question allows:

- rollups: by tenant, model and endpoint, of one tenant or of all; months where whole months are wanted, else days;
- daily usage: by service account and client IP, for days and months;
- the ledger: what neither has, such as the models of a service account, or its hours.

Reports are read from the newest period to the oldest, some periods at a time, until there are enough rows. So no
query sorts more than the periods that it reads. The first stage of each pipeline is an equality and a range of one
index: some servers use no index for more. The second stage has the rest.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from math import isfinite
from typing import Any, Final

import pymongo
from pymongo.errors import PyMongoError

from extproc.core.quota.settlement import Outcome
from extproc.ports.reports import (
    OTHER,
    SUM_NAMES,
    By,
    Grain,
    Measure,
    Missing,
    Place,
    ReportFilter,
    SlowReportError,
    Sums,
    UsageRow,
)
from extproc.stores.mongo.client import DAILY, LEDGER, MIGRATIONS, ROLLUPS, Collection, Mongo, Named, translated
from extproc.stores.mongo.report_spans import DAY, Span, date_of, first_of, last_of, midnight, windows, with_months
from extproc.stores.mongo.rollups import STATE, UNROLLED, field_name, grain_name, name_of

Stage = Mapping[str, Any]

_EARLIEST: Final = date(2024, 1, 1)  # before the first release
_CALLERS: Final = (By.SERVICE_ACCOUNT, By.CLIENT_IP)
_OTHERS: Final = f"models.{OTHER}"
_NAMED: Final = {By.MODEL: "models", By.ENDPOINT: "endpoints"}
# What a row is named by, in daily usage and in the ledger.
_FIELDS: Final = {
    By.SERVICE_ACCOUNT: "serviceAccount",
    By.CLIENT_IP: "clientIP",
    By.TENANT: "tenant_id",
    By.MODEL: "model",
    By.ENDPOINT: "endpoint",
}


def _of_requests(value: object) -> object:
    """Return the expression of a sum that denied requests don't add to."""
    return {"$cond": [{"$eq": ["$state", Outcome.DENIED.value]}, 0, value]}


_IN_LEDGER: Final[Mapping[str, object]] = {
    "usage": _of_requests("$charge"),
    "input": _of_requests("$usage.input"),
    "output": _of_requests("$usage.output"),
    "cached": _of_requests("$usage.cached"),
    "requests": _of_requests(1),
    "denied": {"$cond": [{"$eq": ["$state", Outcome.DENIED.value]}, {"$ifNull": ["$count", 1]}, 0]},
    "estimated": {"$cond": [{"$eq": ["$state", Outcome.ESTIMATED.value]}, 1, 0]},
    "price": _of_requests("$price"),
}
_IN_ROW: Final[Mapping[str, object]] = {name: f"${name}" for name in SUM_NAMES}


@dataclass(frozen=True, slots=True)
class _Source:
    """Say how to sum: a collection, the first stages, and the expressions of period, name, tenant and sums.

    `escaped`: names are stored in another form, and so in another order. They are few.
    """

    collection: Collection
    stages: Sequence[Stage]
    period: object
    name: str
    tenant: str | None = None
    sums: Mapping[str, object] = field(default_factory=lambda: _IN_ROW)
    escaped: bool = False

    def grouped(self, *, by_period: bool = False, by_name: bool = True) -> list[Stage]:
        """Return the pipeline up to the sums of each period and name."""
        key: dict[str, object] = {"p": self.period} if by_period else {}
        key |= {"n": self.name, "t": self.tenant} if by_name else {}
        return [*self.stages, {"$group": {"_id": key or None, **{n: {"$sum": s} for n, s in self.sums.items()}}}]


class MongoSums:
    """Implement `ports.UsageSums`."""

    _rollups = Named(ROLLUPS)
    _daily = Named(DAILY)
    _ledger = Named(LEDGER)
    _state = Named(MIGRATIONS)

    def __init__(self, mongo: Mongo, timeout_s: float = 30.0) -> None:
        """Give each report `timeout_s` seconds."""
        self._mongo = mongo
        self._timeout_s = timeout_s

    async def report(
        self, by: By, grain: Grain, wanted: ReportFilter, at_most: int, after: Place | None = None
    ) -> list[UsageRow]:
        rows: list[UsageRow] = []
        async with self._bounded():
            span = await self._span(by, wanted, grain, after)
            if span is None:
                return rows
            by_rollups = await self._are_in_rollups(by, wanted, span)
            for some in windows(span, grain, lambda: len(rows) * 2 < at_most):  # noqa: B023 - it is one list
                source = self._source(by, wanted, some, grain, by_rollups=by_rollups)
                rows += await self._page(source, after, at_most - len(rows))
                if len(rows) >= at_most:
                    break
        return rows

    async def top(self, by: By, wanted: ReportFilter, measure: Measure, at_most: int) -> list[UsageRow]:
        async with self._bounded():
            spans, by_rollups = await self._over_all(by, wanted)
            alone = len(spans) == 1
            sums: dict[tuple[str, str | None], Sums] = {}
            for span in spans:
                source = self._source(by, wanted, span, None, by_rollups=by_rollups)
                pipeline = source.grouped()
                if alone and not source.escaped:
                    order = {measure.value: -1, "_id.n": 1, "_id.t": 1}
                    pipeline += [{"$sort": order}, {"$limit": at_most}]
                async for found in self._aggregated(source, pipeline):
                    row = _row(found, source)
                    sums[row.name, row.tenant] = sums.get((row.name, row.tenant), Sums()) + row.sums
        rows = [UsageRow(None, *key, each) for key, each in sums.items()]
        rows.sort(key=lambda row: (-getattr(row.sums, measure), row.name, row.tenant or ""))
        return rows[:at_most]

    async def total(self, wanted: ReportFilter) -> Sums:
        total = Sums()
        async with self._bounded():
            spans, by_rollups = await self._over_all(None, wanted)
            for span in spans:
                source = self._source(None, wanted, span, None, by_rollups=by_rollups)
                async for found in self._aggregated(source, source.grouped(by_name=False)):
                    total += _sums(found)
        return total

    async def missing(self) -> Missing:
        async with translated():
            state = await self._state.find_one({"_id": STATE})
            if state is None:  # no processor of this version has ever started
                return Missing(await self._ledger.find_one({}, {"_id": 1}) is not None)
            waits = not state.get("done") or bool(state.get("ids"))
            return Missing(waits or await self._ledger.find_one({UNROLLED: True}, {"_id": 1}) is not None)

    # ------------------------------------------------ what to read

    async def _span(
        self, by: By | None, wanted: ReportFilter, grain: Grain | None = None, after: Place | None = None
    ) -> Span | None:
        """Return the dates that may have something to read; None if there are none."""
        first, last = await self._known(wanted.tenant)
        if first is None or _in_days(by, wanted, grain):
            first = _EARLIEST  # there may be days without entries in the ledger, from before it
        if wanted.since is not None:
            first = max(first, date.fromisoformat(wanted.since))
        if wanted.until is not None:
            last = min(last, date.fromisoformat(wanted.until))
        if after is not None:
            last = min(last, last_of(after.period) if grain is Grain.MONTH else date_of(after.period))
        return Span(first, last) if first <= last else None

    async def _known(self, tenant: str | None) -> tuple[date | None, date]:
        """Return the first and the last date that rollups may have; None as long as earlier ones may be added."""
        match: dict[str, Any] = {"tenant_id": {"$eq": tenant}} if tenant is not None else {}
        match["grain"] = grain_name(Grain.MONTH, tenant)
        bounds = {"_id": None, "first": {"$min": "$at"}, "last": {"$max": "$at"}}
        found = await (await self._rollups.aggregate([{"$match": match}, {"$group": bounds}])).to_list()
        state = await self._state.find_one({"_id": STATE}) or {}
        today = datetime.now(UTC).date()
        first, last = (first_of(found[0]["first"]), last_of(found[0]["last"])) if found else (today, today)
        # A day of UTC begins a day before that of a tenant at the most, or ends a day after it.
        return (first - DAY if state.get("done") else None), max(last, today) + DAY

    async def _over_all(self, by: By | None, wanted: ReportFilter) -> tuple[list[Span], bool]:
        """Return the spans that are summed, and whether rollups have them: whole months by rows of their own."""
        span = await self._span(by, wanted)
        if span is None:
            return [], True
        if await self._are_in_rollups(by, wanted, span):
            return with_months(span), True
        return [span], False

    async def _are_in_rollups(self, by: By | None, wanted: ReportFilter, span: Span) -> bool:
        """Return whether rollups have the exact sums."""
        if by in _CALLERS or wanted.service_account is not None or wanted.client_ip is not None:
            return False
        if (wanted.model is not None or by is By.MODEL) and (wanted.endpoint is not None or by is By.ENDPOINT):
            return False
        if wanted.model is None:
            return True
        # A model without sums of its own in some period is in the row that several models share.
        for grain in Grain:
            stages = _first_stages(_in_rollups(By.MODEL, wanted, span, grain))
            found = await self._rollups.aggregate(
                [
                    *stages,
                    {"$match": {f"models.{OTHER}": {"$exists": True}}},
                    {"$limit": 1},
                    {"$project": {"_id": 1}},
                ]
            )
            if await found.to_list():
                return False
        return True

    def _source(
        self, by: By | None, wanted: ReportFilter, span: Span, grain: Grain | None, *, by_rollups: bool
    ) -> _Source:
        """Return how to sum the dates of a span, by periods of the grain if there is one."""
        if by_rollups:
            return self._of_rollups(by, wanted, span, grain)
        period: object = {"$substrCP": ["$date", 0, 7]} if grain is Grain.MONTH else "$date"
        if _in_days(by, wanted, grain):
            tenant = "$tenant_id" if by is By.SERVICE_ACCOUNT else None
            stages = _first_stages(*_in_daily(wanted, span))
            return _Source(self._daily, stages, period, f"${_FIELDS[by or By.TENANT]}", tenant)
        if grain is Grain.HOUR:
            period = {"$dateToString": {"date": "$admitted_at", "format": "%Y-%m-%dT%H"}}
        stages = _first_stages(*_in_ledger(wanted, span, grain))
        tenant = "$tenant_id" if by is By.SERVICE_ACCOUNT else None
        return _Source(self._ledger, stages, period, f"${_FIELDS[by or By.TENANT]}", tenant, _IN_LEDGER)

    def _of_rollups(self, by: By | None, wanted: ReportFilter, span: Span, grain: Grain | None) -> _Source:
        stored = Grain.HOUR if grain is Grain.HOUR else Grain.MONTH if span.months else Grain.DAY
        period: object = {"$substrCP": ["$at", 0, 7]} if grain is Grain.MONTH else "$at"
        stages = _first_stages(_in_rollups(by, wanted, span, stored))
        if by in _NAMED:
            only = wanted.model if by is By.MODEL else wanted.endpoint
            named = f"${_NAMED[by]}"
            whole = {"$cond": [{"$eq": [{"$type": named}, "object"]}, named, {}]}  # else it is broken
            stages += [{"$project": {"at": 1, "each": {"$objectToArray": whole}}}, {"$unwind": "$each"}]
            stages += [{"$match": {"each.k": {"$eq": field_name(only)}}}] if only is not None else []
            sums = {name: f"$each.v.{name}" for name in SUM_NAMES}
            return _Source(self._rollups, stages, period, "$each.k", sums=sums, escaped=True)
        if wanted.model is None and wanted.endpoint is None:
            return _Source(self._rollups, stages, period, "$tenant_id")
        kind, name = ("models", wanted.model) if wanted.model is not None else ("endpoints", wanted.endpoint)
        path = f"{kind}.{field_name(name or '')}"
        stages.append({"$match": {path: {"$exists": True}}})
        return _Source(
            self._rollups, stages, period, "$tenant_id", sums={each: f"${path}.{each}" for each in SUM_NAMES}
        )

    # ------------------------------------------------ reading

    async def _page(self, source: _Source, after: Place | None, at_most: int) -> list[UsageRow]:
        """Return the rows of one query behind `after`, in the order of a report."""
        pipeline = source.grouped(by_period=True)
        if not source.escaped:
            if after is not None:
                pipeline.append({"$match": {"$or": _behind(after)}})
            pipeline += [{"$sort": {"_id.p": -1, "_id.n": 1, "_id.t": 1}}, {"$limit": at_most}]
        rows = [_row(found, source) async for found in self._aggregated(source, pipeline)]
        if not source.escaped:
            return rows
        rows.sort(key=lambda row: row.name)
        rows.sort(key=lambda row: row.period or "", reverse=True)
        return [row for row in rows if after is None or _is_behind(row.place, after)][:at_most]

    async def _aggregated(self, source: _Source, pipeline: Sequence[Stage]) -> AsyncIterator[Mapping[str, Any]]:
        async for found in await source.collection.aggregate(pipeline, allowDiskUse=True):
            yield found

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Give what is inside the time of a report. Raise `SlowReportError`, or `StoreError`."""
        began = time.monotonic()
        try:
            async with translated():
                with pymongo.timeout(self._timeout_s):
                    yield
        except Exception as error:
            driver = error.__cause__
            timed_out = isinstance(driver, PyMongoError) and driver.timeout
            if timed_out and time.monotonic() - began >= self._timeout_s * 0.9:
                raise SlowReportError(self._timeout_s) from error
            raise


# ------------------------------------------------ queries


def _in_days(by: By | None, wanted: ReportFilter, grain: Grain | None) -> bool:
    """Return whether daily usage has the sums."""
    subjects = by in _NAMED or wanted.model is not None or wanted.endpoint is not None
    callers = by in _CALLERS or wanted.service_account is not None or wanted.client_ip is not None
    return grain is not Grain.HOUR and not subjects and callers


def _in_rollups(by: By | None, wanted: ReportFilter, span: Span, grain: Grain) -> dict[str, Any]:
    first, last = span.first.isoformat(), span.last.isoformat()
    match grain:
        case Grain.HOUR:
            first, last = f"{first}T00", f"{last}T23"
        case Grain.MONTH:
            first, last = first[:7], last[:7]
    at = {"at": {"$gte": first, "$lte": last}}
    if wanted.tenant is not None:
        return {"tenant_id": {"$eq": wanted.tenant}, "grain": grain.value} | at
    return {"grain": grain.value if by is By.TENANT else grain_name(grain, None)} | at


def _in_daily(wanted: ReportFilter, span: Span) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an index finds, and the rest."""
    dates = {"date": {"$gte": span.first.isoformat(), "$lte": span.last.isoformat()}}
    callers = _callers(wanted)
    for name in ("serviceAccount", "clientIP", "tenant_id"):
        if name in callers:
            return {name: callers.pop(name)} | dates, callers
    return dates, {}


def _in_ledger(wanted: ReportFilter, span: Span, grain: Grain | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an index finds, and the rest. A tenant's date begins and ends up to a day apart from UTC's."""
    begin, end = midnight(span.first), midnight(span.last + DAY)
    rest = _callers(wanted)
    subjects = (("model", wanted.model), ("endpoint", wanted.endpoint))
    rest |= {name: {"$eq": value} for name, value in subjects if value is not None}
    if grain is Grain.HOUR:
        admitted = {"$gte": begin, "$lt": end}
    else:
        admitted = {"$gte": begin - DAY, "$lt": end + DAY}
        rest["date"] = {"$gte": span.first.isoformat(), "$lte": span.last.isoformat()}
    if "serviceAccount" in rest:
        return {"serviceAccount": rest.pop("serviceAccount")}, rest | {"admitted_at": admitted}
    if "tenant_id" in rest:
        ended = {"ended_at": {"$gte": admitted["$gte"]}}  # no request ends before it is admitted
        return {"tenant_id": rest.pop("tenant_id")} | ended, rest | {"admitted_at": admitted}
    return {"admitted_at": admitted}, rest


def _callers(wanted: ReportFilter) -> dict[str, Any]:
    """Return the filter's names. They only stand behind `$eq`, so a name can't inject an operator."""
    names = {
        "serviceAccount": wanted.service_account,
        "clientIP": wanted.client_ip,
        "tenant_id": wanted.tenant,
    }
    return {name: {"$eq": value} for name, value in names.items() if value is not None}


def _first_stages(*matches: Mapping[str, Any]) -> list[Stage]:
    return [{"$match": each} for each in matches if each]


def _behind(after: Place) -> list[dict[str, Any]]:
    same = {"_id.p": {"$eq": after.period}}
    place = [{"_id.p": {"$lt": after.period}}, same | {"_id.n": {"$gt": after.name}}]
    return (
        [*place, same | {"_id.n": {"$eq": after.name}, "_id.t": {"$gt": after.tenant}}] if after.tenant else place
    )


def _is_behind(place: Place, after: Place) -> bool:
    return place.period < after.period or (place.period == after.period and place.name > after.name)


# ------------------------------------------------ rows


def _row(found: Mapping[str, Any], source: _Source) -> UsageRow:
    key = found["_id"]
    name, tenant = str(key.get("n") or ""), key.get("t")
    tenant = str(tenant or "") if source.tenant is not None else None
    return UsageRow(key.get("p"), name_of(name) if source.escaped else name, tenant, _sums(found))


def _sums(found: Mapping[str, Any]) -> Sums:
    return Sums(*(_whole(found.get(name)) for name in SUM_NAMES))


def _whole(value: object) -> int:
    """Return a sum. Other programs write doubles, and values that are no numbers."""
    return int(value) if isinstance(value, (int, float)) and isfinite(value) else 0
