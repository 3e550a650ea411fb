"""Requests that nobody sends by mistake, through the real Envoy: refused or metered, never served for nothing."""

import asyncio
import gzip
import json
import zlib
from pathlib import Path

import pytest

from tests.sizes import sampled
from tests.system.callers import CHAT, chat
from tests.system.marks import SYSTEM
from tests.system.upstreams import ANSWER
from tests.system.wires import exchange, http2_post, request_head

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]
TEXT = json.dumps(chat())


async def served_means_metered(caller, upstream, status):
    """Whatever the answer was: what reached the upstream is in the ledger. (What did not costs nothing: tests/system.)"""
    assert len(upstream.received) == (status == 200)
    if status == 200:
        entry = await caller.entry()
        assert (entry["state"], entry["charge"]) == ("settled", USED)


# ---------------------------------------------------------------- bodies


ENCODED = {
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "UTF-32": TEXT.encode("utf-32"),
    "UTF-7": TEXT.replace('"', "+ACI-").encode(),
    "overlong": TEXT.encode().replace(b"model", b"m\xc1\xafdel", 1),
    "a lone surrogate, raw": TEXT.encode().replace(b"1 + 1", b"\xed\xa0\x80"),
    "a surrogate in a name": TEXT.replace('"model"', '"model\\ud800"').encode(),
    "NUL before": b"\0" + TEXT.encode(),
    "NUL after": TEXT.encode() + b"\0",
    "two objects": TEXT.encode() * 2,
    "an array of one": b"[" + TEXT.encode() + b"]",
    "a comment": b"/* */" + TEXT.encode(),
    "single quotes": TEXT.replace('"', "'").encode(),
    "a trailing comma": TEXT.encode()[:-1] + b",}",
    "hexadecimal": TEXT.encode()[:-1] + b', "max_tokens": 0x10}',
    "a plus": TEXT.encode()[:-1] + b', "max_tokens": +5}',
    "a leading zero": TEXT.encode()[:-1] + b', "max_tokens": 05}',
    "Infinity": TEXT.encode()[:-1] + b', "max_tokens": Infinity}',
    "minus zero": TEXT.encode()[:-1] + b', "max_tokens": -0}',
    "an exponent": TEXT.encode()[:-1] + b', "max_tokens": 1e3}',
    "other digits": TEXT.encode()[:-1] + '", "max_tokens": \u0665}'.encode()[1:],
    "escaped twice": TEXT.encode()[:-1] + b', "max_tokens": 5, "\\u006dax_tokens": 900000}',
    "n in capitals": TEXT.encode()[:-1] + b', "N": 100}',
    "gzip without saying": gzip.compress(TEXT.encode()),
    "n times max_tokens": TEXT.encode()[:-1] + b', "n": 128, "max_tokens": 10000000}',
    "n that overflows": TEXT.encode()[:-1] + b', "n": 4294967297, "max_tokens": 4294967297}',
    "a deep value": TEXT.encode()[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a wide object": TEXT.encode()[:-1] + b"".join(b', "k%d": 0' % i for i in range(100_000)) + b"}",
    "a number of a megabyte": TEXT.encode()[:-1] + b', "max_tokens": ' + b"9" * (1 << 20) + b"}",
    "a name of a megabyte": TEXT.encode()[:-1] + b', "' + b"x" * (1 << 20) + b'": 1}',
    "a model of a megabyte": json.dumps(chat() | {"model": "x" * (1 << 20)}).encode(),
}  # fmt: skip
REFUSED = set(ENCODED) - {
    "minus zero",  # as 0, it bounds nothing
    "n in capitals",
    "n times max_tokens",
    "a surrogate in a name",
    "a wide object",
    "a name of a megabyte",
    "a deep value",
}


@pytest.mark.parametrize("name", ENCODED)
async def test_a_body_that_servers_may_read_differently_is_refused_or_metered_as_a_whole(
    scripted_caller, upstream, name
):
    answer = await scripted_caller.post(ENCODED[name])
    if name in REFUSED:
        assert answer.status_code == 400, answer.text[:200]
    elif name == "n times max_tokens":
        assert answer.status_code == 429
        assert "needs up to" in answer.json()["error"]["message"]
    else:
        assert answer.status_code in {200, 400, 429}, answer.text[:200]
    assert len(upstream.received) == (answer.status_code == 200)


