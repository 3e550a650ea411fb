"""Streams that outlive their reservation's time to live, and outgrow what was held for them."""

import asyncio
import contextlib
import random

import httpx
import pytest
import pytest_asyncio

from .callers import CHAT, Caller, chat
from .marks import SYSTEM
from .test_denied import error_of
from .test_passing_through import EVENTS
from .upstreams import ANSWER
from .waiting import until

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]
TTL_S = 2.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def short_lived(beside, script_server):
    settings = {
        "TOKENWEIR_RESERVATION__TTL_S": str(TTL_S),
        "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.2",
    }
    async with beside(upstream=script_server.url, settings=settings) as stack:
        yield stack


@pytest.fixture
def anybody(short_lived, records, upstream):
    return Caller(short_lived, records)


class Steps:
    """An upstream that sends what it is told, when it is told."""

    def __init__(self):
        self._pieces = asyncio.Queue()

    def send(self, *pieces):
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def script(self, _received, reply):
        await reply.head()
        while (piece := await self._pieces.get()) is not None:
            await reply.send(piece)
        await reply.end()


async def test_a_stream_longer_than_its_time_to_live_is_settled_on_its_usage(anybody, upstream):
    await anybody.limit(sa_limit=5000)
    upstream.script = (steps := Steps()).script
    loop = asyncio.get_running_loop()
    async with (
        anybody.http() as client,
        client.stream("POST", CHAT, json=chat(stream=True, max_tokens=50)) as answer,
    ):
        chunks = answer.aiter_raw()
        steps.send(EVENTS[0])
        assert await anext(chunks) == EVENTS[0]
        held = (await anybody.row())["held"]
        begun = loop.time()

        async def outlived():
            row = await anybody.row()
            assert (row["used"], row["held"]) == (0, held)
            return loop.time() > begun + 2.5 * TTL_S

        await until(outlived, "it is held for longer than it would live", within_s=4 * TTL_S)
        steps.send(*EVENTS[1:], None)
        got = b"".join([chunk async for chunk in chunks])
    assert got.endswith(EVENTS[4])
    entry = await anybody.entry()
    assert (entry["state"], entry["reason"], entry["charge"]) == ("settled", "usage", USED)
    assert await anybody.settled() == USED


async def test_the_hold_grows_with_the_answer_and_others_see_it(anybody, upstream):
    await anybody.limit(sa_limit=900)
    upstream.script = (steps := Steps()).script
    async with (
        anybody.http() as client,
        client.stream("POST", CHAT, json=chat(stream=True, max_tokens=20)) as answer,
    ):
        chunks = answer.aiter_raw()
        steps.send(EVENTS[0])
        assert await anext(chunks) == EVENTS[0]
        first = (await anybody.row())["held"]
        sent = 0
        for beyond in (100, 300):
            steps.send(*[EVENTS[1]] * (beyond - sent))
            sent = beyond

            async def grown(least=beyond):
                row = await anybody.row()
                return row["held"] > least and row

            row = await until(grown, f"more than {beyond} tokens are held")
        assert first < 100
        assert row["used"] == 0
        # It is not there for others any more.
        denied = await anybody.post(max_tokens=600)
        assert "held by requests in flight" in error_of(denied, 429)["message"]
        steps.send(*EVENTS[3:], None)
        async for _ in chunks:
            pass
    entries = await anybody.entries(2)
    (settled,) = [entry for entry in entries if entry["state"] == "settled"]
    assert settled["held"] > 300
    # The upstream says what it was worth, and that counts.
    assert settled["charge"] == USED
    (row,) = await anybody.settled_all()
    assert (row["used"], row["held"], row["remaining"]) == (USED, 0, 900 - USED)


async def test_the_hold_of_a_request_without_a_bound_follows_what_outputs_need(anybody, upstream):
    """Nobody is refused for an answer that the model never gives; it is learned from settled usage."""
    model = f"model-of-{anybody.tenant}"
    await anybody.limit(sa_limit=1_000_000)
    for _ in range(40):
        assert (await anybody.post(chat(model=model))).status_code == 200
    first, *_, last = await anybody.entries(40)
    assert first["cost"]["output"] == 256
    assert last["cost"]["output"] < 64
    bounded = await anybody.post(chat(model=model, max_tokens=700))
    assert bounded.status_code == 200
    assert (await anybody.entries(41))[-1]["cost"]["output"] == 700


async def test_streams_of_any_length_that_end_in_any_way_leave_nothing_held(anybody, upstream):
    """Holds grow, are renewed and end in any order: what is counted at last is what is on record."""
    draw = random.Random(11)
    await anybody.limit(sa_limit=1_000_000)

    async def script(received, reply):
        pieces = int(received.header("x-pieces")[0])
        await reply.head()
        for _ in range(pieces):
            await reply.send(EVENTS[1])
        if pieces % 3:
            await reply.send(EVENTS[3])
            await reply.send(EVENTS[4])
            await reply.end()
        elif pieces % 2:
            reply.cut()
        else:
            await reply.gone()

    upstream.script = script

    async def one(pieces, leave_after):
        got = 0
        headers = {"x-pieces": str(pieces)}
        body = chat(stream=True, max_tokens=draw.randint(1, 30))
        async with client.stream("POST", CHAT, json=body, headers=headers) as answer:
            with contextlib.suppress(httpx.RemoteProtocolError):
                async for chunk in answer.aiter_raw():
                    got += chunk.count(b'"One"')
                    if got >= min(pieces, leave_after):
                        return

    async with anybody.http(timeout=30) as client:
        await asyncio.gather(*(one(draw.randint(1, 400), draw.choice([3, 50, 10_000])) for _ in range(60)))
    entries = await anybody.entries(60, within_s=10)
    assert {entry["state"] for entry in entries} == {"settled", "estimated"}
    assert [entry for entry in entries if not 0 < entry["charge"] <= entry["held"]] == []
    assert await anybody.settled() == sum(entry["charge"] for entry in entries)
