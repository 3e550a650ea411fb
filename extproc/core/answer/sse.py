"""Frame server-sent events while they come: bytes in, whole events out; nothing lost, nothing reordered.

The framing follows the WHATWG HTML standard, section 9.2 (lines end with CRLF, LF or CR; a blank line ends an
event). The concatenation of all `Event.raw`, that of `Framer.close` included, is always exactly what was fed.
Some servers end an event with one line end only. Their lines are told from an event of several lines by what they
hold: no JSON text has an object right behind another one.

Events without data, or with nothing in it, are not told apart: as many as follow each other are one `Event`.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

# An event larger than this is given in parts, and no more of it is kept.
MAX_EVENT_BYTES = 16 << 10
# A blank line that has not come whole yet: CRLF of CRLF CRLF.
_UNFINISHED_BYTES = 2

# Two line ends in a row. A CR that ends the buffer counts as one at once (waiting would hold an event back);
# an LF that follows later belongs to it and is taken along by `Framer._swallow_lf`.
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_CR: Final = ord("\r")
_LINE_ENDS: Final = b"\r\n"
_BOM: Final = b"\xef\xbb\xbf"
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
# More than the name of the field of data has, with the end of the line before.
_BEFORE_BYTES: Final = 9
# The end of a line that is an event of its own, and what must follow. Trailing white space is not looked for.
_LONE_LINE: Final = re.compile(rb"(?<=})(?:\r\n|\n)(?=data: ?[{\[])")
_LONE_LINES: Final = (b"}\ndata:", b"}\r\ndata:")
_LONE_LINE_BYTES: Final = 8
_DATA_LINE: Final = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])data(?:: ?|(?=[\r\n]))")


class Event(msgspec.Struct, frozen=True, gc=False):
    """Hold one event: its bytes with the blank line, and its data, None if there is none or too much of it.

    `tail` marks bytes that still belong to the event before: the LF of a CRLF that was split between chunks.
    `part` is the next part of the data of an event that is too large; `last` marks the end of that event.
    """

    raw: bytes
    data: bytes | None
    tail: bool = False
    part: bytes | None = None
    last: bool = False


class Framer:
    """Give the events that chunks of any size complete."""

    __slots__ = ("_before", "_buffer", "_by_lines", "_finds_data", "_oversized", "_scanned", "_swallow_lf")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # no two line ends follow each other before this offset
        self._swallow_lf = False
        self._oversized = False
        self._by_lines = False  # an event without a blank line was seen
        self._finds_data = False  # the data of the event that is too large has begun
        self._before = b""  # the last bytes of that event, while it has not

    @property
    def pending_bytes(self) -> int:
        """Return the size of the event that is not complete yet."""
        return len(self._buffer)

    @property
    def idle(self) -> bool:
        """Tell whether the next byte begins an event."""
        return not (self._buffer or self._oversized or self._swallow_lf)

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes. Work is linear in the bytes fed, however they are split."""
        events: list[Event] = []
        if self._swallow_lf and chunk:
            self._swallow_lf = False
            if chunk[:1] == b"\n":
                events.append(Event(b"\n", None, tail=True))
                chunk = chunk[1:]
        buffer = self._buffer
        if not buffer and not self._oversized and _is_one_event(chunk):
            events.append(Event(chunk, chunk[6:-2]))
            return events
        buffer += chunk
        end = _end_of_events(buffer, self._scanned)
        end = max(end, self._end_of_lines(buffer, max(end, self._scanned - _LONE_LINE_BYTES)))
        if end:
            self._swallow_lf = end == len(buffer) and buffer.endswith(b"\r")
            self._split(bytes(buffer[:end]), events)
            del buffer[:end]
        self._scanned = max(0, len(buffer) - 1)
        if len(buffer) > MAX_EVENT_BYTES + _UNFINISHED_BYTES:
            events.append(self._overflow())
        return events

    def spill(self) -> Event | None:
        """Return what is pending of an event, as a part. The last bytes stay."""
        return self._overflow() if len(self._buffer) > _UNFINISHED_BYTES else None

    def close(self) -> Event | None:
        """Return the event that the end of the stream left without its blank line, if any."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        if self._oversized or len(rest) > MAX_EVENT_BYTES:
            return self._part(rest, last=True)
        return Event(rest, _data(rest) or None) if rest else None

    def _split(self, region: bytes, events: list[Event]) -> None:
        """Add the events of a region that ends with a blank line."""
        start = 0
        if self._oversized and (first := _BLANK_LINE.search(region)) is not None:
            start = first.end()
            events.append(self._part(region[:start], last=True))
        if region.find(b"data", start) < 0:
            if start < len(region):
                events.append(Event(region[start:], None))
            return
        plain = start  # where events begin that are not told apart
        lone_feeds = b"\r" not in region
        spans = _lone_feeds(region, start) if lone_feeds else _any_feeds(region, start)
        if self._by_lines or any(region.find(line, start) >= 0 for line in _LONE_LINES):
            spans = _lines(region, start, spans)
        for at, stop, end in spans:
            if stop - at <= MAX_EVENT_BYTES:
                data = _data(region[at:stop])
                if not data:
                    continue
                at = _past_line_ends(region, at)  # noqa: PLW2901 - blank lines before it are not a part of it
                event = Event(region[at:end], data)
            else:
                event = self._part(region[at:end], last=True)
            if plain < at:
                events.append(Event(region[plain:at], None))
            events.append(event)
            plain = end
        if plain < len(region):
            events.append(Event(region[plain:], None))

    def _end_of_lines(self, buffer: bytearray, start: int) -> int:
        """Return the end of the last line that is an event of its own, or 0 if there is none."""
        if self._oversized:
            return 0
        last = max(buffer.rfind(line, start) for line in _LONE_LINES)
        found = _LONE_LINE.search(buffer, last + 1) if last >= 0 else None
        self._by_lines = self._by_lines or found is not None
        if self._by_lines and buffer.endswith((b"}\n", b"}\r\n")):
            return len(buffer)
        return found.end() if found is not None else 0

    def _overflow(self) -> Event:
        # The last bytes stay, for a blank line may have begun in them.
        cut = len(self._buffer) - _UNFINISHED_BYTES
        raw = bytes(self._buffer[:cut])
        del self._buffer[:cut]
        self._scanned = 0
        return self._part(raw, last=False)

    def _part(self, raw: bytes, *, last: bool) -> Event:
        part: bytes | None = raw
        if not self._finds_data:
            text = self._before + raw
            begun = _DATA_LINE.search(text)
            part = text[begun.end() :] if begun is not None else None
            self._finds_data = begun is not None
            self._before = text[-_BEFORE_BYTES:]
        self._oversized = not last
        if last:
            self._finds_data, self._before = False, b""
            part = part.rstrip(b"\r\n") if part is not None else None
        return Event(raw, None, part=part, last=last)


def _is_one_event(chunk: bytes) -> bool:
    """Tell whether a chunk is what nearly every chunk of a stream is."""
    size = len(chunk)
    one_line = chunk.startswith(b"data: {") and chunk.find(b"\n") == size - 2 and chunk.endswith(b"\n\n")
    return one_line and size <= MAX_EVENT_BYTES and b"\r" not in chunk


def _end_of_events(buffer: bytearray, start: int) -> int:
    """Return the end of the last blank line, or 0."""
    found = max(buffer.rfind(b"\n\n", start), buffer.rfind(b"\n\r", start), buffer.rfind(b"\r\r", start))
    if found < 0:
        return 0
    end = found + 2
    return end + (buffer[found + 1] == _CR and buffer[end : end + 1] == b"\n")


def _past_line_ends(region: bytes, at: int) -> int:
    while region[at] in _LINE_ENDS:
        at += 1
    return at


def _lone_feeds(region: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield the start, the start of the blank line and the end of each event, if all lines end with LF."""
    parts = region[start:].split(b"\n\n")
    del parts[-1]
    for part in parts:
        stop = start + len(part)
        yield start, stop, stop + 2
        start = stop + 2


