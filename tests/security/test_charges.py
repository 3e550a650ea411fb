"""Callers that take the text and leave before its price, and servers that claim what can't be: charged on what came."""

import asyncio
import gzip
import json

import pytest

from tests.sizes import sampled
from tests.system.callers import CHAT
from tests.system.marks import SYSTEM
from tests.system.wires import connection, request_head

pytestmark = SYSTEM

TOKENS = 6000
TEXT = "word " * TOKENS  # 5 bytes a token: 7,500 tokens at 4 bytes each
END = "the-end"
LOGPROB = {"token": "word", "logprob": -0.25, "bytes": [119, 111, 114, 100], "top_logprobs": []}
USED = {"prompt_tokens": 5, "completion_tokens": TOKENS, "total_tokens": 5 + TOKENS}


def asked(**fields):
    return {"model": "scripted", **fields}


MESSAGES = [{"role": "user", "content": "hi"}]
# A request, and the parts of its answer: the text, and what follows it before the usage.
SHAPES = {
    "chat": (CHAT, asked(messages=MESSAGES, logprobs=True), '{"choices":[{"index":0,"message":{"content":"%s"},', '"logprobs":{"content":[%s]}}]'),
    "reasoning": (CHAT, asked(messages=MESSAGES), '{"choices":[{"index":0,"message":{"reasoning_content":"%s","content":""},', '"logprobs":{"content":[%s]}}]'),
    "tools": (CHAT, asked(messages=MESSAGES), '{"choices":[{"message":{"tool_calls":[{"id":"c","function":{"name":"f","arguments":"%s"}}]},', '"logprobs":{"content":[%s]}}]'),
    "completions": ("/v1/completions", asked(prompt="hi", logprobs=5), '{"choices":[{"text":"%s",', '"logprobs":{"tokens":[],"x":[%s]}}]'),
    "responses": ("/v1/responses", asked(input="hi"), '{"object":"response","output":[{"type":"message","content":[{"type":"output_text","text":"%s",', '"logprobs":[%s]}]}]'),
    "messages": ("/v1/messages", asked(messages=MESSAGES), '{"type":"message","content":[{"type":"text","text":"%s"}],', '"padding":[%s]'),
    "transcriptions": ("/v1/audio/transcriptions", asked(file="UklGRg=="), '{"text":"%s",', '"segments":[%s]'),
    "llama.cpp": ("/completion", asked(prompt="hi"), '{"content":"%s",', '"completion_probabilities":[%s]'),
    "a shape that nobody knows": (CHAT, asked(messages=MESSAGES), '{"generated_text":"%s",', '"details":[%s]'),
}  # fmt: skip


def passing(answer, marks, *, headers=None):
    """A script that sends the answer up to its end, and keeps the connection until Envoy hangs up."""

    async def script(_received, reply):
        await reply.head(content_type="application/json", **(headers or {}))
        for at in range(0, len(answer), 8000):
            await reply.send(answer[at : at + 8000])
            await asyncio.sleep(0)
        await reply.gone()

    return script, marks


async def leave(caller, path, request, mark):
    """Asks, and leaves once the answer has come as far as the mark."""
    body = json.dumps(request).encode()
    head = caller.headers | {"content-type": "application/json", "content-length": len(body)}
    async with connection(caller.stack.gateway) as (reader, writer):
        writer.write(request_head(path, head) + body)
        await writer.drain()
        tail = b""
        while mark not in tail:
            piece = await reader.read(1 << 16)
            assert piece
            tail = tail[-len(mark) - 20 :] + piece


async def read_and_leave(caller, path, request, mark):
    await leave(caller, path, request, mark)
    return await caller.entry()


@pytest.mark.parametrize("name", sampled(list(SHAPES), quick=4))
async def test_a_plain_answer_that_is_left_after_its_text_is_charged_for_it(scripted_caller, upstream, name):
    path, request, text, rest = SHAPES[name]
    answer = text % TEXT + rest.partition("%s")[0] + json.dumps([LOGPROB] * 20)[1:-1] + f',"{END}'
    upstream.script, mark = passing(answer.encode(), END.encode())
    entry = await read_and_leave(scripted_caller, path, request, mark)
    assert TOKENS <= entry["usage"]["output"] <= 1.3 * TOKENS
    assert 0 < entry["charge"] <= entry["held"]
    assert (entry["state"], entry["reason"]) == ("estimated", "cut_off")
    assert await scripted_caller.settled() == entry["charge"]


async def test_what_the_model_was_taught_makes_leaving_no_cheaper(scripted_caller, upstream):
    for _ in range(40):  # small answers: the hold becomes small
        await scripted_caller.post()
    path, request, text, rest = SHAPES["chat"]
    upstream.script, mark = passing((text % TEXT + rest.partition("%s")[0] + f'"{END}').encode(), END.encode())
    await leave(scripted_caller, path, request, mark)
    entry = (await scripted_caller.entries(41))[-1]
    assert TOKENS <= entry["usage"]["output"] <= 1.3 * TOKENS
    assert entry["charge"] <= entry["held"]


