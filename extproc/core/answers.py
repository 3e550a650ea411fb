"""Reading an upstream's answer while it passes: what goes to the client, and what the exchange cost.

A reader gets the bytes as they come and says what the client gets for them; at the end it says how the
reservation ends. Two things only are ever kept from a client: the usage chunk of a stream that did not ask for it,
and what an upstream generates beyond the output that it was told to keep to.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from msgspec.structs import replace

from extproc.core.costs import Cost
from extproc.core.cutoff import OpenChoices
from extproc.core.endpoints import Endpoint
from extproc.core.inflate import Inflater, can_inflate
from extproc.core.settlement import Estimates, Settlement, released
from extproc.core.sse import Event, Framer
from extproc.core.tally import Tally
from extproc.core.usage import NO_USAGE, Absence, Reading, Usage, read_answer

# A JSON answer up to this size is read; a larger one passes and is estimated. Memory per exchange is bounded.
MAX_ANSWER_BYTES: Final = 8 << 20
# More pieces than tokens may come of one choice: the parts of a tool call, a character in several bytes.
_SPARE_PIECES: Final = 8
# A stream without content has an event that opens it and one that ends it.
_SILENT_EVENTS: Final = 2
_OK: Final = range(200, 300)
_NOTHING_HELD: Final = Estimates(Cost(0, 0), 1)
_BINARY: Final = ("audio/", "image/", "video/", "application/octet-stream")
_CHUNKED: Final = (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS)
# They read, and generate nothing: what their answers weigh says nothing of tokens.
_SILENT: Final = (Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE)
_TOKENLESS: Final = (Endpoint.PREDICT, Endpoint.INFER, Endpoint.ROUTE)


class AnswerReader(Protocol):
    """Reads one answer as it passes.

    Attributes:
        output_tokens: tokens generated so far, as far as is known: what was reported or, where that is more, the
            pieces counted. 0 where there is nothing to count, and for a plain answer until it is complete.
        overran: whether the upstream generated more than the bound that it was told; known as `output_tokens` is.
        estimates: what is held. A hold that grew is set here; the last one counts.
        changes_body: whether the client may get other bytes than the upstream sent: `content-length` must go.
    """

    estimates: Estimates

    @property
    def output_tokens(self) -> int: ...

    @property
    def overran(self) -> bool: ...

    @property
    def changes_body(self) -> bool: ...

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`: the same object where nothing changes."""

    def finish(self) -> bytes:
        """The answer is complete: what was held back and is the client's after all."""

    def settlement(self, *, complete: bool) -> Settlement:
        """How the reservation ends; `complete` is False where the answer was cut off."""