def _any_feeds(region: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield the same for any line ends."""
    for blank in _BLANK_LINE.finditer(region, start):
        yield start, blank.start(), blank.end()
        start = blank.end()


def _lines(region: bytes, start: int, spans: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield the same, each line that is an event of its own apart. The last one may have no blank line."""
    rest = start
    for at, stop, end in spans:
        yield from _apart(region, at, stop, end)
        rest = end
    if rest < len(region):
        yield from _apart(region, rest, rest + len(region[rest:].rstrip(_LINE_ENDS)), len(region))


def _apart(region: bytes, at: int, stop: int, end: int) -> Iterator[tuple[int, int, int]]:
    for line in _LONE_LINE.finditer(region, at, stop):
        yield at, line.start(), line.end()
        at = line.end()
    yield at, stop, end


def _data(event: bytes) -> bytes | None:
    """Return the data of an event, which may have its blank line; None if it has no such field."""
    if b"\n" not in event and b"\r" not in event:  # one line: what every model server sends
        if event.startswith(b"data:"):
            return event[6:] if event.startswith(b" ", 5) else event[5:]
        if not event.startswith(_BOM):
            return b"" if event == b"data" else None
    if b"data" not in event:
        return None
    event = event.removeprefix(_BOM)  # may stand before the first event, and says nothing
    lines = [line for line in _LINE_END.split(event) if line == b"data" or line.startswith(b"data:")]
    if not lines:
        return None
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)
