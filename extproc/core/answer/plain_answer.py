"""Reading an answer that is no stream: one JSON text, whole where it fits, else by its edges."""

from typing import Final

from msgspec.structs import replace

from extproc.core.answer.edges import Edges
from extproc.core.answer.reading import BEFORE_JSON, Reading, read_answer
from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.answer.tally import Tally
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.settlement import Estimates, Settlement
from extproc.core.quota.usage import Usage

# A JSON answer up to this size is read whole; of a larger one only the edges. Memory per exchange is bounded.
MAX_ANSWER_BYTES: Final = 8 << 20


class JsonAnswer:
    """A plain answer: passes untouched and is read once it is complete.

    One beyond the bound is flagged only. What can't be JSON, for it does not begin so, is not kept; where it is a
    stream of events that is called something else, it is read as one, but passes whole.
    """

    changes_body = False

    def __init__(self, estimates: Estimates, *, output_bound: int | None = None, generates: bool = True) -> None:
        self.estimates = estimates
        self._bound = output_bound
        self._generates = generates
        self._kept = bytearray()  # pieces may be of a byte each: a list of them would be many times as large
        self._bytes = 0
        self._begun = False  # with more than white space
        self._keeps = True
        self._complete = False
        self._edges: Edges | None = None
        self._stream: StreamAnswer | None = None
        self._tally: Tally | None = None

    @property
    def output_tokens(self) -> int:
        if self._stream is not None:
            return self._stream.output_tokens
        return self._tally.output_tokens if self._tally is not None else 0

    @property
    def overran(self) -> bool:
        if self._stream is not None:
            return self._stream.overran
        usage = self._tally.reported if self._tally is not None else None
        return self._bound is not None and usage is not None and usage.output > self._bound

    def feed(self, chunk: bytes) -> bytes:
        self._bytes += len(chunk)
        if not self._begun and (start := chunk.lstrip(BEFORE_JSON)):
            self._begin(start)
        if self._stream is not None:
            self._stream.feed(chunk)
        elif self._edges is not None:
            self._edges.feed(chunk)
        elif self._keeps:
            self._keep(chunk)
        return chunk

    @property
    def kept_bytes(self) -> int:
        return self._stream.kept_bytes if self._stream is not None else len(self._kept)

    def spill(self, out: bytes) -> bytes:
        if self._stream is not None:
            self._stream.spill(b"")
        elif self._kept:
            self._keep_edges()
        return out

    def finish(self) -> bytes:
        self._complete = True
        if self._stream is not None:
            self._stream.finish()
        self._read()
        return b""

    def settlement(self, *, complete: bool) -> Settlement:
        if not self._bytes:
            return self.estimates.estimate(0, 0, "empty" if complete else "cut_off")
        if self._stream is not None and self._stream.has_events:
            self._stream.estimates = self.estimates
            return self._stream.settlement(complete=complete)
        tally = self._read()
        tally.estimates = self.estimates
        return tally.settlement(complete=complete)

    def _begin(self, start: bytes) -> None:
        self._begun = True
        self._keeps = start[:1] in {b"{", b"["}
        if not self._keeps:
            self._kept.clear()
        if start[:1] in {b"d", b"e", b":"} and self._generates:  # data, event or a comment, it seems
            self._stream = StreamAnswer(self.estimates, hide_usage=False, output_bound=self._bound)

    def _keep(self, chunk: bytes) -> None:
        self._kept += chunk
        if self._bytes > MAX_ANSWER_BYTES:
            self._keep_edges()

    def _keep_edges(self) -> None:
        self._keeps = False
        self._edges = Edges()
        self._edges.feed(bytes(self._kept))
        self._kept = bytearray()

    def _read(self) -> Tally:
        if self._tally is None:
            reading = self._reading()
            absence = reading.usage if isinstance(reading.usage, Absence) else Absence.MISSING
            self._tally = Tally(self.estimates, absence)
            self._tally.add(reading)
            self._kept = bytearray()
        return self._tally

    def _reading(self) -> Reading:
        if self._edges is not None and self._complete:
            reading = Reading(self._edges.usage(), content_bytes=self._bytes, pieces=1)
        else:
            reading = read_answer(bytes(self._kept)) if self._kept else Reading(Absence.UNREADABLE)
        if not self._generates:
            return replace(reading, content_bytes=0, pieces=0)
        if isinstance(reading.usage, Usage) or reading.error or reading.content_bytes:
            return reading
        return replace(reading, content_bytes=self._bytes)
