"""Sum usage in the store, for reports. Each query touches as few rows as the question allows:

- rollups: by tenant, model and endpoint, of one tenant or of all; months where whole months are wanted, else days;
- months of service accounts: whole months of one tenant or account, and what can be the largest of all;
- daily usage: by service account and client IP, for other dates;
- the ledger: what neither has, such as the models of a service account, or its hours.

Reports are read from the newest period to the oldest, some periods at a time, until there are enough rows. So no
query sorts more than the periods that it reads. The first stage of each pipeline is an equality and a range of one
index: some servers use no index for more. The second stage has the rest.
"""

import asyncio
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
from extproc.stores.mongo.account_months import ACCOUNTS_FROM
from extproc.stores.mongo.client import (
    ACCOUNT_MONTHS,
    DAILY,
    LEDGER,
    MIGRATIONS,
    ROLLUPS,
    Collection,
    Mongo,
    Named,
    translated,
)
from extproc.stores.mongo.report_queries import (
    CALLERS,
    Stage,
    behind,
    first_stages,
    in_account_months,
    in_accounts,
    in_daily,
    in_days,
    in_ledger,
    in_rollups,
    is_behind,
)
from extproc.stores.mongo.report_spans import DAY, Span, date_of, first_of, last_of, windows, with_months
from extproc.stores.mongo.rollups import STATE, UNROLLED, field_name, grain_name, name_of
from extproc.stores.mongo.top_accounts import TopAccounts

_AT_ONCE: Final = 2  # reports of a process: the ledger is written to the same store
_EARLIEST: Final = date(2024, 1, 1)  # before the first release
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


@dataclass(frozen=True, slots=True)
class _Kept:
    """Say what has the sums beside daily usage and the ledger: rollups, or months of accounts from one on."""

    rollups: bool = False
    accounts_from: str | None = None


_DAYS: Final = _Kept()


