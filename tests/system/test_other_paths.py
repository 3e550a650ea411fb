"""What is not metered passes untouched; and what an operator sees: metrics and logs."""

import json

import pytest

from . import envoys
from .callers import CHAT, Caller, chat, scrape
from .marks import SYSTEM
from .test_denied import error_of
from .waiting import until

pytestmark = SYSTEM


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", b""),
        ("GET", "/health", b""),
        ("GET", "/version", b""),
        ("GET", "/foo?a=%20b", b""),
        ("POST", "/tokenize", b"\x00 any bytes, no JSON"),
        ("GET", "/v1/organization/usage/completions?start_time=1", b""),
        ("DELETE", "/v1/files/x", b""),
        ("OPTIONS", CHAT, b""),
    ],
)
async def test_other_paths_pass_untouched_and_unmetered(scripted_caller, upstream, method, path, body):
    async def script(_received, reply):
        await reply.whole(b"as it \x00 is", status=207, content_type="text/odd", x_mine="yes")

    upstream.script = script
    async with scripted_caller.http() as client:
        answer = await client.request(method, path, content=body, headers={"x-own": "kept"})
    assert (answer.status_code, answer.content) == (207, b"as it \x00 is")
    assert (answer.headers["content-type"], answer.headers["x-mine"]) == ("text/odd", "yes")
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    (received,) = upstream.received
    assert (received.method, received.path, received.body) == (method, path, body)
    assert received.header("x-own") == ["kept"]
    assert received.header("authorization") == []
    upstream.reset()
    assert await scripted_caller.nothing_recorded_but(0) == []


async def test_other_paths_stream_as_they_come(scripted_caller, upstream):
    async def script(_received, reply):
        await reply.stream([b"data: 1\n\n", b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'])

    upstream.script = script
    answer = await scripted_caller.post({"stream": True}, path="/v1/messages/count_tokens")
    assert answer.content == b'data: 1\n\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'


@pytest.mark.parametrize("path", ["/inference/v1/generate", "/v1/responses-of-tomorrow", "/v1/batches", "/"])
async def test_a_post_that_nothing_meters_is_refused(scripted_caller, upstream, path):
    error = error_of(await scripted_caller.post(path=path), 404)
    assert (error["code"], error["type"]) == ("endpoint_not_metered", "invalid_request_error")
    assert upstream.received == []
    assert await scripted_caller.nothing_recorded_but(0) == []


async def test_a_probe_needs_no_token_and_nothing_else_does_without(scripted_caller, upstream):
    async with scripted_caller.stranger() as client:
        assert (await client.get("/health")).status_code == 200
        assert len(upstream.received) == 1
        for method, path in (
            ("POST", "/health"),
            ("GET", "/health/x"),
            ("GET", "/v1/models"),
            ("GET", "/health%2f"),
        ):
            answer = await client.request(method, path)
            assert answer.status_code in (400, 401), (method, path)
            error_of(answer, answer.status_code)
    assert len(upstream.received) == 1


async def test_a_probe_leaves_no_credential_behind(scripted_caller, upstream):
    async with scripted_caller.http() as client:
        await client.get("/health", headers={"x-api-key": "k"})
    (received,) = upstream.received
    assert received.header("authorization") == received.header("x-api-key") == []


METRICS = [
    'tokenweir_decisions_total{outcome="admitted",reason=""}',
    'tokenweir_decisions_total{outcome="denied",reason="service_account+client_ip"}',
    'tokenweir_rejections_total{reason="malformed"}',
    'tokenweir_tokens_total{kind="input"}',
    'tokenweir_tokens_total{kind="output"}',
    'tokenweir_tokens_total{kind="charged"}',
    'tokenweir_reservations_closed_total{outcome="settled",reason="usage"}',
    "tokenweir_reserve_seconds_count",
    "tokenweir_reserve_seconds_sum",
    "tokenweir_ready",
    "tokenweir_streams",
    'tokenweir_queue_items{queue="closings"}',
    'tokenweir_queue_items{queue="ledger"}',
    "tokenweir_limits_tenants",
    "tokenweir_limits_bad_documents",
    "tokenweir_limits_bad_fields",
    "tokenweir_limits_loaded_timestamp_seconds",
]


async def test_the_metrics_have_their_names_and_count_what_happened(scripted_caller):
    (before,) = await scrape(scripted_caller.stack)
    await scripted_caller.limit(ip_limit=60)
    await scripted_caller.post(max_tokens=1)
    await scripted_caller.post(max_tokens=60)
    await scripted_caller.post(b"{}")
    await scripted_caller.entries(2)
    (after,) = await scrape(scripted_caller.stack)
    assert set(METRICS) <= set(after)
    grown = {name: after[name] - before.get(name, 0) for name in METRICS}
    assert [grown[name] for name in METRICS[:7]] == [1, 1, 1, 5, 2, 7, 1]
    assert (after["tokenweir_ready"], after["tokenweir_streams"]) == (1, 0)
    naming = [name for name in after if scripted_caller.tenant in name]
    assert naming, "tenant and model are labels of some metrics"
    of_tenants = ("tokenweir_usage_tokens_", "tokenweir_limit_", "tokenweir_tenant_decisions_")
    assert all(name.startswith(of_tenants) for name in naming)
    assert scripted_caller.account not in str(after)


async def test_logs_are_json_lines_without_a_token_or_a_body(loud, before, records, upstream):
    secret = "The password is quince."
    async with before(loud) as stack:
        caller = Caller(stack, records)
        await caller.limit(ip_limit=100)
        for body in (chat(secret, max_tokens=1), chat(secret, n=-1), chat(secret, max_tokens=900)):
            await caller.post(body)
        await caller.post(json.dumps(chat(secret)).encode()[:-1])
        await caller.post(path=f"/v1/models?key={caller.token}")
        admitted, _ = await caller.entries(2)
        await until(lambda: len(envoys.access_log(stack)) == 5, "all five are in the access log")
    (processor,) = stack.processors
    for line in processor.log_path.read_text(encoding="utf-8").splitlines():
        assert {"time", "level", "logger", "message"} <= set(json.loads(line))
    everything = processor.log_path.read_text(encoding="utf-8") + "".join(envoys.access_log(stack))
    for forbidden in (secret, caller.token, "Bearer", "uthorization"):
        assert forbidden not in everything
    # One line a request, under the ledger's id.
    (line,) = [json.loads(line) for line in envoys.access_log(stack) if admitted["request_id"] in line]
    assert (line["status"], line["path"], line["client"]) == (200, CHAT, "127.0.0.1")
