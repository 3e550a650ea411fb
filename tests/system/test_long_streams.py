"""Streams that outlive their reservation's time to live, and outgrow what was held for them."""

import asyncio
import contextlib
import random

import httpx
import pytest

from extproc.core.quota.recent import ENOUGH
from tests.sizes import sized

from .callers import CHAT, chat
from .marks import SYSTEM
from .stacks import SPARE_MODEL, TTL_S
from .test_denied import error_of
from .test_passing_through import EVENTS
from .upstreams import ANSWER
from .waiting import until

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]
STREAMS, LONGEST = sized((24, 100), (60, 400))


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


@pytest.mark.thorough
async def test_a_stream_longer_than_its_time_to_live_is_settled_on_its_usage(pair_caller, upstream):
    await pair_caller.limit(sa_limit=5000)
    upstream.script = (steps := Steps()).script
    loop = asyncio.get_running_loop()
    async with (
        pair_caller.http() as client,
        client.stream("POST", CHAT, json=chat(stream=True, max_tokens=50)) as answer,
    ):
        chunks = answer.aiter_raw()
        steps.send(EVENTS[0])
        assert await anext(chunks) == EVENTS[0]
        held = (await pair_caller.row())["held"]
        begun = loop.time()

        async def outlived():
            row = await pair_caller.row()
            assert (row["used"], row["held"]) == (0, held)
            return loop.time() > begun + 2 * TTL_S

        await until(outlived, "it is held for longer than it would live")
        steps.send(*EVENTS[1:], None)
        got = b"".join([chunk async for chunk in chunks])
    assert got.endswith(EVENTS[4])
    entry = await pair_caller.entry()
    assert (entry["state"], entry["reason"], entry["charge"]) == ("settled", "usage", USED)
    assert await pair_caller.settled() == USED


async def test_the_hold_grows_with_the_answer_and_others_see_it(pair_caller, upstream):
    await pair_caller.limit(sa_limit=900)
    upstream.script = (steps := Steps()).script
    async with (
        pair_caller.http() as client,
        client.stream("POST", CHAT, json=chat(stream=True, max_tokens=20)) as answer,
    ):
        chunks = answer.aiter_raw()
        steps.send(EVENTS[0])
        assert await anext(chunks) == EVENTS[0]
        first = (await pair_caller.row())["held"]
        sent = 0
        for beyond in (100, 300):
            steps.send(*[EVENTS[1]] * (beyond - sent))
            sent = beyond

            async def grown(least=beyond):
                row = await pair_caller.row()
                return row["held"] > least and row

            row = await until(grown, f"more than {beyond} tokens are held")
        assert first < 100
        assert row["used"] == 0
        # It is not there for others any more.
        denied = await pair_caller.post(max_tokens=600)
        assert "held by requests in flight" in error_of(denied, 429)["message"]
        steps.send(*EVENTS[3:], None)
        async for _ in chunks:
            pass
    entries = await pair_caller.entries(2)
    (settled,) = [entry for entry in entries if entry["state"] == "settled"]
    assert settled["held"] > 300
    # The upstream says what it was worth, and that counts.
    assert settled["charge"] == USED
    (row,) = await pair_caller.settled_all()
    assert (row["used"], row["held"], row["remaining"]) == (USED, 0, 900 - USED)


async def test_the_hold_of_a_request_without_a_bound_follows_what_outputs_need(caller):
    """It is learned from settled usage. Small answers do not lower it below the configured value."""
    await caller.limit(sa_limit=1_000_000)
    for least in (None, *[400] * ENOUGH, None):
        assert (await caller.post(chat(model=SPARE_MODEL, min_tokens=least))).status_code == 200
        await caller.settled()
    first, second, *_, last = await caller.entries(ENOUGH + 2)
    assert first["usage"]["output"] < 64
    assert (first["cost"]["output"], second["cost"]["output"]) == (256, 256)
    assert last["cost"]["output"] >= 400
    bounded = await caller.post(chat(model=SPARE_MODEL, max_tokens=700))
    assert bounded.status_code == 200
    assert (await caller.entries(ENOUGH + 3))[-1]["cost"]["output"] == 700


async def test_streams_of_any_length_that_end_in_any_way_leave_nothing_held(pair_caller, upstream):
    """Holds grow, are renewed and end in any order: what is counted at last is what is on record."""
    draw = random.Random(11)
    await pair_caller.limit(sa_limit=1_000_000)

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

    async with pair_caller.http() as client:
        await asyncio.gather(
            *(one(draw.randint(1, LONGEST), draw.choice([3, 50, 10_000])) for _ in range(STREAMS))
        )
    entries = await pair_caller.entries(STREAMS)
    assert {entry["state"] for entry in entries} == {"settled", "estimated"}
    assert [entry for entry in entries if not 0 < entry["charge"] <= entry["held"]] == []
    assert await pair_caller.settled() == sum(entry["charge"] for entry in entries)