async def test_a_compressed_answer_that_is_left_is_charged_for_its_text(scripted_caller, upstream):
    path, request, text, _ = SHAPES["chat"]
    noise = " ".join(f"w{n * 7919 % 99991}" for n in range(TOKENS))
    packed = gzip.compress((text % noise + '"logprobs":{"content":[').encode(), 1)
    upstream.script, _ = passing(packed[:-8], b"", headers={"content_encoding": "gzip"})
    entry = await read_and_leave(scripted_caller, path, request, packed[-60:-30])
    assert TOKENS * 0.9 <= entry["usage"]["output"] <= 2 * TOKENS
    assert entry["charge"] <= entry["held"]


async def test_a_picture_that_is_left_before_its_usage_is_charged_by_its_size(scripted_caller, upstream):
    answer = b'{"created":1,"data":[{"b64_json":"' + b"QUJD" * 512_000 + b'","' + END.encode()
    upstream.script, mark = passing(answer, END.encode())
    request = asked(prompt="a weir")
    entry = await read_and_leave(scripted_caller, "/v1/images/generations", request, mark)
    assert entry["usage"]["output"] == 4000
    assert entry["charge"] <= entry["held"]


async def test_leaving_within_the_bound_of_the_client_costs_no_more_than_that(scripted_caller, upstream):
    path, request, text, _ = SHAPES["chat"]
    upstream.script, mark = passing((text % TEXT + f'"{END}').encode(), END.encode())
    entry = await read_and_leave(scripted_caller, path, request | {"max_tokens": 50, "n": 2}, mark)
    assert entry["usage"]["output"] == 100
    assert entry["charge"] <= entry["held"]


async def test_usage_that_came_before_the_client_left_is_charged_exactly(scripted_caller, upstream):
    path, request, text, _ = SHAPES["chat"]
    answer = text % TEXT + f'"logprobs":null}}],"usage":{json.dumps(USED)},"prompt_logprobs":[null,"{END}'
    upstream.script, mark = passing(answer.encode(), END.encode())
    entry = await read_and_leave(scripted_caller, path, request, mark)
    assert (entry["state"], entry["reason"], entry["charge"]) == ("settled", "cut_off", 5 + TOKENS)


@pytest.mark.parametrize("place", ["behind", "before"])
async def test_usage_behind_or_before_17_mb_is_charged_exactly(scripted_caller, upstream, place):
    logprobs = (
        '"prompt_logprobs":[' + '{"12":{"logprob":-1.25,"rank":1,"decoded_token":" a"}},' * 320_000 + "null]"
    )
    used = '"usage":' + json.dumps(USED)
    rest = f"{logprobs},{used}" if place == "behind" else f"{used},{logprobs}"
    answer = ('{"choices":[{"message":{"content":"' + TEXT + '"}}],' + rest + "}").encode()
    assert len(answer) > 17_000_000

    async def script(_received, reply):
        await reply.whole(answer)

    upstream.script = script
    got = await scripted_caller.post()
    assert got.content == answer
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", 5 + TOKENS)


CLAIM = {"prompt_tokens": 5, "completion_tokens": 9_999_990, "total_tokens": 9_999_995}
CLAIMS = {
    "chat": (CHAT, asked(messages=MESSAGES, max_tokens=5), {"choices": [{"message": {"content": "Two."}}]}),
    "completions": ("/v1/completions", asked(prompt="hi", max_tokens=5), {"choices": [{"text": "Two."}]}),
    "without a bound": (CHAT, asked(messages=MESSAGES), {"choices": [{"message": {"content": "Two."}}]}),
    "responses": (
        "/v1/responses",
        asked(input="hi", max_output_tokens=5),
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": "Two."}]}]},
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CLAIMS)
async def test_a_claim_that_can_not_be_is_capped_marked_counted_and_locks_nobody_out(
    scripted_caller, upstream, name, stream
):
    path, request, answer = CLAIMS[name]
    document = json.dumps(answer | {"usage": CLAIM}).encode()

    async def script(_received, reply):
        if stream:
            await reply.stream([b"data: " + document + b"\n\n"])
        else:
            await reply.whole(document)

    await scripted_caller.limit(sa_limit=12_000)
    upstream.script = script
    assert (await scripted_caller.post(request | {"stream": stream}, path=path)).status_code == 200
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["reason"]) == ("estimated", "implausible")
    assert entry["charge"] < 9000
    upstream.reset()
    assert (await scripted_caller.post()).status_code == 200  # not locked out


async def test_vectors_as_bytes_are_charged_what_their_header_says_and_refused_without_it(
    scripted_caller, upstream
):
    described = json.dumps({"data": [{"index": 0}], "usage": {"prompt_tokens": 777, "total_tokens": 777}})

    async def script(_received, reply):
        await reply.whole(bytes(4096), content_type="application/octet-stream", metadata=described)

    upstream.script = script
    path, request = "/v1/embeddings", asked(input="hi", encoding_format="bytes")
    got = await scripted_caller.post(request, path=path)
    assert (got.status_code, got.content) == (200, bytes(4096))
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", 777)
    refused = await scripted_caller.post(request | {"encoding_format": "bytes_only"}, path=path)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "encoding_format")
    assert len(upstream.received) == 1
