"""Read an answer of one JSON text in each line, as some servers stream, also where it is called something else."""

import re
from typing import Final

from extproc.core.answer.answer_protocol import AnswerReader
from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.answer.wrapping import WrappingReader
from extproc.core.quota.settlement import Estimates

# The end of a line and the beginning of the next. One JSON text has no object right behind another.
_NEXT_LINE: Final = re.compile(rb"}[ \t\r]*\n\s*{")
# What may lie on both sides of the end of a piece.
_SEAM_BYTES: Final = 8
# One line that is longer than this is taken for the whole answer.
MAX_FIRST_LINE_BYTES: Final = 64 << 10


class JsonLines(WrappingReader):
    """An answer that begins as JSON where a stream was asked for: one JSON text, or one in each line.

    It passes as it is. It is one text, which `whole` reads, until a second line begins. From then on each line is
    read as an event of a stream, the first one too.
    """

    changes_body = False

    def __init__(self, whole: AnswerReader, estimates: Estimates, output_bound: int | None) -> None:
        self._reader = whole
        self._lines = StreamAnswer(estimates, hide_usage=False, output_bound=output_bound, whole=True)
        self._start = bytearray()
        self._decided = False

    @property
    def estimates(self) -> Estimates:
        return self._reader.estimates

    @estimates.setter
    def estimates(self, estimates: Estimates) -> None:
        self._lines.estimates = self._reader.estimates = estimates

    @property
    def kept_bytes(self) -> int:
        return self._reader.kept_bytes + len(self._start)

    def feed(self, chunk: bytes) -> bytes:
        if self._reader is self._lines:
            self._lines.feed(_as_events(chunk))
            return chunk
        self._reader.feed(chunk)
        if not self._decided:
            seam = max(0, len(self._start) - _SEAM_BYTES)
            self._start += chunk
            if _NEXT_LINE.search(self._start, seam) is not None:
                self._lines.feed(b"data: " + _as_events(bytes(self._start)))
                self._reader = self._lines
                self._decide()
            elif len(self._start) > MAX_FIRST_LINE_BYTES:
                self._decide()
        return chunk

    def spill(self, out: bytes) -> bytes:
        self._decide()
        self._reader.spill(b"")
        return out

    def finish(self) -> bytes:
        self._reader.finish()
        return b""

    def _decide(self) -> None:
        self._decided = True
        self._start = bytearray()


def _as_events(lines: bytes) -> bytes:
    """Write the end of each line as that of an event, and what follows it as data."""
    return lines.replace(b"\n", b"\n\ndata: ")
