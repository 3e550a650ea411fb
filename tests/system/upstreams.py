"""An upstream that a test writes itself, byte by byte, and that remembers what reached it."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field

from extproc.local.ports import HOST

EVENTS = "text/event-stream; charset=utf-8"


@dataclass
class Received:
    """A request as it reached the upstream."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name):
        return [value for key, value in self.headers if key == name]

    @property
    def json(self):
        return json.loads(self.body)


class Reply:
    """Writes one answer."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer

    async def head(self, status=200, content_type=EVENTS, **headers):
        fields = {"content-type": content_type, "transfer-encoding": "chunked"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        if "content-length" in fields:
            del fields["transfer-encoding"]
        self._chunked = "transfer-encoding" in fields
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{k}: {v}" for k, v in fields.items())]
        await self._write("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def send(self, data):
        await self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self):
        if self._chunked:
            await self._write(b"0\r\n\r\n")

    async def whole(self, body, status=200, content_type="application/json", **headers):
        await self.head(status, content_type, content_length=str(len(body)), **headers)
        await self.send(body)

    async def stream(self, pieces, **options):
        await self.head(**options)
        for piece in pieces:
            await self.send(piece)
        await self.end()

    def cut(self):
        self._writer.transport.abort()

    async def gone(self):
        """Returns when the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            assert await self._reader.read(1) == b""

    async def _write(self, data):
        self._writer.write(data)
        await self._writer.drain()


ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Two."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}  # fmt: skip


async def answer_plainly(_received, reply):
    await reply.whole(json.dumps(ANSWER).encode())


@dataclass
class Upstream:
    """Answers each request by `script(received, reply)`."""

    url: str = ""
    script: object = answer_plainly
    received: list = field(default_factory=list)

    def reset(self):
        self.script = answer_plainly
        self.received.clear()

    @contextlib.asynccontextmanager
    async def serving(self):
        server = await asyncio.start_server(self._connection, HOST, 0, limit=1 << 20)
        self.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _connection(self, reader, writer):
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while (received := await _read(reader)) is not None:
                    self.received.append(received)
                    await self.script(received, Reply(reader, writer))
        finally:
            writer.close()


async def _read(reader):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = [(k.lower(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]
    fields = dict(headers)
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readline() not in (b"\r\n", b""):
            pass  # trailers
    else:
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    return Received(method, path, headers, body)
