"""Each error that docs/api-consumers.md lists, caused through the real Envoy: by whom, in which shape, with what headers."""

import asyncio
import contextlib
import json
import re
from pathlib import Path

import pytest

from .callers import CHAT, chat
from .marks import SYSTEM
from .waiting import NEVER_S
from .wires import connection, dechunked, request_head

pytestmark = SYSTEM

MESSAGES, PREDICT = "/v1/messages", "/v1/models/m:predict"
PATHS = {"openai": CHAT, "anthropic": MESSAGES, "kserve": PREDICT}
DOCS = Path(__file__).parents[2] / "docs" / "api-consumers.md"
ROW = re.compile(r"^\| (\d{3}) \| (`[^|]*`) \| ([^|]+) \|", re.MULTILINE)
# Held by other tests, because they need another set-up: the clock, a store that is gone, a full server.
ELSEWHERE = {
    (400, "too_many_pieces"): "tests/core/test_exchange_apart.py",
    (400, "answer_without_usage"): "tests/core/test_exchange.py",
    (400, "ambiguous_path"): "tests/core/request/test_endpoints.py",
    (404, "not_found"): "tests/local/test_envoy_config.py",
    (408, "request_timeout"): "tests/security/test_bounds.py",
    (429, "rate_limit_exceeded"): "tests/system/test_headers.py",
    (429, "too_many_in_flight"): "tests/core/request/test_in_flight.py",
    (503, "quota_unavailable"): "tests/system/test_outages.py",
    (503, "overloaded"): "tests/core/request/test_buffers.py",
    (503, "body_not_read"): "tests/core/test_exchange_apart.py",
}


def documented():
    """Who gives each error of the table, by status and code."""
    rows = ROW.findall(DOCS.read_text(encoding="utf-8"))
    return {
        (int(status), code): by.strip() for status, codes, by in rows for code in re.findall(r"`(\w+)`", codes)
    }


def body(**fields):
    return json.dumps(chat(**fields) | {"max_tokens": 5} | fields).encode()


class Cause:
    """A request that is refused, as what it has of its own. `raw` is what is sent instead of a request of HTTP."""

    def __init__(self, status, code, content=None, *, apis=tuple(PATHS), **more):
        self.status, self.code, self.content, self.apis = status, code, content, apis
        self.more = more


GENERATING = ("openai", "anthropic")
CAUSES = [
    Cause(400, "invalid_value", body(model=5), apis=GENERATING),
    Cause(400, "invalid_json", b"{", apis=GENERATING),
    Cause(400, "empty_body", b"", apis=GENERATING),
    Cause(400, "duplicate_field", b'{"model":"m","model":"n","messages":[]}', apis=GENERATING),
    Cause(400, "invalid_field_name", body(Model="m"), apis=GENERATING),
    Cause(400, "parameter_not_allowed", body(priority=1), apis=GENERATING),
    Cause(
        400, "invalid_content_type", fields={"content-type": "multipart/form-data; boundary=b"}, apis=GENERATING
    ),
    Cause(
        400,
        "invalid_multipart",
        b"--b",
        apis=("openai",),
        path="/v1/audio/transcriptions",
        fields={"content-type": "multipart/form-data; boundary=b"},
    ),
    Cause(
        400, "invalid_request", raw=b"POST / HTTP/1.1\r\nhost: gateway\r\nnot a header\r\n\r\n", apis=("openai",)
    ),
    Cause(400, "unbounded_prompt", body(model="sonar"), mode="strict", apis=GENERATING),
    Cause(
        400,
        "model_required",
        b'{"messages":[{"role":"user","content":"x"}],"max_tokens":5}',
        models=True,
        apis=GENERATING,
    ),
    Cause(401, "invalid_api_key", fields={"authorization": ""}),
    Cause(401, "invalid_api_key", fields={"authorization": "Bearer x.y.z"}),
    Cause(403, "suspended", suspended="unpaid"),
    Cause(403, "unusable_identity", account=" "),
    Cause(403, "permission_denied", audience="another service"),
    Cause(404, "endpoint_not_metered", below="/batches", apis=GENERATING),
    Cause(405, "method_not_allowed", method="PUT"),
    Cause(413, "request_too_large", b"[" * (33 << 20)),
    Cause(414, "path_too_long", path=f"/{'x' * 3000}{CHAT}", apis=("openai",)),
    Cause(415, "unsupported_content_encoding", fields={"content-encoding": "gzip"}),
    Cause(426, "websocket_not_supported", method="GET", fields={"connection": "upgrade", "upgrade": "websocket"}),
    Cause(426, "http_version_not_supported", raw=b"GET / HTTP/1.0\r\nhost: gateway\r\n\r\n", apis=("openai",)),
    Cause(431, "headers_too_large", fields={f"x-{n}": "y" * 8000 for n in range(12)}, apis=("openai",)),
    Cause(501, "not_implemented", fields={"transfer-encoding": "strange", "content-length": ""}, apis=("openai",)),
    Cause(503, "service_unavailable", upstream="cut"),
    Cause(504, "timeout", upstream="hangs"),
]


