"""Carry one gRPC call: messages in, messages out, and one end, whoever brings it about."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, Protocol

from extproc.http2.frames import (
    HEADER,
    INITIAL_WINDOW,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    Code,
    StreamFaultError,
    reset,
    window_update,
)
from extproc.http2.head import Head
from extproc.http2.inbox import PREFIX, PREFIX_BYTES, Assembly, Message, size_of
from extproc.http2.limits import Calm, Holder, Holdings, Limits
from extproc.http2.output import Output
from extproc.http2.peer import Peer
from extproc.http2.replies import last_frame, only_trailers, response_head, trailers
from extproc.http2.status import RefusedError, Status
from extproc.http2.unsent import Unsent

_MESSAGE: Final = Struct(">HBBBLBL")
"""Pack the header of a DATA frame and the prefix of the message in it."""
# A peer gets its window back in large parts: one WINDOW_UPDATE for many messages.
_CREDIT: Final = INITIAL_WINDOW // 2
# What keeping a message takes beside its bytes.
_KEPT_BYTES: Final = 64

_log = logging.getLogger(__name__)


class Carrier(Holder, Protocol):
    """Be the connection of a call."""

    loop: asyncio.AbstractEventLoop
    limits: Limits
    output: Output
    calm: Calm
    holdings: Holdings
    holding: "dict[Call, None]"
    blocked: "dict[Call, float]"
    peer: Peer

    def leave(self, call: "Call") -> None:
        """Forget a stream that is closed on our side."""

    def ended(self, call: "Call") -> None:
        """Note that the handler of a call has ended."""


class Call:
    """Carry one call. Its handler reads, writes and returns; the connection brings what the peer sends."""

    __slots__ = (
        "_assembly",
        "_carrier",
        "_context",
        "_deadline",
        "_hearer",
        "_messages",
        "_output",
        "_reader",
        "_started",
        "_task",
        "_unsent",
        "_writer",
        "begun",
        "debt",
        "ended_in",
        "head",
        "held",
        "over",
        "queued",
        "received",
        "stream",
        "window",
    )

    def __init__(self, carrier: Carrier, stream: int, head: Head, window: int) -> None:
        """Create a call on a stream; `window` is what its peer lets us send."""
        self.stream = stream
        self.head = head
        self.window = window
        self.debt = 0
        self.received = 0
        self.held = 0
        self.ended_in = False
        self.over = False
        self.queued = False
        self._carrier = carrier
        self._context = contextvars.copy_context()
        self._output = carrier.output
        # A list: at most a window of messages wait here, mostly none, and an empty deque takes 600 bytes.
        self._messages: list[Message] = []
        self._assembly: Assembly | None = None
        self._hearer: Callable[[bytes], bool] | None = None
        self._reader: asyncio.Future[Message | None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._unsent: Unsent | None = None
        self.begun = False
        self._started = False
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ for the handler

    @property
    def peer(self) -> Peer:
        """Return who calls."""
        return self._carrier.peer

    def take(self) -> Message | None:
        """Return the next message if it is here already; else None. A large one comes in parts."""
        if not self._messages:
            return None
        message = self._messages.pop(0)
        self._release(size_of(message) + _KEPT_BYTES)
        self._credit()
        return message

    async def read(self) -> Message | None:
        """Return the next message; None when no more will come. A large one comes in parts."""
        if self._messages:
            return self.take()
        if self.ended_in or self.over:
            return None
        self._reader = self._carrier.loop.create_future()
        return await self._reader

    def hand_over(self, hearer: Callable[[bytes], bool]) -> None:
        """Give each message to `hearer` while the handler waits for one. If it returns False, the handler gets it,
        as it gets each large one.

        `hearer` raises nothing. It runs in the handler's context.
        """
        self._hearer = hearer

    def send(self, message: bytes) -> bool:
        """Hand a message over. Return False if it waits for its peer: then wait with `drained` before the next."""
        size = len(message) + PREFIX_BYTES
        output = self._output
        if self.over:
            return True
        if not self.begun:
            self.begun = True
            output.add(response_head(self.stream))
        if size <= self.window and size <= output.window and size <= MAX_FRAME_BYTES and not output.paused:
            self.window -= size
            output.window -= size
            output.add(_MESSAGE.pack(size >> 8, size & 0xFF, 0, 0, self.stream, 0, size - PREFIX_BYTES))
            output.send(message)
            return True
        return self._queued((PREFIX.pack(0, len(message)), message))

    def send_parts(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Hand over a large message in parts, which are not copied as a whole. Return as `send` does."""
        if self.over:
            return True
        if not self.begun:
            self.begun = True
            self._output.add(response_head(self.stream))
        return self._queued((PREFIX.pack(0, sum(map(len, parts))), *parts))

    def _queued(self, parts: Sequence[bytes | memoryview]) -> bool:
        output = self._output
        self._unsent = Unsent(parts)
        self._carrier.blocked[self] = self._carrier.loop.time()
        output.send(b"")
        output.queue(self)
        output.pump()
        return self._unsent is None

    async def write(self, message: bytes) -> None:
        """Hand a message over; wait only for a peer that takes no more."""
        if not self.send(message):
            await self.drained()

    async def drained(self) -> None:
        """Wait until the last message has been handed over."""
        if self._unsent is not None:
            self._writer = self._carrier.loop.create_future()
            await self._writer

    # ------------------------------------------------------------ for the connection

    def start(self) -> None:
        """Let the handler begin."""
        loop = self._carrier.loop
        self._task = loop.create_task(self._run(), context=self._context)
        if self.head.timeout_s is not None:
            self._deadline = loop.call_later(
                self.head.timeout_s, self.fail, Status.DEADLINE_EXCEEDED, "The call took longer than it may."
            )

    async def _run(self) -> None:
        self._started = True
        handler = self.head.handler
        try:
            if handler is not None:
                await handler(self)
        except RefusedError as refused:
            self._finish(refused.status, refused.message)
        except asyncio.CancelledError:
            self._finish(Status.UNAVAILABLE, "The call was ended.")
            raise
        except Exception:  # noqa: BLE001  one call may fail, the others go on
            _log.exception("call failed: its stream ends, the connection stays", extra={"path": self.head.path})
            self._finish(Status.UNKNOWN, "The call failed.")
        else:
            self._finish(Status.OK, "")
        finally:
            self._task = None  # it may keep an exception, and with that this call
            self._carrier.ended(self)

    def receive(self, data: bytes, start: int, stop: int) -> None:
        """Take bytes of the stream: `data` from `start` to `stop`."""
        size = stop - start
        if size >= PREFIX_BYTES and (self._assembly is None or self._assembly.empty):
            compressed, length = PREFIX.unpack_from(data, start)
            if length == size - PREFIX_BYTES and not compressed and length <= self._carrier.limits.message_bytes:
                self._deliver(data[start + PREFIX_BYTES : stop])
                return
        try:
            self._assemble(data[start:stop])
        except RefusedError as refused:
            self.fail(refused.status, refused.message)

    def _assemble(self, data: bytes) -> None:
        assembly = self._assembly
        if assembly is None:
            assembly = self._assembly = Assembly(self._carrier.limits.message_bytes)
        if len(data) < _KEPT_BYTES:
            self._carrier.calm.spend()
        before = assembly.kept
        for message in assembly.feed(data):
            self._deliver(message)
            if self.over:
                return
        self._release(before)
        self._hold(assembly.kept)
        self._credit()

    def _deliver(self, message: Message) -> None:
        self._carrier.calm.messages += 1
        reader = self._reader
        if reader is not None:
            hearer = self._hearer
            if hearer is not None and not reader.done() and type(message) is bytes:
                taken = self._context.run(hearer, message)
                if taken:
                    self._credit()
                    return
            self._reader = None
            if not reader.done():
                reader.set_result(message)
                self._credit()
                return
        self._messages.append(message)
        self._hold(size_of(message) + _KEPT_BYTES)

    def end_in(self) -> None:
        """Note that the peer sends no more. Raise `StreamFaultError` if it sent less or more than it declared."""
        self.ended_in = True
        declared = self.head.content_length
        if declared is not None and declared != self.received:
            raise StreamFaultError(self.stream, Code.PROTOCOL_ERROR)
        if self._assembly is not None and not self._assembly.empty:
            self.fail(Status.INTERNAL, "The stream ended within a message.")
            return
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _credit(self) -> None:
        """Give the peer its window back, if all that came was taken or belongs to the message that is coming."""
        if self.debt >= _CREDIT and not self._messages and not self.ended_in and not self.over:
            self._output.send(window_update(self.stream, self.debt))
            self.debt = 0

    def allow(self, credit: int) -> None:
        """Let this stream send so much more; a negative credit takes away. Raise `StreamFaultError`."""
        self.window += credit
        if self.window > MAX_WINDOW:
            raise StreamFaultError(self.stream, Code.FLOW_CONTROL_ERROR)
        if self._unsent is not None and self.window > 0:
            self._output.queue(self)

    def push(self) -> None:
        """Send one frame of the message that waits, and queue again if there is more."""
        rest, output = self._unsent, self._output
        if rest is None:
            return
        size = min(rest.left, self.window, output.window, MAX_FRAME_BYTES)
        if size <= 0:
            return
        self.window -= size
        output.window -= size
        output.add(HEADER.pack(size >> 8, size & 0xFF, 0, 0, self.stream))
        output.send(rest.take(size))
        if rest.left:
            if self.window > 0:
                output.queue(self)
            return
        self._sent()
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    def _sent(self) -> None:
        self._unsent = None
        self._carrier.blocked.pop(self, None)

    # ------------------------------------------------------------ the end

    def fail(self, status: Status, message: str) -> None:
        """End the call with a status, whatever its handler is doing."""
        self._finish(status, message)
        self._stop()

    def abandon(self) -> None:
        """End the call without a word: its peer has reset the stream, or is gone."""
        if not self.over:
            self._close()
            self._stop()

    def _finish(self, status: Status, message: str) -> None:
        if self.over:
            return
        block = trailers(status, message) if self.begun else only_trailers(status, message)
        frame = last_frame(self.stream, block)
        self._output.send(frame if self.ended_in else frame + reset(self.stream, Code.NO_ERROR))
        self._close()

    def _close(self) -> None:
        self.over = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._sent()
        self._hearer = None  # it knows this call: no cycle is left for the garbage collector
        self._messages.clear()
        self._release(self.held)
        self._carrier.leave(self)

    def _stop(self) -> None:
        """Cancel the handler. One that has not begun never will, and has ended with this."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            if not self._started:
                self._task = None
                self._carrier.ended(self)

    # ------------------------------------------------------------ memory

    def _hold(self, size: int) -> None:
        if size:
            if not self.held:
                self._carrier.holding[self] = None
            self.held += size
            self._carrier.holdings.take(self._carrier, size)

    def _release(self, size: int) -> None:
        if size and self.held:
            self.held -= size
            self._carrier.holdings.give(self._carrier, size)
            if not self.held:
                del self._carrier.holding[self]
