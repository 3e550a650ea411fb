"""A peer of the server that says whatever a test wants: frames over a transport that is none, or over a socket."""

import asyncio
import struct
from dataclasses import dataclass

from extproc.http2 import frames as f
from extproc.http2.connection import Connection
from extproc.http2.host import Host
from extproc.http2.limits import Limits
from extproc.http2.status import RefusedError, Status

ECHO, FAIL, HANG, FLOOD = "/t.T/Echo", "/t.T/Fail", "/t.T/Hang", "/t.T/Flood"
HEADER = struct.Struct(">HBBBL")


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self):
        """The error code of RST_STREAM or GOAWAY."""
        return f.Code(int.from_bytes(self.payload[-4:] if self.kind == f.RST_STREAM else self.payload[4:8], "big"))

    @property
    def ends(self):
        return self.kind in {f.DATA, f.HEADERS} and self.flags & f.END_STREAM != 0


def cut(data):
    """The whole frames at the beginning of `data`, and how many bytes they are."""
    found, offset = [], 0
    while len(data) - offset >= 9:
        high, low, kind, flags, stream = HEADER.unpack_from(data, offset)
        end = offset + 9 + (high << 8 | low)
        if end > len(data):
            break
        found.append(Frame(kind, flags, stream, bytes(data[offset + 9 : end])))
        offset = end
    return found, offset


def raw(kind, flags, stream, payload=b""):
    return HEADER.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def text(value):
    """A string of HPACK, of any length."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    size, rest = bytearray([127]), len(value) - 127
    while rest > 127:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes(size) + bytes([rest]) + value


def literal(name, value, first=0):
    return bytes([first]) + text(name) + text(value)


def block(path=ECHO, *more, method=b"\x83", content_type=b"application/grpc"):
    """A header block without a dynamic table."""
    parts = [method, b"\x86", literal(b":path", path.encode()), literal(b"content-type", content_type)]
    return b"".join([*parts, literal(b"te", b"trailers"), *(literal(*pair) for pair in more)])


def head(stream, path=ECHO, *more, flags=f.END_HEADERS, **fields):
    return raw(f.HEADERS, flags, stream, block(path, *more, **fields))


def prefixed(message=b"hi"):
    return b"\0" + len(message).to_bytes(4, "big") + message


def message(stream, content=b"hi", *, end=False):
    return raw(f.DATA, f.END_STREAM if end else 0, stream, prefixed(content))


def settings(**values):
    names = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5}
    return raw(f.SETTINGS, 0, 0, b"".join(struct.pack(">HL", names[k], v) for k, v in values.items()))


ACK = raw(f.SETTINGS, f.ACK, 0)
HELLO = f.PREFACE + settings() + ACK


def credit(stream, size):
    return raw(f.WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def reset(stream, code=f.Code.CANCEL):
    return raw(f.RST_STREAM, 0, stream, int(code).to_bytes(4, "big"))


class Calls:
    """The methods of a test's server, and what became of their calls."""

    def __init__(self):
        self.begun = self.ended = self.cancelled = 0
        self.got = []

    @property
    def routes(self):
        methods = {ECHO: self.echo, FAIL: self.fail, HANG: self.hang, FLOOD: self.flood}
        return {path: self.counted(method) for path, method in methods.items()}

    def counted(self, method):
        async def handler(call):
            self.begun += 1
            try:
                await method(call)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.ended += 1

        return handler

    async def echo(self, call):
        while (content := await call.read()) is not None:
            self.got.append(content)
            await call.write(content)

    async def fail(self, call):
        await call.read()
        raise RefusedError(Status.FAILED_PRECONDITION, "no, 100 % no\n")

    async def hang(self, _call):
        await asyncio.get_running_loop().create_future()

    async def flood(self, call):
        """Answer 50 times: 1 kB for each byte of the question, 30 kB at the most."""
        size = 1000 * (len(await call.read() or b"") % 30 + 1)
        for _ in range(50):
            await call.write(b"x" * size)


class Transport:
    """Takes what is written. `stuck`: its peer does not read."""

    def __init__(self):
        self.written = bytearray()
        self.unread = 0
        self.stuck = self.closing = self.aborted = self.lost = self.paused = False
        self.protocol = None
        self.writes = 0

    def get_extra_info(self, _name):
        return None

    def write(self, data):
        assert not self.lost
        self.writes += 1
        self.written += data
        self.unread += len(data)
        if self.unread > 65_536:
            self.protocol.pause_writing()
            if not self.stuck:
                asyncio.get_running_loop().call_soon(self._read)

    def _read(self):
        self.unread = 0
        if not self.lost:
            self.protocol.resume_writing()

    def get_write_buffer_size(self):
        return self.unread

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        assert not self.lost
        self.paused = False

    def close(self):
        self.closing = True
        if not self.stuck:
            self._lose()

    def abort(self):
        self.aborted = True
        self._lose()

    def _lose(self):
        if not self.lost:
            self.lost = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Wire:
    """One connection of a server without a socket. Several may share a host."""

    def __init__(self, calls=None, *, host=None, hello=True, **limits):
        loop = asyncio.get_running_loop()
        self.faults = []
        self.calls = calls or Calls()
        self.host = host or Host(loop, self.calls.routes, Limits(**limits), self.faults.append)
        self.transport = Transport()
        self.connection = self.transport.protocol = Connection(self.host)
        self.connection.connection_made(self.transport)
        self._seen = 0
        if hello:
            self.connection.data_received(HELLO)

    def feed(self, *parts):
        self.connection.data_received(b"".join(parts))

    async def told(self, *parts):
        """Say something; return the frames that come back, once nothing happens any more."""
        if parts:
            self.feed(*parts)
        await self.settled()
        return self.frames()

    async def settled(self):
        before = None
        while before != (now := (len(self.transport.written), self.calls.begun, self.calls.ended, self.busy)):
            before = now
            for _ in range(6):
                await asyncio.sleep(0)

    @property
    def busy(self):
        return len(self.connection._rest) if self.connection._later else 0

    def frames(self):
        """What was written since the last time."""
        found, size = cut(self.transport.written[self._seen :])
        self._seen += size
        return found

    @property
    def closed(self):
        return self.transport.lost


def of_kind(frames, *kinds):
    return [frame for frame in frames if frame.kind in kinds]


def goaway(frames):
    """The code of the only GOAWAY."""
    (frame,) = of_kind(frames, f.GOAWAY)
    return frame.code


def resets(frames):
    return [(frame.stream, frame.code) for frame in of_kind(frames, f.RST_STREAM)]


def messages(frames, stream):
    """The messages of a stream."""
    data = b"".join(frame.payload for frame in frames if frame.kind == f.DATA and frame.stream == stream)
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


def status_of(frames, stream):
    """The value of grpc-status in the last frame of a stream, as it is encoded here."""
    (last,) = [frame for frame in of_kind(frames, f.HEADERS) if frame.stream == stream and frame.ends]
    _, _, rest = last.payload.partition(text(b"grpc-status"))
    return Status(int(rest[1 : 1 + rest[0]]))
