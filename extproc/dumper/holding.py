"""Hold accepted messages until they are written, in the order of arrival, within a bound of bytes."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Self

from extproc.dumper.message import Message

# Bytes for the attributes of a message as Python objects.
OVERHEAD: Final = 4096


class FullError(Exception):
    """Report that there is no room: nothing was accepted."""


class Holding:
    """Hold waiting messages, and room for messages that are being received. Use it in one event loop only."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._waiting: deque[tuple[Message, int]] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    @property
    def used_bytes(self) -> int:
        return self._used

    def __len__(self) -> int:
        return len(self._waiting)

    def room(self) -> "Room":
        """Return room for one message. The end of the `with` frees it unless the message was put in."""
        return Room(self)

    async def take(self, most: int, most_bytes: int) -> list[tuple[Message, int]]:
        """Wait for messages, and return the oldest ones with the size of each; at least one.

        Return an empty list once the holding is closed and empty. The sizes stay used until `free`.
        """
        while not self._waiting:
            if self._closed:
                return []
            self._arrived.clear()
            await self._arrived.wait()
        taken, size = [self._waiting.popleft()], 0
        while self._waiting and len(taken) < most:
            size += taken[-1][1]
            if size + self._waiting[0][1] > most_bytes:
                break
            taken.append(self._waiting.popleft())
        return taken

    def free(self, size: int) -> None:
        self._used -= size

    def close(self) -> None:
        """Accept no more messages. `take` returns the remaining messages, then an empty list."""
        self._closed = True
        self._arrived.set()

    def claim(self, size: int) -> None:
        """Use `size` more bytes. Raise `FullError` if they do not fit."""
        if self._closed or self._used + size > self._capacity:
            raise FullError
        self._used += size

    def append(self, message: Message, size: int) -> None:
        self._waiting.append((message, size))
        self._arrived.set()


class Room:
    """Keep room for one message while it is received. `Holding.room` creates it."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._size = 0

    def grow(self, size: int) -> None:
        """Use `size` more bytes. Raise `FullError` if they do not fit."""
        self._holding.claim(size)
        self._size += size

    def put(self, message: Message) -> None:
        """Let the message wait to be written. Free the bytes that it does not need."""
        needed = min(self._size, OVERHEAD + len(message.body or b""))
        self._holding.free(self._size - needed)
        self._holding.append(message, needed)
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holding.free(self._size)
        self._size = 0
