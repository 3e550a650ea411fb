"""One connection for many callers: what is written at once, who gets which reply, and how it ends."""

import asyncio
import gc

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, ReadOnlyError

from extproc.stores.redis.pipeline import Pipeline


class Wire:
    """Stand where a transport stands. Keep what is written."""

    def __init__(self):
        self.written = []
        self.aborted = False

    def set_protocol(self, protocol):
        self.protocol = protocol

    def write(self, data):
        self.written.append(data)

    def abort(self):
        self.aborted = True
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


@pytest.fixture
async def opened():
    pipeline, wire = Pipeline(asyncio.get_running_loop()), Wire()
    pipeline.take_over(wire)
    return pipeline, wire


async def _a_turn():
    await asyncio.sleep(0)


async def test_what_one_turn_sends_leaves_in_one_write_and_in_its_order(opened):
    pipeline, wire = opened
    replies = [pipeline.send(("GET", "a")), pipeline.send_all([("GET", "b"), ("GET", 3)])]
    assert wire.written == []
    await _a_turn()
    assert wire.written == [
        b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$1\r\nb\r\n*2\r\n$3\r\nGET\r\n$1\r\n3\r\n"
    ]
    pipeline.data_received(b"+1\r\n:2\r\n$1")
    assert (await replies[0], replies[1].done()) == (b"1", False)
    pipeline.data_received(b"\r\n3\r\n")
    assert await replies[1] == [2, b"3"]


async def test_an_error_is_a_reply_to_one_command_and_to_no_other(opened):
    pipeline, _ = opened
    one, batch = pipeline.send(("SET", "a", 1)), pipeline.send_all([("PING",), ("SET", "a", 1)])
    pipeline.data_received(b"-READONLY no\r\n+PONG\r\n-ERR what\r\n")
    assert isinstance(await one, ReadOnlyError)
    pong, error = await batch
    assert (pong, str(error)) == (b"PONG", "what")


async def test_a_reply_that_nobody_waits_for_any_more_is_dropped_and_the_next_one_is_the_next_callers(opened):
    pipeline, _ = opened
    left, batch, waiting = pipeline.send(("A",)), pipeline.send_all([("B",), ("C",)]), pipeline.send(("D",))
    left.cancel()
    batch.cancel()
    pipeline.data_received(b"+a\r\n+b\r\n+c\r\n+d\r\n")
    assert await waiting == b"d"


@pytest.mark.parametrize("end", [None, ConnectionResetError("reset")])
async def test_all_who_wait_learn_that_the_connection_has_ended(opened, end):
    pipeline, wire = opened
    replies = [pipeline.send(("A",)), pipeline.send_all([("B",), ("C",)])]
    pipeline.data_received(b"")
    pipeline.connection_lost(end)
    for reply in replies:
        with pytest.raises(RedisConnectionError):
            await reply
    await _a_turn()
    assert wire.written == [], "nothing is sent on a connection that has ended"
    assert not pipeline.is_open
    with pytest.raises(RedisConnectionError):
        pipeline.send(("A",))
    with pytest.raises(RedisConnectionError):
        pipeline.send_all([("A",)])


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+nobody asked\r\n"])
async def test_a_peer_that_does_not_speak_the_protocol_is_left(opened, said):
    pipeline, wire = opened
    reply = pipeline.send(("A",)) if said.startswith(b"H") else None
    pipeline.data_received(said)
    assert wire.aborted
    assert not pipeline.is_open
    if reply is not None:
        with pytest.raises(RedisConnectionError, match="protocol"):
            await reply


async def test_what_the_server_says_by_itself_is_no_reply(opened):
    pipeline, _ = opened
    reply = pipeline.send(("A",))
    pipeline.data_received(b">2\r\n+MOVING\r\n:1\r\n+a\r\n")
    assert await reply == b"a"


async def test_a_server_is_silent_when_it_owes_an_answer_for_long(opened, monkeypatch):
    pipeline, _ = opened
    now = [100.0]
    monkeypatch.setattr(pipeline, "_loop", Loop(now))
    assert not pipeline.is_silent(0.5)
    first, second = pipeline.send(("A",)), pipeline.send(("B",))
    now[0] += 0.5
    assert not pipeline.is_silent(0.5)
    pipeline.data_received(b"+a\r\n")
    now[0] += 0.51
    assert pipeline.is_silent(0.5)
    pipeline.data_received(b"+b\r\n")
    assert not pipeline.is_silent(0.5)
    assert [await first, await second] == [b"a", b"b"]


class Loop:
    """Tell a time of the test's own."""

    def __init__(self, now):
        self.time = lambda: now[0]
        self.create_future = asyncio.get_running_loop().create_future
        self.call_soon = asyncio.get_running_loop().call_soon


async def test_a_command_of_nothing_is_answered_at_once(opened):
    pipeline, wire = opened
    assert await pipeline.send_all([]) == []
    await _a_turn()
    assert wire.written == []


async def test_an_end_that_nobody_waits_for_leaves_no_unread_exception(opened, caplog):
    pipeline, _ = opened
    replies = [pipeline.send(("A",)), pipeline.send_all([("B",)])]
    for reply in replies:
        reply.cancel()
    pipeline.connection_lost(None)
    del reply, replies
    gc.collect()
    assert caplog.messages == []


class Whole(int):
    """Stand for the numbers of MongoDB's driver."""


async def test_a_number_of_another_kind_is_a_number_and_what_is_no_word_is_told(opened):
    pipeline, wire = opened
    pipeline.send(("A", Whole(7), True))
    with pytest.raises(DataError):
        pipeline.send(("A", None))
    with pytest.raises(DataError):
        pipeline.send_all([("A",), ("B", [])])
    reply = pipeline.send(("C",))
    await _a_turn()
    assert wire.written == [b"*3\r\n$1\r\nA\r\n$1\r\n7\r\n$1\r\n1\r\n*1\r\n$1\r\nC\r\n"]
    pipeline.data_received(b"+a\r\n+c\r\n")
    assert await reply == b"c"
