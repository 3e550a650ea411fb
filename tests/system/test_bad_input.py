"""What can't be metered is refused in OpenAI's shape, names the field, costs nothing and never gets further."""

import gzip
import json

import pytest

from extproc.core.request.buffers import MAX_BODY_BYTES

from .callers import CHAT, chat
from .marks import SYSTEM
from .test_denied import error_of
from .wires import exchange, http2_post, request_head

pytestmark = SYSTEM

LIMIT = MAX_BODY_BYTES


def with_field(field):
    """A whole body with a field written by hand."""
    return json.dumps(chat())[:-1].encode() + b", " + field + b"}"


def without(name):
    body = chat()
    del body[name]
    return json.dumps(body).encode()


NUMBERS = [b"-1", b"0", b"9223372036854775808", b"1e400", b"1.5", b'"5"', b"true", b"[5]", b"NaN", b"10000001"]

BAD = [
    (b"", None),
    (b" \n", None),
    (b"hello", None),
    (b'{"model": "m", ', None),
    (b"[]", None),
    (b"null", None),
    (b'"text"', None),
    (b'{"model": 5, "messages": []}', "model"),
    (b'{"model": " ", "messages": []}', "model"),
    (without("messages"), "messages"),
    (b'{"model": "m", "messages": null}', "messages"),
    (b'{"model": "m", "messages": "hi"}', "messages"),
    *((with_field(b'"n": ' + number), "n") for number in NUMBERS if number != b"NaN"),
    *((with_field(b'"max_tokens": ' + number), "max_tokens") for number in NUMBERS[2:] if number != b"NaN"),
    (with_field(b'"max_tokens": NaN'), None),
    (with_field(b'"max_completion_tokens": 1.5'), "max_completion_tokens"),
    (with_field(b'"stream": "true"'), "stream"),
    (with_field(b'"stream": 1'), "stream"),
    (with_field(b'"stream": true, "stream_options": []'), "stream_options"),
    (with_field(b'"stream": true, "stream_options": {"include_usage": 1}'), "stream_options.include_usage"),
    (with_field(b'"max_tokens": 5, "max_tokens": 6'), "max_tokens"),
    (with_field(b'"max_tokens": 5, "max\\u005ftokens": 6'), "max_tokens"),
    (with_field(b'"model": "other"'), "model"),
    (with_field(b'"stream": true, "stream": false'), "stream"),
    (b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    (b'{"model": "m", "messages": [], "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, None),
    (b'{"model": "m", "messages": ["\xff\xfe"]}', None),
    (b'{"model": "m\xed\xa0\x80", "messages": []}', None),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: repr(value)[:60])
async def test_a_body_that_can_not_be_metered_is_refused(scripted_caller, upstream, body, param):
    answer = await scripted_caller.post(body)
    error = error_of(answer, 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    if param is not None:
        assert f"'{param}" in error["message"]
    assert upstream.received == []


async def test_what_is_refused_costs_nothing_and_is_not_on_record(scripted_caller, upstream):
    for body, _ in BAD:
        assert (await scripted_caller.post(body)).status_code == 400
    assert await scripted_caller.nothing_recorded_but(0) == []
    assert await scripted_caller.settled() == 7
    assert len(upstream.received) == 1


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_other_methods_are_refused_on_a_metered_path(scripted_caller, upstream, method):
    async with scripted_caller.http() as client:
        answer = await client.request(method, CHAT)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert upstream.received == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
async def test_a_compressed_body_is_refused(scripted_caller, upstream, encoding):
    body = gzip.compress(json.dumps(chat()).encode())
    answer = await scripted_caller.post(body, headers={"content-encoding": encoding})
    assert error_of(answer, 415)["param"] == "content-encoding"
    assert upstream.received == []


async def test_a_body_that_is_too_large_is_refused_and_its_size_is_named(scripted_caller, upstream):
    padding = b" " * (LIMIT + 1)
    for declared in (True, False):

        async def pieces():
            for start in range(0, len(padding), 65_536):
                yield padding[start : start + 65_536]

        async with scripted_caller.http() as client:
            answer = await client.post(CHAT, content=padding if declared else pieces())
        error = error_of(answer, 413)
        assert (error["code"], str(LIMIT) in error["message"]) == ("request_too_large", True)
    assert upstream.received == []
    assert await scripted_caller.nothing_recorded_but(0) == []


async def test_a_body_just_as_large_as_allowed_is_served(scripted_caller, upstream):
    await scripted_caller.limit(sa_limit=1_000_000_000)
    body = json.dumps(chat("x" * (LIMIT - len(json.dumps(chat(""))))), ensure_ascii=False).encode()
    assert len(body) == LIMIT
    assert (await scripted_caller.post(body)).status_code == 200
    assert upstream.received[0].body == body


@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_in_many_small_pieces_is_served(scripted_caller, upstream, stream):
    body = json.dumps(chat("äöü" * 200, stream=stream), ensure_ascii=False).encode()
    head = request_head(
        CHAT,
        scripted_caller.headers
        | {"content-type": "application/json", "transfer-encoding": "chunked", "connection": "close"},
    )
    pieces = [b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body))]
    answer = await exchange(scripted_caller.stack.gateway, head, *pieces, b"0\r\n\r\n")
    assert answer.status_code == 200
    assert upstream.received[0].json == chat("äöü" * 200, stream=stream) | (
        {"stream_options": {"include_usage": True}} if stream else {}
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_trailers_of_a_chunked_request_do_not_get_in_the_way(scripted_caller, upstream, stream):
    body = json.dumps(chat(stream=stream)).encode()
    fields = {"content-type": "application/json", "transfer-encoding": "chunked", "connection": "close"}
    answer = await exchange(
        scripted_caller.stack.gateway,
        request_head(CHAT, scripted_caller.headers | fields | {"trailer": "x-sum"}),
        b"%x\r\n%b\r\n" % (len(body), body),
        b"0\r\nx-sum: 1\r\n\r\n",
    )
    assert answer.status_code == 200
    assert (await scripted_caller.entry())["charge"] == 7
    assert upstream.received[0].json.items() >= chat(stream=stream).items()


async def http2_with_trailers(caller, body):
    fields = {"content-type": "application/json"} | caller.headers
    return await http2_post(caller.stack.gateway, CHAT, fields, [body[:20], body[20:]], {"x-sum": "1"})


# Envoy shows the trailers only after an answer to the body, and the body's last piece is not marked as such.
@pytest.mark.parametrize("stream", [False, True])
async def test_an_http2_request_that_ends_with_trailers_is_served(scripted_caller, upstream, stream):
    ok, answer = await http2_with_trailers(scripted_caller, json.dumps(chat(stream=stream)).encode())
    assert ok, answer
    entry = await scripted_caller.entry()
    assert (entry["charge"], entry["stream"]) == (7, stream)
    wanted = chat(stream=stream) | ({"stream_options": {"include_usage": True}} if stream else {})
    assert upstream.received[0].json == wanted


def trying_again(configuration):
    """Let the routes of the gateway repeat, whatever protocol the client speaks."""
    for host in configuration.manager["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            if "tokenweir" in route.get("typed_per_filter_config", {}):
                route["route"]["retry_policy"] = {
                    "retry_on": "connect-failure,reset-before-request",
                    "num_retries": 2,
                }


async def test_a_route_that_may_repeat_doubles_a_body_that_ends_with_trailers(
    scripted, before, scripted_caller, upstream
):
    """Why requests of HTTP/2 are not tried again, and in a cluster none. When this fails, an Envoy no longer does so."""
    body = json.dumps(chat()).encode()
    async with before(scripted, change=trying_again) as stack:
        ok, answer = await http2_with_trailers(scripted_caller.on(stack), body)
    assert ok, answer
    assert upstream.received[0].body == body + body


def hurried(configuration):
    """A malformed body that ends with trailers has no answer from the processor: Envoy's own comes after this time."""
    configuration.filter("tokenweir")["message_timeout"] = "1s"


@pytest.mark.parametrize("body", [json.dumps(chat()).encode(), b'{"model": 5}                  '])
async def test_an_http2_request_that_ends_with_trailers_is_never_served_unmetered(
    scripted, before, scripted_caller, upstream, body
):
    async with before(scripted, change=hurried) as stack:
        ok, answer = await http2_with_trailers(scripted_caller.on(stack), body)
    assert ok or json.loads(answer)["error"]["message"]
    served = len(upstream.received)
    assert len(await scripted_caller.nothing_recorded_but(served)) == served


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completion%73",
        "/v1/%63hat/completions",
        "/v1//chat///completions",
        "/v1/chat/./completions",
        "/v1/x/../chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions?a=b",
        "/openai/v1/chat/completions",
        "/V1/Chat/Completions",
        "/v1/chat/completions;x=1",
    ],
)
async def test_another_spelling_of_the_path_is_metered_all_the_same(scripted_caller, upstream, path):
    head = request_head(
        path,
        scripted_caller.headers
        | {"content-type": "application/json", "connection": "close"}
        | {"content-length": "2"},
    )
    answer = await exchange(scripted_caller.stack.gateway, head, b"{}")
    assert error_of(answer, 400)["param"] == "messages"
    assert upstream.received == []


@pytest.mark.parametrize(
    "path", ["/v1/chat%2Fcompletions", "/v1/chat%5Ccompletions", "/v1%2F..%2Fv1/chat/completions"]
)
async def test_an_escaped_slash_is_refused(scripted_caller, upstream, path):
    head = request_head(
        path,
        scripted_caller.headers | {"content-length": "0", "connection": "close"},
    )
    answer = await exchange(scripted_caller.stack.gateway, head)
    assert error_of(answer, 400)["code"] in ("invalid_request", "invalid_value")
    assert upstream.received == []
