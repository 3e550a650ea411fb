"""An upstream that errs: the client gets what it sent, the ledger gets the truth or an honest estimate."""

import re
import zlib

import httpx
import pytest

from extproc.local.ports import free_ports
from tests.plaintext import plaintext_client

from .callers import CHAT, DEFAULT_LIMIT, Caller, chat, total
from .marks import SYSTEM
from .test_denied import error_of

pytestmark = SYSTEM

ASKED = {"stream": True, "stream_options": {"include_usage": True}}
REQUEST = {"max_tokens": 40, "ignore_eos": True}

# What becomes of the reservation of a plain request, and of a stream's.
STATES = {
    "no-usage": ("estimated", "estimated"),
    "negative-usage": ("estimated", "estimated"),
    "float-usage": ("settled", "settled"),
    "nan-usage": ("estimated", "estimated"),
    "huge-usage": ("estimated", "estimated"),
    "string-usage": ("estimated", "estimated"),
    "usage-twice": ("settled", "settled"),
    "truncated-json": ("estimated", "estimated"),
    "error-200": ("released", "released"),
    "error-500": ("released", "released"),
    "error-in-stream": ("released", "estimated"),
    "reset-mid-stream": ("estimated", "estimated"),
    "zero-usage": ("estimated", "estimated"),
    "gzip": ("settled", "settled"),
    "deflate": ("settled", "settled"),
    "one-byte-chunks": ("settled", "settled"),
}


async def fetch(url, fields, fault, headers=None):
    """Status, body as it was sent, and whether it came to its end."""
    sent = {"x-sample-fault": fault, **(headers or {})}
    body, complete = b"", True
    async with (
        plaintext_client() as client,
        client.stream("POST", f"{url}{CHAT}", json=chat(**REQUEST, **fields), headers=sent) as answer,
    ):
        try:
            async for chunk in answer.aiter_raw():
                body += chunk
        except httpx.TransportError:
            complete = False
    if (encoding := answer.headers.get("content-encoding")) is not None:
        body = zlib.decompressobj(wbits={"gzip": 31, "deflate": 15}[encoding]).decompress(body)
    return answer.status_code, anonymous(body), complete


def anonymous(body):
    """Without what differs between two answers to the same request."""
    return re.sub(rb'"id":"[^"]*"|"created":\d+', b"", body)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", STATES)
async def test_the_client_gets_what_the_upstream_sent_and_the_ledger_what_it_is_worth(caller, fault, stream):
    fields = ASKED if stream else {}
    through = await fetch(caller.stack.gateway, fields, fault, caller.headers)
    # Ids of the same length: what is cut off in the middle is cut off at the same place.
    own = await fetch(caller.stack.upstream, fields, fault, {"x-request-id": "0" * 36})
    if fault == "reset-mid-stream" and not stream:
        assert not through[2]
        assert through[1][:20] == own[1][:20]
    else:
        assert through == own
    entry = await caller.entry()
    assert entry["state"] == STATES[fault][stream]
    if entry["state"] == "released":
        assert entry["charge"] == 0
    else:
        assert 0 < entry["charge"] <= entry["held"]
    assert await caller.settled() == entry["charge"]
    assert await total(caller.stack, "tokenweir_stream_faults_total") == 0


async def test_usage_told_twice_is_charged_once(caller):
    right = await caller.post(**REQUEST)
    for fields in ({}, {"stream": True}):
        await caller.post(headers={"x-sample-fault": "usage-twice"}, **REQUEST, **fields)
    charges = {entry["charge"] for entry in await caller.entries(3)}
    assert charges == {right.json()["usage"]["total_tokens"]}


@pytest.mark.parametrize("fault", ["negative-usage", "float-usage", "huge-usage", "string-usage"])
async def test_absurd_usage_is_hidden_like_any_other(caller, fault):
    answer = await caller.post(headers={"x-sample-fault": fault}, stream=True, **REQUEST)
    assert "usage" not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_an_estimate_is_near_what_was_generated(caller):
    """One token in a chunk is what servers send; the prompt is estimated from its bytes."""
    for stream in (False, True):
        await caller.post(headers={"x-sample-fault": "no-usage"}, stream=stream, **REQUEST)
    plain, streamed = await caller.entries(2)
    assert streamed["usage"]["output"] == 40
    assert 20 <= plain["usage"]["output"] <= 40


async def test_a_stream_that_fails_before_content_costs_nothing(scripted_caller, upstream):
    async def script(_received, reply):
        await reply.stream([b'data: {"error":{"message":"no","code":500}}\n\n', b"data: [DONE]\n\n"])

    upstream.script = script
    answer = await scripted_caller.post(stream=True)
    assert answer.text.startswith('data: {"error"')
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("released", 0)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
async def test_an_upstream_error_is_passed_on_and_costs_nothing(scripted_caller, upstream, status):
    async def script(_received, reply):
        own = {"retry_after": "7", "x_ratelimit_limit_tokens": "5"}
        await reply.whole(b'{"error": {"message": "mine", "code": "own"}}', status=status, **own)

    upstream.script = script
    answer = await scripted_caller.post()
    assert (answer.status_code, answer.content) == (status, b'{"error": {"message": "mine", "code": "own"}}')
    assert answer.headers["retry-after"] == "7"
    # The caller's own limits are told on every answer, in the place of what an upstream says of ours.
    assert answer.headers.get_list("x-ratelimit-limit-tokens") == [str(DEFAULT_LIMIT)]
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"], entry["status"]) == ("released", 0, status)
    assert await scripted_caller.settled() == 0
    assert len(upstream.received) == 1


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_an_error_without_a_body_costs_nothing(scripted_caller, upstream, status):
    async def script(_received, reply):
        await reply.whole(b"", status=status)

    upstream.script = script
    answer = await scripted_caller.post()
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers.get_list("x-ratelimit-limit-tokens") == [str(DEFAULT_LIMIT)]
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"], entry["status"]) == ("released", 0, status)


async def test_a_connection_that_is_cut_before_the_answer_is_a_503_of_openais_shape(scripted_caller, upstream):
    async def script(_received, reply):
        reply.cut()

    upstream.script = script
    error = error_of(await scripted_caller.post(), 503)
    assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("released", 0)
    assert len(upstream.received) == 1


async def test_an_upstream_that_is_not_there_is_a_503_and_costs_nothing(scripted, before, records):
    (port,) = free_ports(1)

    def elsewhere(configuration):
        (locality,) = configuration.cluster("model")["load_assignment"]["endpoints"]
        locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = port

    async with before(scripted, change=elsewhere) as stack:
        caller = Caller(stack, records)
        for stream in (False, True):
            error = error_of(await caller.post(stream=stream), 503)
            assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
            assert str(port) not in error["message"]
        for entry in await caller.entries(2):
            assert (entry["state"], entry["charge"]) == ("released", 0)
        assert await caller.settled() == 0
        assert await total(stack, "tokenweir_stream_faults_total") == 0


async def test_an_answer_that_outgrows_its_hold_is_charged_in_full(scripted_caller, upstream):
    async def script(_received, reply):
        await reply.whole(
            b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":5,"completion_tokens":900}}'
        )

    upstream.script = script
    await scripted_caller.post(max_tokens=10)
    entry = await scripted_caller.entry()
    assert entry["charge"] == 905
