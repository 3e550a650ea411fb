"""Connections to a real server that break: what the server may receive twice, and what it must not."""

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from extproc.core.quota.reservation import Admitted
from extproc.local.ports import HOST
from extproc.ports.base import StoreError

from .ready import make_ready, patient
from .reservations import reservation, settled
from .servers import not_connected, until


class Relay:
    """Stand between a client and the server. Break one connection instead of answering about `unanswered`.

    A connection that sends `hangs` passes nothing more on, for ever.
    """

    def __init__(self, url):
        self._place = urlsplit(url)
        self._writers = set()
        self.unanswered = None  # a reservation
        self.hangs = None
        self.hung = []  # what was held back
        self.sent = []  # what clients sent, as it came

    async def serve(self, reader, writer):
        others, server = await asyncio.open_connection(self._place.hostname, self._place.port)
        self._writers |= {writer, server}
        mine = []
        there = asyncio.create_task(self._pass(reader, server, mine))
        try:
            while received := await others.read(65536):
                if self.unanswered is not None and self.times(self.unanswered, mine):
                    self.unanswered = None
                    return
                writer.write(received)
        except OSError:
            pass
        finally:
            there.cancel()
            await asyncio.wait({there})
            self._writers -= {writer, server}
            writer.close()
            server.close()

    async def _pass(self, reader, writer, mine):
        while received := await reader.read(65536):
            if self.hangs is not None and self.hangs in received:
                self.hangs = None
                self.hung.append(received)
                await asyncio.Event().wait()
            self.sent.append(received)
            mine.append(received)
            writer.write(received)

    def break_all(self, *, reset):
        """End all connections, in order or by a reset."""
        for writer in [each for each in self._writers if not each.is_closing()]:
            if reset:
                linger = struct.pack("ii", 1, 0)  # not at all
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    def times(self, reservation_, sent=None):
        """Return how often a reservation's call was sent."""
        words = f":{reservation_.id}\r".encode()
        return sum(each.count(words) for each in (self.sent if sent is None else sent))


@asynccontextmanager
async def relayed(url, **options):
    relay = Relay(url)
    listening = await asyncio.start_server(relay.serve, HOST, 0)
    client = patient(f"redis://{HOST}:{listening.sockets[0].getsockname()[1]}/0", **options)
    try:
        await make_ready(client)
        yield relay, client
    finally:
        await client.aclose()
        relay.break_all(reset=False)
        listening.close()
        await listening.wait_closed()


async def test_a_reserve_whose_answer_is_lost_is_not_sent_again(redis_part, redis):
    async with relayed(redis_part.url) as (relay, client):
        held = reservation(5)
        relay.unanswered = held
        with pytest.raises(StoreError) as raised:
            await client.reserve(held)
        assert raised.value.transient
        assert relay.times(held) == 1


async def test_an_end_whose_answer_is_lost_is_sent_again(redis_part, redis):
    async with relayed(redis_part.url) as (relay, client):
        held = reservation(5)
        await client.reserve(held)
        relay.sent.clear()
        relay.unanswered = held
        (closed,) = await client.close([settled(held, 3)])
        assert closed.outcome is settled(held, 3).outcome
        assert relay.times(held) == 2


@pytest.mark.parametrize("reset", [False, True])
async def test_a_reserve_on_a_connection_that_died_while_idle_is_answered(redis_part, redis, reset):
    async with relayed(redis_part.url) as (relay, client):
        assert isinstance(await client.reserve(reservation(5)), Admitted)
        relay.break_all(reset=reset)
        await until(lambda: not_connected(client))
        held = reservation(5)
        assert isinstance(await client.reserve(held), Admitted)
        assert relay.times(held) == 1


async def test_a_replica_is_noted_in_time_while_the_connection_of_requests_hangs(redis_part, redis):
    async with relayed(redis_part.url) as (relay, client):
        held = reservation(5)
        relay.hangs = held.id.encode()
        waiting = asyncio.create_task(client.reserve(held))
        await until(lambda: _truth(relay.hung))
        for _ in range(3):
            assert "here" in await client.seen("here")
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_a_note_on_a_connection_that_hangs_is_given_up_and_the_next_one_has_another(redis_part, redis):
    async with relayed(redis_part.url, note_timeout_s=0.5) as (relay, client):
        await client.seen("here")
        relay.hangs = b"\r\nhere\r"
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreError) as raised:
            await client.seen("here")
        assert raised.value.transient
        assert asyncio.get_running_loop().time() - began < 30, "as long as a busy machine takes"

        async def noted_again():
            try:
                return "here" in await client.seen("here")
            except StoreError:  # a busy machine takes longer than 0.5 s
                return False

        await until(noted_again)
        assert len(relay.hung) == 1


async def _truth(value):
    return bool(value)
