"""Take header blocks out of their frames: without padding and priority, and joined where they come in several."""

from typing import Final

from extproc.http2.frames import PADDED, WITH_PRIORITY, Code, ConnectionFaultError
from extproc.http2.limits import Limits

PRIORITY_BYTES: Final = 5


class Block:
    """Hold a header block that is not complete."""

    __slots__ = ("_frames", "_limits", "data", "end_stream", "stream")

    def __init__(self, stream: int, data: bytes, limits: Limits, *, end_stream: bool) -> None:
        self.stream = stream
        self.end_stream = end_stream
        self.data = data
        self._limits = limits
        self._frames = 0

    def add(self, part: bytes) -> None:
        """Add the part of a CONTINUATION. Raise `ConnectionFaultError` for too many, or too much."""
        self.data += part
        self._frames += 1
        if self._frames > self._limits.continuations or len(self.data) > self._limits.header_block_bytes:
            raise ConnectionFaultError(Code.ENHANCE_YOUR_CALM, "a header block that is too large")


def fragment(flags: int, data: bytes, start: int, stop: int) -> bytes:
    """Return the part of a header block that is in a HEADERS frame. Raise `ConnectionFaultError`."""
    if flags & PADDED:
        start, stop = unpadded(data, start, stop)
    if flags & WITH_PRIORITY:
        start += PRIORITY_BYTES
        if start > stop:
            raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "headers without their priority")
    return data[start:stop]


def unpadded(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """Return where a payload begins and ends without its padding. Raise `ConnectionFaultError`."""
    if start == stop:
        raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "padding without its length")
    padding = data[start]
    start += 1
    if start + padding > stop:
        raise ConnectionFaultError(Code.PROTOCOL_ERROR, "more padding than payload")
    return start, stop - padding
