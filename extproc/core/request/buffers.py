"""Bound the memory that the bodies of all exchanges of a process use while they are read."""

from collections.abc import Mapping
from typing import Final

_UNBOUNDED: Final = 1 << 62
# Overhead of one piece of a body: the object, its place in a list and its future reply.
PIECE_BYTES: Final = 128


class Buffers:
    """Count buffered bytes against one bound. The exchanges of one event loop share it."""

    __slots__ = ("kept_bytes", "max_bytes")

    def __init__(self, max_bytes: int = _UNBOUNDED) -> None:
        self.max_bytes = max_bytes
        self.kept_bytes = 0

    def fits(self, size: int) -> bool:
        """Return whether `size` more bytes would fit now. Reserves nothing."""
        return self.kept_bytes + size <= self.max_bytes


class Kept:
    """Hold the share of one exchange in `Buffers`. The exchange must end with `keep(0)`."""

    __slots__ = ("_buffers", "_bytes")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._bytes = 0

    def keep(self, size: int) -> bool:
        """Set the bytes that this exchange keeps to `size`. Return False, and change nothing, if there is no room
        for more. A smaller `size` always succeeds.
        """
        total = self._buffers.kept_bytes + size - self._bytes
        if size > self._bytes and total > self._buffers.max_bytes:
            return False
        self._buffers.kept_bytes = total
        self._bytes = size
        return True


def declared_bytes(headers: Mapping[str, str]) -> int:
    """Return the body size that the headers declare; 0 if `content-length` is missing or unusable."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0  # noqa: PLR2004
