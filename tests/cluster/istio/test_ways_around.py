"""Metered at the pods, nothing reaches a model around the meter: by whichever protocol, name or path it is tried."""

import asyncio
import ssl

import pytest

from tests.charts.live.test_callers import BODY, CHAT, OTHER, SAME
from tests.charts.live.test_limits_enforced import at_pods

from .checks import check_order, check_routes, check_tcp_chains

__all__ = ["at_pods"]

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="session")]

PODS = ["qwen-primary-predictor", "qwen-canary-predictor"]


async def test_each_http_chain_of_a_pod_has_the_meter_and_no_other_chain_lets_anything_through(at_pods):
    for pod in PODS:
        dump = await at_pods.proxies[pod].dump()
        check_order(dump, {"virtualInbound"})
        check_tcp_chains(dump)
    # KServe's Service does not name its port, so that Istio looks at the bytes: there is a chain for what is no HTTP.
    assert check_tcp_chains(await at_pods.proxies["qwen-canary-predictor"].dump()) == 2


async def say(mesh, pod, alpn, text):
    """The answer's first bytes to raw ones over mTLS, as a caller of the model's own namespace; b"" if it is cut."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(str(mesh.authority.ca))
    context.load_cert_chain(*map(str, mesh.authority.issue(SAME)))
    if alpn:
        context.set_alpn_protocols(alpn)
    reader, writer = await asyncio.open_connection(mesh.sidecars[pod], 8080, ssl=context)
    try:
        writer.write(text)
        return await asyncio.wait_for(reader.read(4096), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request(version="1.1", path=CHAT, more=""):
    body = b'{"model": "qwen", "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}'
    head = f"POST {path} HTTP/{version}\r\nhost: qwen-predictor\r\n{more}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("alpn", [None, ["istio"], ["h2", "http/1.1"], ["istio-peer-exchange"]])
async def test_bytes_that_do_not_say_they_are_http_reach_no_model(at_pods, alpn):
    assert await say(at_pods, "qwen-canary-predictor", alpn, request()) == b""


async def test_said_to_be_http_they_are_metered(at_pods):
    for pod in PODS:
        answer = await say(at_pods, pod, ["istio-http/1.1"], request())
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b"x-ratelimit-limit-tokens" in answer.lower(), answer


async def test_http_1_0_is_not_served(at_pods):
    for alpn in (["istio-http/1.0"], ["istio-http/1.1"]):
        answer = await say(at_pods, "qwen-canary-predictor", alpn, request(version="1.0"))
        assert answer.startswith(b"HTTP/1.1 426"), answer


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "tls/1.0"])
async def test_an_upgrade_is_no_way_around(at_pods, protocol):
    more = f"connection: upgrade\r\nupgrade: {protocol}\r\n"
    for path in (CHAT, "/v1/realtime"):
        answer = await say(at_pods, "qwen-primary-predictor", ["istio-http/1.1"], request(path=path, more=more))
        assert (
            answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 426")) or b"x-ratelimit-limit-tokens" in answer.lower()
        ), answer


async def test_connect_is_refused(at_pods):
    answer = await say(
        at_pods, "qwen-primary-predictor", ["istio-http/1.1"], b"CONNECT qwen:80 HTTP/1.1\r\nhost: qwen:80\r\n\r\n"
    )
    assert answer.split(b" ", 2)[1] in {b"403", b"404"}, answer


@pytest.mark.parametrize("host", ["qwen-predictor", "example.com", "localhost", "127.0.0.1:8080"])
async def test_another_host_name_is_metered_the_same(at_pods, host):
    for pod in PODS:
        async with at_pods.inside(OTHER, pod) as client:
            answer = await client.post(CHAT, headers={**at_pods.token("someone"), "host": host}, json=BODY)
        assert answer.status_code in {200, 429}, answer.text
        assert "x-ratelimit-limit-tokens" in answer.headers


async def test_all_routes_of_a_pod_have_the_meter(at_pods):
    for pod in PODS:
        check_routes(await at_pods.proxies[pod].dump(), "inbound|8080||")
