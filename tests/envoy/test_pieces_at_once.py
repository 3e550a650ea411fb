"""The shorter way of pieces of an answer: taken as they come, unless something has to wait."""

import asyncio

import pytest

from extproc.core.phase import ExchangeRules, ProtocolError
from extproc.core.request.identity import IdentityRules
from extproc.envoy import turns
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.servicer import Servicer
from extproc.observe.metrics import Metrics

from .messages import CHAT, NOW, Books, kinds, request_body, request_head, response_body, response_head

RULES = ExchangeRules(IdentityRules())
PIECE = response_body(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', end=False)
LAST = response_body(b'data: {"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n')
HEAD = response_head(content_type="text/event-stream")


@pytest.fixture(autouse=True)
def no_piece_takes_long(monkeypatch):
    """However busy the machine is."""
    monkeypatch.setattr(turns, "perf_counter", lambda: 0.0)


class Open:
    """A channel that hands messages over, as the own transport does. It is full from the nth message on."""

    def __init__(self, *, full_at=None):
        self.sent = []
        self.heard = []
        self.waited = 0
        self._full_at = full_at
        self._queue = asyncio.Queue()
        self._hearer = None
        self._reading = False

    def take(self):
        return self._queue.get_nowait() if not self._queue.empty() else None

    async def read(self):
        self._reading = True
        try:
            return await self._queue.get()
        finally:
            self._reading = False

    def hand_over(self, hearer):
        self._hearer = hearer

    def send(self, message):
        self.sent.append(pb.ProcessingResponse.FromString(message))
        return len(self.sent) != self._full_at

    async def drained(self):
        self.waited += 1

    def says(self, message):
        """Bring a message, or bytes. Return whether it was taken at once."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        if self._hearer is not None and self._reading and self._queue.empty():
            taken = self._hearer(data)
            self.heard.append(taken)
            if taken:
                return True
        self._queue.put_nowait(data)
        return False

    async def waits(self):
        """Wait until the task waits for a message."""
        while not self._reading or not self._queue.empty():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0)


async def streaming(books, **options):
    """Return a channel of a stream in the middle of its answer, and the task that serves it."""
    channel = Open(**options)
    servicer = Servicer(RULES, Codec(RULES.identity, MetadataKeys()), books, Metrics(), lambda: NOW)
    task = asyncio.create_task(servicer.serve(channel))
    for message in (
        request_head(),
        request_body(CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
        HEAD,
    ):
        await channel.waits()
        channel.says(message)
    await channel.waits()
    return channel, task


async def test_a_piece_is_answered_without_the_task_and_counts():
    books = Books()
    channel, task = await streaming(books)
    assert channel.heard == []
    assert all(channel.says(PIECE) for _ in range(5))
    assert kinds(channel.sent)[-5:] == ["response_body"] * 5
    assert not channel.says(LAST)
    await task
    assert channel.heard == [True] * 5 + [False]
    assert books.ends == [("settled", "usage")]


async def test_what_broke_off_is_charged_by_its_pieces():
    books = Books()
    channel, task = await streaming(books)
    for _ in range(5):
        channel.says(PIECE)
    task.cancel()
    await asyncio.wait({task})
    ((_, settlement),) = books.closed
    assert settlement.outcome.value == "estimated"
    assert settlement.usage.output >= 5


async def test_a_piece_that_needs_long_goes_through_the_task_and_the_next_ones_after_it():
    books = Books()
    channel, task = await streaming(books)
    assert not channel.says(response_body(PIECE.response_body.body * 100, end=False))
    assert not channel.says(PIECE)
    await channel.waits()
    assert kinds(channel.sent)[-2:] == ["response_body"] * 2
    task.cancel()
    await asyncio.wait({task})
    assert len(books.closed) == 1


@pytest.mark.parametrize("many", [b"data: 1\n\n" * 20, b'data: {"choices":[' + b"{}," * 64 + b"{}]}\n\n"])
async def test_a_small_piece_of_many_events_or_objects_goes_through_the_task_in_slices(many):
    channel, task = await streaming(Books())
    assert not channel.says(response_body(many, end=False))
    await channel.waits()
    assert channel.says(PIECE)
    task.cancel()
    await asyncio.wait({task})


async def test_pieces_wait_while_their_peer_takes_no_more():
    books = Books()
    channel, task = await streaming(books, full_at=4)  # after the head, the body and the answer's head
    assert len(channel.sent) == 3
    assert channel.says(PIECE)
    assert channel.waited == 0
    assert not channel.says(PIECE)
    await channel.waits()
    assert (channel.waited, len(channel.sent)) == (1, 5)
    assert channel.says(PIECE)
    channel.says(LAST)
    await task
    assert books.ends == [("settled", "usage")]


@pytest.mark.parametrize("message", [b"\xff", HEAD], ids=["garbage", "a second head"])
async def test_what_is_no_piece_ends_the_stream_as_ever(message):
    books = Books()
    channel, task = await streaming(books)
    channel.says(PIECE)
    assert not channel.says(message)
    with pytest.raises(ProtocolError):
        await task
    assert len(books.closed) == 1


async def test_an_error_in_a_piece_ends_its_stream_and_nothing_else(monkeypatch):
    books = Books()
    channel, task = await streaming(books)

    class UnforeseenError(Exception):
        pass

    def breaks(_self, _data):
        raise UnforeseenError

    monkeypatch.setattr("extproc.core.answer.stream_answer.StreamAnswer.feed", breaks)
    assert not channel.says(PIECE)
    assert not channel._hearer(PIECE.SerializeToString()), "the stream is over"
    with pytest.raises(UnforeseenError):
        await task
    assert len(books.closed) == 1
