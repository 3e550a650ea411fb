"""The rendered configuration, read as YAML, checked by Envoy, and run with a stand-in on either side."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import re
import subprocess
from types import SimpleNamespace

import grpc
import pytest
import pytest_asyncio
import yaml

from extproc.local.envoy_config import EnvoyOptions, render
from extproc.local.issuer import TokenIssuer
from extproc.local.parts import envoy_binary, start_envoy
from extproc.local.ports import free_ports
from tests.missing import needing_parts

ISSUER = TokenIssuer()
OPTIONS = EnvoyOptions(
    listener_port=10000,
    admin_port=9901,
    jwks_json=ISSUER.jwks_json(),
    issuer=ISSUER.issuer,
    audience=ISSUER.audience,
    processor_addresses=("127.0.0.1:18080",),
    upstream_url="http://127.0.0.1:8000",
    max_body_bytes=100_000,
    message_timeout_s=0.3,
)
CHAT = "/v1/chat/completions"
REQUEST_HEADERS, RESPONSE_HEADERS, REQUEST_BODY = 2, 3, 4  # fields of ProcessingRequest


def manager(config):
    (listener,) = yaml.safe_load(config)["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def filters(config):
    return {each["name"]: each["typed_config"] for each in manager(config)["http_filters"]}


@pytest.mark.system
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"upstream_url": "https://api.example.com"},
        {"upstream_url": "http://[::1]:8000", "trusted_hops": 2, "forward_token": True},
        {"processor_addresses": ("127.0.0.1:1", "[::1]:2", "unix:/run/tokenweir/worker-0.sock")},
        {"identity_headers": ()},
        {"accept_http_1_0": True, "upstream_keep_alive_s": 60},
    ],
)
def test_envoy_accepts_the_configuration_without_a_warning(tmp_path, changes):
    path = tmp_path / "envoy.yaml"
    path.write_text(render(dataclasses.replace(OPTIONS, **changes)))
    with needing_parts():
        envoy = envoy_binary()
    command = [envoy, "--mode", "validate", "--log-level", "warning", "-c", path]
    run = subprocess.run(
        [*command, "--disable-hot-restart"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stderr.strip()) == (0, ""), run.stderr


@pytest.mark.parametrize("text", ['a" }\nadmin: { x: "', "a\n- b", "$issuer", "%REQ(x)%", "é 'x' # y"])
def test_a_value_stays_the_value_that_it_was(text):
    provider = filters(render(dataclasses.replace(OPTIONS, audience=text)))["envoy.filters.http.jwt_authn"]
    assert provider["providers"]["tokens"]["audiences"] == [text]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("listener_port", [0, 65_536]),
        ("processor_addresses", [(), ("localhost:1",), ("127.0.0.1",)]),
        ("upstream_url", ["127.0.0.1:8000", "http://127.0.0.1:8000/v1", "ftp://127.0.0.1"]),
        ("message_timeout_s", [0, -1, float("nan")]),
        ("upstream_keep_alive_s", [0, -1]),
    ],
)
def test_a_value_that_can_not_be_meant_is_refused(option, values):
    for value in values:
        with pytest.raises(ValueError):
            render(dataclasses.replace(OPTIONS, **{option: value}))


def test_a_tls_upstream_is_verified_by_its_name():
    config = yaml.safe_load(render(dataclasses.replace(OPTIONS, upstream_url="https://api.example.com")))
    model = config["static_resources"]["clusters"][0]
    tls = model["transport_socket"]["typed_config"]
    names = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert (tls["sni"], names[0]["matcher"]["exact"]) == ("api.example.com", "api.example.com")
    address = model["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    assert address["socket_address"] == {"address": "api.example.com", "port_value": 443}


def test_everything_listens_on_the_loopback_interface():
    config = yaml.safe_load(render(OPTIONS))
    addresses = [
        config["admin"]["address"],
        *(each["address"] for each in config["static_resources"]["listeners"]),
    ]
    assert {each["socket_address"]["address"] for each in addresses} == {"127.0.0.1"}


# --- A running Envoy -------------------------------------------------------------------------------


def field(number, content):
    """One length-delimited protobuf field."""
    content = content.encode() if isinstance(content, str) else content
    size, prefix = len(content), bytearray([number << 3 | 2])
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes([*prefix, size]) + content


def immediate(status, body, details, content_type):
    """A ProcessingResponse that answers the client: status, a content type and retry-after, body, details."""
    headers = [("content-type", content_type), ("retry-after", "7")]
    options = b"".join(field(1, field(1, field(1, name) + field(3, value))) for name, value in headers)
    code = bytes([8, status & 127 | 128, status >> 7])
    return field(7, field(1, code) + field(2, options) + field(3, body) + (field(5, details) if details else b""))


VERDICTS = {
    "deny-named": (429, '{"error":{"code":"mine"}}', "tokenweir_over_limit", "application/json"),
    "deny-unnamed": (429, '{"error":{"code":"mine"}}', "", "application/json"),
    "deny-plain": (400, "Usage over limit -- serviceAccount.", "tokenweir_over_limit", "text/plain"),
    "deny-503": (503, '{"error":{"code":"mine"}}', "tokenweir_store_failure", "application/json"),
}


class Processor:
    """Answers every message with "go on", or as the header x-verdict says."""

    def __init__(self):
        self.seen = []

    async def process(self, messages, context):
        async for message in messages:
            kind = message[0] >> 3
            if not self.seen and kind == RESPONSE_HEADERS:
                return  # one of Envoy's own refusals
            self.seen.append(message)
            verdict = re.search(rb"x-verdict\x1a.([a-z0-9-]+)", message, re.DOTALL)
            verdict = verdict[1].decode() if verdict and kind == REQUEST_HEADERS else "go-on"
            if verdict == "wait-for-body":
                self.seen.append(await anext(messages))
                yield field(REQUEST_HEADERS - 1, b"")
                kind = REQUEST_BODY
            if verdict in VERDICTS:
                yield immediate(*VERDICTS[verdict])
                return
            if verdict == "hang":
                await asyncio.Event().wait()
            if verdict == "abort":
                await context.abort(grpc.StatusCode.INTERNAL, "on purpose")
            yield field(kind - 1, b"")


class Upstream:
    """Answers everything with 200, or with the status in the header x-answer, and keeps what it got."""

    def __init__(self):
        self.seen = []

    async def serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if "transfer-encoding: chunked" in head:
                    while size := int(await reader.readline(), 16):
                        await reader.readexactly(size + 2)
                    await reader.readline()
                self.seen.append(head)
                status = (re.findall(r"x-answer: (\d+)", head) or ["200"])[0]
                writer.write(f"HTTP/1.1 {status} X\r\nserver: toy\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        writer.close()


class Stack(SimpleNamespace):
    async def call(self, method, path, headers, body=None):
        self.processor.seen.clear()
        self.upstream.seen.clear()
        status, received, content = await asyncio.to_thread(self._call, method, path, headers, body)
        return SimpleNamespace(status=status, headers=received, body=content)

    async def post(self, headers=(), body=b'{"model":"m"}'):
        return await self.call("POST", CHAT, [authorization(), *headers], body)

    def _call(self, method, path, headers, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.options.listener_port, timeout=10)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in [*headers, *([("content-length", str(len(body)))] if body else [])]:
                connection.putheader(name, value)
            connection.endheaders(body)
            with connection.getresponse() as response:
                return response.status, response.headers, response.read().decode()


def authorization(token=None):
    return ("authorization", f"Bearer {token or ISSUER.issue('console@zone-prod', tenant='zone-prod')}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    processor, upstream = Processor(), Upstream()
    listener, admin, processor_port = free_ports(3)
    serving = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    options = dataclasses.replace(
        OPTIONS,
        listener_port=listener,
        admin_port=admin,
        processor_addresses=(f"127.0.0.1:{processor_port}",),
        upstream_url=f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}",
    )
    envoy = await start_envoy(tmp_path_factory.mktemp("envoy"), options)
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(processor.process)
    service = "envoy.service.ext_proc.v3.ExternalProcessor"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Process": handler}),))
    server.add_insecure_port(options.processor_addresses[0])
    await server.start()
    yield Stack(processor=processor, upstream=upstream, options=options, envoy=envoy)
    await envoy.process.stop()
    await server.stop(0)
    serving.close()


def with_envoy(test):
    return pytest.mark.system(pytest.mark.asyncio(loop_scope="module")(test))


def error(answer):
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    content = json.loads(answer.body)["error"]
    assert set(content) == {"message", "type", "param", "code"}
    assert content["param"] is None
    return answer.status, content["type"], content["code"]


@with_envoy
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], (401, "invalid_api_key")),
        ([authorization(ISSUER.forge("a"))], (401, "invalid_api_key")),
        ([authorization(ISSUER.issue("a", ttl_s=-3600))], (401, "invalid_api_key")),
        ([authorization("junk")], (401, "invalid_api_key")),
        ([authorization(ISSUER.issue("a", audience="somebody-else"))], (403, "permission_denied")),
        ([authorization(), ("x-api-key", ISSUER.forge("a"))], (401, "invalid_api_key")),
    ],
    ids=["none", "forged", "expired", "junk", "audience", "one-of-two-forged"],
)
async def test_without_a_token_of_ours_the_answer_is_envoys_in_openais_shape(stack, headers, expected):
    answer = await stack.call("POST", CHAT, headers, b"{}")
    status, _, code = error(answer)
    assert (status, code) == expected
    assert (stack.processor.seen, stack.upstream.seen) == ([], [])


@with_envoy
@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([], "The request has no token"),
        ([authorization(ISSUER.issue("a", ttl_s=-3600))], "The token has expired"),
        ([authorization(ISSUER.forge("a"))], "The token is not valid here"),
        ([authorization("junk")], "The token is not valid here"),
    ],
    ids=["none", "expired", "forged", "junk"],
)
async def test_a_refused_token_is_explained_in_words_for_people(stack, headers, words):
    message = json.loads((await stack.call("POST", CHAT, headers, b"{}")).body)["error"]["message"]
    assert message == f"{words}; send a valid one as 'Authorization: Bearer ...'."


REFUSED = [
    # headers, body, extra: status, Anthropic's type
    ([], b"{}", (401, "authentication_error")),
    ([authorization(ISSUER.issue("a", audience="somebody-else"))], b"{}", (403, "permission_error")),
    ([authorization()], b"x" * 100_001, (413, "request_too_large")),
    ([authorization(), ("x-verdict", "hang")], b"{}", (504, "api_error")),
    ([authorization(), ("x-verdict", "abort")], b"{}", (503, "api_error")),
]


@with_envoy
@pytest.mark.parametrize(("headers", "body", "expected"), REFUSED)
@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/messages?beta=true", "/x/V1/Messages/", "/v1/messages/batches"]
)
async def test_below_messages_envoys_own_answers_have_anthropics_shape(stack, path, headers, body, expected):
    answer = await stack.call("POST", path, headers, body)
    content = json.loads(answer.body)
    assert (answer.status, content["error"]["type"]) == expected
    assert (set(content), content["type"]) == ({"type", "error"}, "error")
    assert set(content["error"]) == {"type", "message"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]


@with_envoy
@pytest.mark.parametrize(("headers", "body", "expected"), REFUSED)
@pytest.mark.parametrize(
    "path", ["/v1/models/m:predict", "/v2/models/m/versions/1/infer", "/v2/models/m/generate"]
)
async def test_on_kserves_paths_envoys_own_answers_have_kserves_shape(stack, path, headers, body, expected):
    answer = await stack.call("POST", path, headers, body)
    content = json.loads(answer.body)
    assert (answer.status, set(content), type(content["error"])) == (expected[0], {"error"}, str)
    assert answer.headers["x-request-id"]


@with_envoy
@pytest.mark.parametrize("path", [CHAT, "/v1/threads/t/messages", "/v1/models", f"{CHAT}?x=/v1/messages"])
async def test_elsewhere_envoys_own_answers_have_openais_shape(stack, path):
    assert error(await stack.call("POST", path, [], b"{}"))[0] == 401


@with_envoy
@pytest.mark.parametrize("headers", [[], [authorization()], [authorization(), ("x-answer", "503")]])
async def test_every_answer_has_the_request_id_that_the_upstream_and_the_processor_got(stack, headers):
    answer = await stack.call("POST", CHAT, [*headers, ("x-request-id", "mine")], b"{}")
    told = answer.headers["x-request-id"]
    assert told != "mine"
    assert len(told) == 36
    for head in stack.upstream.seen:
        assert f"x-request-id: {told}" in head
    for message in stack.processor.seen[:1]:
        assert told.encode() in message


WEBSOCKET = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
]


@with_envoy
@pytest.mark.parametrize("headers", [[], [authorization()]])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime?model=m"])
async def test_a_websocket_is_told_to_use_http(stack, path, headers):
    answer = await stack.call("GET", path, [*headers, *WEBSOCKET])
    assert error(answer) == (426, "invalid_request_error", "websocket_not_supported")
    assert stack.upstream.seen == []


async def raw(stack, *lines, body=b"{}"):
    """Send a request as it is written, and return the answer; None if there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.options.listener_port)
    writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body)
    with contextlib.closing(writer):
        async with asyncio.timeout(10):
            head, separator, content = (await reader.read()).partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    headers = dict(field.lower().split(": ", 1) for field in fields)
    return (
        SimpleNamespace(status=int(first.split()[1]), headers=headers, body=content.decode())
        if separator
        else None
    )


