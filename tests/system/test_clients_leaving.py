"""Clients that close their connection in the middle: one ledger entry each, never 0 for content, never above the hold."""

import asyncio
import json

import pytest

from tests.sizes import sampled

from .callers import CHAT, chat
from .marks import SYSTEM
from .waiting import NEVER_S, until
from .wires import connection, request_head

pytestmark = SYSTEM

ASKED = {"include_usage": True}
CONTINUOUS = ASKED | {"continuous_usage_stats": True}


def piece(number, *, usage=False):
    document = {"choices": [{"index": 0, "delta": {"content": "w"}}], "mark": f"w{number} "}
    if usage:
        document["usage"] = {"prompt_tokens": 5, "completion_tokens": number, "total_tokens": 5 + number}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


async def send(writer, caller, content="1 + 1 =?", **fields):
    body = json.dumps(chat(content, **fields)).encode()
    head = caller.headers | {"content-type": "application/json", "content-length": len(body)}
    writer.write(request_head(CHAT, head) + body)
    await writer.drain()


def endless(pieces):
    """An upstream that says so much and then nothing; `left` is set when Envoy hangs up on it."""
    left = asyncio.Event()

    async def script(_received, reply):
        if pieces:
            await reply.head()
        for each in pieces:
            await reply.send(each)
        await reply.gone()
        left.set()

    return script, left


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("pieces", sampled([7, 1, 2], quick=1))
@pytest.mark.parametrize("options", [None, ASKED, CONTINUOUS], ids=["unasked", "usage", "continuous"])
async def test_leaving_after_some_chunks_is_charged_for_them(scripted_caller, upstream, pieces, options, reset):
    continuous = options is CONTINUOUS
    upstream.script, left = endless([piece(n + 1, usage=continuous) for n in range(pieces)])
    wanted = {} if options is None else {"stream_options": options}
    async with connection(scripted_caller.stack.gateway) as (reader, writer):
        await send(writer, scripted_caller, stream=True, max_tokens=50, **wanted)
        await reader.readuntil(b"w%d " % pieces)
        if reset:
            writer.transport.abort()
    entry = await scripted_caller.entry()
    assert entry["reason"] == "cut_off"
    if continuous:
        assert (entry["state"], entry["charge"]) == ("settled", 5 + pieces)
    else:
        assert (entry["state"], entry["usage"]["output"]) == ("estimated", pieces)
    assert 0 < entry["charge"] <= entry["held"]
    assert await scripted_caller.settled() == entry["charge"]
    async with asyncio.timeout(NEVER_S):
        await left.wait()  # the model stops generating for nobody


async def test_leaving_is_charged_for_all_that_was_delivered_and_never_above_the_hold(scripted_caller, upstream):
    upstream.script, _ = endless([piece(n, usage=True) for n in range(1, 200)])
    async with connection(scripted_caller.stack.gateway) as (reader, writer):
        await send(writer, scripted_caller, stream=True, max_tokens=10, stream_options=CONTINUOUS)
        await reader.readuntil(b"w199 ")
    entry = await scripted_caller.entry()
    # Ten were held at first: the hold grows with the answer.
    assert entry["charge"] == 5 + 199 <= entry["held"]
    assert await scripted_caller.settled() == entry["charge"]


async def test_leaving_a_strict_stream_is_never_charged_above_the_hold_that_can_not_grow(
    scripted_caller, upstream
):
    await scripted_caller.bind(mode="strict", sa_limit=1000)
    upstream.script, _ = endless([piece(n, usage=True) for n in range(1, 200)])
    async with connection(scripted_caller.stack.gateway) as (reader, writer):
        await send(writer, scripted_caller, stream=True, max_tokens=10, stream_options=CONTINUOUS)
        await reader.readuntil(b"[DONE]")
        (row,) = (await scripted_caller.quota())["limits"]
    entry = await scripted_caller.entry()
    assert entry["held"] == row["held"]
    assert 5 + 10 <= entry["charge"] <= entry["held"]
    assert await scripted_caller.settled() == entry["charge"]


