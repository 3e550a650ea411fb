"""Play any bytes to the server, and hold it to the rule: an error by the book, or an answer; no exception, leak or stall."""

import asyncio
import logging

from extproc.http2 import frames as f

from . import wire as w
from .wire import Wire, cut


class Failures(logging.Handler):
    """Collects what the server logs as its own failure."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.texts = []

    def emit(self, record):
        self.texts.append(self.format(record))

    def __enter__(self):
        logging.getLogger("extproc.http2").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("extproc.http2").removeHandler(self)


async def play(parts):
    """Play the parts, a turn of the loop between them; then leave. Return the frames that came back."""
    with Failures() as failures:
        wire = Wire(hello=False, held_bytes=50_000, message_bytes=40_000, streams=20, idle_frames=300)
        told = []
        for part in parts:
            if wire.closed:
                break
            wire.feed(part)
            await asyncio.sleep(0)
        told += await wire.told()
        written = bytes(wire.transport.written)
        assert cut(written)[1] == len(written), "a frame that is not whole"
        assert wire.host.holdings.total <= 50_000
        if wire.closed:
            assert wire.faults, "closed without an error"
            assert [frame.kind for frame in told if frame.kind == f.GOAWAY] == [f.GOAWAY]
        else:
            wire.transport.close()
        await wire.settled()
        assert not failures.texts, failures.texts
        assert wire.calls.begun == wire.calls.ended, "a handler was left"
        assert (wire.host.running, wire.host.holdings.total, wire.host.connections) == (0, 0, set())
        assert not wire.connection._talk.calls
        assert not wire.connection._talk.holding
        assert not wire.connection._talk.blocked
        return told


def pieces(data, sizes):
    """Cut `data` into parts of these sizes, again and again."""
    found, offset, turn = [], 0, 0
    while offset < len(data):
        size = sizes[turn % len(sizes)]
        found.append(data[offset : offset + size])
        offset += size
        turn += 1
    return found


VALID = [
    w.head(1) + w.message(1) + w.message(1, b"x" * 300, end=True),
    w.head(3, w.FAIL) + w.message(3),
    w.head(5, w.HANG) + w.reset(5),
    w.head(7, w.FLOOD) + w.message(7, b"5000") + w.credit(7, 9000) + w.credit(0, 9000) + w.reset(7),
    w.head(9, flags=0)
    + w.raw(f.CONTINUATION, 0, 9, w.literal(b"a", b"b"))
    + w.raw(f.CONTINUATION, f.END_HEADERS, 9),
    w.raw(f.DATA, 0, 9, w.prefixed(b"y" * 30_000)[:9000]) + w.raw(f.DATA, f.END_STREAM, 9, b"y" * 16_000),
    w.settings(window=10) + w.settings(window=100_000),
    w.raw(f.PING, 0, 0, b"12345678") + w.raw(f.PRIORITY, 0, 3, b"12345"),
    w.head(11, w.ECHO, (b"grpc-timeout", b"1n"), (b"key-bin", b"AAE")) + w.message(11),
    w.raw(f.HEADERS, f.END_HEADERS, 13, w.literal(b"te", b"trailers", 0x40) + b"\xbe"),
    w.raw(f.GOAWAY, 0, 0, b"\0" * 8) + w.raw(77, 1, 0, b"?"),
]
