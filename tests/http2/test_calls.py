"""What gRPC adds to HTTP/2: methods, metadata, deadlines, messages and how a call ends."""

import asyncio
import contextvars
import itertools

import pytest

from extproc.http2 import frames as f
from extproc.http2.frames import Code
from extproc.http2.head import MalformedError, read_head
from extproc.http2.hpack import Decoder
from extproc.http2.inbox import LARGE_BYTES, PART_BYTES, joined, size_of
from extproc.http2.replies import only_trailers, trailers
from extproc.http2.status import Status

from . import wire as w
from .wire import Calls, Wire, head, message, messages, of_kind, raw, resets, status_of


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (head(1, content_type=b"text/plain"), b"415"),
        (head(1, content_type=b"application/grpc-web"), b"415"),
        (head(1, method=b"\x82"), b"405"),
        (head(1, w.ECHO, *[(b"x", b"y" * 100)] * 70), b"431"),
    ],
)
async def test_what_is_no_grpc_is_answered_with_a_status_of_http(said, status):
    wire = Wire(header_list_bytes=8_000)
    told = await wire.told(said)
    (answer,) = of_kind(told, f.HEADERS)
    assert answer.ends
    assert Decoder(1000).decode(answer.payload)[0] == (b":status", status)
    assert resets(told) == [(1, Code.NO_ERROR)]


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (head(1, "/t.T/None"), Status.UNIMPLEMENTED),
        (head(1, w.ECHO, (b"grpc-timeout", b"never")), Status.INTERNAL),
        (head(1, w.ECHO, (b"key-bin", b"?")), Status.INTERNAL),
        (head(1) + raw(f.DATA, 0, 1, b"\1\0\0\0\1x"), Status.UNIMPLEMENTED),
        (head(1) + raw(f.DATA, 0, 1, b"\2\0\0\0\1x"), Status.INTERNAL),
        (head(1) + raw(f.DATA, 0, 1, b"\0\xff\xff\xff\xff"), Status.RESOURCE_EXHAUSTED),
        (head(1) + raw(f.DATA, f.END_STREAM, 1, b"\0\0\0\0\2x"), Status.INTERNAL),
        (head(1) + raw(f.DATA, f.END_STREAM, 1), Status.OK),
        (head(1, content_type=b"application/grpc+proto;x=y", flags=5), Status.OK),
        (head(1, w.FAIL) + message(1), Status.FAILED_PRECONDITION),
        (head(1, w.HANG, (b"grpc-timeout", b"0m")), Status.DEADLINE_EXCEEDED),
    ],
)
async def test_a_call_ends_with_the_status_of_what_is_wrong(said, status):
    wire = Wire()
    wire.feed(said)
    async with asyncio.timeout(5):
        while not (told := wire.frames()) or not of_kind(told, f.HEADERS):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert status_of(told, 1) == status
    await wire.settled()
    assert wire.host.running == 0
    assert not wire.closed


async def test_a_handler_that_fails_ends_its_call_alone_and_is_logged(caplog):
    class Failing(Calls):
        async def fail(self, call):
            raise ValueError("a bug")

    wire = Wire(Failing())
    told = await wire.told(head(1, w.FAIL), head(3), message(3, end=True))
    assert (status_of(told, 1), status_of(told, 3)) == (Status.UNKNOWN, Status.OK)
    assert "a bug" in caplog.text


def test_metadata_is_what_is_left_of_the_headers_and_binary_values_are_decoded():
    more = ((b"key", b"a"), (b"key", b"b"), (b"x-bin", b"AAE"), (b"y-bin", b"AA==,AQ=="))
    headers = Decoder(10_000).decode(w.block(w.ECHO, *more, (b"grpc-timeout", b"20m")))
    read = read_head(headers, Calls().routes)
    assert read.metadata == (("key", "a"), ("key", "b"), ("x-bin", b"\0\1"), ("y-bin", b"\0"), ("y-bin", b"\1"))
    assert read.timeout_s == 0.02
    with pytest.raises(MalformedError):
        read_head([], {})


