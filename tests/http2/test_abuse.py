"""Peers that flood, stall or never read: each is sent away or bounded, and a bystander is served meanwhile."""

import asyncio

import pytest

from extproc.http2 import frames as f
from extproc.http2.frames import Code

from . import wire as w
from .wire import Wire, goaway, head, message, messages, raw, reset, resets, status_of

PING = raw(f.PING, 0, 0, b"12345678")
LARGE_BLOCK = w.block(w.ECHO, (b"x", b"y" * 8000))

FLOODS = {
    "pings": PING * 5000,
    "settings": w.settings(window=5) * 5000,
    "window updates": w.credit(0, 1) * 5000,
    "tiny window updates of a stream": head(1, w.HANG) + w.credit(1, 1) * 5000,
    "priorities": raw(f.PRIORITY, 0, 1, b"12345") * 5000,
    "unknown frames": raw(99, 0, 0) * 5000,
    "empty data": head(1, w.HANG) + raw(f.DATA, 0, 1) * 5000,
    "data of one byte": head(1, w.HANG)
    + raw(f.DATA, 0, 1, w.prefixed(b"x" * 9000)[:9])
    + raw(f.DATA, 0, 1, b"x") * 5000,
    "padding": head(1, w.HANG) + raw(f.DATA, f.PADDED, 1, b"\0") * 5000,
    "data of a stream that is closed": head(1, w.FAIL) + raw(f.DATA, 0, 1, b"") * 5000,
    "rapid resets": b"".join(head(n) + reset(n) for n in range(1, 6001, 2)),
    "large header blocks that differ": b"".join(
        raw(f.HEADERS, f.END_HEADERS, n, LARGE_BLOCK + w.literal(b"n", b"%d" % n)) for n in range(1, 801, 2)
    ),
    "requests of no method": b"".join(head(n, "/x") for n in range(1, 5001, 2)),
    "streams beyond the most": b"".join(head(n, w.HANG) for n in range(1, 8001, 2)),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_its_connection_and_a_bystander_is_served_meanwhile(name):
    flooding = Wire()
    other = Wire(flooding.calls, host=flooding.host)
    said = FLOODS[name]
    for turn, start in enumerate(range(0, len(said), 65_536)):
        if not flooding.closed:
            flooding.feed(said[start : start + 65_536])
        number = 2 * turn + 1
        other.feed(head(number), message(number, b"well", end=True))
        for _ in range(6):
            await asyncio.sleep(0)
        assert messages(other.frames(), number) == [b"well"]
    told = await flooding.told()
    assert goaway(told) is Code.ENHANCE_YOUR_CALM
    assert flooding.closed
    assert not other.closed
    assert flooding.host.running == 0


async def test_a_peer_whose_messages_come_forward_may_send_many_other_frames():
    wire = Wire()
    wire.feed(head(1))
    for _ in range(3000):
        wire.feed(message(1, b"x"), w.credit(0, 6), w.credit(1, 6), PING)
        await asyncio.sleep(0)
    await wire.settled()
    assert not wire.closed
    assert len(wire.calls.got) == 3000


async def test_half_sent_messages_take_bounded_memory_and_cost_only_the_peer_that_has_most_of_them():
    greedy = Wire(held_bytes=1_000_000, streams=1000)
    modest = Wire(greedy.calls, host=greedy.host)
    half = w.prefixed(b"x" * 40_000)
    modest.feed(head(1), raw(f.DATA, 0, 1, half[:15_000]))
    for stream in range(1, 601, 2):
        greedy.feed(head(stream), raw(f.DATA, 0, stream, half[:16_000]))
        assert greedy.host.holdings.total <= 1_000_000
        await asyncio.sleep(0)
    told = await greedy.told()
    ended = [stream for stream, _ in resets(told)]
    assert ended == list(range(1, 2 * len(ended), 2))  # the oldest first
    assert len(ended) > 200
    assert status_of(told, 1) == 8
    rest = half[15_000:]
    told = await modest.told(raw(f.DATA, 0, 1, rest[:16_000]), raw(f.DATA, f.END_STREAM, 1, rest[16_000:]))
    assert len(modest.calls.got[-1]) == 40_000
    newest = await greedy.told(raw(f.DATA, 0, 599, half[16_000:32_000]), raw(f.DATA, 0, 599, half[32_000:]))
    assert len(greedy.calls.got[-1]) == 40_000, newest


async def test_messages_that_nobody_takes_stay_within_the_window_and_a_neighbour_is_served():
    wire = Wire()
    many = b"".join(raw(f.DATA, 0, 1, w.prefixed(b"x" * 1000)) for _ in range(65))
    told = await wire.told(head(1, w.HANG), many, head(3), message(3, b"well", end=True))
    assert not [frame for frame in told if frame.kind == f.WINDOW_UPDATE and frame.stream == 1]
    assert messages(told, 3) == [b"well"]
    assert resets(await wire.told(many)) == [(1, Code.FLOW_CONTROL_ERROR)]


async def test_a_peer_that_reads_gets_its_window_back():
    wire = Wire()
    wire.feed(head(1), w.credit(0, 1 << 30), w.credit(1, 1 << 30))
    for _ in range(200):
        wire.feed(message(1, b"x" * 1000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    told = await wire.told()
    given = sum(int.from_bytes(x.payload, "big") for x in told if x.kind == f.WINDOW_UPDATE and x.stream == 1)
    assert given > 200 * 1005 - 65_535
    assert len(wire.calls.got) == 200


async def test_a_peer_that_never_reads_is_closed_and_keeps_bounded_memory():
    wire = Wire(output_bytes=200_000, idle_frames=1_000_000)
    wire.transport.stuck = True
    wire.feed(w.settings(window=1 << 30), w.credit(0, 1 << 30))
    wire.feed(*(head(n, w.FLOOD) + message(n, b"x" * 9) for n in range(1, 41, 2)))
    await wire.settled()
    assert wire.transport.unread < 400_000  # handlers wait; what is kept is one round of theirs
    assert wire.calls.ended == 0
    while not wire.transport.aborted:
        wire.feed(PING * 200)
        await wire.settled()
        assert wire.transport.unread < 600_000
    await wire.settled()
    assert wire.calls.cancelled == 20
    assert wire.host.running == 0


async def test_a_stream_without_a_window_does_not_stop_its_neighbours_and_is_ended_in_time():
    wire = Wire(stall_s=0.0)
    told = await wire.told(w.settings(window=0), head(1), message(1), w.settings(window=100), w.settings(window=0))
    wire.feed(head(3, w.FAIL), message(3))
    told = await wire.told(head(5), message(5, b"waits"), w.credit(5, 1000))
    assert messages(told, 5) == [b"waits"]
    wire.feed(head(7), message(7, b"stalls"))
    await wire.settled()
    wire.connection.look(asyncio.get_running_loop().time() + 1)
    assert (7, Code.ENHANCE_YOUR_CALM) in resets(await wire.told())
    assert not wire.closed


async def test_a_small_window_is_used_to_its_last_byte_and_shared_in_turns():
    wire = Wire()
    content = b"q" * 50_000
    for stream in (1, 3):
        whole = w.prefixed(content)
        wire.feed(
            head(stream), *(raw(f.DATA, 0, stream, whole[i : i + 16_000]) for i in range(0, len(whole), 16_000))
        )
    told = await wire.told()
    sent = [frame for frame in told if frame.kind == f.DATA]
    assert sum(len(frame.payload) for frame in sent) == 65_535
    assert {frame.stream for frame in sent} == {1, 3}
    told += await wire.told(w.credit(0, 40_000))
    assert messages(told, 1) == messages(told, 3) == [content]


async def test_a_connection_without_a_preface_or_an_answer_to_a_ping_is_closed():
    silent, lost = Wire(hello=False), Wire()
    now = asyncio.get_running_loop().time()
    silent.connection.look(now + 11)
    assert goaway(await silent.told()) is Code.PROTOCOL_ERROR
    lost.connection.look(now)
    lost.connection.look(now + 31)
    assert [frame for frame in await lost.told() if frame.kind == f.PING]
    lost.feed(raw(f.PING, f.ACK, 0, b"\0" * 8))
    lost.connection.look(now + 40)
    lost.connection.look(now + 80)
    assert [frame for frame in await lost.told() if frame.kind == f.PING]
    lost.connection.look(now + 111)
    await lost.settled()
    assert lost.closed


async def test_too_many_connections_cost_one_that_has_no_call():
    busy = Wire(connections=2)
    await busy.told(head(1, w.HANG))
    idle = Wire(busy.calls, host=busy.host)
    third = Wire(busy.calls, host=busy.host)
    await third.settled()
    assert idle.closed
    assert not busy.closed
    await third.told(head(1, w.HANG))
    refused = Wire(busy.calls, host=busy.host, hello=False)
    await refused.settled()
    assert refused.closed
    assert len(busy.host.connections) == 2


async def test_a_drain_serves_what_was_begun_and_refuses_what_comes_after():
    wire = Wire()
    await wire.told(head(1))
    wire.connection.drain()
    first = [frame for frame in await wire.told(head(3), message(3, b"late", end=True)) if frame.kind == f.GOAWAY]
    assert [int.from_bytes(frame.payload[:4], "big") for frame in first] == [f.MAX_STREAM_ID]
    wire.feed(raw(f.PING, f.ACK, 0, b"\0" * 8))
    wire.connection.look(asyncio.get_running_loop().time())
    (last,) = [frame for frame in await wire.told() if frame.kind == f.GOAWAY]
    assert int.from_bytes(last.payload[:4], "big") == 3
    assert resets(await wire.told(head(5), message(5))) == [(5, Code.REFUSED_STREAM)]
    assert messages(await wire.told(message(1, b"well", end=True)), 1) == [b"well"]
    wire.connection.look(asyncio.get_running_loop().time())
    await wire.settled()
    assert wire.closed
