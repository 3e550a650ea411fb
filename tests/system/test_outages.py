"""Parts that end, hang or die under load: what clients see through Envoy, and that nothing is lost or free of charge.

More faults, more replicas and how long things take are in tests/chaos: rolling restarts, a Redis that hangs or is lost.
"""

import asyncio
import contextlib
import os
import signal
import sys

import httpx
import pytest
import pytest_asyncio

from extproc.local import parts
from extproc.local.ports import free_ports

from .callers import CHAT, Caller, chat, scrape, total
from .marks import SYSTEM
from .stacks import kill, records_of
from .test_clients_leaving import endless, piece, send
from .test_denied import error_of
from .test_passing_through import EVENTS, SHOWN
from .upstreams import answer_plainly
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


@contextlib.asynccontextmanager
async def half_a_stream(caller):
    """Begin a stream of a `gated` upstream; yield what reads the rest of it and returns all of it."""
    async with caller.http() as client:

        async def admitted():
            answer = await client.send(client.build_request("POST", CHAT, json=chat(stream=True)), stream=True)
            if answer.status_code == 200:
                return answer
            await answer.aclose()
            return None

        answer = await until(admitted, "a stream is admitted")
        chunks = answer.aiter_raw()
        got = await anext(chunks)

        async def rest():
            return got + b"".join([chunk async for chunk in chunks])

        yield rest
        await answer.aclose()


# ---------------------------------------------------------------- the processor


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mortal(beside, script_server):
    """Two processors that a test may end; what they hold lives for two seconds without them."""
    settings = {"TOKENWEIR_RESERVATION__TTL_S": "2", "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.3"}
    async with beside(upstream=script_server.url, processors=2, settings=settings) as stack:
        yield stack
        kill(stack)


# In the place of a status: the answer had begun, and its processor died with the rest of it.
_BROKEN_OFF = 0
_CLIENTS = 8
_BEFORE, _AFTER = 20, 8  # answers to all clients before the end of a processor, and to each after it


class Crowd:
    """Clients that ask all the while until a processor has ended, and then some times more."""

    def __init__(self, caller):
        self._caller = caller
        self._ended = asyncio.Event()
        self.statuses = []
        self.after = []

    async def ask(self):
        async with self._caller.http() as client:
            await asyncio.gather(*(self._one(client) for _ in range(_CLIENTS)))

    async def before_the_end(self):
        await until(lambda: len(self.statuses) >= _BEFORE, "requests are being served")

    def ended(self):
        self._ended.set()

    async def _one(self, client):
        after = 0
        while after < _AFTER:
            ended = self._ended.is_set()
            try:
                status = (await client.post(CHAT, json=chat(max_tokens=4))).status_code
            except httpx.RemoteProtocolError:
                status = _BROKEN_OFF
            (self.after if ended else self.statuses).append(status)
            after += ended


@pytest.mark.thorough
async def test_what_a_dead_processor_held_is_charged_as_held_and_the_other_one_serves(mortal, records, upstream):
    endless_stream, _ = endless([piece(1)])

    async def script(received, reply):
        await (endless_stream if received.json.get("stream") else answer_plainly)(received, reply)

    upstream.script = script
    caller, others = Caller(mortal, records), Crowd(Caller(mortal, records))
    arrived = asyncio.Semaphore(0)

    async def stream():
        async with connection(mortal.gateway) as (reader, writer):
            await send(writer, caller, stream=True, max_tokens=50)
            await reader.readuntil(b"w1 ")
            arrived.release()
            await reader.read()

    streams = [asyncio.create_task(stream()) for _ in range(2)]  # the processors take turns
    for _ in streams:
        await arrived.acquire()
    victim = next(
        processor
        for processor, metrics in zip(mortal.processors, await scrape(mortal), strict=True)
        if metrics["tokenweir_streams"]
    )
    crowd = asyncio.create_task(others.ask())
    await others.before_the_end()
    os.kill(victim.pid, signal.SIGKILL)
    await victim.wait()
    others.ended()
    await crowd
    # What the dead one had in hand is lost to its clients; what comes later is not.
    assert len([status for status in others.statuses if status != 200]) <= _CLIENTS
    assert set(others.after) == {200}
    expired = await caller.entry()
    assert (expired["state"], expired["reason"]) == ("expired", "expired")
    assert expired["charge"] == expired["held"] > 50
    # The one that lives keeps what it holds, as long as its stream is open.
    counts = await caller.counts()
    assert (counts["service_account"].used, counts["service_account"].held) == (expired["charge"], expired["held"])
    for each in streams:
        each.cancel()
    await asyncio.wait(streams)
    entries = await caller.entries(2)
    (left,) = [entry for entry in entries if entry["_id"] != expired["_id"]]
    assert (left["state"], left["reason"], left["usage"]["output"]) == ("estimated", "cut_off", 1)
    assert await caller.settled() == sum(entry["charge"] for entry in entries)


