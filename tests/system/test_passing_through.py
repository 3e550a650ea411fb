"""What the upstream says reaches the client as it is, when it is said; only the usage chunk may be hidden."""

import asyncio
import json
import random
import re

import pytest

from tests.recordings import recorded

from .callers import CHAT, chat
from .marks import SYSTEM
from .waiting import NEVER_S

pytestmark = SYSTEM

EVENTS = [
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"One"}}]}\n\n',
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":" two"},"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n',
    b"data: [DONE]\n\n",
]
SHOWN = b"".join(EVENTS[:3] + EVENTS[4:])
ASKED = {"stream": True, "stream_options": {"include_usage": True}}


def pieces_of(body, how):
    draw = random.Random(7)
    match how:
        case "whole":
            return [body]
        case "events":
            return re.findall(rb".*?\n\n", body, re.DOTALL)
        case "lines":
            return body.splitlines(keepends=True)
        case "ragged":
            cuts = sorted(draw.sample(range(1, len(body)), 40))
            return [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        case "bytes":
            return [body[i : i + 1] for i in range(len(body))]


def streams(pieces):
    async def script(_received, reply):
        await reply.stream(pieces)

    return script


CHUNKINGS = ["whole", "events", "lines", "ragged", "bytes"]


@pytest.mark.parametrize("how", CHUNKINGS)
@pytest.mark.parametrize("name", ["vllm-chat-stream", "vllm-chat-stream-usage", "vllm-chat-stream-continuous"])
async def test_a_recorded_stream_arrives_byte_for_byte(scripted_caller, upstream, name, how):
    body = recorded(f"{name}.body")
    upstream.script = streams(pieces_of(body, how))
    answer = await scripted_caller.post(**ASKED)
    assert answer.content == body
    entry = await scripted_caller.entry()
    if name == "vllm-chat-stream":
        assert (entry["state"], entry["reason"]) == ("estimated", "missing")
    else:
        *_, last = re.findall(rb'"total_tokens":(\d+)', body)
        assert (entry["state"], entry["charge"]) == ("settled", int(last))


@pytest.mark.parametrize("how", CHUNKINGS)
async def test_only_the_usage_chunk_is_hidden_however_the_stream_is_cut(scripted_caller, upstream, how):
    body = recorded("vllm-chat-stream-usage.body")
    usage = next(event for event in pieces_of(body, "events") if b'"choices":[]' in event)
    upstream.script = streams(pieces_of(body, how))
    answer = await scripted_caller.post(stream=True)
    assert answer.content == body.replace(usage, b"")
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", json.loads(usage[6:])["usage"]["total_tokens"])


@pytest.mark.parametrize("ends", [b"\n\n", b"\r\n\r\n", b"\r\r"])
async def test_every_line_end_of_the_standard_is_kept(scripted_caller, upstream, ends):
    upstream.script = streams([event.replace(b"\n\n", ends) for event in EVENTS])
    answer = await scripted_caller.post(stream=True)
    assert answer.content == SHOWN.replace(b"\n\n", ends)
    assert (await scripted_caller.entry())["charge"] == 7


@pytest.mark.parametrize(
    "odd",
    [
        b": ping\n\n",
        b"event: heartbeat\ndata: \n\n",
        b"data: still here\n\n",
        b'data: {"type":"ping"}\n\n',
        b"id: 5\nretry: 10\n\n",
    ],
)
async def test_what_is_no_chunk_is_the_clients_all_the_same(scripted_caller, upstream, odd):
    upstream.script = streams([EVENTS[0], odd, *EVENTS[1:]])
    answer = await scripted_caller.post(stream=True)
    assert answer.content == EVENTS[0] + odd + SHOWN.removeprefix(EVENTS[0])
    assert (await scripted_caller.entry())["charge"] == 7


async def test_an_event_without_its_blank_line_is_the_clients_too(scripted_caller, upstream):
    upstream.script = streams([*EVENTS[:3], b"data: [DONE]"])
    answer = await scripted_caller.post(stream=True)
    assert answer.content == b"".join(EVENTS[:3]) + b"data: [DONE]"


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "x",\r\n  "choices": [ ],  "usage": {"prompt_tokens": 3, "total_tokens": 3}}\n\n',
        b'{"usage":{"total_tokens":9,"completion_tokens":4,"prompt_tokens":5},"choices":[{"index":0,"message":{"content":"\\u00e9\xc3\xa9"}}]}',
        b"\x00\xff not JSON at all",
    ],
)
async def test_a_plain_answer_arrives_byte_for_byte(scripted_caller, upstream, body):
    async def script(_received, reply):
        await reply.whole(body, x_upstream="me")

    upstream.script = script
    answer = await scripted_caller.post()
    assert answer.content == body
    assert answer.headers["x-upstream"] == "me"
    assert (await scripted_caller.entry())["charge"] > 0


