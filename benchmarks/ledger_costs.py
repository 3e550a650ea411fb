"""Count what the ledger costs in MongoDB, and measure what its writer costs the processor.

    python -m benchmarks.ledger_costs

Statements and bytes are counted on their way to a sink that keeps nothing (`c/sink.c`): no time of a store is in
any figure. Processor time is that of this process alone, the least of some rounds. Sizes of documents are those of
BSON, before compression. Sizes of index keys are estimates: the key's values and 10 bytes, before compression.
"""

import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import uvloop
from bson import ObjectId, encode
from pymongo import monitoring

from benchmarks.errors import CannotRunError
from benchmarks.ledger_entries import entry, limits, reservation
from benchmarks.programs import compiled
from benchmarks.starting import start_listener
from extproc.core.quota.ledger import Entry, denied_entry
from extproc.local.ports import HOST, free_ports
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.documents import DAY_FIELDS, ModelNames, bucket_sums, entry_document, increments
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords, _document

BATCHES: Final = (1, 10, 100, 500)
_FEW: Final = 50  # callers of a batch
_ROUNDS: Final = 9
_AT_LEAST: Final = 2_000  # entries in a round
_KEY_OVERHEAD: Final = 10
_UNCOUNTED: Final = frozenset({"hello", "ismaster", "ping"})

Row = tuple[object, ...]


