"""Read the data of a stream's event that is too large to keep, while it passes: an image, or a whole response."""

import re
from typing import Final

from extproc.core.answer.json_scan import JsonScan
from extproc.core.answer.reading import BEFORE_JSON, Reading, read_answer
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.usage import Usage

# An event of the Responses API holds the response, and its usage stands in there. Before it are small values only.
_SMALL: Final = rb'"[a-z_]{1,64}+"\s*+:\s*+(?:"[^"\\]{0,256}+"|[0-9a-z.]{1,32}+)\s*+,\s*+'
_RESPONSE: Final = re.compile(rb'\{\s*+(?:%b){0,8}+"response"\s*+:\s*+(?=\{)' % _SMALL)
_WITH_CONTENT: Final = (b"", b"message", b"content_block_start", b"content_block_delta")
# Its kind is told by the first bytes.
_HEAD_BYTES: Final = 512


def read_large(data: bytes) -> Reading:
    """Read the data of an event that is dense, at once."""
    event = LargeEvent()
    event.feed(data)
    return event.reading()


class LargeEvent:
    """Scan the data of one event. Memory is bounded, work is linear.

    `bytes` is the size of the data so far.
    """

    __slots__ = ("_head", "_holds_response", "_scan", "bytes")

    def __init__(self) -> None:
        self._scan: JsonScan | None = None
        self._head = b""
        self.bytes = 0
        self._holds_response = False

    def feed(self, data: bytes) -> None:
        """Take the next part of the data."""
        self.bytes += len(data)
        if self._scan is not None:
            self._scan.feed(data)
            self._scan.ended.clear()  # a list of answers is no event
            return
        self._head += data
        if len(self._head) >= _HEAD_BYTES:
            self._begin()

    def reading(self) -> Reading:
        """Return what the event said, at its end."""
        scan = self._scan or self._begin()
        read = read_answer(b"{%b}" % b",".join(b'"%b":%b' % member for member in scan.kept.items()))
        if self._holds_response:  # it repeats the text of the events before
            return Reading(read.usage, error=read.error)
        known = isinstance(read.usage, Usage) or read.error
        if not known and (scan.overfull or not scan.complete):
            return Reading(Absence.UNREADABLE, content_bytes=self.bytes, pieces=1)
        size = scan.unread_bytes + (scan.text.size or scan.unknown.size) if _has_content(scan) else 0
        return Reading(read.usage, content_bytes=size, pieces=int(size > 0), choices=size > 0, error=read.error)

    def _begin(self) -> JsonScan:
        """Choose by the first bytes how to read the data, and read them."""
        head = self._head.lstrip(BEFORE_JSON)
        self._head = b""
        holder = _RESPONSE.match(head)
        self._holds_response = holder is not None
        self._scan = JsonScan()
        self._scan.feed(head[holder.end() :] if holder is not None else head)
        self._scan.ended.clear()
        return self._scan


def _has_content(scan: JsonScan) -> bool:
    """Tell whether an event of this type holds what was generated since the event before."""
    kind = scan.kept.get(b"type", b"")[1:-1]
    return kind in _WITH_CONTENT or kind.endswith(b".delta")
