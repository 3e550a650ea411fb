"""Play Envoy on one connection of HTTP/2: many exchanges at once, for little processor time."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Final, cast

from google.protobuf.struct_pb2 import Struct

from benchmarks.noop import SERVICE
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_BYTES,
    HEADERS,
    INITIAL_WINDOW,
    MAX_WINDOW,
    PING,
    PREFACE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

# The first byte of a reply: the field of `ProcessingResponse` that is set.
REFUSED: Final = 7 << 3 | 2
REQUEST_BODY: Final = 3 << 3 | 2
RESPONSE_HEADERS: Final = 2 << 3 | 2
RESPONSE_BODY: Final = 4 << 3 | 2
ENDED: Final = 0
_JWT: Final = "envoy.filters.http.jwt_authn"
_ATTRIBUTES: Final = "envoy.filters.http.ext_proc"
_WINDOW_SETTING: Final = 4


def _literal(name: bytes, value: bytes) -> bytes:
    return b"".join((b"\0", bytes([len(name)]), name, bytes([len(value)]), value))


_HEAD: Final = b"\x83\x86" + b"".join(
    _literal(*pair)
    for pair in (
        (b":path", f"/{SERVICE}/Process".encode()),
        (b":authority", b"tokenweir"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
"""The header block of every call, without a dynamic table."""


@contextlib.asynccontextmanager
async def connected(address: str) -> "AsyncIterator[Peer]":
    """Connect to a processor."""
    host, _, port = address.rpartition(":")
    _, protocol = await asyncio.get_running_loop().create_connection(Peer, host, int(port))
    try:
        yield protocol
    finally:
        protocol.close()


class Peer(asyncio.Protocol):
    """One connection. Each stream has a queue of the kinds of its replies; `ENDED` is the last."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._rest = b""
        self._streams: dict[int, asyncio.Queue[int]] = {}
        self._next = 1
        self._window = INITIAL_WINDOW
        self._waiting: list[asyncio.Future[None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, with windows that need no care."""
        self._transport = cast("asyncio.Transport", transport)
        settings = frame(SETTINGS, 0, 0, SETTING.pack(_WINDOW_SETTING, MAX_WINDOW))
        credit = frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", MAX_WINDOW - INITIAL_WINDOW))
        self._transport.write(PREFACE + settings + credit)

    def connection_lost(self, exc: Exception | None) -> None:
        """End every stream: none must be open when the connection is closed."""
        del exc
        for queue in self._streams.values():
            queue.put_nowait(ENDED)
        self._streams.clear()

    def data_received(self, data: bytes) -> None:
        """Take frames, cut anywhere."""
        data = self._rest + data
        offset = 0
        while len(data) - offset >= HEADER_BYTES:
            high, low, kind, flags, stream = HEADER.unpack_from(data, offset)
            end = offset + HEADER_BYTES + (high << 8 | low)
            if end > len(data):
                break
            self._take(kind, flags, stream, data[offset + HEADER_BYTES : end])
            offset = end
        self._rest = data[offset:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA and payload:
            self._reply(stream, payload)
        elif kind in {HEADERS, RST_STREAM}:
            if (kind == RST_STREAM or flags & END_STREAM) and stream in self._streams:
                self._streams.pop(stream).put_nowait(ENDED)
        elif kind == WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
            for each in self._waiting:
                each.cancelled() or each.set_result(None)
            self._waiting.clear()
        elif kind in {SETTINGS, PING} and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))

    def _reply(self, stream: int, payload: bytes) -> None:
        """Note the kind of each message. The processor sends one message in a frame."""
        queue = self._streams.get(stream)
        if queue is not None:
            queue.put_nowait(payload[5])

    def open(self) -> tuple[int, "asyncio.Queue[int]"]:
        """Begin a stream. Return its number and the queue of its replies."""
        stream, self._next = self._next, self._next + 2
        queue = self._streams[stream] = asyncio.Queue()
        self._transport.write(frame(HEADERS, END_HEADERS, stream, _HEAD))
        return stream, queue

    async def send(self, stream: int, *messages: bytes) -> None:
        """Send messages; wait while the connection's window is used up."""
        data = b"".join(frame(DATA, 0, stream, b"\0" + len(each).to_bytes(4, "big") + each) for each in messages)
        size = len(data) - HEADER_BYTES * len(messages)
        while size > self._window:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        self._window -= size
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def end(self, stream: int) -> None:
        """End a stream on this side."""
        self._transport.write(frame(DATA, END_STREAM, stream))


def request(tenant: str, body: bytes) -> tuple[bytes, bytes]:
    """Return the messages of a request: its head and its whole body."""
    headers = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
    headers |= {"x-request-id": f"{tenant}-request", "content-length": str(len(body))}
    head = pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=_map(headers)),
        metadata_context=pb.Metadata(
            filter_metadata={_JWT: _struct({"payload": {"sub": "robot", "tenant": tenant}})}
        ),
        attributes={_ATTRIBUTES: _struct({"source.address": "10.0.0.1:4321"})},
    )
    whole = pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))
    return head.SerializeToString(), whole.SerializeToString()


def answer_head(content_type: str) -> bytes:
    """Return the message of an answer's head."""
    headers = _map({":status": "200", "content-type": content_type})
    return pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=headers)).SerializeToString()


def answer_piece(data: bytes, *, end: bool = False) -> bytes:
    """Return the message of a piece of an answer."""
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=end)).SerializeToString()


def _map(headers: dict[str, str]) -> pb.HeaderMap:
    return pb.HeaderMap(headers=[pb.HeaderValue(key=k, raw_value=v.encode()) for k, v in headers.items()])


def _struct(values: dict[str, object]) -> Struct:
    made = Struct()
    made.update(values)
    return made


BODY: Final = {"model": "m", "messages": [{"role": "user", "content": "Hello, how are you?"}], "max_tokens": 200}
CHUNK: Final = answer_piece(
    b'data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1760000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
LAST: Final = answer_piece(
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":150,"total_tokens":159}}\n\n'
    b"data: [DONE]\n\n",
    end=True,
)
SSE_HEAD: Final = answer_head("text/event-stream")