async def test_leaving_is_charged_the_same_in_each_bucket_where_a_strict_one_held_more(scripted_caller, upstream):
    strict = {"scope": "service_account", "window": "hour", "amount": 3000, "mode": "strict"}
    await scripted_caller.bind(strict, sa_limit=4000)
    upstream.script, _ = endless([piece(n, usage=True) for n in range(1, 401)])
    async with connection(scripted_caller.stack.gateway) as (reader, writer):
        await send(writer, scripted_caller, stream=True, stream_options=CONTINUOUS)
        await reader.readuntil(b"w400 ")
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", 5 + 400)
    rows = await scripted_caller.settled_all()
    assert [(row["window"], row["used"]) for row in rows] == [("day", 405), ("hour", 405)]


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_any_answer_is_charged_for_the_prompt(scripted_caller, upstream, stream):
    upstream.script, left = endless([])
    async with connection(scripted_caller.stack.gateway) as (_, writer):
        await send(writer, scripted_caller, stream=stream, max_tokens=50)
        await until(lambda: upstream.received, "the request reached the upstream")
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["reason"]) == ("estimated", "left_before_answer")
    assert 0 < entry["charge"] == entry["held"] - 50
    assert await scripted_caller.settled() == entry["charge"]
    async with asyncio.timeout(NEVER_S):
        await left.wait()


async def test_leaving_a_model_that_hangs_is_charged_for_the_prompt(scripted_caller, upstream):
    came = asyncio.Event()

    async def script(_received, reply):
        came.set()
        await reply.gone()

    upstream.script = script
    async with connection(scripted_caller.stack.gateway) as (_, writer):
        await send(writer, scripted_caller)
        await came.wait()
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["reason"]) == ("estimated", "left_before_answer")
    assert 0 < entry["charge"] < entry["held"]


async def test_leaving_in_the_middle_of_a_plain_answer_is_charged(scripted_caller, upstream):
    async def script(_received, reply):
        await reply.head(content_type="application/json")
        await reply.send(b'{"choices":[{"message":{"content":"half of')
        await reply.gone()

    upstream.script = script
    async with connection(scripted_caller.stack.gateway) as (reader, writer):
        await send(writer, scripted_caller, max_tokens=50)
        await reader.readuntil(b"half of")
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["reason"]) == ("estimated", "cut_off")
    assert entry["held"] - 50 < entry["charge"] <= entry["held"]


async def test_leaving_before_the_request_is_whole_costs_nothing(scripted_caller, upstream):
    async with connection(scripted_caller.stack.gateway) as (_, writer):
        head = scripted_caller.headers | {"content-type": "application/json", "content-length": 500}
        writer.write(request_head(CHAT, head) + b'{"model": "m", ')
        await writer.drain()
    assert await scripted_caller.nothing_recorded_but(0) == []
    assert len(upstream.received) == 1


async def test_leaving_a_fast_model_stops_it_and_costs_no_more_than_the_hold(caller):
    async with connection(caller.stack.gateway) as (reader, writer):
        await send(writer, caller, "Tell me all.", stream=True, max_tokens=30_000, ignore_eos=True)
        for _ in range(5):
            await reader.readuntil(b"data: {")
    entry = await caller.entry()
    assert entry["state"] == "estimated"
    assert 0 < entry["charge"] <= entry["held"]
    assert entry["usage"]["output"] >= 3
    assert await caller.settled() == entry["charge"]


async def test_many_clients_leaving_at_once_leave_one_entry_each(scripted_caller, upstream):
    upstream.script, _ = endless([piece(1), piece(2)])

    async def leave():
        async with connection(scripted_caller.stack.gateway) as (reader, writer):
            await send(writer, scripted_caller, stream=True, max_tokens=50)
            await reader.readuntil(b"w2 ")

    await asyncio.gather(*(leave() for _ in range(30)))
    entries = await scripted_caller.entries(30)
    assert {(entry["state"], entry["usage"]["output"]) for entry in entries} == {("estimated", 2)}
    assert await scripted_caller.settled() == sum(entry["charge"] for entry in entries)
