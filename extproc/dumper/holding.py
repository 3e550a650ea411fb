"""What was accepted and is not written yet: in the order of arrival, and never more than so many bytes."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Self

from extproc.dumper.message import Message

# A message's attributes, and what Python needs for them.
OVERHEAD: Final = 4096


class FullError(Exception):
    """There is no room: nothing was taken."""


class Holding:
    """Messages that wait, and room for those that are being received. All on one event loop."""

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
        """Room for one message, which is given back at the end of the `with` unless it was put in."""
        return Room(self)

    async def take(self, most: int, most_bytes: int) -> list[tuple[Message, int]]:
        """The oldest ones, at least one, with the room that each takes; empty once closed and empty.

        Their room stays taken until `free`.
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
        """Nothing more will come: whoever takes gets what is left, then nothing."""
        self._closed = True
        self._arrived.set()

    def claim(self, size: int) -> None:
        """Raises `FullError`."""
        if self._closed or self._used + size > self._capacity:
            raise FullError
        self._used += size

    def append(self, message: Message, size: int) -> None:
        self._waiting.append((message, size))
        self._arrived.set()


class Room:
    """Made by `Holding.room`."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._size = 0

    def grow(self, size: int) -> None:
        """Raises `FullError`."""
        self._holding.claim(size)
        self._size += size

    def put(self, message: Message) -> None:
        """The message waits to be written; room that it does not need is given back."""
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
