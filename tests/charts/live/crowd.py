"""Many requests over a few connections that stay open; each answer's status and variant are counted."""

import asyncio
import re
from collections import Counter

from .envoys import HOST

_MODEL = re.compile(rb'"model": "([^"]*)"')


async def ask_many(port, requests, *, connections=16):
    """`requests` are whole requests as bytes, asked in order by whichever connection is free."""
    counted, left = Counter(), iter(requests)
    await asyncio.gather(*(_ask(port, left, counted) for _ in range(connections)))
    return counted


async def _ask(port, left, counted):
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        for request in left:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            found = _MODEL.search(await _body(reader, head))
            counted[int(head[9:12]), found[1].decode() if found else None] += 1
    finally:
        writer.close()


async def _body(reader, head):
    size = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
    if size:
        return await reader.readexactly(int(size[1]))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)


def request(host, path, headers, body):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
    return head.encode() + body
