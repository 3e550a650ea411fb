"""Parts that end, hang or die under load: what clients see, and that nothing is lost or free of charge."""

import asyncio
import contextlib
import os
import signal
import time

import httpx
import pytest

from extproc.local import parts
from extproc.local.ports import free_ports

from .callers import CHAT, Caller, chat, scrape, total
from .conftest import records_of
from .marks import SYSTEM
from .test_clients_leaving import endless, piece, send
from .test_denied import error_of
from .test_passing_through import EVENTS, SHOWN
from .waiting import until
from .wires import connection

pytestmark = SYSTEM


def child(stack, name):
    (found,) = [each for each in stack.children if each.name == name]
    return found


def gated():
    """An upstream that sends one event, and the others when told."""
    go = asyncio.Event()

    async def script(_received, reply):
        await reply.head()
        await reply.send(EVENTS[0])
        await go.wait()
        for event in EVENTS[1:]:
            await reply.send(event)
        await reply.end()

    return script, go


# ---------------------------------------------------------------- the processor


async def test_a_stream_outlives_the_sigterm_of_its_processor(beside, records, script_server):
    script_server.reset()
    script_server.script, go = gated()
    async with beside(upstream=script_server.url) as stack:
        caller = Caller(stack, records)
        (processor,) = stack.processors
        async with caller.http() as client, client.stream("POST", CHAT, json=chat(stream=True)) as answer:
            chunks = answer.aiter_raw()
            got = await anext(chunks)
            os.kill(processor.pid, signal.SIGTERM)
            await until(lambda: '"draining"' in processor.log_path.read_text(), "it has heard of it")
            go.set()
            got += b"".join([chunk async for chunk in chunks])
        assert got == SHOWN
        async with asyncio.timeout(10):
            assert await processor.wait() == 0
    entry = await caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", 7)
    assert await caller.settled() == 7


async def test_a_processor_that_is_gone_leaves_503s_of_openais_shape(beside, records):
    async with beside() as stack:
        caller = Caller(stack, records)
        (processor,) = stack.processors
        os.kill(processor.pid, signal.SIGTERM)
        await processor.wait()
        for _ in range(3):
            started = time.monotonic()
            error = error_of(await caller.post(), 503)
            assert error["type"] == "server_error"
            assert time.monotonic() - started < 5


# In the place of a status: the answer had begun, and its processor died with the rest of it.
_BROKEN_OFF = 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_client_notices_when_one_of_two_processors_ends(beside, records, number):
    async with beside(processors=2) as stack:
        caller = Caller(stack, records)
        statuses = []
        ended = asyncio.Event()

        async def ask():
            async with caller.http() as client:
                after = 0
                while after < 25:
                    try:
                        statuses.append((await client.post(CHAT, json=chat(max_tokens=4))).status_code)
                    except httpx.RemoteProtocolError:
                        statuses.append(_BROKEN_OFF)
                    after += ended.is_set()
                    await asyncio.sleep(0)

        async def end_one():
            await until(lambda: len(statuses) > 40, "requests are being served")
            os.kill(stack.processors[0].pid, number)
            await stack.processors[0].wait()
            ended.set()

        await asyncio.gather(end_one(), *(ask() for _ in range(8)))
        lost = [status for status in statuses if status != 200]
        if number is signal.SIGTERM:
            assert lost == []
            found = await caller.entries(len(statuses))
            assert {entry["state"] for entry in found} == {"settled"}
            assert await caller.settled() == sum(entry["charge"] for entry in found)
        else:
            # What the dead one had in hand is lost to its clients; what comes later is not.
            assert len(lost) <= 8
            assert set(statuses[-150:]) == {200}


async def test_what_a_dead_processor_held_is_charged_as_held(beside, records, script_server):
    script_server.reset()
    script_server.script, _ = endless([piece(1)])
    settings = {"TOKENWEIR_RESERVATION__TTL_S": "2", "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.3"}
    async with beside(upstream=script_server.url, processors=2, settings=settings) as stack:
        caller = Caller(stack, records)

        async def stream():
            async with connection(stack.gateway) as (reader, writer):
                await send(writer, caller, stream=True, max_tokens=50)
                await reader.readuntil(b"w1 ")
                arrived.release()
                await reader.read()

        arrived = asyncio.Semaphore(0)
        streams = [asyncio.create_task(stream()) for _ in range(2)]  # the processors take turns
        for _ in streams:
            await arrived.acquire()
        victim = next(
            processor
            for processor, metrics in zip(stack.processors, await scrape(stack), strict=True)
            if metrics["tokenweir_streams"]
        )
        os.kill(victim.pid, signal.SIGKILL)
        expired = await caller.entry(within_s=10)
        assert (expired["state"], expired["reason"]) == ("expired", "expired")
        assert expired["charge"] == expired["held"] > 50
        # The one that lives keeps what it holds, as long as its stream is open.
        counts = await caller.counts()
        assert (counts["service_account"].used, counts["service_account"].held) == (
            expired["charge"],
            expired["held"],
        )
        for each in streams:
            each.cancel()
        await asyncio.wait(streams)
        entries = await caller.entries(2)
        (left,) = [entry for entry in entries if entry["_id"] != expired["_id"]]
        assert (left["state"], left["reason"], left["usage"]["output"]) == ("estimated", "cut_off", 1)
        assert await caller.settled() == sum(entry["charge"] for entry in entries)


