"""Send commands over one connection without waiting for each other: all of a turn of the event loop in one write.

redis-py makes the connection (TLS, login, database, Sentinel's master) and hands it over. Its own way, one command
at a time on each of many connections, costs ten times as much of the processor (ADR 23). Replies come in the order
of commands. A caller that gives up leaves its reply to be dropped when it comes.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, InvalidResponse

Word = str | int | float | bytes
_LOST: Final = "the connection was closed by the server"
_fast_pack: Callable[[tuple[Word, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]  # of any length


class Pipeline(asyncio.Protocol):
    """Hold one connection to one process of a server, from its login to its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=BaseParser.parse_error)
        self._unsent: list[bytes] = []
        self._unanswered: deque[asyncio.Future[Any] | _Batch] = deque()
        self._asked_at = 0.0  # when the server owed an answer first, since its last one
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    def take_over(self, transport: asyncio.Transport) -> None:
        """Take a connection over from the protocol that logged in, once nothing is on its way there."""
        transport.set_protocol(self)
        self._transport = transport
        self.is_open = True

    def send(self, words: tuple[Word, ...]) -> asyncio.Future[Any]:
        """Send a command at the end of this turn. The reply is a future's result, also where it is an error.

        The future raises `RedisConnectionError` if the connection ends before the reply is there: then the server
        may have carried the command out, or not.
        """
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._put(_pack(words), reply)
        return reply

    def send_all(self, commands: Sequence[tuple[Word, ...]]) -> asyncio.Future[list[Any]]:
        """Send commands, one right after the other. Their replies are one future's result."""
        batch = _Batch(self._loop.create_future(), len(commands))
        if not commands:
            batch.replies.set_result([])
        else:
            self._put(b"".join([_pack(words) for words in commands]), batch)
        return batch.replies

    def _put(self, packed: bytes, waiting: "asyncio.Future[Any] | _Batch") -> None:
        if not self.is_open:
            raise RedisConnectionError(_LOST)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)
        if not self._unanswered:
            self._asked_at = self._loop.time()
        self._unanswered.append(waiting)

    def _flush(self) -> None:
        if self.is_open and self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        """Hand each reply to its caller."""
        reader, unanswered = self._reader, self._unanswered
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if reply.__class__ is hiredis.PushNotification:
                    continue  # the answer to nothing
                waiting = unanswered[0]
                if isinstance(waiting, _Batch):
                    if waiting.takes_last(reply):
                        unanswered.popleft()
                    continue
                unanswered.popleft()
                if not waiting.done():
                    waiting.set_result(reply)
        except (InvalidResponse, IndexError) as error:
            self._end(RedisConnectionError(f"not a server of the Redis protocol: {error}"))
            self.abort()
        if unanswered:
            self._asked_at = self._loop.time()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell all who wait for a reply."""
        self._end(RedisConnectionError(str(error) if error is not None else _LOST))

    def is_silent(self, for_s: float) -> bool:
        """Tell whether the server has owed an answer for so long."""
        return bool(self._unanswered) and self._loop.time() - self._asked_at > for_s

    def abort(self) -> None:
        """End the connection at once."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: RedisConnectionError) -> None:
        self.is_open = False
        self._unsent.clear()
        while self._unanswered:
            waiting = self._unanswered.popleft()
            reply = waiting.replies if isinstance(waiting, _Batch) else waiting
            if not reply.done():
                reply.set_exception(error)


class _Batch:
    """Collect the replies to commands that were sent together."""

    __slots__ = ("_found", "_wanted", "replies")

    def __init__(self, replies: asyncio.Future[list[Any]], wanted: int) -> None:
        self.replies = replies
        self._wanted = wanted
        self._found: list[Any] = []

    def takes_last(self, reply: Any) -> bool:
        """Take one reply. Return whether it was the last one."""
        self._found.append(reply)
        if len(self._found) < self._wanted:
            return False
        if not self.replies.done():
            self.replies.set_result(self._found)
        return True


def _pack(words: tuple[Word, ...]) -> bytes:
    """Return a command as it is sent. Raise `DataError` for a word of another type."""
    try:
        return _fast_pack(words)
    except TypeError:  # also for a subclass of int, such as the driver's of MongoDB
        try:
            return _fast_pack(tuple(int(word) if isinstance(word, int) else word for word in words))
        except TypeError as error:
            raise DataError(f"a command's words are text, bytes and numbers: {error}") from error
