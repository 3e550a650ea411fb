"""Cut the bytes of a stream into gRPC's messages: a flag, a length of four bytes, and as many bytes.

A large message stays in parts, in order: to join 32 MiB would keep the event loop for 20 ms.
"""

from struct import Struct
from typing import Final

from extproc.http2.status import RefusedError, Status

PREFIX: Final = Struct(">BL")
PREFIX_BYTES: Final = PREFIX.size
LARGE_BYTES: Final = 256 << 10
"""Bound what comes in one piece. A larger message comes in parts of at least `PART_BYTES`, but for the last."""
PART_BYTES: Final = 64 << 10

Message = bytes | list[bytes]


def size_of(message: Message) -> int:
    """Return the size of a message in bytes."""
    return len(message) if isinstance(message, bytes) else sum(map(len, message))


def joined(message: Message) -> bytes:
    """Return the message in one piece. It must be small, or nobody waits for the event loop."""
    return message if isinstance(message, bytes) else b"".join(message)


class Assembly:
    """Hold the part of one message that has come. Messages that come in one frame do not need it."""

    __slots__ = ("_grown", "_large", "_missing", "_most", "_parts", "_prefix", "kept")

    def __init__(self, most_bytes: int) -> None:
        """Create an assembly for messages of `most_bytes` at the most."""
        self._most = most_bytes
        self._prefix = b""
        self._parts: list[bytes] = []  # of a large message, those that are too small yet
        self._grown = 0
        self._large: list[bytes] = []
        self._missing = 0
        self.kept = 0

    @property
    def empty(self) -> bool:
        """Tell whether no part of a message is here."""
        return not self.kept

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that these bytes complete. Raise `RefusedError` for one that can't be taken."""
        whole: list[Message] = []
        offset, end = 0, len(data)
        while offset < end:
            if len(self._prefix) < PREFIX_BYTES:
                offset = self._feed_prefix(data, offset)
            else:
                part = data[offset : offset + self._missing]
                offset += len(part)
                self._missing -= len(part)
                self.kept += len(part)
                self._parts.append(part)
                self._grown += len(part)
                if self._grown >= PART_BYTES and self._missing + self.kept > LARGE_BYTES + PREFIX_BYTES:
                    self._large.append(self._rest())
            if len(self._prefix) == PREFIX_BYTES and not self._missing:
                whole.append(self._message())
        return whole

    def _message(self) -> Message:
        """Return the message that is whole, and forget it."""
        rest, large = self._rest(), self._large
        self._large = []
        self._prefix = b""
        self.kept = 0
        if not large:
            return rest
        return [*large, rest] if rest else large

    def _rest(self) -> bytes:
        """Join the small parts."""
        rest = b"".join(self._parts)
        self._parts.clear()
        self._grown = 0
        return rest

    def _feed_prefix(self, data: bytes, offset: int) -> int:
        wanted = PREFIX_BYTES - len(self._prefix)
        part = data[offset : offset + wanted]
        self._prefix += part
        self.kept += len(part)
        if len(self._prefix) == PREFIX_BYTES:
            compressed, self._missing = PREFIX.unpack(self._prefix)
            check_prefix(compressed, self._missing, self._most)
        return offset + len(part)


def check_prefix(compressed: int, size: int, most_bytes: int) -> None:
    """Raise `RefusedError` for a message that can't be taken."""
    if compressed == 1:
        raise RefusedError(Status.UNIMPLEMENTED, "Compressed messages are not taken.")
    if compressed:
        raise RefusedError(Status.INTERNAL, "A message has an unknown flag.")
    if size > most_bytes:
        raise RefusedError(
            Status.RESOURCE_EXHAUSTED, f"A message of {size} bytes is larger than {most_bytes} bytes."
        )
