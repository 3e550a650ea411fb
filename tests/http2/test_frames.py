"""Each frame, by the book (RFC 9113): what is an error of the connection, what of a stream, and what is none."""

import pytest

from extproc.http2 import frames as f
from extproc.http2.frames import Code

from . import wire as w
from .wire import Wire, goaway, head, message, messages, of_kind, raw, reset, resets, status_of

OPEN = head(1)
HALF_CLOSED = head(1, flags=f.END_HEADERS | f.END_STREAM, path=w.HANG)
P, C = Code.PROTOCOL_ERROR, Code.STREAM_CLOSED
SIZE, FLOW, CALM, ZIP = (
    Code.FRAME_SIZE_ERROR,
    Code.FLOW_CONTROL_ERROR,
    Code.ENHANCE_YOUR_CALM,
    Code.COMPRESSION_ERROR,
)
BIG = 0x7FFFFFFF

CONNECTION_ERRORS = {
    "DATA of stream 0": (raw(f.DATA, 0, 0, b"x"), P),
    "DATA of a stream that was not begun": (raw(f.DATA, 0, 1, b"x"), P),
    "DATA of an even stream": (OPEN + raw(f.DATA, 0, 2, b"x"), P),
    "DATA with more padding than payload": (OPEN + raw(f.DATA, f.PADDED, 1, b"\x05xxxx"), P),
    "DATA with more padding than payload, of a stream that is closed": (
        OPEN + raw(f.RST_STREAM, 0, 1, b"\0\0\0\x08") + raw(f.DATA, f.PADDED, 1, b"\x05xxxx"),
        P,
    ),
    "DATA padded without a length": (OPEN + raw(f.DATA, f.PADDED, 1), SIZE),
    "a frame that is too large": (OPEN + raw(f.DATA, 0, 1, b"x" * 16_385), SIZE),
    "a frame of an unknown kind that is too large": (raw(99, 0, 0, b"x" * 16_385), SIZE),
    "HEADERS of stream 0": (head(0), P),
    "HEADERS of an even stream": (head(2), P),
    "HEADERS of a smaller stream": (head(5) + head(3), C),
    "HEADERS of a stream that its peer has reset": (OPEN + reset(1) + head(1), C),
    "HEADERS with more padding than payload": (raw(f.HEADERS, f.END_HEADERS | f.PADDED, 1, b"\xff\x83"), P),
    "HEADERS without their priority": (raw(f.HEADERS, f.END_HEADERS | f.WITH_PRIORITY, 1, b"\0\0"), SIZE),
    "HEADERS that can't be decoded": (raw(f.HEADERS, f.END_HEADERS, 1, b"\x80"), ZIP),
    "HEADERS with an index that is not there": (raw(f.HEADERS, f.END_HEADERS, 1, b"\xff\x20"), ZIP),
    "HEADERS cut within a string": (raw(f.HEADERS, f.END_HEADERS, 1, b"\0\x05ab"), ZIP),
    "HEADERS with a Huffman code that is padded wrongly": (raw(f.HEADERS, f.END_HEADERS, 1, b"\0\x81\0\1a"), ZIP),
    "HEADERS with a table that is not allowed": (
        raw(f.HEADERS, f.END_HEADERS, 1, b"\x3f\xe1\x1f" + w.block()),
        ZIP,
    ),
    "a size of the table after a header": (raw(f.HEADERS, f.END_HEADERS, 1, w.block() + b"\x20"), ZIP),
    "trailers that can't be decoded": (OPEN + raw(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\x80"), ZIP),
    "another frame within a header block": (head(1, flags=0) + message(1), P),
    "a PING within a header block": (head(1, flags=0) + raw(f.PING, 0, 0, b"12345678"), P),
    "an unknown frame within a header block": (head(1, flags=0) + raw(99, 0, 0), P),
    "CONTINUATION of another stream": (head(1, flags=0) + raw(f.CONTINUATION, f.END_HEADERS, 3), P),
    "CONTINUATION of nothing": (raw(f.CONTINUATION, f.END_HEADERS, 1, w.block()), P),
    "CONTINUATION after a whole block": (OPEN + raw(f.CONTINUATION, f.END_HEADERS, 1), P),
    "CONTINUATION without end": (head(1, flags=0) + raw(f.CONTINUATION, 0, 1) * 9, CALM),
    "a header block that is too large": (head(1, flags=0) + raw(f.CONTINUATION, 0, 1, b"x" * 16_384), CALM),
    "PRIORITY of stream 0": (raw(f.PRIORITY, 0, 0, b"12345"), P),
    "PRIORITY of a wrong length, of a stream that was not begun": (raw(f.PRIORITY, 0, 1, b"1234"), SIZE),
    "RST_STREAM of stream 0": (reset(0), P),
    "RST_STREAM of a stream that was not begun": (reset(1), P),
    "RST_STREAM of a wrong length": (OPEN + raw(f.RST_STREAM, 0, 1, b"123"), SIZE),
    "SETTINGS of a stream": (OPEN + raw(f.SETTINGS, 0, 1), P),
    "SETTINGS of a wrong length": (raw(f.SETTINGS, 0, 0, b"12345"), SIZE),
    "an acknowledgement with settings": (raw(f.SETTINGS, f.ACK, 0, b"123456"), SIZE),
    "ENABLE_PUSH of 2": (w.settings(push=2), P),
    "INITIAL_WINDOW_SIZE that is too large": (w.settings(window=BIG + 1), FLOW),
    "MAX_FRAME_SIZE that is too small": (w.settings(frame=16_383), P),
    "MAX_FRAME_SIZE that is too large": (w.settings(frame=1 << 24), P),
    "settings that make a window too large": (OPEN + w.credit(1, BIG - 65_535) + w.settings(window=65_536), FLOW),
    "PUSH_PROMISE": (OPEN + raw(f.PUSH_PROMISE, f.END_HEADERS, 1, b"\0\0\0\2"), P),
    "PING of a stream": (OPEN + raw(f.PING, 0, 1, b"12345678"), P),
    "PING of a wrong length": (raw(f.PING, 0, 0, b"1234567"), SIZE),
    "GOAWAY of a stream": (OPEN + raw(f.GOAWAY, 0, 1, b"\0" * 8), P),
    "GOAWAY of a wrong length": (raw(f.GOAWAY, 0, 0, b"\0" * 7), SIZE),
    "WINDOW_UPDATE of nothing": (w.credit(0, 0), P),
    "WINDOW_UPDATE of a wrong length": (raw(f.WINDOW_UPDATE, 0, 0, b"123"), SIZE),
    "WINDOW_UPDATE of a stream that was not begun": (w.credit(1, 1), P),
    "WINDOW_UPDATE that makes the window too large": (w.credit(0, BIG), FLOW),
}

PAIR = [b":method", b":scheme", b":path", b":authority"]
STREAM_ERRORS = {
    "DATA after the end": (HALF_CLOSED + message(1), C),
    "HEADERS after the end": (HALF_CLOSED + head(1, flags=f.END_HEADERS | f.END_STREAM), C),
    "DATA beyond the window": (head(1, w.HANG) + raw(f.DATA, 0, 1, b"\0" * 16_000) * 5, FLOW),
    "WINDOW_UPDATE of nothing": (OPEN + w.credit(1, 0), P),
    "WINDOW_UPDATE that makes the window too large": (OPEN + w.credit(1, BIG), FLOW),
    "PRIORITY of a wrong length": (OPEN + raw(f.PRIORITY, 0, 1, b"1234"), SIZE),
    "DATA after a reset of its peer": (OPEN + reset(1) + message(1), C),
    "trailers that do not end": (OPEN + raw(f.HEADERS, f.END_HEADERS, 1, w.literal(b"a", b"b")), P),
    "trailers with a pseudo-header": (OPEN + raw(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, b"\x83"), P),
    "a name in upper case": (head(1, w.ECHO, (b"Name", b"x")), P),
    "a name that is empty": (head(1, w.ECHO, (b"", b"x")), P),
    "a line break in a value": (head(1, w.ECHO, (b"name", b"a\r\nb: c")), P),
    "a NUL in a value": (head(1, w.ECHO, (b"name", b"a\0")), P),
    "a value that begins with a space": (head(1, w.ECHO, (b"name", b" a")), P),
    "a pseudo-header that is unknown": (raw(f.HEADERS, f.END_HEADERS, 1, w.literal(b":x", b"y") + w.block()), P),
    "a pseudo-header of an answer": (raw(f.HEADERS, f.END_HEADERS, 1, b"\x88" + w.block()), P),
    "a pseudo-header that comes twice": (raw(f.HEADERS, f.END_HEADERS, 1, b"\x83" + w.block()), P),
    "a pseudo-header after others": (
        raw(f.HEADERS, f.END_HEADERS, 1, w.block() + w.literal(b":authority", b"a")),
        P,
    ),
    "no method": (raw(f.HEADERS, f.END_HEADERS, 1, w.block()[1:]), P),
    "no path": (raw(f.HEADERS, f.END_HEADERS, 1, b"\x83\x86"), P),
    "an empty path": (raw(f.HEADERS, f.END_HEADERS, 1, b"\x83\x86" + w.literal(b":path", b"")), P),
    "a header of HTTP/1": (head(1, w.ECHO, (b"connection", b"close")), P),
    "a transfer encoding": (head(1, w.ECHO, (b"transfer-encoding", b"chunked")), P),
    "TE that is not trailers": (head(1, w.ECHO, (b"te", b"gzip")), P),
    "a length that is no number": (head(1, w.ECHO, (b"content-length", b"-1")), P),
    "less than was declared": (head(1, w.ECHO, (b"content-length", b"9")) + message(1, end=True), P),
    "more than was declared": (head(1, w.ECHO, (b"content-length", b"3")) + message(1, end=True), P),
}

NO_ERRORS = {
    "an unknown frame": raw(99, 0xFF, 7, b"x"),
    "unknown flags": raw(f.PING, 0xFE, 0, b"12345678"),
    "a reserved bit": raw(f.SETTINGS, 0, 0x80000000),
    "an unknown setting": raw(f.SETTINGS, 0, 0, b"\0\x99\0\0\0\1"),
    "PRIORITY of any stream": raw(f.PRIORITY, 0, 99, b"12345"),
    "PRIORITY of a stream on itself": raw(f.PRIORITY, 0, 5, b"\0\0\0\5\1"),
    "GOAWAY of the peer": raw(f.GOAWAY, 0, 0, b"\0" * 8 + b"bye"),
    "a ping of nobody that is answered": raw(f.PING, f.ACK, 0, b"12345678"),
    "HEADERS with priority and padding": raw(
        f.HEADERS, f.END_HEADERS | f.PADDED | f.WITH_PRIORITY, 1, b"\x02" + b"\0\0\0\0\1" + w.block() + b"\0\0"
    ),
    "a table of no size": raw(f.HEADERS, f.END_HEADERS, 1, b"\x20" + w.block()),
    "a window update of a stream that is closed": OPEN + reset(1) + w.credit(1, 1),
    "a reset of a stream that is closed": OPEN + reset(1) + reset(1),
    "padding alone": OPEN + raw(f.DATA, f.PADDED, 1, b"\x03\0\0\0"),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
@pytest.mark.parametrize("step", [0, 1, 7])
async def test_what_is_an_error_of_the_connection_closes_it_with_its_code(name, step, caplog):
    said, code = CONNECTION_ERRORS[name]
    wire = Wire()
    for part in [said] if not step else [said[i : i + step] for i in range(0, len(said), step)]:
        wire.feed(part)
    assert goaway(await wire.told()) is code
    assert wire.closed
    assert wire.faults == [code.name.lower()]
    assert (wire.calls.begun, wire.host.running, wire.host.holdings.total) == (wire.calls.ended, 0, 0)
    assert "failed" not in caplog.text


@pytest.mark.parametrize("name", STREAM_ERRORS)
@pytest.mark.parametrize("step", [0, 5])
async def test_what_is_an_error_of_a_stream_resets_it_and_leaves_the_others_alone(name, step):
    said, code = STREAM_ERRORS[name]
    wire = Wire()
    said += head(3) + message(3, b"well", end=True)
    for part in [said] if not step else [said[i : i + step] for i in range(0, len(said), step)]:
        wire.feed(part)
    told = await wire.told()
    assert (1, code) in resets(told)
    assert messages(told, 3) == [b"well"]
    assert status_of(told, 3) == 0
    assert not wire.closed
    assert wire.calls.begun == wire.calls.ended
    assert (wire.host.running, wire.host.holdings.total) == (0, 0)


@pytest.mark.parametrize("name", NO_ERRORS)
async def test_what_is_no_error_changes_nothing(name):
    wire = Wire()
    told = await wire.told(NO_ERRORS[name], head(11), message(11, b"well", end=True))
    assert messages(told, 11) == [b"well"]
    assert not of_kind(told, f.GOAWAY)
    assert not wire.closed


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", b"\x16\x03\x01\x02\x00\x01", b"P\0"],
)
async def test_what_is_no_http2_is_sent_away(said):
    wire = Wire(hello=False)
    assert goaway(await wire.told(said)) is P
    assert wire.closed


@pytest.mark.parametrize("first", [w.ACK, raw(f.PING, 0, 0, b"12345678"), head(1)])
async def test_the_first_frame_is_settings(first):
    wire = Wire(hello=False)
    assert goaway(await wire.told(f.PREFACE, first)) is P


async def test_our_settings_come_first_and_forbid_the_dynamic_table():
    wire = Wire(hello=False)
    first, second = wire.frames() or await wire.told()
    assert (first.kind, first.payload[:6]) == (f.SETTINGS, b"\0\1\0\0\0\0")
    assert (second.kind, second.stream) == (f.WINDOW_UPDATE, 0)


async def test_settings_and_pings_are_acknowledged_in_one_write():
    wire = Wire()
    await wire.told()
    before = wire.transport.writes
    told = await wire.told(w.settings(window=1000), raw(f.PING, 0, 0, b"12345678"))
    assert [(frame.kind, frame.flags, frame.payload) for frame in told] == [
        (f.SETTINGS, f.ACK, b""),
        (f.PING, f.ACK, b"12345678"),
    ]
    assert wire.transport.writes == before + 1


async def test_frames_on_their_way_to_a_stream_that_we_ended_are_no_error():
    wire = Wire()
    told = await wire.told(head(1, w.FAIL), message(1))
    assert status_of(told, 1) == 9
    assert resets(told) == [(1, Code.NO_ERROR)]
    assert await wire.told(message(1), w.credit(1, 5), message(1, end=True), raw(f.PING, 0, 0, b"12345678"))
    assert resets(await wire.told(message(1))) == [(1, C)]  # it had ended


async def test_streams_beyond_the_most_are_refused_until_a_handler_has_ended():
    wire = Wire(streams=2)
    told = await wire.told(head(1, w.HANG), head(3, w.HANG), head(5))
    assert resets(told) == [(5, Code.REFUSED_STREAM)]
    told = await wire.told(reset(1), head(7), message(7, end=True))
    # The handler of the first has not ended when the next begins.
    assert resets(told) == [(7, Code.REFUSED_STREAM)]
    told = await wire.told(head(9), message(9, end=True))
    assert messages(told, 9) == [b"hi"]