class Statements(monitoring.CommandListener):
    """Count the commands of a client, the statements in them, and their bytes."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.commands: list[str] = []
        self.statements = 0
        self.bytes = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in _UNCOUNTED:
            return
        self.commands.append(f"{event.command_name} {event.command.get(event.command_name)}")
        self.bytes += len(encode(event.command))
        self.statements += sum(len(event.command.get(each, ())) for each in ("documents", "updates", "deletes"))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


@contextmanager
def counted() -> Iterator[Statements]:
    """Count the statements of each client that is made inside."""
    listeners = monitoring._LISTENERS.command_listeners  # noqa: SLF001 - `Mongo` takes no listener
    listener = Statements()
    listeners.append(listener)
    try:
        yield listener
    finally:
        listeners.remove(listener)


def made(count: int, callers: int, limit_count: int) -> list[Entry]:
    """Return new entries of so many callers, in turn."""
    bound_by = limits(limit_count)
    return [entry(bound_by, caller) for caller in islice(cycle(range(callers)), count)]


async def count_batch(url: str, batch: int, callers: int, limit_count: int) -> Statements:
    """Return the statements of one batch."""
    with counted() as statements:
        mongo = Mongo(MongoOptions(url))
    ledger = MongoLedger(mongo)
    await ledger.append(made(1, 1, 2))  # asks what the server is
    statements.clear()
    await ledger.append(made(batch, callers, limit_count))
    await mongo.aclose()
    return statements


async def cpu_us(batch: int, make: Callable[[], list[Any]], use: Callable[[list[Any]], Awaitable[None]]) -> float:
    """Return the processor microseconds of an item of a batch: the least of some rounds."""
    least = float("inf")
    count = max(1, min(_AT_LEAST, 200 * batch) // batch)
    for _ in range(_ROUNDS):
        batches = [make() for _ in range(count)]
        began = time.process_time()
        for each in batches:
            await use(each)
        least = min(least, (time.process_time() - began) / (count * batch))
    return least * 1e6


async def entry_rows(url: str) -> list[Row]:
    """Measure batches of entries."""
    rows: list[Row] = []
    mongo = Mongo(MongoOptions(url))
    ledger = MongoLedger(mongo)
    await ledger.append(made(1, 1, 2))
    for limit_count in (2, 10):
        for batch in BATCHES:
            for callers in sorted({min(batch, _FEW), batch}):
                done = await count_batch(url, batch, callers, limit_count)
                us = await cpu_us(batch, lambda b=batch, c=callers, n=limit_count: made(b, c, n), ledger.append)
                each = (len(done.commands), done.statements, done.bytes)
                per_entry = (f"{each[0] / batch:.3g}", f"{each[1] / batch:.2f}", f"{each[2] / batch:,.0f}")
                rows.append((limit_count, batch, callers, len(done.commands), *per_entry, f"{us:,.0f}"))
    await mongo.aclose()
    return rows


async def hold_rows(url: str) -> list[Row]:
    """Measure batches of holds that are saved and dropped."""
    mongo = Mongo(MongoOptions(url))
    records = MongoRecords(mongo)
    await mongo.ping()
    bound_by = limits(2)

    async def use(held: list[Any]) -> None:
        await records.save(held)
        await records.drop([each.id for each in held])

    rows: list[Row] = []
    for batch in (1, 10, 100, 250):
        us = await cpu_us(batch, lambda n=batch: [reservation(bound_by, i) for i in range(n)], use)
        rows.append((batch, 2, f"{us:,.0f}"))
    await mongo.aclose()
    return rows


def sizes(limit_count: int) -> Mapping[str, int]:
    """Return the bytes of one document of each kind."""
    bound_by = limits(limit_count)
    one, held = entry(bound_by, 12345), reservation(bound_by, 12345)
    ((key, sums),) = increments([one], ModelNames()).items()
    tokens = {name: value for name, value in sums.items() if not name.startswith("models.")}
    day = {
        "_id": ObjectId(),
        **dict(zip(DAY_FIELDS, key, strict=True)),
        **tokens,
        "models": {one.model: one.charge},
    }
    (tenant, bucket), (used, _) = next(iter(bucket_sums([one]).items()))
    of_bucket = {
        "_id": f"{tenant}:{bucket}",
        "tenant_id": tenant,
        "key": bucket,
        "used": used,
        "until": one.ended_at,
    }
    documents: dict[str, Mapping[str, Any]] = {
        "an entry": entry_document(one),
        "an entry of a denied request": entry_document(denied_entry(held, "service_account")),
        "a row of daily usage": day,
        "a sum of a bucket": of_bucket,
        "a saved hold": _document(held, held.admitted_at),
    }
    return {name: len(encode(document)) for name, document in documents.items()}


def index_sizes(*, retention: bool = True) -> Mapping[str, int]:
    """Return the estimated bytes of one entry in each index of the ledger."""
    one = entry_document(entry(limits(2), 12345))
    indexes = ["_id", "serviceAccount, clientIP, date", "tenant_id, ended_at, _id", "ended_at, _id", "request_id"]
    indexes += ["admitted_at, _id"]
    indexes += ["ended_at"] if retention else []
    return {name: _KEY_OVERHEAD + sum(_key_bytes(one[each]) for each in name.split(", ")) for name in indexes}


def _key_bytes(value: object) -> int:
    return len(value) + 2 if isinstance(value, str) else 9  # a date: its type and 8 bytes


def table(head: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


async def run() -> None:
    """Print all tables."""
    with tempfile.TemporaryDirectory(prefix="tokenweir-ledger-") as folder:
        (port,) = free_ports(1)
        sink = await start_listener("sink", (str(compiled().sink), str(port)), Path(folder), port)
        url = f"mongodb://{HOST}:{port}/?directConnection=true"
        entries, holds = await entry_rows(url), await hold_rows(url)
        await sink.stop()
    head = ("limits", "entries in a batch", "callers", "commands", "commands an entry", "statements an entry")
    print(table((*head, "bytes an entry", "processor, us an entry"), entries))
    print(table(("holds in a batch", "commands", "processor, us a hold"), holds))
    two, ten = sizes(2), sizes(10)
    print(table(("document", "bytes, 2 limits", "10 limits"), [(name, two[name], ten[name]) for name in two]))
    print(table(("index of token_ledger", "bytes an entry, estimated"), [*index_sizes().items()]))


def main() -> int:
    """Run, and return the exit status: 3 if it can't run here."""
    try:
        uvloop.run(run())
    except CannotRunError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