async def answer_of(url, head, content):
    """Return the status, the headers and the body of an answer."""
    async with connection(url) as (reader, writer):
        writer.write(head + content)
        head_of_answer = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head_of_answer.decode("latin-1").strip().split("\r\n")
        fields = [tuple(line.lower().split(": ", 1)) for line in lines]
        size = dict(fields).get("content-length")
        if size is None:
            told = dechunked(await reader.readuntil(b"0\r\n\r\n"))
        else:
            told = await reader.readexactly(int(size))
        return int(first.split(" ")[1]), fields, told


def check_shape(api, code, told):
    """Each error has the shape of its API, words for people, and the code where the shape has one."""
    if api == "anthropic":
        assert told.keys() == {"type", "error"}
        assert told["error"].keys() == {"type", "message"}
    elif api == "openai":
        assert told["error"].keys() == {"message", "type", "param", "code"}
        assert told["error"]["code"] == code, told
    else:
        assert told.keys() == {"error"}
    message = told["error"] if api == "kserve" else told["error"]["message"]
    assert len(message) > 10
    assert message[-1] in ".?"


def hurried(configuration):
    for host in configuration.manager["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            if "tokenweir" in route.get("typed_per_filter_config", {}):
                route["route"]["timeout"] = "0.3s"


@pytest.mark.parametrize(
    ("api", "cause"),
    [
        pytest.param(api, each, id=f"{each.status}-{each.code}-{api}-{n}")
        for n, each in enumerate(CAUSES)
        for api in each.apis
    ],
)
async def test_each_error_has_the_shape_of_its_api_and_the_headers_that_are_promised(
    before, scripted_caller, upstream, api, cause
):
    more = cause.more

    async def script(_received, reply):
        if more["upstream"] == "cut":
            reply.cut()
        else:
            await reply.gone()

    caller, stack = scripted_caller, scripted_caller.stack
    if "upstream" in more:
        upstream.script = script
    if "mode" in more:
        await caller.bind(mode=more["mode"], sa_limit=10_000)
    if "suspended" in more:
        await caller.bind(suspended=more["suspended"])
    if "models" in more:
        await caller.bind({"scope": "service_account", "window": "day", "amount": 10_000, "model": "m"})
    fields = {"content-type": "application/json"} | caller.headers
    if "account" in more or "audience" in more:
        issuer = stack.issuer
        token = issuer.issue(
            more.get("account", caller.account),
            tenant=caller.tenant,
            **{k: v for k, v in more.items() if k == "audience"},
        )
        fields["authorization"] = f"Bearer {token}"
    content = body() if cause.content is None else cause.content
    fields |= {"content-length": str(len(content))} | more.get("fields", {})
    fields = {name: value for name, value in fields.items() if value}
    path = more.get("path", PATHS[api]) + more.get("below", "")
    head = more.get("raw") or request_head(path, fields, more.get("method", "POST"))
    async with contextlib.AsyncExitStack() as others:
        if more.get("upstream") == "hangs":
            stack = await others.enter_async_context(before(stack, change=hurried))
        status, headers, told = await answer_of(stack.gateway, head, b"" if "raw" in more else content)
    named = [name for name, _ in headers]
    assert status == cause.status, told
    check_shape(api, cause.code, json.loads(told))
    assert dict(headers)["content-type"].startswith("application/json")
    assert named.count("x-request-id") == 1
    assert dict(headers)["x-request-id"].startswith("connection-") is ("raw" in more or cause.status in {431, 501})
    assert not {"retry-after", "x-should-retry"}.intersection(named)
    # Envoy ends what it writes by a format with a line break; the processor's answers have none.
    assert documented()[cause.status, cause.code] == ("Envoy" if told.endswith(b"\n") else "Tokenweir")


async def test_chunks_that_are_not_framed_end_the_connection_without_an_answer_and_cost_nothing(
    scripted_caller, upstream
):
    fields = {"content-type": "application/json", "transfer-encoding": "chunked"} | scripted_caller.headers
    async with connection(scripted_caller.stack.gateway) as (reader, writer), asyncio.timeout(NEVER_S):
        writer.write(request_head(CHAT, fields) + b"2\r\n{ \r\n")
        await writer.drain()
        await asyncio.sleep(0.1)  # its route is chosen
        writer.write(b"no size\r\n")
        assert await reader.read() == b""
    assert upstream.received == []


async def test_the_table_has_each_error_once_and_each_is_held_by_a_test():
    held = {(cause.status, cause.code) for cause in CAUSES}
    assert documented().keys() == held | ELSEWHERE.keys()
    assert not held & ELSEWHERE.keys()
    for (_, code), where in ELSEWHERE.items():
        assert (DOCS.parents[1] / where).is_file(), code
