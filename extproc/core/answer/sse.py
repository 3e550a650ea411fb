"""Incremental framing of server-sent events: bytes in, whole events out; nothing lost, nothing reordered.

The framing follows the WHATWG HTML standard, section 9.2 (lines end with CRLF, LF or CR; a blank line ends an
event). The concatenation of all `Event.raw`, that of `Framer.close` included, is always exactly what was fed.
"""

import re
from dataclasses import dataclass

# An event larger than this is passed on unread, so that memory stays bounded. It is as much as a plain answer may
# have: an image comes with its usage in one event, encoded, and so does a whole answer in `response.completed`.
MAX_EVENT_BYTES = 8 << 20
# A blank line that has not come whole yet: CRLF of CRLF CRLF.
_UNFINISHED_BYTES = 2

# Two line ends in a row. A CR that ends the buffer counts as one at once (waiting would hold an event back);
# an LF that follows later belongs to it and is taken along by `Framer._swallow_lf`.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
# Events of nothing, one after the other: taken at once, for a compressed answer may be millions of them.
_EMPTY_RUN = re.compile(rb"(?:\n\n){2,}")
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its bytes with the blank line, and its data (None: no data field, or too large to read).

    `tail` marks bytes that still belong to the event before: the LF of a CRLF that was split between chunks.
    """

    raw: bytes
    data: bytes | None
    tail: bool = False


class Framer:
    """Feed it chunks of any size; it gives the events that they complete."""

    __slots__ = ("_buffer", "_oversized", "_scanned", "_swallow_lf")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # no blank line starts before this offset
        self._swallow_lf = False
        self._oversized = False

    @property
    def pending_bytes(self) -> int:
        """The size of the event that is not complete yet."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes. Cost is linear in the bytes fed, however they are split."""
        events: list[Event] = []
        if self._swallow_lf and chunk:
            self._swallow_lf = False
            if chunk[:1] == b"\n":
                events.append(Event(b"\n", None, tail=True))
                chunk = chunk[1:]
        self._buffer += chunk
        start = 0
        while (end := _BLANK_LINE.search(self._buffer, max(start, self._scanned))) is not None:
            if end.start() == start and (run := _EMPTY_RUN.match(self._buffer, start)) is not None:
                end = run
            events.append(self._event(bytes(self._buffer[start : end.end()]), end.start() - start))
            start = self._scanned = end.end()
            self._swallow_lf = start == len(self._buffer) and self._buffer.endswith(b"\r")
        del self._buffer[:start]
        self._scanned = max(0, len(self._buffer) - _UNFINISHED_BYTES)
        if len(self._buffer) > MAX_EVENT_BYTES + _UNFINISHED_BYTES:
            events.append(self._overflow())
        return events

    def spill(self) -> Event | None:
        """What is pending of an event, to be passed on; none of that event will be read. The last bytes stay."""
        return self._overflow() if len(self._buffer) > _UNFINISHED_BYTES else None

    def close(self) -> Event | None:
        """The event that the end of the stream left without its blank line, if any."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return self._event(rest, len(rest)) if rest else None

    def _event(self, raw: bytes, size: int) -> Event:
        # The size without the blank line decides, and so the same event is read however it was split.
        read = not self._oversized and size <= MAX_EVENT_BYTES
        self._oversized = False
        return Event(raw, _data(raw) if read else None)

    def _overflow(self) -> Event:
        # The last bytes stay, for a blank line may have begun in them.
        cut = len(self._buffer) - _UNFINISHED_BYTES
        raw = bytes(self._buffer[:cut])
        del self._buffer[:cut]
        self._scanned = 0
        self._oversized = True
        return Event(raw, None)


def _data(raw: bytes) -> bytes | None:
    raw = raw.removeprefix(_BOM)  # may stand before the first event, and says nothing
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return raw[6:-2]  # one line: what every model server sends
    lines = [line for line in _LINE_END.split(raw) if line == b"data" or line.startswith(b"data:")]
    if not lines:
        return None
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)
