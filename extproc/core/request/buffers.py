"""The room that the bodies of all exchanges of a process have together, while they are read."""

from collections.abc import Mapping
from typing import Final

_UNBOUNDED: Final = 1 << 62
# What one piece of a body takes beside its bytes: the object, its place in a list, the reply that it will get.
PIECE_BYTES: Final = 128


class Buffers:
    """Counts bytes that are kept, against one bound. Shared by the exchanges of one event loop."""

    __slots__ = ("kept_bytes", "max_bytes")

    def __init__(self, max_bytes: int = _UNBOUNDED) -> None:
        self.max_bytes = max_bytes
        self.kept_bytes = 0

    def fits(self, size: int) -> bool:
        """Whether there would be room for so much more now. Nothing is set aside: who only declares takes none."""
        return self.kept_bytes + size <= self.max_bytes


class Kept:
    """The part of one exchange. It must end with `keep(0)`."""

    __slots__ = ("_buffers", "_bytes")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._bytes = 0

    def keep(self, size: int) -> bool:
        """Makes `size` bytes what this exchange keeps. False, and nothing changed, where that needs more room
        than there is; less never fails.
        """
        total = self._buffers.kept_bytes + size - self._bytes
        if size > self._bytes and total > self._buffers.max_bytes:
            return False
        self._buffers.kept_bytes = total
        self._bytes = size
        return True


def declared_bytes(headers: Mapping[str, str]) -> int:
    """The size of a body as its head has it; 0 where it says nothing usable."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0  # noqa: PLR2004
