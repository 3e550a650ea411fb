"""The server of the sample model, the message dumper and the form: its address, its life and its bounds."""

import asyncio
import signal
import ssl
from pathlib import Path

import httpx
import pytest

from extproc.web.listening import ListenError, listen, port_of
from extproc.web.server import Certificate, Server, ServerOptions, running
from tests.security.certificates import Authority, dns

OPTIONS = ServerOptions(keep_alive_s=5, finish_s=1)


async def hello(scope, receive, send):
    del receive
    told = f"{scope['client'][0]} {scope['scheme']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": told})


async def get(listening, **headers):
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{port_of(listening)}/", headers=headers)


async def test_a_server_is_ready_when_its_context_begins_and_gone_when_it_ends():
    listening = listen("127.0.0.1:0")
    async with running(hello, OPTIONS, listening):
        assert (await get(listening)).status_code == 200
        port = port_of(listening)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_an_ipv6_address_has_brackets_or_none():
    for address in ("[::1]:0", "::1:0"):
        listen(address).close()


async def test_an_address_that_is_taken_or_not_ours_is_refused_by_its_name():
    taken = listen("127.0.0.1:0")
    with pytest.raises(
        ListenError, match=rf"^can't listen on 127\.0\.0\.1:{port_of(taken)}: Address already in use$"
    ):
        listen(f"127.0.0.1:{port_of(taken)}")
    taken.close()
    with pytest.raises(ListenError, match=r"^can't listen on 192\.0\.2\.1:0: "):
        listen("192.0.2.1:0")


async def served_certificate(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(found).encode()


async def test_a_replaced_certificate_is_used_and_a_bad_one_leaves_the_former(tmp_path):
    authority = Authority()
    first, second = authority.sign(dns("a")), authority.sign(dns("b"))
    chain, key = (Path(path) for path in first.written(tmp_path, "c"))
    listening = listen("127.0.0.1:0")
    ready = asyncio.Event()
    options = ServerOptions(keep_alive_s=5, finish_s=1, certificate=Certificate(chain, key))
    server = Server(hello, options, on_ready=ready.set, takes_signals=False)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await ready.wait()
    port = port_of(listening)
    assert await served_certificate(port) == first.certificate
    assert server.refresh_certificate() is False
    chain.write_bytes(second.certificate)  # its key is not there yet
    with pytest.raises(ListenError, match="no certificate with its key"):
        server.refresh_certificate()
    assert await served_certificate(port) == first.certificate
    chain.unlink()
    assert server.refresh_certificate() is False
    second.written(tmp_path, "c")
    assert server.refresh_certificate() is True
    assert await served_certificate(port) == second.certificate
    server.should_exit = True
    await serving


def test_a_certificate_that_can_not_be_used_is_named(tmp_path):
    options = ServerOptions(1, 1, certificate=Certificate(tmp_path / "crt", tmp_path / "key"))
    with pytest.raises(ListenError, match=r"crt, .*key: no certificate with its key \(No such file"):
        Server(hello, options)


async def test_headers_of_a_proxy_change_nothing_and_the_server_does_not_name_itself():
    listening = listen("127.0.0.1:0")
    async with running(hello, OPTIONS, listening):
        answer = await get(listening, **{"x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https"})
    assert answer.text == "127.0.0.1 http"
    assert "server" not in answer.headers


@pytest.mark.parametrize("takes_signals", [True, False])
async def test_a_signal_ends_a_server_only_if_it_takes_signals(takes_signals):
    ended, ready = asyncio.Event(), asyncio.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        listening = listen("127.0.0.1:0")
        server = Server(hello, OPTIONS, on_ready=ready.set, takes_signals=takes_signals)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await ready.wait()
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit == takes_signals
        server.should_exit = True
        await serving
        assert ended.is_set()  # uvicorn hands the signal on at its end
    finally:
        signal.signal(signal.SIGTERM, before)