# ---------------------------------------------------------------- Redis


@contextlib.contextmanager
def stopped(process):
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def refused_quickly(caller, count=6):
    """Every request gets a 503 of ours, at once and one beside the other."""
    started = time.monotonic()
    answers = await asyncio.gather(*(caller.post(stream=bool(n % 2)) for n in range(count)))
    took = time.monotonic() - started
    for answer in answers:
        error = error_of(answer, 503)
        assert (error["type"], error["code"]) == ("server_error", "quota_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert took < 4


async def test_without_redis_requests_are_refused_quickly_and_cost_nothing(beside, records, script_server):
    script_server.reset()
    async with beside(redis=None, upstream=script_server.url) as stack, records_of(stack) as own:
        caller = Caller(stack, own)
        assert (await caller.post()).status_code == 200
        redis = child(stack, "valkey")
        with stopped(redis):
            await refused_quickly(caller)
            await refused_quickly(caller)
        assert len(script_server.received) == 1

        async def served():
            return (await caller.post()).status_code == 200

        await until(served, "requests are served again", within_s=5)
        # What reached Redis while it hung is undone: nothing stays held.
        used = await caller.settled()
        entries = await caller.entries(used // 7)
        assert used == sum(entry["charge"] for entry in entries)
        assert len(script_server.received) == len(entries)

        os.kill(redis.pid, signal.SIGKILL)
        await redis.wait()
        await refused_quickly(caller)
        await refused_quickly(caller)
        assert await total(stack, "tokenweir_stream_faults_total") == 0


async def test_a_stream_that_redis_did_not_outlive_is_recorded_when_redis_is_back(beside, records, script_server):
    script_server.reset()
    script_server.script, go = gated()
    async with beside(redis=None, upstream=script_server.url) as stack, records_of(stack) as own:
        caller = Caller(stack, own)
        async with caller.http() as client, client.stream("POST", CHAT, json=chat(stream=True)) as answer:
            chunks = answer.aiter_raw()
            got = await anext(chunks)
            with stopped(child(stack, "valkey")):
                go.set()
                got += b"".join([chunk async for chunk in chunks])
        assert got == SHOWN
        entry = await caller.entry(within_s=8)
        assert (entry["state"], entry["charge"]) == ("settled", 7)
        assert await caller.settled() == 7


async def test_a_stream_that_redis_hung_through_for_longer_than_it_lives_is_charged_once(
    beside, records, script_server
):
    """Whether it was renewed or expired first: the counters and the ledger say the same."""
    script_server.reset()
    script_server.script, go = gated()
    settings = {"TOKENWEIR_RESERVATION__TTL_S": "1", "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.1"}
    async with (
        beside(redis=None, upstream=script_server.url, settings=settings) as stack,
        records_of(stack) as own,
    ):
        caller = Caller(stack, own)
        async with caller.http() as client, client.stream("POST", CHAT, json=chat(stream=True)) as answer:
            chunks = answer.aiter_raw()
            got = await anext(chunks)
            with stopped(child(stack, "valkey")):
                ended = asyncio.get_running_loop().time() + 2.5
                await until(lambda: asyncio.get_running_loop().time() > ended, "its time is up", within_s=5)
            await until(lambda: answered(caller), "Redis answers again")
            go.set()
            got += b"".join([chunk async for chunk in chunks])
        assert got == SHOWN
        entry = await caller.entry()
        assert entry["state"] in ("settled", "expired")
        assert entry["charge"] == (7 if entry["state"] == "settled" else entry["held"])
        assert await caller.settled() == entry["charge"]
        assert await total(stack, "tokenweir_queue_lost_total") == 0


async def answered(caller):
    async with caller.http() as client:
        return (await client.get("/v1/quota")).status_code == 200


# ---------------------------------------------------------------- MongoDB


async def test_without_mongodb_requests_are_served_and_recorded_when_it_is_back(
    beside, script_server, tmp_path_factory
):
    script_server.reset()
    folder = tmp_path_factory.mktemp("mongo")
    (port,) = free_ports(1)
    mongo = await parts.start_mongo_store(folder, port)
    try:
        async with beside(mongo=mongo.url, upstream=script_server.url) as stack:
            async with records_of(stack) as own:
                caller = Caller(stack, own)
                await caller.limit(ip_limit=300)
                assert (await caller.post(max_tokens=2)).status_code == 200
                await caller.entry()
            os.kill(mongo.process.pid, signal.SIGKILL)
            await mongo.process.wait()
            for n in range(6):
                assert (await caller.post(stream=bool(n % 2), max_tokens=2)).status_code == 200
            answer = await caller.post(max_tokens=300)
            assert answer.status_code == 429
            assert answer.headers["x-ratelimit-limit-tokens"] == "300"  # the limits that are known stay
            mongo = await parts.start_mongo_store(folder, port)
            async with records_of(stack) as own:
                caller = Caller(stack, own, caller.tenant, caller.account)
                entries = await caller.entries(8, within_s=15)
                assert [entry["state"] for entry in entries].count("denied") == 1
                assert sum(entry["charge"] for entry in entries) == 49 == await caller.settled()
                (day,) = await own.daily(caller.account)
                assert (day["usage"], day["requests"], day["denied"]) == (49, 7, 1)
            assert await total(stack, "tokenweir_queue_lost_total") == 0
    finally:
        await mongo.process.stop()
