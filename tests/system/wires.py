"""Clients that say exactly what a test wants, byte by byte: HTTP/1.1, and as much of HTTP/2 as is needed."""

import asyncio
import contextlib
import struct
from urllib.parse import urlsplit

import httpx

from .waiting import NEVER_S


@contextlib.asynccontextmanager
async def connection(url):
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def request_head(path, fields, method="POST"):
    lines = [f"{method} {path} HTTP/1.1", "host: gateway", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def exchange(url, *pieces):
    """Sends the pieces one after the other, and reads until the server closes."""
    async with connection(url) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(NEVER_S):
            raw = await reader.read()
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        body = dechunked(body)
    return httpx.Response(
        int(first.split(" ")[1]), headers={"content-type": headers.get("content-type", "")}, content=body
    )


def dechunked(raw):
    body = b""
    while True:
        size, _, raw = raw.partition(b"\r\n")
        if not int(size, 16):
            return body
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]


_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_STATUS_200 = b"\x88"  # HPACK's static table; no other status is told apart here


async def http2_post(url, path, fields, pieces, trailers):
    """One HTTP/2 request with trailers, with prior knowledge (RFC 9113). Returns whether it was a 200, and the body."""
    pseudo = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "gateway"}
    out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, b"", stream=0)
    out += _frame(_HEADERS, _END_HEADERS, _literal(pseudo | fields))
    out += b"".join(_frame(_DATA, 0, piece) for piece in pieces)
    out += _frame(_HEADERS, _END_HEADERS | _END_STREAM, _literal(trailers))
    ok, body = None, b""
    async with connection(url) as (reader, writer), asyncio.timeout(NEVER_S):
        writer.write(out)
        while True:
            head = await reader.readexactly(9)
            length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
            payload = await reader.readexactly(length)
            if kind == _SETTINGS and not flags & _ACK:
                writer.write(_frame(_SETTINGS, _ACK, b"", stream=0))
            if kind == _HEADERS and ok is None:
                ok = payload.startswith(_STATUS_200)
            if kind == _DATA:
                body += payload
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                return ok, body


def _frame(kind, flags, payload, stream=1):
    return len(payload).to_bytes(3) + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(fields):
    """HPACK without a table and without Huffman: literal fields, never indexed (RFC 7541, 6.2.3)."""
    return b"".join(b"\x10" + _string(name) + _string(value) for name, value in fields.items())


def _string(text):
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    out, rest = b"\x7f", len(data) - 127
    while rest >= 128:
        out += bytes([rest % 128 + 128])
        rest //= 128
    return out + bytes([rest]) + data
