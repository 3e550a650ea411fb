"""Measure usage reports at size: fill the embedded store with daily usage, rollups and a ledger, and ask queries.

    python -m benchmarks.reports --tenants 1000 --accounts 3 --days 90 --entries 60000 --folder /tmp/reports

Rows are written in bulk, straight into the store; they are the same in each run. A run that was stopped goes on
where it was, with the same folder and numbers. Daily usage and rollups agree; the ledger has its own entries, of
the last days only, because it would take days to write one for each request. Then each query is asked some times.
The documents read are those that the first stage of a query finds by an index.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pymongo.errors import BulkWriteError

from benchmarks.ledger_entries import entry, limits
from extproc.core.request.identity import Identity
from extproc.local.parts import start_mongo_store
from extproc.local.ports import free_ports
from extproc.ports.ledger import UsageFilter
from extproc.ports.reports import By, Grain, Measure, ReportFilter
from extproc.stores.mongo.client import DAILY, LEDGER, MIGRATIONS, ROLLUPS, Mongo, MongoOptions, only_duplicates
from extproc.stores.mongo.daily_migration import DailyMigration
from extproc.stores.mongo.documents import entry_document
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.reports import MongoSums
from extproc.stores.mongo.rollups import ROLLED, STATE, row_fields, row_id

_BATCH: Final = 2000
_MODELS: Final = ("llama-3_3-70b", "qwen3-32b", "embed-large")
_ENDPOINTS: Final = ("chat_completions", "embeddings")
_HOURLY_DAYS: Final = 1
_ENTRY_DAYS: Final = 7
_PROGRESS: Final = "benchmark_progress"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """Say how much is written."""

    tenants: int
    accounts: int
    days: int
    entries: int

    def dates(self) -> list[date]:
        """Return the dates, the last one today."""
        today = datetime.now(UTC).date()
        return [today - timedelta(days=back) for back in reversed(range(self.days))]


def tenant_name(number: int) -> str:
    return f"tenant{number:04}"


def account_name(tenant: int, number: int) -> str:
    return f"console@zone-{tenant:04}-{number:04}.example.com"


def sums(tenant: int, account: int, day: date) -> dict[str, int]:
    """Return the usage of an account on a date. Some tenants and accounts use far more than others."""
    chosen = random.Random(f"{tenant}:{account}:{day}")
    requests = 1 + int(chosen.paretovariate(1.2) * 2000 / (1 + tenant) / (1 + account))
    read, written = requests * chosen.randrange(200, 1500), requests * chosen.randrange(50, 400)
    return {
        "usage": read + written,
        "input": read,
        "output": written,
        "requests": requests,
        "price": written * 601,
    }


def daily_rows(size: Size) -> Iterator[Document]:
    for day in size.dates():
        for tenant in range(size.tenants):
            for account in range(size.accounts):
                yield {
                    "tenant_id": tenant_name(tenant),
                    "serviceAccount": account_name(tenant, account),
                    "clientIP": f"10.{tenant >> 8}.{tenant & 255}.{account & 255}",
                    "date": day.isoformat(),
                    **sums(tenant, account, day),
                }


def rollup_rows(size: Size) -> Iterator[Document]:
    """Yield days of tenants, months, the last days' hours, and the same of all tenants."""
    months: dict[tuple[str, str | None], dict[str, int]] = {}
    dates = size.dates()
    for day in dates:
        whole: dict[str, int] = {}
        for tenant in range(size.tenants):
            of_day: dict[str, int] = {}
            for account in range(size.accounts):
                _add(of_day, sums(tenant, account, day))
            name = tenant_name(tenant)
            yield _rollup(Grain.DAY, day.isoformat(), name, of_day)
            if day in dates[-_HOURLY_DAYS:]:
                for hour in range(24):
                    part = {key: value // 24 for key, value in of_day.items()}
                    yield _rollup(Grain.HOUR, f"{day}T{hour:02}", name, part)
            _add(months.setdefault((f"{day:%Y-%m}", name), {}), of_day)
            _add(whole, of_day)
        yield _rollup(Grain.DAY, day.isoformat(), None, whole)
        _add(months.setdefault((f"{day:%Y-%m}", None), {}), whole)
    for (month, tenant_or_none), of_month in months.items():
        yield _rollup(Grain.MONTH, month, tenant_or_none, of_month)


def entries(size: Size) -> Iterator[Document]:
    bound_by, chosen = limits(2), random.Random(1)
    now = datetime.now(UTC)
    for number in range(size.entries):
        made = entry(bound_by, 0)
        tenant = min(int(chosen.paretovariate(0.7)) - 1, 10**9) % size.tenants
        account = chosen.randrange(size.accounts)
        who = Identity(tenant_name(tenant), account_name(tenant, account), f"10.0.0.{account & 255}")  # type: ignore[arg-type]
        at = now - timedelta(days=_ENTRY_DAYS) * (1 - number / size.entries)
        document = entry_document(made) | {
            "_id": f"{number:032x}",
            "tenant_id": who.tenant,
            "serviceAccount": who.service_account,
            "clientIP": who.client_ip,
            "model": chosen.choice(_MODELS),
            "date": f"{at:%Y-%m-%d}",
            "admitted_at": at,
            "ended_at": at + timedelta(seconds=4),
        }
        yield document | {ROLLED: 1}


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _rollup(grain: Grain, period: str, tenant: str | None, whole: dict[str, int]) -> Document:
    key = (grain, period, tenant)
    shares = {name: {each: value // len(_MODELS) for each, value in whole.items()} for name in _MODELS}
    halves = {name: {each: value // len(_ENDPOINTS) for each, value in whole.items()} for name in _ENDPOINTS}
    return {"_id": row_id(key, 0), **row_fields(key, 0), **whole, "models": shares, "endpoints": halves}


async def fill(mongo: Mongo, size: Size) -> None:
    """Write what is missing."""
    ledger = MongoLedger(mongo)
    await ledger.create_indexes()
    await MongoRecords(mongo).create_indexes()
    await DailyMigration(mongo, lambda _: None, "benchmark").step()  # it makes an index too
    kinds = ((ROLLUPS, rollup_rows), (DAILY, daily_rows), (LEDGER, entries))
    progress = mongo.collection(_PROGRESS)
    for name, rows in kinds:
        noted = await progress.find_one({"_id": f"{name} {size}"}) or {"done": 0}
        done, began, written = noted["done"], time.monotonic(), 0
        for number, batch in enumerate(_batches(rows(size))):
            if number < done:
                continue
            try:
                await mongo.collection(name).insert_many(batch, ordered=False)
            except BulkWriteError as error:
                if not only_duplicates(error):
                    raise
            await progress.update_one({"_id": f"{name} {size}"}, {"$set": {"done": number + 1}}, upsert=True)
            written += len(batch)
            if number % 25 == 0:
                rate = written / (time.monotonic() - began)
                print(f"{name}: {(number + 1) * _BATCH:,} rows, {rate:,.0f}/s", file=sys.stderr, flush=True)
    done_state = {"$set": {"done": True}, "$unset": {"place": ""}}
    await mongo.collection(MIGRATIONS).update_one({"_id": STATE}, done_state, upsert=True)


def _batches(rows: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class Watched(MongoSums):
    """Remember the first stage of each pipeline, to count what its index finds."""

    def __init__(self, mongo: Mongo, timeout_s: float) -> None:
        super().__init__(mongo, timeout_s)
        self.seen: list[tuple[Any, Mapping[str, Any]]] = []

    async def _aggregated(self, source: Any, pipeline: Sequence[Any]) -> AsyncIterator[Mapping[str, Any]]:
        self.seen.append((source.collection, pipeline[0]["$match"]))
        async for found in super()._aggregated(source, pipeline):
            yield found


Query = tuple[str, Callable[[], Awaitable[Any]]]


def queries(found: Watched, ledger: MongoLedger, size: Size) -> list[Query]:
    """Return the queries: what the command line asks for."""
    dates = [day.isoformat() for day in size.dates()]
    today, week, last = dates[-1], dates[-7:][0], dates[-8:-7][0] if size.days > 7 else dates[0]
    month, tenant, account = f"{today[:7]}-01", tenant_name(3), account_name(3, 0)
    every, this_month, its = ReportFilter(), ReportFilter(since=month), ReportFilter(tenant=tenant)

    def top(by: By, wanted: ReportFilter, measure: Measure = Measure.USAGE) -> Callable[[], Awaitable[Any]]:
        return lambda: found.top(by, wanted, measure, 10)

    def report(by: By, grain: Grain, wanted: ReportFilter, rows: int = 1001) -> Callable[[], Awaitable[Any]]:
        return lambda: found.report(by, grain, wanted, rows)

    by_account = ReportFilter(service_account=account)
    recent, now = ReportFilter(tenant, account, since=week), ReportFilter(tenant, account, since=today)
    hours = ReportFilter(tenant=tenant, since=today, until=today)
    return [
        ("top tenants, all dates", top(By.TENANT, every)),
        ("top tenants, this month", top(By.TENANT, this_month)),
        ("top tenants by price, 7 days", top(By.TENANT, ReportFilter(since=week), Measure.PRICE)),
        ("top models, all dates", top(By.MODEL, every)),
        ("top endpoints, this month", top(By.ENDPOINT, this_month)),
        ("total, all dates", lambda: found.total(every)),
        ("total of a model, all dates", lambda: found.total(ReportFilter(model=_MODELS[0]))),
        ("tenants by day, 1,000 rows", report(By.TENANT, Grain.DAY, every)),
        ("tenants by month, 1,000 rows", report(By.TENANT, Grain.MONTH, every)),
        ("models by day, all dates", report(By.MODEL, Grain.DAY, every)),
        ("a tenant by day, all dates", report(By.TENANT, Grain.DAY, its)),
        ("a tenant by hour, today", report(By.TENANT, Grain.HOUR, hours)),
        ("a tenant's models by month", report(By.MODEL, Grain.MONTH, its)),
        ("a tenant's top accounts, this month", top(By.SERVICE_ACCOUNT, ReportFilter(tenant=tenant, since=month))),
        ("a tenant's top accounts, all dates", top(By.SERVICE_ACCOUNT, its)),
        ("a tenant's top client IPs, 7 days", top(By.CLIENT_IP, ReportFilter(tenant=tenant, since=week))),
        ("an account by day, all dates", report(By.SERVICE_ACCOUNT, Grain.DAY, by_account)),
        ("an account's models, 7 days", top(By.MODEL, recent)),
        ("an account's hours, today", report(By.SERVICE_ACCOUNT, Grain.HOUR, now)),
        ("all accounts, one day: the top", top(By.SERVICE_ACCOUNT, ReportFilter(since=last, until=last))),
        ("all accounts, 7 days: the top", top(By.SERVICE_ACCOUNT, ReportFilter(since=week))),
        ("usage daily, 1,000 rows", lambda: ledger.daily(UsageFilter(), 1000)),
        ("usage daily of a tenant, 7 days", lambda: ledger.daily(UsageFilter(tenant, since=week), 1000)),
        ("usage entries of a tenant, 100", lambda: ledger.entries(UsageFilter(tenant_name(400)), 100)),
    ]  # fmt: skip


async def ask(mongo: Mongo, size: Size, times: int) -> None:
    """Ask each query some times, and print a table."""
    found, ledger = Watched(mongo, 600.0), MongoLedger(mongo)
    print("| query | p50 s | p95 s | documents read |\n|---|---|---|---|")
    middle: list[float] = []
    for name, query in queries(found, ledger, size):
        taken = []
        for _ in range(times):
            found.seen.clear()
            began = time.monotonic()
            await query()
            taken.append(time.monotonic() - began)
        rows = [await collection.count_documents(match) for collection, match in found.seen]
        middle += taken
        half, most = statistics.median(taken), sorted(taken)[max(0, -(-len(taken) * 95 // 100) - 1)]
        print(f"| {name} | {half:.2f} | {most:.2f} | {f'{sum(rows):,}' if rows else '-'} |", flush=True)
    half, most = statistics.median(middle), sorted(middle)[-(-len(middle) * 95 // 100) - 1]
    print(f"\nAll {len(middle)} calls: p50 {half:.2f} s, p95 {most:.2f} s, the longest {max(middle):.2f} s")


@asynccontextmanager
async def store(url: str | None, folder: Path) -> AsyncIterator[str]:
    """Start the embedded store, or use another one."""
    if url is not None:
        yield url
        return
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs
    part = await start_mongo_store(folder, *free_ports(1))
    try:
        yield part.url
    finally:
        await part.process.stop()


async def run(arguments: argparse.Namespace) -> None:
    size = Size(arguments.tenants, arguments.accounts, arguments.days, arguments.entries)
    async with store(arguments.url, arguments.folder) as url:
        mongo = Mongo(MongoOptions(url, "reports", 600.0))
        try:
            if not arguments.ask_only:
                await fill(mongo, size)
            await ask(mongo, size, arguments.times)
        finally:
            await mongo.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tenants", 1000), ("accounts", 10), ("days", 90), ("entries", 200_000), ("times", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ask-only", action="store_true", help="write nothing: ask what was written before")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tokenweir-reports"))
    parser.add_argument("--url", help="a MongoDB to use instead of the embedded store; its database `reports`")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
