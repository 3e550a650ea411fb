"""A peer that begins its handshake at once is served, on our own transport and the event loop of production."""

import asyncio
import contextlib
import socket
import ssl

import pytest

from extproc.envoy.transports import Transport

from .test_channel import Channel


class Native(Channel):
    transport = Transport.NATIVE


def test_a_handshake_goes_on_whose_first_bytes_came_before_it_was_looked_at(tmp_path):
    """On uvloop, as in production: it reads a connection at once, also before TLS does."""
    uvloop = pytest.importorskip("uvloop")
    uvloop.run(_greeted_at_once(Native(tmp_path)))


async def _greeted_at_once(channel):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with channel.serving():
        host, port = channel.address.split(":")
        for _ in range(50):
            outgoing = ssl.MemoryBIO()
            with contextlib.suppress(ssl.SSLWantReadError):
                context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
            with socket.create_connection((host, int(port))) as client:  # the loop stands still meanwhile
                client.sendall(outgoing.read())
                client.setblocking(False)
                async with asyncio.timeout(5):
                    assert await asyncio.get_running_loop().sock_recv(client, 1)
