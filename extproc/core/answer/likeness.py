"""Read an event of a stream by its likeness to the one before, without parsing it.

Most events of a stream differ in one string only: the generated text. Two events that were read show where it is.
An event that has the same bytes before and behind it, and plain characters between, is the same JSON with another
string in that place; so all that it says is what they said, and the size of its content.
"""

import re
from typing import Final

from msgspec.structs import replace

from extproc.core.answer.entries import NO_ENTRIES
from extproc.core.answer.reading import Reading, read_answer
from extproc.core.answer.usage_reader import Absence

# A JSON string of these characters has no escapes and is valid UTF-8.
_plain = re.compile(rb"[ !#-\[\]-~]+").fullmatch
_line_end = re.compile(rb"[\r\n]").search
_quotes = re.compile(rb'\\.|"', re.DOTALL).finditer
# In a stream whose events differ in more than a string, nothing is looked for after so many pairs.
_PAIRS: Final = 8
_LARGEST: Final = 4096
_READINGS: Final = 64


class Likeness:
    """Read the events of one stream. Keeps one event and the readings of some lengths."""

    __slots__ = ("_before", "_behind", "_last", "_like", "_other", "_pairs", "_readings")

    def __init__(self) -> None:
        self._last: tuple[bytes, Reading] | None = None
        self._pairs = 0
        self._before = b""  # up to the opening quote of the text; empty: nothing is known
        self._behind = b""  # from its closing quote on
        self._other = 0  # the bytes of content beside the text
        self._like: Reading | None = None
        self._readings: dict[int, Reading] = NO_ENTRIES  # by the size of the text

    def read(self, data: bytes) -> Reading:
        """Return what `read_answer` returns."""
        reading = self.find(data, 0, len(data))
        if reading is not None:
            return reading
        reading = read_answer(data)
        if self._pairs < _PAIRS and len(data) <= _LARGEST:
            self._compare(data, reading)
        return reading

    def find(self, text: bytes, start: int, stop: int) -> Reading | None:
        """Return the reading of the event between two places of a text if it is like those before; else None.

        Such an event has content and no usage, and differs from one that was read before in nothing but its text.
        It has no line end.
        """
        like = self._like
        if like is None or not (text.startswith(self._before, start) and text.endswith(self._behind, start, stop)):
            return None
        start += len(self._before)
        stop -= len(self._behind)
        if not _plain(text, start, stop):  # if they overlap, too, and if nothing is between
            return None
        found = self._readings.get(stop - start)
        return found if found is not None else self._read_like(like, stop - start)

    def _read_like(self, like: Reading, size: int) -> Reading:
        reading = replace(like, content_bytes=self._other + size)
        if len(self._readings) < _READINGS:
            self._readings = self._readings or {}
            self._readings[size] = reading
        return reading

    def _compare(self, data: bytes, reading: Reading) -> None:
        """Look where two events differ, in a string whose size is that of their content."""
        last, self._last = self._last, (data, reading)
        if last is None or reading.usage is not Absence.MISSING or reading.part is not None or not reading.pieces:
            return
        self._pairs += 1
        place = _string_in_which(data, last[0])
        if place is None:
            return
        before, behind = place
        size, size_of_last = (len(each) - len(before) - len(behind) for each in (data, last[0]))
        other = reading.content_bytes - size
        if size == size_of_last:  # they show nothing: another string may be the content. One more character does
            alike = replace(reading, content_bytes=reading.content_bytes + 1) == read_answer(
                b"".join((before, b"x" * (size + 1), behind))
            )
        else:
            at_last = other + size_of_last
            alike = last[1].content_bytes == at_last and replace(last[1], content_bytes=other + size) == reading
        if alike and other >= 0 and not _line_end(before + behind):
            self._before, self._behind, self._other, self._like = before, behind, other, reading
            self._readings = NO_ENTRIES
            self._last = None


def _string_in_which(one: bytes, two: bytes) -> tuple[bytes, bytes] | None:
    """Return what stands before and behind the one string in which two texts differ; None if there is none."""
    quotes = [found.start() for found in _quotes(one, 0, _common(one, two)) if found[0] == b'"']
    if len(quotes) % 2 == 0:
        return None  # they begin to differ outside of a string
    start = quotes[-1] + 1
    end, end_of_two = one.find(b'"', start), two.find(b'"', start)
    if one[end:] != two[end_of_two:] or not (_plain(one, start, end) and _plain(two, start, end_of_two)):
        return None
    return one[:start], one[end:]


def _common(one: bytes, two: bytes) -> int:
    """Return how many bytes two texts begin with alike."""
    least, most = 0, min(len(one), len(two))
    while least < most:
        middle = (least + most + 1) // 2
        if one[:middle] == two[:middle]:
            least = middle
        else:
            most = middle - 1
    return least
