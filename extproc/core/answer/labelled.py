"""Find out by its first bytes what an answer is: a stream of events, JSON, or neither, whatever it is called.

Gateways and small servers label answers wrongly: JSON as `text/event-stream`, events as JSON, as bytes or as
nothing. Clients read them all the same, so they are metered as what they are.
"""

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from extproc.core.answer.answer_protocol import AnswerReader
from extproc.core.answer.json_lines import JsonLines
from extproc.core.answer.plain_answer import JsonAnswer
from extproc.core.answer.reading import BEFORE_JSON
from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.answer.wrapping import WrappingReader
from extproc.core.quota.settlement import Estimates, Settlement

# How the first line of a stream begins.
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_OPENING: Final = (b"{", b"[")
# What follows the first bracket of JSON: a sound of raw samples begins with a bracket now and then.
_JSON: Final = re.compile(rb'[{\[]\s*["{\[}\]0-9-]')
# The most bytes that are looked at, without white space before them.
_MOST_BYTES: Final = 64


class Label(Enum):
    """Say what an answer is called."""

    EVENTS = auto()
    TEXT = auto()  # JSON, any other text, or nothing
    BINARY = auto()


class _Kind(Enum):
    """Say what an answer is by its first bytes."""

    EVENTS = auto()
    JSON = auto()
    OTHER = auto()


class Expectations(Struct, frozen=True):
    """Hold what the reader of an answer has to know, whichever it will be.

    `generates` is False for an endpoint whose answers have no text. `binary` reads an answer that is called binary
    and is nothing else. `streams`: a stream was asked for, or the answer is called one. For the rest see
    `answer_reader`.
    """

    label: Label
    hide_usage: bool
    strip_usage: bool
    output_bound: int | None
    changes_body: bool
    generates: bool
    streams: bool
    binary: Callable[[Estimates], AnswerReader]

    def reader(self, kind: _Kind, estimates: Estimates) -> AnswerReader:
        """Return the reader of an answer of this kind."""
        if kind is _Kind.JSON:
            text = self._text(estimates)
            may_be_lines = self.streams and self.generates
            return JsonLines(text, estimates, self.output_bound) if may_be_lines else text
        called_events = self.label is Label.EVENTS
        if called_events or (self.generates and kind is _Kind.EVENTS):
            events = StreamAnswer(
                estimates,
                hide_usage=self.hide_usage,
                strip_usage=self.strip_usage,
                output_bound=self.output_bound,
                whole=not self.changes_body,
            )
            is_sure = called_events and kind is _Kind.EVENTS
            return events if is_sure else _DoubtfulStream(events, self._other(estimates))
        return self._other(estimates)

    def _text(self, estimates: Estimates) -> AnswerReader:
        return JsonAnswer(estimates, output_bound=self.output_bound, generates=self.generates)

    def _other(self, estimates: Estimates) -> AnswerReader:
        return self.binary(estimates) if self.label is Label.BINARY else self._text(estimates)


class LabelledAnswer:
    """An answer whose first bytes decide how it is read. White space before them passes at once.

    Where something may be taken out of a stream, the first bytes are held back until they decide.

    Attributes:
        changes_body: whether the client may get other bytes than the upstream sent.
        reader: reads all that is still to come, once it is chosen; until then it is None.
    """

    __slots__ = ("_estimates", "_expected", "_start", "changes_body", "reader")

    def __init__(self, estimates: Estimates, expected: Expectations) -> None:
        self._estimates = estimates
        self._expected = expected
        self._start = b""
        self.reader: AnswerReader | None = None
        self.changes_body = expected.changes_body

    @property
    def estimates(self) -> Estimates:
        return self._estimates

    @estimates.setter
    def estimates(self, estimates: Estimates) -> None:
        self._estimates = estimates
        if self.reader is not None:
            self.reader.estimates = estimates

    @property
    def output_tokens(self) -> int:
        return 0 if self.reader is None else self.reader.output_tokens

    @property
    def input_tokens(self) -> int:
        return 0 if self.reader is None else self.reader.input_tokens

    @property
    def overran(self) -> bool:
        return self.reader is not None and self.reader.overran

    @property
    def kept_bytes(self) -> int:
        return len(self._start) if self.reader is None else self.reader.kept_bytes

    def feed(self, chunk: bytes) -> bytes:
        if self.reader is not None:
            return self.reader.feed(chunk)
        label = self._expected.label
        if not self._start and chunk[:1].strip(BEFORE_JSON) and (kind := _kind(chunk, label)) is not None:
            self.reader = reader = self._expected.reader(kind, self._estimates)
            return reader.feed(chunk)  # what nearly every answer begins with
        start = chunk if self._start else chunk.lstrip(BEFORE_JSON)
        if not start:
            return chunk
        blank = chunk[: len(chunk) - len(start)]
        self._start += start
        kind = _kind(self._start, label)
        out = blank + (self._begin(kind)[1] if kind is not None else b"")
        return chunk if not self.changes_body or out == chunk else out

    def look(self) -> None:
        if self.reader is not None:
            self.reader.look()

    def spill(self, out: bytes) -> bytes:
        return out if self.reader is None else self.reader.spill(out)

    def finish(self) -> bytes:
        reader, out = self.reader, b""
        if reader is None:
            reader, out = self._begin(_Kind.OTHER)
        out += reader.finish()
        return out if self.changes_body else b""

    def settlement(self, *, complete: bool) -> Settlement:
        reader = self.reader or self._begin(_Kind.OTHER)[0]
        return reader.settlement(complete=complete)

    def _begin(self, kind: _Kind) -> tuple[AnswerReader, bytes]:
        """Choose the reader, and have it read what came. Return it, and what the client gets for that."""
        self.reader = reader = self._expected.reader(kind, self._estimates)
        start, self._start = self._start, b""
        return reader, reader.feed(start) if start else b""


class _DoubtfulStream(WrappingReader):
    """A stream that is called something else, or that does not begin as one: it is one once an event has come.

    Until then the other reader reads it, too, and has the last word where no event comes.
    """

    def __init__(self, events: StreamAnswer, other: AnswerReader) -> None:
        self._events = events
        self._reader = other
        self.changes_body = events.changes_body

    @property
    def estimates(self) -> Estimates:
        return self._reader.estimates

    @estimates.setter
    def estimates(self, estimates: Estimates) -> None:
        self._events.estimates = self._reader.estimates = estimates

    @property
    def overran(self) -> bool:
        return self._events.overran

    @property
    def kept_bytes(self) -> int:
        return self._events.kept_bytes

    def feed(self, chunk: bytes) -> bytes:
        out = self._events.feed(chunk)
        if self._reader is not self._events:
            self._reader.feed(chunk)
            self._decide()
        return out

    def spill(self, out: bytes) -> bytes:
        return self._events.spill(out)

    def finish(self) -> bytes:
        rest = self._events.finish()
        if self._reader is not self._events:
            self._reader.finish()
            self._decide()
        return rest

    def _decide(self) -> None:
        if self._events.has_events:
            self._reader = self._events


def _kind(start: bytes, label: Label) -> _Kind | None:
    """Return the kind of an answer that begins with `start`, which has no white space before. None: too short."""
    if start.startswith(_OPENING):
        if label is not Label.BINARY or _JSON.match(start):
            return _Kind.JSON
        return None if len(start) < _MOST_BYTES and not start[1:].strip() else _Kind.OTHER
    if start.startswith(_FIELDS):
        return _Kind.EVENTS
    return None if any(field.startswith(start) for field in _FIELDS) else _Kind.OTHER