def head_of(*fields, version="1.1", path=CHAT):
    return (
        f"POST {path} HTTP/{version}",
        "host: gateway",
        ": ".join(authorization()),
        "content-length: 2",
        *fields,
    )


@with_envoy
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (head_of(version="1.0"), (426, "http_version_not_supported")),
        (head_of(version="1.0", path="/health"), (426, "http_version_not_supported")),
        (head_of("x-long: " + "x" * 80_000), (431, "headers_too_large")),
        (head_of(*(f"x-{n}: y" for n in range(120))), (431, "headers_too_large")),
        (head_of("this is no header"), (400, "invalid_request")),
        (head_of("x-control: a\x01b"), (400, "invalid_request")),
        (head_of("transfer-encoding: chunked"), (400, "invalid_request")),
        (head_of(path="/v1/chat%2fcompletions"), (400, "invalid_request")),
        (("hello",), (400, "invalid_request")),
        ((f"POST {CHAT} HTTP/1.1", "content-length: 2"), (400, "invalid_request")),
        (("POST /x HTTP/1.1", "host: a", "transfer-encoding: gzip"), (501, "not_implemented")),
        (("CONNECT a:1 HTTP/1.1", "host: a:1", ": ".join(authorization())), (404, "not_found")),
    ],
    ids=[
        "1.0",
        "1.0-free",
        "long",
        "many",
        "no-header",
        "control",
        "two-lengths",
        "slash",
        "hello",
        "host",
        "te",
        "connect",
    ],
)
async def test_what_envoy_can_not_read_it_refuses_with_words(stack, lines, expected):
    stack.processor.seen.clear()
    stack.upstream.seen.clear()
    answer = await raw(stack, *lines)
    status, _, code = error(answer)
    assert (status, code) == expected
    assert (stack.processor.seen, stack.upstream.seen) == ([], [])


