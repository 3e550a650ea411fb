"""Send what a connection has to say: all frames of one turn of the event loop in one write, within the windows."""

import asyncio
from collections import deque
from typing import Final, Protocol

from extproc.http2.frames import INITIAL_WINDOW

# So much is collected at the most before it is written: then the transport tells whether its peer reads.
_COLLECTED_BYTES: Final = 128 << 10
# So many frames are pushed at once, 1 MiB: a peer that reads fast would take a large message in one long turn.
_PUSHED_FRAMES: Final = 64


class Sender(Protocol):
    """Have bytes of a message that wait for a window."""

    queued: bool

    def push(self) -> None:
        """Send one frame, and queue again if there is more to send now."""


class Output:
    """Collect frames, and write them when the work of this turn is done.

    `window` is what the peer allows on the whole connection. `paused`: the peer does not read what was written.
    """

    __slots__ = (
        "_frames",
        "_loop",
        "_most",
        "_pumps",
        "_queue",
        "_scheduled",
        "_size",
        "_transport",
        "paused",
        "window",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, most_bytes: int) -> None:
        """Create the output of a connection that keeps `most_bytes` for a peer that does not read."""
        self.window = INITIAL_WINDOW
        self.paused = False
        self._loop = loop
        self._most = most_bytes
        self._transport: asyncio.Transport | None = None
        self._frames: list[bytes] = []
        self._size = 0
        self._scheduled = False
        self._queue: deque[Sender] = deque()
        self._pumps = False

    def open(self, transport: asyncio.Transport) -> None:
        """Begin to write."""
        self._transport = transport

    def close(self) -> None:
        """Write nothing any more."""
        self._transport = None
        self._frames.clear()
        self._queue.clear()

    def add(self, frame: bytes) -> None:
        """Collect a part of what is sent next; `send` must follow."""
        self._frames.append(frame)

    def send(self, frame: bytes) -> None:
        """Collect a frame, and see to it that it is written."""
        self._frames.append(frame)
        self._size += len(frame)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)
        if self._size > _COLLECTED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected. End a connection whose peer does not read."""
        self._size = 0
        transport = self._transport
        if transport is None or not self._frames:
            self._frames.clear()
            return
        data = b"".join(self._frames)
        self._frames.clear()
        transport.write(data)
        if self.paused and transport.get_write_buffer_size() > self._most:
            transport.abort()
            self.close()

    def _flush_soon(self) -> None:
        self._scheduled = False
        self.flush()

    def queue(self, sender: Sender) -> None:
        """Let a sender push when there is room, after those that wait already."""
        if not sender.queued:
            sender.queued = True
            self._queue.append(sender)

    def pump(self) -> None:
        """Let senders push, one frame each in turn, while there is room; after many frames, in the next turn."""
        frames = 0
        while self._queue and self.window > 0 and not self.paused:
            if frames == _PUSHED_FRAMES:
                if not self._pumps:
                    self._pumps = True
                    self._loop.call_soon(self._pump_on)
                return
            frames += 1
            sender = self._queue.popleft()
            sender.queued = False
            sender.push()

    def _pump_on(self) -> None:
        self._pumps = False
        self.pump()

    def resume(self) -> None:
        """Go on: the peer reads again."""
        self.paused = False
        self.pump()
