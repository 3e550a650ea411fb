"""Hold a message that waits for its peer, and give it away frame by frame, without a copy of the whole."""

from collections.abc import Sequence


class Unsent:
    """Hold the bytes of a message in parts. `left` is how many are not taken yet."""

    __slots__ = ("_at", "_part", "_parts", "left")

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        """Create it from the parts of a message, in order. They are not copied."""
        self.left = sum(map(len, parts))
        self._parts = iter(parts)
        self._part = memoryview(b"")
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; at most `left`."""
        self.left -= size
        found: list[memoryview] = []
        while size:
            if self._at == len(self._part):
                self._part, self._at = memoryview(next(self._parts)), 0
            piece = self._part[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            found.append(piece)
        return b"".join(found)