@contextlib.asynccontextmanager
async def another(stack, folder, **changes):
    """Run a second Envoy with other options."""
    listener, admin = free_ports(2)
    options = dataclasses.replace(stack.options, listener_port=listener, admin_port=admin, **changes)
    envoy = await start_envoy(folder, options)
    try:
        yield Stack(**{**vars(stack), "options": options})
    finally:
        await envoy.process.stop()


@with_envoy
async def test_http_1_0_is_served_where_it_is_chosen(stack, tmp_path):
    async with another(stack, tmp_path, accept_http_1_0=True) as old:
        stack.upstream.seen.clear()
        for lines in (head_of(version="1.0"), [line for line in head_of(version="1.0") if "host" not in line]):
            answer = await raw(old, *lines)
            assert (answer.status, answer.body) == (200, "{}")
        assert len(stack.upstream.seen) == 2
        assert error(await raw(old, "POST / HTTP/1.0", "content-length: 2"))[::2] == (401, "invalid_api_key")


class Leaving:
    """An upstream that closes connections: `after` each answer that many seconds, or without one."""

    def __init__(self, after=None):
        self.after = after
        self.connections = 0
        self.requests = 0

    async def serve(self, reader, writer):
        self.connections += 1
        with (
            contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError),
            contextlib.closing(writer),
        ):
            while True:
                async with asyncio.timeout(self.after):
                    await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                if self.after is None:
                    return
                writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 2\r\n\r\n{}")


