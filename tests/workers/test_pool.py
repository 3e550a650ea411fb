"""Work in other processes: a process that fails fails its job alone, and nobody waits without end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extproc.workers.pool import NotDoneError, Pool, PoolOptions, Why

PREPARED = "tests.workers.jobs:prepared"
PATIENT = PoolOptions(processes=1, timeout_s=60, start_s=60, memory_bytes=1 << 20)


@pytest.fixture
async def pool():
    made = Pool(PREPARED, PATIENT, ("a", "b"))
    made.start()
    yield made
    await made.aclose()


async def why(doing):
    with pytest.raises(NotDoneError) as error:
        await doing
    return error.value.why


async def test_jobs_are_done_in_another_process_that_gives_way(pool):
    assert await pool.do("x", b"echo", b"y" * (1 << 20)) == b"y" * (1 << 20)
    assert await pool.do("x", b"arguments", b"") == b"a b"
    assert int(await pool.do("x", b"pid", b"")) != os.getpid()
    assert int(await pool.do("x", b"nice", b"")) == min(19, os.nice(0) + 10)
    assert pool.ready


async def test_a_job_that_fails_fails_alone(pool):
    pid = await pool.do("x", b"pid", b"")
    for _ in range(2):
        assert await why(pool.do("x", b"raise", b"")) is Why.FAILED
    assert await why(pool.do("x", b"die", b"")) is Why.FAILED
    assert await pool.do("x", b"echo", b"again") == b"again"
    assert await pool.do("x", b"pid", b"") != pid


async def test_a_process_that_ended_between_two_jobs_is_replaced_before_the_next(pool):
    pid = int(await pool.do("x", b"pid", b""))
    os.kill(pid, signal.SIGKILL)
    assert int(await pool.do("x", b"pid", b"")) != pid


async def test_a_process_that_hangs_is_ended_and_replaced():
    pool = Pool(PREPARED, PoolOptions(processes=1, timeout_s=60, start_s=60))
    pool.start()
    try:
        pid = int(await pool.do("x", b"pid", b""))
        pool._options = PoolOptions(processes=1, timeout_s=0.05, job_s=0.1, start_s=60)
        assert await why(pool.do("x", b"hang", b"")) is Why.SLOW
        pool._options = PATIENT
        assert int(await pool.do("x", b"pid", b"")) != pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        await pool.aclose()


async def test_those_who_ask_take_turns_and_no_one_fills_the_queue():
    pool = Pool(PREPARED, PoolOptions(processes=1, waiting=6, waiting_each=4, timeout_s=60, start_s=60))
    done = []

    async def ask(who, number):
        await pool.do(who, b"x", b"")
        done.append((who, number))

    many = [asyncio.create_task(ask("greedy", n)) for n in range(4)]
    await asyncio.sleep(0)
    assert await why(pool.do("greedy", b"x", b"")) is Why.BUSY
    others = [asyncio.create_task(ask(who, 0)) for who in ("one", "two")]
    await asyncio.sleep(0)
    assert await why(pool.do("three", b"x", b"")) is Why.BUSY
    await asyncio.gather(*many, *others)
    assert done == [("greedy", 0), ("one", 0), ("two", 0), ("greedy", 1), ("greedy", 2), ("greedy", 3)]
    await pool.aclose()


async def test_nobody_has_all_processes():
    pool = Pool(PREPARED, PoolOptions(processes=2, timeout_s=60, start_s=60))
    done = []

    async def ask(who, head):
        await pool.do(who, head, b"")
        done.append(who)

    try:
        await asyncio.gather(ask("greedy", b"x"), ask("other", b"x"))  # both processes run
        done.clear()
        many = [asyncio.create_task(ask("greedy", b"sleep")) for _ in range(4)]
        await asyncio.sleep(0.05)
        await ask("other", b"x")
        assert done == ["other"]
        await asyncio.gather(*many)
        assert not pool._running
    finally:
        await pool.aclose()


async def test_a_caller_that_leaves_takes_no_room(pool):
    await pool.do("x", b"echo", b"")
    for _ in range(3 * PATIENT.waiting_each):
        task = asyncio.create_task(pool.do("x", b"echo", b""))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await pool.do("x", b"echo", b"z") == b"z"


async def test_where_no_process_starts_each_job_fails_at_once():
    pool = Pool("tests.workers.jobs:broken", PATIENT)
    for _ in range(2):
        assert await why(pool.do("x", b"echo", b"")) is Why.FAILED
    assert not pool.ready
    await pool.aclose()


async def test_a_pool_that_stops_fails_what_waits_and_takes_nothing_more():
    pool = Pool(PREPARED, PATIENT)
    hanging = [asyncio.create_task(pool.do("x", b"hang", b"")) for _ in range(2)]
    await asyncio.sleep(0)
    await pool.aclose()
    assert [await why(task) for task in hanging] == [Why.FAILED] * 2
    assert await why(pool.do("x", b"echo", b"")) is Why.BUSY


PARENT = """
import asyncio
from extproc.workers.pool import Pool, PoolOptions

async def main():
    pool = Pool("tests.workers.jobs:prepared", PoolOptions(processes=1, timeout_s=60, start_s=60))
    print((await pool.do("x", b"pid", b"")).decode(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_process_ends_when_its_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        command = Path(f"/proc/{int(parent.stdout.readline())}/cmdline")
        assert b"workers.child" in command.read_bytes()
        parent.kill()
    until = time.monotonic() + 60
    while _is_child(command):
        assert time.monotonic() < until
        time.sleep(0.01)


def _is_child(command):
    try:
        return b"workers.child" in command.read_bytes()
    except OSError:
        return False


async def test_a_job_gets_the_parts_of_its_payload_as_one(pool):
    parts = [b"a" * 300_000, b"", b"b", b"c" * 600_000]
    assert await pool.do("x", b"echo", *parts) == b"".join(parts)
