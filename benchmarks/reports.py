"""Measure usage reports at size: fill a store with daily usage, rollups and a ledger, and ask queries.

    python -m benchmarks.reports --tenants 1000 --accounts 1000 --active 0.03 --folder /tmp/r

The embedded store is started for it, with a larger cache and without syncing of each write; `--url` takes
another one. Each query is asked some times, in turns. The documents read are those that the first stage of a query
finds by an index. The store's processor time is what a query takes at least, however busy the machine is.
"""

import argparse
import asyncio
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from pymongo import monitoring

from benchmarks.errors import CannotRunError
from benchmarks.report_filling import fill, make_indexes
from benchmarks.report_rows import MODELS, Size, account_name, tenant_name
from benchmarks.starting import start_listener
from extproc.local.ports import HOST, free_ports
from extproc.ports.ledger import UsageFilter
from extproc.ports.reports import By, Grain, Measure, ReportFilter
from extproc.stores.mongo.client import ACCOUNT_MONTHS, Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.reports import MongoSums

_DATABASE: Final = "reports"


class Read(monitoring.CommandListener):
    """Count the documents that the store returns for a search of months of service accounts."""

    def __init__(self) -> None:
        self.documents = 0
        self._searches: set[int] = set()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if ACCOUNT_MONTHS in (event.command.get("find"), event.command.get("collection")):
            self._searches.add(event.request_id)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        if event.request_id in self._searches:
            self._searches.discard(event.request_id)
            cursor = event.reply.get("cursor", {})
            self.documents += len(cursor.get("firstBatch", ())) + len(cursor.get("nextBatch", ()))

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._searches.discard(event.request_id)


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
    thirty = ReportFilter(since=dates[-30:][0], until=last)
    hours = ReportFilter(tenant=tenant, since=today, until=today)
    return [
        ("top tenants, all dates", top(By.TENANT, every)),
        ("top tenants, this month", top(By.TENANT, this_month)),
        ("top tenants by price, 7 days", top(By.TENANT, ReportFilter(since=week), Measure.PRICE)),
        ("top models, all dates", top(By.MODEL, every)),
        ("top endpoints, this month", top(By.ENDPOINT, this_month)),
        ("total, all dates", lambda: found.total(every)),
        ("total of a model, all dates", lambda: found.total(ReportFilter(model=MODELS[0]))),
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
        ("all accounts, all dates: the top", top(By.SERVICE_ACCOUNT, every)),
        ("all accounts, this month: the top", top(By.SERVICE_ACCOUNT, this_month)),
        ("all accounts, 30 days: the top by price", top(By.SERVICE_ACCOUNT, thirty, Measure.PRICE)),
        ("all accounts, one day: the top", top(By.SERVICE_ACCOUNT, ReportFilter(since=last, until=last))),
        ("all accounts, 7 days: the top", top(By.SERVICE_ACCOUNT, ReportFilter(since=week))),
        ("usage daily, 1,000 rows", lambda: ledger.daily(UsageFilter(), 1000)),
        ("usage daily of a tenant, 7 days", lambda: ledger.daily(UsageFilter(tenant, since=week), 1000)),
        ("usage entries of a tenant, 100", lambda: ledger.entries(UsageFilter(tenant_name(400)), 100)),
    ]  # fmt: skip


async def ask(mongo: Mongo, size: Size, times: int, read: Read, pid: int | None) -> None:
    """Ask each query some times, in turns, and print a table."""
    found, ledger = Watched(mongo, 600.0), MongoLedger(mongo)
    asked = queries(found, ledger, size)
    taken: dict[str, list[float]] = {name: [] for name, _ in asked}
    cpu: dict[str, list[float]] = {name: [] for name, _ in asked}
    documents: dict[str, int] = {}
    for _ in range(times):
        for name, query in asked:
            found.seen.clear()
            read.documents = 0
            began, used = time.monotonic(), processor_seconds(pid)
            await query()
            taken[name].append(time.monotonic() - began)
            if used is not None:
                cpu[name].append((processor_seconds(pid) or 0) - used)
            if name not in documents:
                listed = read.documents
                counts = [await collection.count_documents(match) for collection, match in found.seen]
                documents[name] = listed + sum(counts)
    print("| query | p50 s | p95 s | store's processor s | documents read |\n|---|---|---|---|---|")
    for name, _ in asked:
        half, most = statistics.median(taken[name]), high(taken[name])
        of_store = f"{statistics.median(cpu[name]):.2f}" if cpu[name] else "-"
        some = f"{documents[name]:,}" if documents[name] else "-"
        print(f"| {name} | {half:.2f} | {most:.2f} | {of_store} | {some} |")
    every = [each for some in taken.values() for each in some]
    half, most = statistics.median(every), high(every)
    print(f"\nAll {len(every)} calls: p50 {half:.2f} s, p95 {most:.2f} s, the longest {max(every):.2f} s")


def processor_seconds(pid: int | None) -> float | None:
    """Return what a process has used of the processor; None without a process."""
    if pid is None:
        return None
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def high(taken: Sequence[float]) -> float:
    """Return the 95th percentile: the smallest that 95 % are not above."""
    return sorted(taken)[-(-len(taken) * 95 // 100) - 1]


@asynccontextmanager
async def store(url: str | None, folder: Path, cache: str) -> AsyncIterator[tuple[str, int | None]]:
    """Start the embedded store for bulk writes, or use another one. Yield its address and process."""
    if url is not None:
        yield url, None
        return
    if importlib.util.find_spec("secantus") is None:
        raise CannotRunError("the MongoDB-compatible store is not installed: pip install 'tokenweir[local]'")
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs
    (port,) = free_ports(1)
    argv = (sys.executable, "-P", "-m", "secantus", "--host", HOST, "--port", str(port))
    argv = (*argv, "--storage-path", "mongo-data", "--cache-size", cache, "--oplog-max-entries", "1000")
    part = await start_listener("mongo-store", argv, folder, port)
    try:
        yield f"mongodb://{HOST}:{port}/?directConnection=true", part.pid
    finally:
        await part.stop()


async def run(arguments: argparse.Namespace) -> None:
    """Fill, and ask."""
    size = Size(
        arguments.tenants, arguments.accounts, arguments.days, arguments.entries, arguments.active, arguments.even
    )
    read = Read()
    monitoring.register(read)
    async with store(arguments.url, arguments.folder, arguments.cache) as (url, pid):
        if not arguments.ask_only:
            await asyncio.to_thread(fill, url, _DATABASE, size, arguments.processes)
        mongo = Mongo(MongoOptions(url, _DATABASE, 36_000.0))
        try:
            if not arguments.ask_only:
                await make_indexes(mongo)
            if not arguments.fill_only:
                await ask(mongo, size, arguments.times, read, pid)
        finally:
            await mongo.aclose()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"tenants": 1000, "accounts": 10, "days": 90, "entries": 200_000, "times": 5, "processes": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--active", type=float, default=1.0, help="share of a tenant's accounts used on a day")
    parser.add_argument("--even", action="store_true", help="all tenants and accounts use about the same")
    parser.add_argument("--cache", default="4G", help="cache of the embedded store")
    parser.add_argument("--ask-only", action="store_true", help="write nothing: ask what was written before")
    parser.add_argument("--fill-only", action="store_true", help="ask nothing")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tokenweir-reports"))
    parser.add_argument("--url", help="a MongoDB to use instead of the embedded store; its database `reports`")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