async def test_a_stream_outlives_the_sigterm_of_its_processor_and_then_there_are_503s(mortal, records, upstream):
    upstream.script, go = gated()
    caller = Caller(mortal, records)
    living = [processor for processor in mortal.processors if processor.returncode is None]
    async with half_a_stream(caller) as rest:
        for processor in living:
            os.kill(processor.pid, signal.SIGTERM)
            log = processor.log_path
            await until(lambda log=log: '"draining"' in log.read_text(), "it has heard of it")
        go.set()
        assert await rest() == SHOWN
    for processor in living:
        assert await processor.wait() == 0
    entry = await caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", 7)
    assert await caller.settled() == 7
    # In the shape of OpenAI's errors.
    for _ in range(3):
        assert error_of(await caller.post(), 503)["type"] == "server_error"


# ---------------------------------------------------------------- Redis


# For a new Redis, all counters would be rebuilt from the ledger of all tests.
ANOTHER = "another"
EMPTY = {"TOKENWEIR_MONGO__DATABASE": ANOTHER}
# Here the bound on a decision counts.
IMPATIENT = (sys.executable, "-m", "extproc", "serve")


@contextlib.contextmanager
def stopped(process):
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def refused(caller, count=6):
    """Every request gets a 503 of ours, one beside the other. How soon is measured in tests/chaos."""
    answers = await asyncio.gather(*(caller.post(stream=bool(n % 2)) for n in range(count)))
    for answer in answers:
        error = error_of(answer, 503)
        assert (error["type"], error["code"]) == ("server_error", "quota_unavailable")
        assert int(answer.headers["retry-after"]) >= 1


async def served(caller):
    """Wait until a request is admitted: on a busy machine the first ones may be late."""

    async def admitted():
        return (await caller.post()).status_code == 200

    await until(admitted, "requests are served")


async def test_without_redis_requests_are_refused_and_cost_nothing(beside, upstream):
    options = {"redis": None, "upstream": upstream.url, "settings": EMPTY, "serve": IMPATIENT}
    async with beside(**options) as stack, records_of(stack, ANOTHER) as own:
        caller, redis = Caller(stack, own), child(stack, "valkey")
        await served(caller)
        upstream.script, go = gated()
        async with half_a_stream(caller) as rest:
            with stopped(redis):
                reached = len(upstream.received)
                await refused(caller)
                await refused(caller)
                assert len(upstream.received) == reached
                # A stream that was admitted before comes to its end without Redis.
                go.set()
                assert await rest() == SHOWN
        upstream.script = answer_plainly
        await served(caller)
        # It is recorded when Redis is back. What reached Redis while it hung is undone: nothing stays held.
        used = await caller.settled()
        entries = await caller.entries(used // 7)
        assert {(entry["state"], entry["charge"]) for entry in entries} == {("settled", 7)}
        assert len(upstream.received) == len(entries)

        os.kill(redis.pid, signal.SIGKILL)
        await redis.wait()
        await refused(caller)
        await refused(caller)
        assert await total(stack, "tokenweir_stream_faults_total") == 0
        kill(stack)


@pytest.mark.thorough
async def test_a_stream_that_redis_hung_through_for_longer_than_it_lives_is_charged_once(beside, upstream):
    """Whether it was renewed or expired first: the counters and the ledger say the same."""
    upstream.script, go = gated()
    settings = EMPTY | {"TOKENWEIR_RESERVATION__TTL_S": "1", "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.1"}
    options = {"redis": None, "upstream": upstream.url, "settings": settings, "serve": IMPATIENT}
    async with beside(**options) as stack, records_of(stack, ANOTHER) as own:
        caller = Caller(stack, own)
        async with half_a_stream(caller) as rest:
            with stopped(child(stack, "valkey")):
                await asyncio.sleep(2.5)  # so much longer than it lives
            await until(lambda: answered(caller), "Redis answers again")
            go.set()
            assert await rest() == SHOWN
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
    beside, upstream, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("mongo")
    (port,) = free_ports(1)
    mongo = await parts.start_mongo_store(folder, port)
    try:
        async with beside(mongo=mongo.url, upstream=upstream.url) as stack:
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
                entries = await caller.entries(8)
                assert [entry["state"] for entry in entries].count("denied") == 1
                assert sum(entry["charge"] for entry in entries) == 49 == await caller.settled()
                (day,) = await own.daily(caller.account)
                assert (day["usage"], day["requests"], day["denied"]) == (49, 7, 1)
            assert await total(stack, "tokenweir_queue_lost_total") == 0
            kill(stack)
    finally:
        os.kill(mongo.process.pid, signal.SIGKILL)
        await mongo.process.wait()