@contextlib.asynccontextmanager
async def before(upstream):
    serving = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}"
    finally:
        serving.close()


@with_envoy
async def test_an_unused_connection_is_left_before_the_upstream_closes_it(stack, tmp_path):
    upstream = Leaving(after=1.0)
    async with (
        before(upstream) as url,
        another(stack, tmp_path, upstream_url=url, upstream_keep_alive_s=0.5) as own,
    ):
        assert (await own.call("GET", "/health", [])).status == 200
        assert (await own.call("GET", "/health", [])).status == 200
        assert upstream.connections == 1
        await asyncio.sleep(0.8)  # the upstream would wait for another 0.2 s
        assert (await own.call("GET", "/health", [])).status == 200
        assert upstream.connections == 2


@with_envoy
async def test_what_was_sent_is_never_sent_again(stack, tmp_path):
    upstream = Leaving()
    async with before(upstream) as url, another(stack, tmp_path, upstream_url=url) as own:
        assert error(await own.post()) == (503, "server_error", "service_unavailable")
        assert upstream.requests == 1


@with_envoy
async def test_what_could_not_be_sent_is_sent_again(stack, tmp_path):
    (nobody,) = free_ports(1)
    async with another(stack, tmp_path, upstream_url=f"http://127.0.0.1:{nobody}") as own:
        assert error(await own.post())[0] == 503
        stats = await asyncio.to_thread(stats_of, own)
        assert stats["cluster.model.upstream_rq_retry"] == 2