def test_a_text_for_the_caller_is_escaped_and_bounded():
    decoded = dict(Decoder(10_000).decode(trailers(Status.INTERNAL, "ü 100 %\n")))
    assert decoded == {b"grpc-status": b"13", b"grpc-message": b"%C3%BC 100 %25%0A"}
    assert len(only_trailers(Status.INTERNAL, "\n" * 100_000)) < 4000


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100, 20_000])
async def test_messages_arrive_whole_however_their_frames_are_cut(size):
    wire = Wire()
    contents = [b"", b"a", b"b" * 300, b"", b"c" * 5_000]
    data = b"".join(map(w.prefixed, contents))
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    cut = [part[i : i + 16_000] for part in parts for i in range(0, len(part), 16_000)]
    wire.feed(head(1))
    told = []
    for part in cut:
        wire.feed(raw(f.DATA, 0, 1, part))
        if size == 1:
            wire.connection._talk.calm._left = 2000  # such small fragments are a flood otherwise
    told = await wire.told(raw(f.DATA, f.END_STREAM, 1))
    assert messages(told, 1) == contents
    assert wire.calls.got == contents


def fragments(stream, content, size):
    """The frames of one message."""
    data = w.prefixed(content)
    return [raw(f.DATA, 0, stream, data[at : at + size]) for at in range(0, len(data), size)]


@pytest.mark.parametrize("more", [-1, 0, 1, PART_BYTES, 3 * PART_BYTES + 5])
@pytest.mark.parametrize("size", [1000, 16_384])
async def test_a_message_stays_in_parts_if_it_is_large_and_none_of_them_is_small(more, size):
    contents = [b"x" * 300, bytes(range(256)) * 1024 * 3, b"y"]
    contents[1] = contents[1][: LARGE_BYTES + more]
    got = []

    class Reading(Calls):
        async def echo(self, call):
            call.hand_over(lambda data: len(data) == 1)
            while (message := await call.read()) is not None:
                got.append(message)

    wire = Wire(Reading())
    await wire.told(head(1))
    for content in contents:
        for part in fragments(1, content, size):
            await wire.told(part)
    await wire.told(raw(f.DATA, f.END_STREAM, 1))
    small, large = got
    assert small == contents[0]
    assert isinstance(large, list) is (more > 0)
    assert joined(large) == contents[1]
    assert size_of(large) == len(contents[1])
    assert more <= 0 or min(map(len, large[:-1])) >= PART_BYTES
    assert wire.host.holdings.total == 0


async def test_large_messages_wait_in_parts_and_leave_memory_when_they_are_taken():
    content = b"z" * (LARGE_BYTES + 1)

    class Late(Calls):
        async def echo(self, call):
            await asyncio.sleep(0.01)
            while (message := call.take()) is not None:
                self.got.append(joined(message))

    wire = Wire(Late())
    wire.feed(head(1), *fragments(1, content, 16_384))
    assert wire.host.holdings.total > len(content)
    await asyncio.sleep(0.02)
    await wire.told()
    assert wire.calls.got == [content]
    assert wire.host.holdings.total == 0


async def test_a_message_in_parts_leaves_as_one_within_the_windows():
    parts = [b"a" * 40_000, b"", memoryview(b"b" * 100_000), b"c"]
    told = []

    class Sending(Calls):
        async def echo(self, call):
            await call.read()
            if not call.send_parts(parts):
                await call.drained()
            await call.write(b"behind it")

    wire = Wire(Sending())
    told += await wire.told(head(1) + message(1))
    assert sum(len(frame.payload) for frame in of_kind(told, f.DATA)) == f.INITIAL_WINDOW
    for _ in range(2):
        told += await wire.told(w.credit(0, 50_000) + w.credit(1, 50_000))
    assert messages(told, 1) == [b"".join(parts), b"behind it"]
    assert max(len(frame.payload) for frame in of_kind(told, f.DATA)) <= f.MAX_FRAME_BYTES
    assert status_of(told, 1) is Status.OK


