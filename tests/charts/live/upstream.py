"""A model that says which variant it is, what it was sent, and that it used 20 tokens."""

import asyncio
import json

from .envoys import HOST

TOKENS = 20
_USAGE = {"prompt_tokens": 5, "completion_tokens": TOKENS - 5, "total_tokens": TOKENS}
_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Two."}, "finish_reason": "stop"}


class Model(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, and just enough of it to be fast."""

    def __init__(self, variant):
        self._answer = {"object": "chat.completion", "model": variant, "choices": [_CHOICE], "usage": _USAGE}
        self._received = b""

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._received += data
        while (size := _whole(self._received)) is not None:
            head, self._received = self._received[:size], self._received[size:]
            self._reply(head.partition(b"\r\n\r\n")[0])

    def _reply(self, head):
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = json.dumps({**self._answer, "path": first.split()[1], "headers": headers}).encode()
        start = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(start.encode() + body)


def _whole(received):
    """The length of the first request in the buffer, or None while a part of it is missing."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    lower = head.lower()
    if b"\r\ntransfer-encoding: chunked" in lower:
        last = 0 if body.startswith(b"0\r\n") else body.find(b"\r\n0\r\n\r\n") + 2
        return len(head) + 4 + last + 5 if last != 1 else None
    _, found, rest = lower.partition(b"\r\ncontent-length: ")
    size = int(rest.partition(b"\r\n")[0]) if found else 0
    return len(head) + 4 + size if len(body) >= size else None


async def serve(variant):
    """The server; its port is that of its only socket."""
    return await asyncio.get_running_loop().create_server(lambda: Model(variant), HOST, 0)


def port_of(server):
    return server.sockets[0].getsockname()[1]