def answer_reader(
    status: int,
    headers: Mapping[str, str],
    endpoint: Endpoint,
    estimates: Estimates,
    *,
    hide_usage: bool,
    output_bound: int | None = None,
) -> AnswerReader:
    """The reader for an answer with this head.

    Args:
        status: of the answer; only 2xx has anything to charge.
        headers: of the answer, with names in lower case.
        endpoint: that was asked. It decides what stands in for usage; how usage is written it does not.
        estimates: what was held.
        hide_usage: whether a usage chunk is there on our account only.
        output_bound: output tokens, of all choices together, that the upstream was told to keep to.
    """
    if status not in _OK:
        return ErrorAnswer(estimates)
    if endpoint in _TOKENLESS:
        return TokenlessAnswer(estimates)
    media = headers.get("content-type", "").strip().lower()
    if media.startswith(_BINARY):
        return OpaqueAnswer(estimates, "binary")
    codings = [coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    plain = not codings
    if not plain and not (len(codings) == 1 and can_inflate(codings[0])):
        return OpaqueAnswer(estimates)
    reader: AnswerReader
    if media.startswith("text/event-stream"):
        hides = hide_usage and endpoint in _CHUNKED
        reader = StreamAnswer(estimates, hide_usage=hides, output_bound=output_bound)
    else:
        reader = JsonAnswer(estimates, output_bound=output_bound, generates=endpoint not in _SILENT)
    return reader if plain else EncodedAnswer(reader, Inflater(codings[0]), estimates)


class _Passing:
    """A reader that lets everything pass and knows nothing of tokens."""

    estimates: Estimates
    output_tokens: int = 0
    overran: bool = False
    changes_body: bool = False

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> bytes:
        return b""


class ErrorAnswer(_Passing):
    """An upstream error: nothing was generated, so nothing is charged."""

    def __init__(self, estimates: Estimates = _NOTHING_HELD) -> None:
        self.estimates = estimates

    def settlement(self, *, complete: bool) -> Settlement:  # noqa: ARG002 - the same either way
        return released("upstream_error")


class TokenlessAnswer(_Passing):
    """The answer of a model that has no tokens: requests are counted, and that was done at admission."""

    def __init__(self, estimates: Estimates) -> None:
        self.estimates = estimates

    def settlement(self, *, complete: bool) -> Settlement:
        return self.estimates.settle(NO_USAGE, complete=complete)


class OpaqueAnswer(_Passing):
    """A successful answer that can't be read (compressed in a way that we don't undo, or binary).

    It is estimated from its size, and nothing of it is kept.
    """

    def __init__(self, estimates: Estimates, reason: str = "encoded") -> None:
        self.estimates = estimates
        self._reason = reason
        self._bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        self._bytes += len(chunk)
        return chunk

    def settlement(self, *, complete: bool) -> Settlement:  # noqa: ARG002 - an estimate either way
        return self.estimates.estimate(self._bytes, 1 if self._bytes else 0, self._reason)


class JsonAnswer:
    """A plain answer: passes untouched, is read once when it is complete.

    What does not begin as a JSON object is not kept. With `generates=False` an answer without usage costs what its
    prompt does, for nothing in it was generated.
    """

    changes_body = False

    def __init__(self, estimates: Estimates, *, output_bound: int | None = None, generates: bool = True) -> None:
        self.estimates = estimates
        self._bound = output_bound
        self._generates = generates
        self._parts: list[bytes] = []
        self._bytes = 0
        self._begun = False  # with more than white space
        self._skips = False
        self._tally: Tally | None = None

    @property
    def output_tokens(self) -> int:
        return self._tally.output_tokens if self._tally is not None else 0

    @property
    def overran(self) -> bool:
        usage = self._tally.reported if self._tally is not None else None
        return self._bound is not None and usage is not None and usage.output > self._bound

    def feed(self, chunk: bytes) -> bytes:
        self._bytes += len(chunk)
        if not self._begun and (start := chunk.lstrip()):
            self._begun = True
            self._skips = not start.startswith(b"{")
        self._skips = self._skips or self._bytes > MAX_ANSWER_BYTES
        if self._skips:
            self._parts.clear()
        else:
            self._parts.append(chunk)
        return chunk

    def finish(self) -> bytes:
        self._read()
        return b""

    def settlement(self, *, complete: bool) -> Settlement:
        if not self._bytes:
            return self.estimates.estimate(0, 0, "empty" if complete else "cut_off")
        tally = self._read()
        tally.estimates = self.estimates
        return tally.settlement(complete=complete)

    def _read(self) -> Tally:
        if self._tally is None:
            reading = self._reading()
            absence = reading.usage if isinstance(reading.usage, Absence) else Absence.MISSING
            self._tally = Tally(self.estimates, absence)
            self._tally.add(reading)
            self._parts.clear()
        return self._tally

    def _reading(self) -> Reading:
        reading = read_answer(b"".join(self._parts)) if self._parts else Reading(Absence.UNREADABLE)
        if not self._generates:
            return replace(reading, content_bytes=0, pieces=0)
        if isinstance(reading.usage, Usage) or reading.error or reading.content_bytes:
            return reading
        return replace(reading, content_bytes=self._bytes)


class EncodedAnswer:
    """A compressed answer: passes untouched, is inflated for reading only, within the bounds of `core/inflate.py`.

    Nothing can be taken out of it: a usage chunk passes to the client, and a stream that goes beyond its bound is
    flagged only. What can't be inflated to its end, for it is corrupt or too large, is estimated from its size.
    """

    changes_body = False

    def __init__(self, reader: AnswerReader, inflater: Inflater, estimates: Estimates) -> None:
        self._reader = reader
        self._inflater = inflater
        self._opaque = OpaqueAnswer(estimates)

    @property
    def estimates(self) -> Estimates:
        return self._opaque.estimates

    @estimates.setter
    def estimates(self, estimates: Estimates) -> None:
        self._opaque.estimates = self._reader.estimates = estimates

    @property
    def output_tokens(self) -> int:
        return self._reader.output_tokens

    @property
    def overran(self) -> bool:
        return self._reader.overran

    def feed(self, chunk: bytes) -> bytes:
        for piece in self._inflater.feed(chunk):
            self._reader.feed(piece)
        return self._opaque.feed(chunk)

    def finish(self) -> bytes:
        self._reader.finish()
        return b""

    def settlement(self, *, complete: bool) -> Settlement:
        reader = self._opaque if self._inflater.failed else self._reader
        return reader.settlement(complete=complete)


class StreamAnswer:
    """A stream of events: each passes as it comes and is read on the way.

    With `hide_usage` the chunk that carries nothing but usage is taken out, because it is there on our account.
    With `output_bound` a stream of chunks that goes beyond it is ended there, well formed, and what the upstream
    still sends is read but not passed on; a stream of another shape is flagged and passes. In either case an event
    is passed on when it is complete: before that, no client can read it either.
    """

    def __init__(self, estimates: Estimates, *, hide_usage: bool, output_bound: int | None = None) -> None:
        self._hide_usage = hide_usage
        self._bound = output_bound
        self._framer = Framer()
        self._tally = Tally(estimates)
        self._choices = OpenChoices()
        self._hidden = False  # the last event was, and so is what belongs to it
        self._ended = False  # by us
        self._silent = 0  # events that said nothing that we understand
        self._failed = False
        self.changes_body = hide_usage or output_bound is not None

    @property
    def estimates(self) -> Estimates:
        return self._tally.estimates

    @estimates.setter
    def estimates(self, estimates: Estimates) -> None:
        self._tally.estimates = estimates

    @property
    def output_tokens(self) -> int:
        return max(self._tally.output_tokens, self._unknown_pieces)

    @property
    def _unknown_pieces(self) -> int:
        """What stands in for content in a stream of a shape that we don't know: its events, but for two."""
        understood = self._tally.pieces or self._tally.reported is not None or self._failed
        return 0 if understood else max(0, self._silent - _SILENT_EVENTS)

    @property
    def overran(self) -> bool:
        if self._bound is None:
            return False
        usage = self._tally.reported
        spare = _SPARE_PIECES * max(1, len(self._choices))
        return (usage is not None and usage.output > self._bound) or self._tally.pieces > self._bound + spare

    def feed(self, chunk: bytes) -> bytes:
        nothing_held = not self._framer.pending_bytes
        kept = [self._pass_on(event) for event in self._framer.feed(chunk)]
        if not self.changes_body:
            return chunk
        out = b"".join(kept)
        return chunk if nothing_held and not self._ended and len(out) == len(chunk) else out

    def finish(self) -> bytes:
        event = self._framer.close()
        rest = self._pass_on(event) if event is not None else b""
        return rest if self.changes_body else b""

    def settlement(self, *, complete: bool) -> Settlement:
        if self._unknown_pieces:
            self._tally.add(Reading(Absence.MISSING, pieces=self._unknown_pieces))
        return self._tally.settlement(complete=complete)

    def _pass_on(self, event: Event) -> bytes:
        """The client's part of an event: all of it, nothing, or the end of the stream in its place."""
        if event.tail:
            return b"" if self._hidden else event.raw
        if not event.data or event.data.strip() == b"[DONE]":
            self._hidden = self._ended
            return b"" if self._hidden else event.raw
        reading = read_answer(event.data)
        self._tally.add(reading)
        self._silent += not reading.pieces and reading.usage is Absence.MISSING
        self._failed = self._failed or reading.error
        if not self._ended and self._bound is not None and self._goes_beyond(event.data, reading):
            self._ended = self._hidden = True
            return self._choices.closing()
        self._hidden = self._ended or (self._hide_usage and reading.only_usage)
        return b"" if self._hidden else event.raw

    def _goes_beyond(self, data: bytes, reading: Reading) -> bool:
        """Whether the stream is to end before this event: it carries more, and there is a choice to end."""
        finished = self._choices.see(data)
        if reading.pieces and self.overran and self._choices.any:
            return True
        self._choices.finished(finished)
        return False
