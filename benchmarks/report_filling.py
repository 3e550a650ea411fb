"""Fill a store with the rows of reports: in bulk, by several processes, and indexes afterwards.

A store that is stopped on the way is filled on where it was, with the same folder and numbers.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from typing import Any, Final

import pymongo
from pymongo import MongoClient
from pymongo.errors import BulkWriteError

from benchmarks.report_rows import Added, Document, Size, add_all, entries, rollup, tenant_rows
from extproc.stores.mongo.account_months import ACCOUNTS_FROM
from extproc.stores.mongo.client import ACCOUNT_MONTHS, DAILY, LEDGER, MIGRATIONS, ROLLUPS, Mongo, only_duplicates
from extproc.stores.mongo.daily_migration import DailyMigration
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.rollups import STATE

PROGRESS: Final = "benchmark_progress"
_BATCH: Final = 1000
_ENTRIES: Final = 20_000  # of one task
_PATIENCE_S: Final = 36_000.0


def fill(url: str, database: str, size: Size, processes: int) -> None:
    """Write what is missing, without indexes."""
    client: MongoClient[Document] = MongoClient(url)
    progress = client[database][PROGRESS]
    done = {each["_id"] for each in progress.find({"size": str(size)}, {"_id": 1})}
    firsts = range(0, size.entries, _ENTRIES)
    tasks = [("tenant", number) for number in range(size.tenants)] + [("entries", first) for first in firsts]
    total: Added = {}
    began, rows = time.monotonic(), 0
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(_write, url, database, size, kind, number, written=f"{kind} {number} {size}" in done)
            for kind, number in tasks
        ]
        for count, future in enumerate(as_completed(futures), 1):
            written, added = future.result()
            add_all(total, added)
            rows += written
            if count % 50 == 0:
                rate = rows / (time.monotonic() - began)
                said = f"{count:,} of {len(tasks):,} tasks, {rows:,} rows, {rate:,.0f}/s"
                print(said, file=sys.stderr, flush=True)
    _insert(client[database][ROLLUPS], (rollup(grain, at, None, sums) for (grain, at), sums in total.items()))
    complete = {"$set": {"done": True, ACCOUNTS_FROM: ""}, "$unset": {"place": ""}}
    client[database][MIGRATIONS].update_one({"_id": STATE}, complete, upsert=True)
    client.close()
    if rows:
        print(f"wrote {rows:,} rows in {time.monotonic() - began:,.0f} s", file=sys.stderr, flush=True)


async def make_indexes(mongo: Mongo) -> None:
    """Make the indexes of the product: those of the ledger, of daily usage and of its migration."""
    began = time.monotonic()
    with pymongo.timeout(_PATIENCE_S):
        await MongoLedger(mongo).create_indexes()
        await MongoRecords(mongo).create_indexes()
        await DailyMigration(mongo, lambda _: None, "benchmark").step()  # it makes an index too
    print(f"made indexes in {time.monotonic() - began:,.0f} s", file=sys.stderr, flush=True)


def _write(url: str, database: str, size: Size, kind: str, number: int, *, written: bool) -> tuple[int, Added]:
    """Write the rows of a task. Return how many, and what they add to the rows of all tenants."""
    client = _client(url)
    store = client[database]
    if kind == "tenant":
        rows = tenant_rows(size, number)
        parts: list[tuple[str, Iterable[Document]]] = [
            (DAILY, rows.daily), (ROLLUPS, rows.rollups), (ACCOUNT_MONTHS, rows.accounts),
        ]  # fmt: skip
        added = rows.added
    else:
        parts = [(LEDGER, entries(size, number, min(number + _ENTRIES, size.entries)))]
        added = {}
    if written:
        return 0, added
    count = sum(_insert(store[name], documents) for name, documents in parts)
    store[PROGRESS].insert_one({"_id": f"{kind} {number} {size}", "size": str(size)})
    return count, added


_clients: dict[str, MongoClient[Document]] = {}


def _client(url: str) -> MongoClient[Document]:
    """Return this process's client."""
    if url not in _clients:
        _clients[url] = MongoClient(url)
    return _clients[url]


def _insert(collection: Any, documents: Iterable[Document]) -> int:
    """Insert documents; those of an earlier run are there already."""
    count = 0
    for batch in _batches(documents):
        try:
            collection.insert_many(batch, ordered=False)
        except BulkWriteError as error:
            if not only_duplicates(error):
                raise
        count += len(batch)
    return count


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while batch := list(islice(rest, _BATCH)):
        yield batch