@with_envoy
async def test_what_a_client_says_of_its_protocol_is_replaced_and_goes_no_further(stack):
    await stack.post([("tokenweir-protocol", "HTTP/2")])
    assert b"tokenweir-protocol" in stack.processor.seen[0]
    assert b"HTTP/1.1" in stack.processor.seen[0]
    assert b"HTTP/2" not in stack.processor.seen[0]
    assert "tokenweir-protocol" not in stack.upstream.seen[0]


def stats_of(stack):
    connection = http.client.HTTPConnection("127.0.0.1", stack.options.admin_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/stats?filter=^cluster.model.upstream_rq_retry$")
        lines = connection.getresponse().read().decode().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


@with_envoy
async def test_a_token_in_the_query_does_not_count(stack):
    answer = await stack.call("POST", f"{CHAT}?access_token={ISSUER.issue('a')}", [], b"{}")
    assert error(answer)[0] == 401


@with_envoy
async def test_a_request_reaches_the_processor_whole_and_then_the_upstream(stack):
    answer = await stack.post(body=b'{"model":"' + b"m" * 90_000 + b'"}')
    assert (answer.status, answer.body, answer.headers["server"]) == (200, "{}", "toy")
    kinds = [message[0] >> 3 for message in stack.processor.seen]
    assert kinds[:3] == [REQUEST_HEADERS, REQUEST_BODY, RESPONSE_HEADERS]
    head, body = stack.processor.seen[:2]
    assert b"console@zone-prod" in head  # the verified claims
    assert b"127.0.0.1:" in head  # source.address
    assert len(body) > 90_000
    assert b"via_upstream" in stack.processor.seen[2]


@with_envoy
async def test_the_body_comes_without_an_answer_to_the_headers(stack):
    assert (await stack.post([("x-verdict", "wait-for-body")])).status == 200


@with_envoy
async def test_what_a_client_says_of_itself_is_not_passed_on(stack):
    names = ("oc_sa", "OC_SA", "x-request-id", "x-envoy-external-address")
    await stack.post([(name, "somebody-else") for name in names])
    (head,) = stack.upstream.seen
    assert b"somebody-else" not in b"".join([*stack.processor.seen, head.encode()])
    assert "oc_sa" not in head
    assert "x-envoy-external-address: 127.0.0.1" in head


@with_envoy
async def test_the_upstream_gets_no_credentials(stack):
    await stack.post()
    assert "authorization" not in stack.upstream.seen[0]
    assert b"authorization" not in stack.processor.seen[0]
    await stack.call("POST", CHAT, [("x-api-key", ISSUER.issue("a"))], b"{}")
    assert "x-api-key" not in stack.upstream.seen[0]
    await stack.call("GET", "/health", [authorization()])
    assert "authorization" not in stack.upstream.seen[0]


@with_envoy
async def test_a_client_can_not_order_retries(stack):
    answer = await stack.post([("x-answer", "503"), ("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "3")])
    assert (answer.status, answer.body) == (503, "{}")  # the upstream's own 503 is not rewritten
    assert len(stack.upstream.seen) == 1


@with_envoy
@pytest.mark.parametrize("verdict", VERDICTS)
async def test_the_processors_own_answers_pass_unchanged(stack, verdict):
    status, body, _, content_type = VERDICTS[verdict]
    answer = await stack.post([("x-verdict", verdict)])
    assert (answer.status, answer.body, answer.headers["content-type"]) == (status, body, content_type)
    assert answer.headers["retry-after"] == "7"
    assert stack.upstream.seen == []


@with_envoy
@pytest.mark.parametrize(
    ("verdict", "expected"),
    [("hang", (504, "server_error", "timeout")), ("abort", (503, "server_error", "service_unavailable"))],
)
async def test_a_processor_in_trouble_lets_nothing_through(stack, verdict, expected):
    async with asyncio.timeout(2):
        assert error(await stack.post([("x-verdict", verdict)])) == expected
    assert stack.upstream.seen == []


@with_envoy
async def test_a_body_that_is_too_large_is_refused_before_the_processor(stack):
    answer = await stack.post(body=b"x" * 100_001)
    assert error(answer) == (413, "invalid_request_error", "request_too_large")
    assert "100000 bytes" in answer.body
    assert (stack.processor.seen, stack.upstream.seen) == ([], [])


@with_envoy
@pytest.mark.parametrize(("path", "token"), [("/health", False), ("/version", True), ("/v1/models?x=1", True)])
async def test_the_free_paths_do_not_cost_a_look(stack, path, token):
    answer = await stack.call("GET", path, [authorization()] if token else [])
    assert (answer.status, len(stack.upstream.seen)) == (200, 1)
    assert stack.processor.seen == []


@with_envoy
@pytest.mark.parametrize("path", ["/version", "/v1/models", "/health/", "/HEALTH", "/health;v=1"])
async def test_only_the_health_path_needs_no_token(stack, path):
    assert error(await stack.call("GET", path, []))[0] == 401


SPELLINGS = {
    CHAT: "/v1//chat/completions /v1/models/../chat/completions /health/%2e%2e/v1/chat/completions /v1/chat/completion%73",
    "/health": "//health /%68ealth /x/../health",
    "/v1/models/x": "/v1/models/x",
    "/v1/chat/completion%2573": "/v1/chat/completion%2573",
    "": "/health%2f..%2fv1/chat/completions /health%5c..%5cv1/chat/completions /health#/v1/chat/completions /health%00",
}


@with_envoy
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("path", "reached"), [(one, to) for to, many in SPELLINGS.items() for one in many.split()]
)
async def test_no_spelling_of_a_path_gets_past_the_processor(stack, method, path, reached):
    answer = await stack.call(method, path, [authorization()], b"{}" if method == "POST" else None)
    assert answer.status == (200 if reached else 400)
    assert [head.split()[1] for head in stack.upstream.seen] == ([reached] if reached else [])
    is_free = (method, reached) == ("GET", "/health")
    looked_at = [f":path\x1a{chr(len(reached))}{reached}".encode() in head for head in stack.processor.seen[:1]]
    assert looked_at == ([True] if reached and not is_free else [])


@with_envoy
async def test_two_envoys_run_side_by_side_and_an_upstream_that_is_gone_is_a_503(stack, tmp_path):
    listener, admin, nobody = free_ports(3)
    options = dataclasses.replace(
        stack.options, listener_port=listener, admin_port=admin, upstream_url=f"http://127.0.0.1:{nobody}"
    )
    envoy = await start_envoy(tmp_path, options)
    try:
        answer = await Stack(**{**vars(stack), "options": options}).post()
        assert error(answer) == (503, "server_error", "service_unavailable")
        assert str(nobody) not in answer.body
        assert (await stack.post()).status == 200
    finally:
        assert await envoy.process.stop() == 0
