"""Pass over JSON values without reading them, at the speed of the C functions of `bytes`."""

import re
from itertools import accumulate, islice
from typing import Final

# A string's content up to its closing quote, or to the end; a backslash at the very end is left.
STRING_CONTENT: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STEP: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
_LEVELS: Final = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"{}[]"))
_CLOSING: Final = b"\xff"
_QUOTE: Final = ord('"')
# Windows grow, so that a small value costs little and a large one few calls.
_LEAST_BYTES: Final = 256
_MOST_BYTES: Final = 64 << 10


class PassingOver:
    """Find the end of an object or array, and count the commas in it that are in no string.

    Each byte is looked at by a fixed number of functions of `bytes`. Only the last window is walked step by step.
    """

    __slots__ = ("_depth", "_escaped", "_in_string", "_window", "commas", "filled")

    def __init__(self, depth: int = 1, *, in_string: bool = False, escaped: bool = False) -> None:
        """Begin with `depth` objects and arrays to be closed, inside of a string if `in_string`."""
        self._depth = depth
        self._in_string = in_string
        self._escaped = escaped
        self._window = _LEAST_BYTES
        self.commas = 0
        self.filled = False  # there is something else than white space and brackets

    def feed(self, data: bytes, at: int) -> tuple[int, bool]:
        """Return the place behind the value, and True; or the end of `data`, and False. `at` is where to begin."""
        while at < len(data):
            window = data[at : at + self._window]
            outside, in_string, escaped = self._outside(window)
            levels = outside.translate(_LEVELS, _NO_BRACKETS)
            closing = levels.count(_CLOSING)
            if closing >= self._depth:
                depths = list(accumulate(memoryview(levels).cast("b"), initial=self._depth))
                if 0 in depths:
                    end = self._place(window, depths.index(0))
                    self._count(self._outside(window[:end])[0])
                    return at + end, True
            self._depth += len(levels) - 2 * closing
            self._count(outside)
            self._in_string, self._escaped = in_string, escaped
            at += len(window)
            self._window = min(2 * self._window, _MOST_BYTES)
        return at, False

    def _outside(self, window: bytes) -> tuple[bytes, bool, bool]:
        """Return what is in no string, and whether the end is in one, and behind a backslash."""
        text = window[1:] if self._escaped else window
        escaped = False
        if b"\\" in text:
            escaped = bool((len(text) - len(text.rstrip(b"\\"))) & 1)
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = text.split(b'"')
        return b"".join(parts[self._in_string :: 2]), self._in_string ^ (not len(parts) & 1), escaped

    def _place(self, window: bytes, brackets: int) -> int:
        """Return the place behind the bracket of this number, counted from 1."""
        at = _end_of_string(window, int(self._escaped)) if self._in_string else 0
        ends = (step.end() for step in _STEP.finditer(window, at) if window[step.start()] != _QUOTE)
        return next(islice(ends, brackets - 1, None))

    def _count(self, outside: bytes) -> None:
        self.commas += outside.count(b",")
        self.filled = self.filled or bool(outside.strip(b" \t\r\n[]{},"))


def _end_of_string(window: bytes, at: int) -> int:
    return STRING_CONTENT.match(window, at).end() + 1  # type: ignore[union-attr]  # it matches anything