async def test_a_call_that_is_over_sends_no_parts():
    done = []

    class Leaving(Calls):
        async def echo(self, call):
            try:
                await call.read()
            finally:
                done.append(call.send_parts([b"x"]))

    wire = Wire(Leaving())
    await wire.told(head(1))
    told = await wire.told(w.reset(1))
    assert done == [True]
    assert not of_kind(told, f.DATA)


async def test_a_large_message_leaves_in_turns_so_that_others_have_theirs():
    turns = []

    class Sending(Calls):
        async def echo(self, call):
            await call.read()
            call.send_parts([b"x" * (8 << 20)])
            size = [len(wire.transport.written)]
            while size[-1] <= 8 << 20:
                await asyncio.sleep(0)
                size.append(len(wire.transport.written))
            turns.extend(after - before for before, after in itertools.pairwise([0, *size]))

    wire = Wire(Sending())
    wire.transport.write = wire.transport.written.extend  # a peer that reads at once
    await wire.told(w.credit(0, 16 << 20) + head(1) + w.credit(1, 16 << 20) + message(1))
    assert sum(turns) > 8 << 20
    assert max(turns) < 2 << 20


async def test_what_is_handed_over_is_heard_in_the_handlers_context():
    who = contextvars.ContextVar("who", default="nobody")
    heard = []

    class Named(Calls):
        async def echo(self, call):
            who.set(f"call {call.stream}")
            call.hand_over(lambda data: heard.append((who.get(), data)) or True)
            await call.read()

    wire = Wire(Named())
    await wire.told(head(1) + head(3))
    await wire.told(message(1, b"a") + message(3, b"b") + message(1, b"c"))
    assert heard == [("call 1", b"a"), ("call 3", b"b"), ("call 1", b"c")]
    await wire.told(raw(f.DATA, f.END_STREAM, 1) + raw(f.DATA, f.END_STREAM, 3))


async def test_a_message_is_handed_over_while_the_handler_waits_and_read_if_it_is_not_taken():
    class HandingOver(Calls):
        async def echo(self, call):
            self.taken, self.read = [], []
            call.hand_over(lambda data: data != b"refused" and (self.taken.append(data) or True))
            while (data := await call.read()) is not None:
                self.read.append(data)

    wire = Wire(HandingOver())
    wire.feed(head(1))
    wire.feed(message(1, b"before the handler waits"))
    await wire.told(message(1, b"before it, too"))
    await wire.told(message(1, b"one") + message(1, b"two"))
    await wire.told(message(1, b"refused") + message(1, b"behind it"))
    await wire.told(message(1, b"three"))
    await wire.told(raw(f.DATA, f.END_STREAM, 1))
    assert wire.calls.read == [b"before the handler waits", b"before it, too", b"refused", b"behind it"]
    assert wire.calls.taken == [b"one", b"two", b"three"]


async def test_two_messages_of_one_step_leave_in_one_write():
    class Twice(Calls):
        async def echo(self, call):
            await call.read()
            await call.write(b"head")
            await call.write(b"body")
            await call.read()

    wire = Wire(Twice())
    await wire.told(head(1))
    before = wire.transport.writes
    assert messages(await wire.told(message(1)), 1) == [b"head", b"body"]
    assert wire.transport.writes == before + 1


async def test_equal_header_blocks_are_decoded_once_and_only_without_a_table():
    wire = Wire(hello=False)
    wire.feed(f.PREFACE, w.settings(), head(1), head(3))
    assert wire.host.heads._known == {}  # the peer may still use a table
    wire.feed(w.ACK, head(5), head(7))
    await wire.settled()
    assert list(wire.host.heads._known) == [w.block()]
    first, second = (wire.connection._talk.calls[number].head for number in (5, 7))
    assert first is second