async def test_a_large_plain_answer_arrives_whole_and_is_charged_exactly(scripted_caller, upstream):
    content = "weir " * 600_000
    document = {
        "choices": [{"index": 0, "message": {"content": content}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 600, "total_tokens": 605},
    }
    body = json.dumps(document).encode()

    async def script(_received, reply):
        await reply.whole(body)

    upstream.script = script
    answer = await scripted_caller.post(max_tokens=700)
    assert answer.content == body
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", 605)


class Gate:
    """Sends a piece, and the next one only when the client has got the one before."""

    def __init__(self, pieces):
        self._pieces = pieces
        self._seen = asyncio.Semaphore(0)

    async def script(self, _received, reply):
        await reply.head()
        for piece in self._pieces:
            await reply.send(piece)
            async with asyncio.timeout(NEVER_S):
                await self._seen.acquire()
        await reply.end()

    async def drive(self, caller, shown, **fields):
        """Reads until the client has each prefix of `shown` in turn. A stream that is held back would time out."""
        got = b""
        async with (
            caller.http() as client,
            client.stream("POST", CHAT, json=chat(stream=True, **fields)) as answer,
        ):
            chunks = answer.aiter_raw()
            for piece in shown:
                before = len(got)
                while len(got) < before + len(piece):
                    got += await anext(chunks)
                assert got[before:] == piece
                self._seen.release()
            got += b"".join([chunk async for chunk in chunks])
        return got


async def test_each_event_arrives_before_the_next_is_sent(scripted_caller, upstream):
    events = EVENTS[:3]
    gate = Gate(events)
    upstream.script = gate.script
    assert await gate.drive(scripted_caller, events) == b"".join(events)


async def test_half_an_event_arrives_before_its_other_half_is_sent(scripted_caller, upstream):
    halves = [half for event in EVENTS for half in (event[: len(event) // 2], event[len(event) // 2 :])]
    gate = Gate(halves)
    upstream.script = gate.script
    got = await gate.drive(scripted_caller, halves, stream_options={"include_usage": True})
    assert got == b"".join(EVENTS)


async def test_the_request_reaches_the_upstream_as_it_was_sent(scripted_caller, upstream):
    body = b'{ "messages" : [{"role":"user","content":"\\u00e9 \xc3\xa9"}],\n "model":"m" , "x": 1.50 }'
    await scripted_caller.post(body, headers={"x-own": "kept", "accept-encoding": "gzip"})
    (received,) = upstream.received
    assert (received.method, received.path, received.body) == ("POST", CHAT, body)
    assert received.header("x-own") == ["kept"]
    assert received.header("authorization") == []
    assert received.header("accept-encoding") == ["identity"]
    assert scripted_caller.token not in str(received)


async def test_a_stream_reaches_the_upstream_with_nothing_but_usage_asked_for(scripted_caller, upstream):
    body = b'{"stream": true, "messages":[], "model":"m", "temperature": 0.10}'
    upstream.script = streams(EVENTS)
    await scripted_caller.post(body)
    (received,) = upstream.received
    assert received.json == json.loads(body) | {"stream_options": {"include_usage": True}}
    assert b"0.10" in received.body  # values stay as the client wrote them
    assert received.header("content-length") == []
    assert received.header("transfer-encoding") == ["chunked"]