async def test_a_model_with_spaces_around_it_is_not_another_model(scripted_caller, upstream):
    await scripted_caller.bind({"scope": "model", "window": "day", "amount": 1, "unit": "requests"}, sa_limit=9000)
    codes = [(await scripted_caller.post(model=name)).status_code for name in ("Qwen", "qwen", "QWEN")]
    assert codes == [200, 429, 429]
    assert (await scripted_caller.post(model=" qwen")).status_code in {400, 429}
    assert (await scripted_caller.post(model="qwen\t")).status_code in {400, 429}


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "headers",
    [
        {"tokenweir-limits": "client_ip:1000000/minute", "tokenweir-route": "free"},
        {"grpc-metadata-tokenweir-route": "free", "te": "trailers", "grpc-timeout": "1n"},
        {"x-envoy-original-path": "/v1/models", "x-original-url": "/v1/models", "x-rewrite-url": "/v1/models"},
        {"x-http-method-override": "GET", "x-http-method": "GET", "x-method-override": "GET"},
        {
            "x-forwarded-host": "elsewhere",
            "x-forwarded-proto": "https",
            "x-forwarded-client-cert": "URI=spiffe://a",
        },
        {"x-request-id": "x" * 20_000},
        {"x-request-id": "a\tb"},
        {"content-type": "text/plain; charset=utf-16"},
        {"content-encoding": "identity"},
        {"expect": "100-continue"},
        {"upgrade": "websocket", "connection": "upgrade"},
        {"x-envoy-max-retries": "100", "x-envoy-retry-on": "5xx", "x-envoy-hedge-on-per-try-timeout": "true"},
        {"x-envoy-decorator-operation": "x", "x-envoy-ip-tags": "x", "x-envoy-force-trace": "1"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_no_header_of_a_client_is_a_way_past_the_meter(scripted_caller, upstream, headers):
    answer = await scripted_caller.post(headers=headers)
    assert answer.status_code in {200, 400, 403, 426}, answer.text
    await served_means_metered(scripted_caller, upstream, answer.status_code)
    if answer.status_code == 200:
        entry = await scripted_caller.entry()
        assert (entry["charge"], entry["serviceAccount"]) == (USED, scripted_caller.account)
        assert len(entry["request_id"]) <= 128


FRAMED = {
    "content-length and chunked": (["content-length: 5", "transfer-encoding: chunked"], b"0\r\n\r\n"),
    "two lengths": ([f"content-length: {len(TEXT)}", "content-length: 0"], TEXT.encode()),
    "a negative length": (["content-length: -1"], TEXT.encode()),
    "a length with a plus": ([f"content-length: +{len(TEXT)}"], TEXT.encode()),
    "chunked twice": (["transfer-encoding: chunked, chunked"], b"0\r\n\r\n"),
    "chunked, hidden": (["transfer-encoding: xchunked"], b"0\r\n\r\n"),
    "a space before the colon": ([f"content-length : {len(TEXT)}"], TEXT.encode()),
    "a folded header": ([f"content-length: {len(TEXT)}", "x: a", " b"], TEXT.encode()),
    "a bare line feed in a value": ([f"content-length: {len(TEXT)}", "x: a\nauthorization: Bearer x"], TEXT.encode()),
    "a NUL in a value": ([f"content-length: {len(TEXT)}", "x: a\0b"], TEXT.encode()),
    "a request in the body": (
        ["content-length: 2"],
        b"{}POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\n\r\n{}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMED)
async def test_a_request_that_two_servers_could_frame_differently_is_not_served(scripted_caller, upstream, name):
    lines, body = FRAMED[name]
    head = [f"POST {CHAT} HTTP/1.1", "host: gateway", f"authorization: Bearer {scripted_caller.token}"]
    head += ["content-type: application/json", "connection: close", *lines]
    raw = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
    try:
        status = (await exchange(scripted_caller.stack.gateway, raw)).status_code
    except (ConnectionError, IndexError):
        status = 400  # closed without a word
    await served_means_metered(scripted_caller, upstream, status)
    if name != "a folded header":
        assert status in {400, 401, 501}


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "/v1/chat/completions;x=y",
        "/v1/chat/completions;x=y/",
        "/v1/CHAT/completions",
        "/v1/chat/completions?x=/v1/models",
        "/v1/chat/completions%3fx",
        "/v1/chat/completions%23x",
        "/v1/chat/completions%00",
        "/v1/chat/completions%20",
        "/v1/chat/completions%3f/x",
        "/v2/models/m/infer%3f/v1/chat/completions",
        "/v2/models/m/infer%23/v1/chat/completions",
        "/v1/chat/completions%3f/v2/models/m/infer",
        "/v1/chat/completions%23/v2/models/m/infer",
        "/v1/chat/completions%253f/v1/models/m:predict",
        "/v1/chat/./completions",
        "/v1/models/../chat/completions",
        "/health/../v1/chat/completions",
        "/v1/chat%2fcompletions",
        "/v1/chat%252fcompletions",
        "/v1/chat\\completions",
        "/v1/ch%61t/completions",
        "/v1/ch%2561t/completions",
        "http://elsewhere/v1/chat/completions",
        "/v1/models#/../chat/completions",
        "*",
    ],
)
async def test_no_spelling_of_a_path_is_served_unmetered(scripted_caller, upstream, path):
    """Those that an upstream could take for the chat endpoint; those that pass unmetered it can't."""
    fields = {"content-type": "application/json", "connection": "close", "content-length": str(len(TEXT))}
    head = request_head(path, scripted_caller.headers | fields)
    try:
        status = (await exchange(scripted_caller.stack.gateway, head, TEXT.encode())).status_code
    except (ConnectionError, IndexError):
        status = 400  # closed without a word
    await served_means_metered(scripted_caller, upstream, status)


@pytest.mark.parametrize(
    "authority",
    ["model", "model:1", "127.0.0.1", "metrics", "gateway.", "GATEWAY", "a@gateway", "[::1]", "x" * 300],
)
async def test_no_authority_leads_past_the_meter(scripted_caller, upstream, authority):
    answer = await scripted_caller.post(headers={"host": authority})
    await served_means_metered(scripted_caller, upstream, answer.status_code)


@pytest.mark.parametrize(
    "trailers",
    [{"content-length": "0"}, {"oc_sa": "admin"}, {"authorization": "Bearer x"}, {"x-forwarded-for": "9.9.9.9"}],
)
async def test_trailers_change_nothing(scripted_caller, upstream, trailers):
    fields = {"content-type": "application/json"} | scripted_caller.headers
    pieces = [TEXT.encode()[:20], TEXT.encode()[20:]]
    try:
        ok, _ = await http2_post(scripted_caller.stack.gateway, CHAT, fields, pieces, trailers)
    except (ConnectionError, asyncio.IncompleteReadError):
        ok = False  # closed without a word
    await served_means_metered(scripted_caller, upstream, 200 if ok else 400)
    if ok:
        entry = await scripted_caller.entry()
        assert (entry["serviceAccount"], entry["clientIP"]) == (scripted_caller.account, "127.0.0.1")
        assert all(not received.header("oc_sa") for received in upstream.received)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("coding", sampled(["gzip", "deflate"], 1))
async def test_a_bomb_as_an_answer_is_charged_and_costs_no_memory(scripted_caller, upstream, coding):
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    packed = b"".join(bomb.compress(b'{"x":' + b" " * (1 << 20)) for _ in range(256)) + bomb.flush()
    assert len(packed) < 1 << 20

    async def script(_received, reply):
        await reply.whole(packed, content_encoding=coding)

    upstream.script = script
    before = rss_of(scripted_caller.stack)
    assert (await scripted_caller.post()).status_code == 200
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"] > 0) == ("estimated", True)
    assert rss_of(scripted_caller.stack) - before < 64


@pytest.mark.parametrize("usage", [
    {"prompt_tokens": -5, "completion_tokens": -2}, {"prompt_tokens": -5.5, "completion_tokens": 2},
    {"prompt_tokens": 2**63, "completion_tokens": 2}, {"prompt_tokens": "5", "completion_tokens": "2"},
    {"prompt_tokens": True, "completion_tokens": 2}, {"prompt_tokens": 10_000_001, "completion_tokens": 2},
])  # fmt: skip
async def test_usage_that_can_not_be_is_estimated_and_never_free(scripted_caller, upstream, usage):
    async def script(_received, reply):
        await reply.whole(json.dumps(ANSWER | {"usage": usage}).encode())

    upstream.script = script
    assert (await scripted_caller.post()).status_code == 200
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["reason"], entry["charge"] > 0) == ("estimated", "absurd", True)


def rss_of(stack):
    (processor,) = stack.processors
    pages = Path(f"/proc/{processor.pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096 / (1 << 20)