class MongoSums:
    """Implement `ports.UsageSums`."""

    _rollups = Named(ROLLUPS)
    _daily = Named(DAILY)
    _accounts = Named(ACCOUNT_MONTHS)
    _ledger = Named(LEDGER)
    _state = Named(MIGRATIONS)

    def __init__(self, mongo: Mongo, timeout_s: float = 30.0) -> None:
        """Give each report `timeout_s` seconds, the time until its turn included."""
        self._mongo = mongo
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._timeout_s = timeout_s

    async def report(
        self, by: By, grain: Grain, wanted: ReportFilter, at_most: int, after: Place | None = None
    ) -> list[UsageRow]:
        rows: list[UsageRow] = []
        async with self._bounded():
            span = await self._span(by, wanted, grain, after)
            if span is None:
                return rows
            kept = await self._kept(by, wanted, span, grain)
            for some in windows(span, grain, lambda: len(rows) * 2 < at_most):  # noqa: B023 - it is one list
                source = self._source(by, wanted, some, grain, kept)
                rows += await self._page(source, after, at_most - len(rows))
                if len(rows) >= at_most:
                    break
        return rows

    async def top(self, by: By, wanted: ReportFilter, measure: Measure, at_most: int) -> list[UsageRow]:
        async with self._bounded():
            spans, kept = await self._over_all(by, wanted)
            of_all = by is By.SERVICE_ACCOUNT and wanted.tenant is None and wanted.service_account is None
            if of_all and kept.accounts_from is not None and spans:
                largest = await self._top_accounts(spans, kept, measure, at_most)
                if largest is not None:
                    return largest
                spans, kept = [Span(spans[-1].first, spans[0].last)], _DAYS
            alone = len(spans) == 1
            sums: dict[tuple[str, str | None], Sums] = {}
            for span in spans:
                source = self._source(by, wanted, span, None, kept)
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
        async with self._bounded():
            spans, kept = await self._over_all(None, wanted)
            return await self._total(wanted, spans, kept)

    async def _total(self, wanted: ReportFilter, spans: Sequence[Span], kept: _Kept) -> Sums:
        total = Sums()
        for span in spans:
            source = self._source(None, wanted, span, None, kept)
            async for found in self._aggregated(source, source.grouped(by_name=False)):
                total += _sums(found)
        return total

    async def _top_accounts(
        self, spans: Sequence[Span], kept: _Kept, measure: Measure, at_most: int
    ) -> list[UsageRow] | None:
        async def sum_of(tenant: str, account: str) -> Sums:
            return await self._total(ReportFilter(tenant, account), spans, kept)

        whole = Span(spans[-1].first, spans[0].last)
        if f"{whole.first:%Y-%m}" < (kept.accounts_from or ""):
            return None
        return await TopAccounts(self._mongo, sum_of).largest(whole, measure, at_most)

    async def missing(self) -> Missing:
        async with translated():
            state = await self._state.find_one({"_id": STATE})
            if state is None:  # no processor of this version has ever started
                return Missing(await self._ledger.find_one({}, {"_id": 1}) is not None)
            return Missing(await self._waits(state))

    async def _waits(self, state: Mapping[str, Any]) -> bool:
        """Return whether rollups may lack an entry."""
        if not state.get("done") or state.get("ids"):
            return True
        return await self._ledger.find_one({UNROLLED: True}, {"_id": 1}) is not None

    # ------------------------------------------------ what to read

    async def _span(
        self, by: By | None, wanted: ReportFilter, grain: Grain | None = None, after: Place | None = None
    ) -> Span | None:
        """Return the dates that may have something to read; None if there are none."""
        first, last = await self._known(wanted.tenant)
        if first is None or in_days(by, wanted, grain):
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

    async def _over_all(self, by: By | None, wanted: ReportFilter) -> tuple[list[Span], _Kept]:
        """Return the spans that are summed, the newest first, and where they are: whole months have rows of their
        own.
        """
        span = await self._span(by, wanted)
        if span is None:
            return [], _DAYS
        kept = await self._kept(by, wanted, span, None)
        if kept.rollups:
            return with_months(span), kept
        if kept.accounts_from is not None:
            return with_months(span, kept.accounts_from), kept
        return [span], kept

    async def _kept(self, by: By | None, wanted: ReportFilter, span: Span, grain: Grain | None) -> _Kept:
        if await self._are_in_rollups(by, wanted, span):
            return _Kept(rollups=True)
        if not in_account_months(by, wanted, grain):
            return _DAYS
        state = await self._state.find_one({"_id": STATE}) or {}
        if state.get(ACCOUNTS_FROM) is None or await self._waits(state):
            return _DAYS
        return _Kept(accounts_from=state[ACCOUNTS_FROM])

    async def _are_in_rollups(self, by: By | None, wanted: ReportFilter, span: Span) -> bool:
        """Return whether rollups have the exact sums."""
        if by in CALLERS or wanted.service_account is not None or wanted.client_ip is not None:
            return False
        if (wanted.model is not None or by is By.MODEL) and (wanted.endpoint is not None or by is By.ENDPOINT):
            return False
        if wanted.model is None:
            return True
        # A model without sums of its own in some period is in the row that several models share.
        for grain in Grain:
            stages = first_stages(in_rollups(By.MODEL, wanted, span, grain))
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
        self, by: By | None, wanted: ReportFilter, span: Span, grain: Grain | None, kept: _Kept
    ) -> _Source:
        """Return how to sum the dates of a span, by periods of the grain if there is one."""
        if kept.rollups:
            return self._of_rollups(by, wanted, span, grain)
        period: object = {"$substrCP": ["$date", 0, 7]} if grain is Grain.MONTH else "$date"
        if in_days(by, wanted, grain):
            tenant = "$tenant_id" if by is By.SERVICE_ACCOUNT else None
            name = f"${_FIELDS[by or By.TENANT]}"
            if span.months and kept.accounts_from is not None and f"{span.first:%Y-%m}" >= kept.accounts_from:
                return _Source(self._accounts, first_stages(*in_accounts(wanted, span)), "$at", name, tenant)
            return _Source(self._daily, first_stages(*in_daily(wanted, span)), period, name, tenant)
        if grain is Grain.HOUR:
            period = {"$dateToString": {"date": "$admitted_at", "format": "%Y-%m-%dT%H"}}
        stages = first_stages(*in_ledger(wanted, span, grain))
        tenant = "$tenant_id" if by is By.SERVICE_ACCOUNT else None
        return _Source(self._ledger, stages, period, f"${_FIELDS[by or By.TENANT]}", tenant, _IN_LEDGER)

    def _of_rollups(self, by: By | None, wanted: ReportFilter, span: Span, grain: Grain | None) -> _Source:
        stored = Grain.HOUR if grain is Grain.HOUR else Grain.MONTH if span.months else Grain.DAY
        period: object = {"$substrCP": ["$at", 0, 7]} if grain is Grain.MONTH else "$at"
        stages = first_stages(in_rollups(by, wanted, span, stored))
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
                pipeline.append({"$match": {"$or": behind(after)}})
            pipeline += [{"$sort": {"_id.p": -1, "_id.n": 1, "_id.t": 1}}, {"$limit": at_most}]
        rows = [_row(found, source) async for found in self._aggregated(source, pipeline)]
        if not source.escaped:
            return rows
        rows.sort(key=lambda row: row.name)
        rows.sort(key=lambda row: row.period or "", reverse=True)
        return [row for row in rows if after is None or is_behind(row.place, after)][:at_most]

    async def _aggregated(self, source: _Source, pipeline: Sequence[Stage]) -> AsyncIterator[Mapping[str, Any]]:
        async for found in await source.collection.aggregate(pipeline, allowDiskUse=True):
            yield found

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Give what is inside the time of a report. Raise `SlowReportError`, or `StoreError`."""
        began = time.monotonic()
        try:
            await asyncio.wait_for(self._turns.acquire(), self._timeout_s)
        except TimeoutError:
            raise SlowReportError(self._timeout_s) from None
        try:
            async with translated():
                with pymongo.timeout(max(0.001, self._timeout_s - (time.monotonic() - began))):
                    yield
        except Exception as error:
            driver = error.__cause__
            timed_out = isinstance(driver, PyMongoError) and driver.timeout
            if timed_out and time.monotonic() - began >= self._timeout_s * 0.9:
                raise SlowReportError(self._timeout_s) from error
            raise
        finally:
            self._turns.release()


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
