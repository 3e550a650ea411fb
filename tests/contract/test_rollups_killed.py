"""Whatever kills a process that writes, and whenever: the rollups are the sums of the ledger."""

import asyncio
import random
import signal
import sys
from pathlib import Path

from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.rollup_backfill import RollupBackfill
from tests.sizes import sized

from .test_reports import TENANTS, some_entry
from .test_rollup_backfill import expected, finish, totals

ROOT = Path(__file__).parents[2]
LONGEST_WRITE_S = 0.4
BATCH, BATCHES = 5, 5
ROUNDS = sized(2, 4)


async def append_for_ever(url, database, seed):
    """Append batches, as the process that is killed."""
    chosen = random.Random(seed)
    mongo = Mongo(MongoOptions(url, database, 30.0))
    ledger, job = MongoLedger(mongo), RollupBackfill(mongo, f"r{seed}", lease_s=0.1)
    while True:
        await ledger.append([some_entry(chosen, TENANTS) for _ in range(BATCH)])
        print("written", flush=True)  # noqa: T201 - for the one that kills it
        await job.step()


async def killed_after(seconds, url, database, seed):
    """Kill a writer so long after some of its batches, however slow the machine is."""
    code = "import asyncio; from tests.contract.test_rollups_killed import append_for_ever as run; "
    code += f"asyncio.run(run({url!r}, {database!r}, {seed}))"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}
    )
    for _ in range(BATCHES):
        assert await child.stdout.readline() == b"written\n"
    await asyncio.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL


async def test_writers_that_are_killed_leave_sums_and_ledger_alike(mongo, mongo_url):
    await MongoLedger(mongo).create_indexes()
    name = mongo._database.name
    for seed in range(ROUNDS):
        other = killed_after(0.4 + 0.17 * seed, mongo_url, name, seed + 100)
        await asyncio.gather(killed_after(0.3 + 0.13 * seed, mongo_url, name, seed), other)
    await asyncio.sleep(LONGEST_WRITE_S)  # a transaction that nobody commits ends, as does the lease
    ledger = MongoLedger(mongo)
    await finish(RollupBackfill(mongo, "last"))
    made = await ledger.entries(UsageFilter(), 100_000)
    assert len(made) >= BATCHES * BATCH  # the writers number their entries alike
    assert await totals(mongo) == expected(made)
