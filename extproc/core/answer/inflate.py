"""Inflate gzip (RFC 1952) and deflate (RFC 1950, or bare RFC 1951) for reading, as they come and in small steps.

The bytes of an answer are inflated once. Small data that inflates to a lot costs no more than the bounds below.
Reading ends over the bounds, or if the data is corrupt.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Final

# An answer that inflates to more is not read. A million tokens streamed as chunks of 250 bytes would be four times
# as much, but nobody streams them compressed. Log probabilities of a long prompt are 17 MB, pictures 10 MB.
MAX_INFLATED_BYTES: Final = 64 << 20
# For one chunk of the answer. What repeats much, as log probabilities do, inflates to 200 times as much.
MAX_INFLATED_PER_FEED_BYTES: Final = 32 << 20
# Output comes in pieces of this size. It bounds memory, and the work between two pieces, whatever the chunk is.
PIECE_BYTES: Final = 4 << 10
# Steps without output, of empty members, that are one step to the caller.
_EMPTY_STEPS: Final = 64
# Input goes in by slices of this size: what zlib gives back unread is copied, and the copies must stay small.
_SLICE_BYTES: Final = 512

_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_HEADER_BYTES: Final = 2
_TEXT: Final = re.compile(rb"[ -~\s]+\Z")


class _Plain:
    """Stands for a decompressor where nothing is compressed."""

    eof = False
    unused_data = unconsumed_tail = b""

    def decompress(self, data: bytes, _most: int) -> bytes:
        return data


class Inflater:
    """Feed it chunks of any size; it gives what they inflate to. Text that is called gzip stays as it is.

    `failed` tells that there is nothing more to come: the data is corrupt, or inflates to more than the bounds.
    """

    __slots__ = ("_bits", "_head", "_inflated", "_members", "_zlib", "failed")

    def __init__(self, coding: str) -> None:
        """`coding` is one that `can_inflate`."""
        self._bits = _WINDOW_BITS[coding]
        self._members = coding != "deflate"  # a gzip file may have several members: RFC 1952, section 2.2
        self._head = b""
        self._zlib: zlib._Decompress | _Plain | None = None
        self._inflated = 0
        self.failed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the inflated bytes of `chunk`, in pieces. A piece is empty after many steps without output.

        Work is linear, and bounded for each piece and for each chunk.
        """
        if self._zlib is None:
            chunk = self._head = self._head + chunk
            if len(chunk) < _HEADER_BYTES:
                return
            self._zlib = self._chosen(chunk)
        room, steps = MAX_INFLATED_PER_FEED_BYTES, 0
        for start in range(0, len(chunk), _SLICE_BYTES):
            data, full = chunk[start : start + _SLICE_BYTES], False
            while (data or full) and not self.failed:
                piece, data = self._step(self._zlib, data)
                full = len(piece) == PIECE_BYTES  # zlib may hold back more, though it has read all
                steps += 1
                room -= len(piece)
                self._inflated += len(piece)
                if room < 0 or self._inflated > MAX_INFLATED_BYTES:
                    self.failed = True
                elif piece or steps % _EMPTY_STEPS == 0:
                    yield piece

    def _chosen(self, head: bytes) -> "zlib._Decompress | _Plain":
        """Choose how to read data with these first bytes."""
        head = head[:_HEADER_BYTES]
        if self._members:
            plain = _TEXT.match(head) is not None and not _is_zlib(head)
            return _Plain() if plain else zlib.decompressobj(self._bits)
        return zlib.decompressobj(self._bits if _is_zlib(head) else -zlib.MAX_WBITS)

    def _step(self, inflating: "zlib._Decompress | _Plain", data: bytes) -> tuple[bytes, bytes]:
        """One piece of output, and the input that is left."""
        if inflating.eof:
            if not self._members:
                self.failed = bool(data)
                return b"", b""
            inflating = self._zlib = zlib.decompressobj(self._bits)
        try:
            piece = inflating.decompress(data, PIECE_BYTES)
        except zlib.error:
            self.failed = True
            return b"", b""
        return piece, inflating.unused_data or inflating.unconsumed_tail


def can_inflate(coding: str) -> bool:
    """Whether it is a content coding that an `Inflater` takes, in lower case."""
    return coding in _WINDOW_BITS


def _is_zlib(head: bytes) -> bool:
    """Whether deflate has the header that RFC 9110 asks for; some servers send it without one."""
    method, check = head[0] & 0x0F, (head[0] << 8 | head[1]) % 31
    return method == 8 and check == 0  # noqa: PLR2004 - RFC 1950, section 2.2
