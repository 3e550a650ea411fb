"""Reading an upstream's answer while it passes: what goes to the client, and what the exchange cost.

A reader gets the bytes as they come and says what the client gets for them; at the end it says how the
reservation ends. Two things only are ever kept from a client: the usage chunk of a stream that did not ask for it,
and what an upstream generates beyond the output that it was told to keep to.
"""

from collections.abc import Generator, Mapping
from typing import Final

from msgspec.structs import replace

from extproc.core.answer.answer_protocol import AnswerReader
from extproc.core.answer.inflate import Inflater, can_inflate
from extproc.core.answer.labelled import Expectations, Label, LabelledAnswer
from extproc.core.answer.reading import Reading, read_answer
from extproc.core.answer.tally import Tally
from extproc.core.answer.wrapping import WrappingReader
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates, Outcome, Settlement, released
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.endpoints import Endpoint

_OK: Final = range(200, 300)
_NOTHING_HELD: Final = Estimates(Cost(0, 0), 1)
_EVENTS: Final = "text/event-stream"
_BINARY: Final = ("audio/", "image/", "video/", "application/octet-stream")
_CHUNKED: Final = (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS)
# They read, and generate nothing: what their answers weigh says nothing of tokens.
_SILENT: Final = (Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE)
_TOKENLESS: Final = (Endpoint.PREDICT, Endpoint.INFER, Endpoint.ROUTE)


# What is fed in one step: about a millisecond of work, if it is all of the dearest kind.
STEP_BYTES: Final = 4 << 10
# What is read at once, without a step: a few events of a real stream.
AT_ONCE_BYTES: Final = 1 << 10
# Tiny events and tiny objects cost by their number.
_AT_ONCE_LINES: Final = 32
_AT_ONCE_OBJECTS: Final = 64

# Gives way after each step; returns what the client gets.
Steps = Generator[None, None, bytes]


def answer_reader(
    status: int,
    headers: Mapping[str, str],
    endpoint: Endpoint,
    estimates: Estimates,
    *,
    hide_usage: bool,
    output_bound: int | None = None,
    strip_usage: bool = False,
    streams: bool = False,
) -> AnswerReader:
    """The reader for an answer with this head. What the answer is, its first bytes say: see `LabelledAnswer`.

    Args:
        status: of the answer; only 2xx has anything to charge.
        headers: of the answer, with names in lower case.
        endpoint: that was asked. It decides what stands in for usage; how usage is written it does not.
        estimates: what was held.
        hide_usage: whether a usage chunk is there on our account only.
        strip_usage: whether usage in the other chunks is there on our account only.
        output_bound: output tokens, of all choices together, that the upstream was told to keep to.
        streams: whether a stream was asked for. It is then treated as one whatever it is called: what is hidden is
            taken out, and `content-length` must go before anybody has seen that it is one.
    """
    if status not in _OK:
        return ErrorAnswer(estimates)
    if endpoint in _TOKENLESS:
        return TokenlessAnswer(estimates)
    media = headers.get("content-type", "").strip().lower()
    label = (
        Label.EVENTS if media.startswith(_EVENTS) else Label.BINARY if media.startswith(_BINARY) else Label.TEXT
    )
    if label is Label.BINARY and endpoint in _SILENT and (usage := _in_header(headers)) is not None:
        return DescribedAnswer(estimates, usage)
    codings = _codings(headers.get("content-encoding", ""))
    plain = not codings
    if not plain and not (len(codings) == 1 and can_inflate(codings[0])):
        return OpaqueAnswer(estimates)
    hides = hide_usage and endpoint in _CHUNKED
    streams = streams or label is Label.EVENTS
    changes = plain and (hides or strip_usage or (output_bound is not None and streams))
    expected = Expectations(
        label, hides, strip_usage, output_bound, changes, endpoint not in _SILENT, streams, _binary
    )
    reader = LabelledAnswer(estimates, expected)
    return reader if plain else EncodedAnswer(reader, Inflater(codings[0]), estimates)


def _binary(estimates: Estimates) -> AnswerReader:
    return OpaqueAnswer(estimates, "binary")


def _codings(encoding: str) -> list[str]:
    if not encoding:
        return []
    codings = [coding.strip().lower() for coding in encoding.split(",")]
    return [coding for coding in codings if coding not in ("", "identity")]


def is_long(reader: AnswerReader, chunk: bytes) -> bool:
    """Tell whether reading `chunk` may need more work than one step: use `feed_in_steps` then."""
    if isinstance(reader, _Passing):
        return False
    if isinstance(reader, EncodedAnswer) or len(chunk) + reader.kept_bytes > AT_ONCE_BYTES:
        return True
    return chunk.count(b"\n") > _AT_ONCE_LINES or chunk.count(b"{") > _AT_ONCE_OBJECTS


def feed_in_steps(reader: AnswerReader, chunk: bytes) -> Steps:
    """Feed `chunk` in steps of bounded work. Return what the client gets: the same object if nothing changes."""
    if isinstance(reader, EncodedAnswer):
        return (yield from reader.steps(chunk))
    given = []
    for start in range(0, len(chunk), STEP_BYTES):
        out = reader.feed(chunk[start : start + STEP_BYTES])
        if reader.changes_body:
            given.append(out)
        yield
    if not reader.changes_body:
        return chunk
    out = b"".join(given)
    return chunk if out == chunk else out


def flagged(settlement: Settlement, reader: AnswerReader) -> Settlement:
    """Says so where the upstream went beyond its bound, also if the prompt left room for it in the hold."""
    on_usage = settlement.outcome is Outcome.SETTLED and settlement.reason == "usage"
    return replace(settlement, reason="overran") if on_usage and reader.overran else settlement


class _Passing:
    """A reader that lets everything pass and knows nothing of tokens."""

    estimates: Estimates
    output_tokens: int = 0
    input_tokens: int = 0
    overran: bool = False
    changes_body: bool = False
    kept_bytes: int = 0

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def look(self) -> None:
        """Nothing is put off."""

    def spill(self, out: bytes) -> bytes:
        return out

    def finish(self) -> bytes:
        return b""


class ErrorAnswer(_Passing):
    """An upstream error: nothing was generated, so nothing is charged."""

    def __init__(self, estimates: Estimates = _NOTHING_HELD) -> None:
        self.estimates = estimates

    def settlement(self, *, complete: bool) -> Settlement:  # noqa: ARG002 - the same either way
        return released("upstream_error")


class TimeoutAnswer(_Passing):
    """A 504 of Envoy's own: the upstream had the request and worked on it, so its prompt is charged."""

    def __init__(self, estimates: Estimates) -> None:
        self.estimates = estimates

    def settlement(self, *, complete: bool) -> Settlement:  # noqa: ARG002 - the same either way
        return self.estimates.estimate(0, 0, "gateway_timeout")


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
        self.bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        self.bytes += len(chunk)
        return chunk

    def settlement(self, *, complete: bool, tokens: int = 0) -> Settlement:  # noqa: ARG002 - an estimate either way
        """`tokens` that are known count instead of the size."""
        if tokens:
            return self.estimates.estimate(0, tokens, self._reason)
        return self.estimates.estimate(self.bytes, 1 if self.bytes else 0, self._reason)


class DescribedAnswer(_Passing):
    """A binary answer whose usage stands in a header: vectors as bytes."""

    def __init__(self, estimates: Estimates, usage: Usage) -> None:
        self.estimates = estimates
        self._tally = Tally(estimates)
        self._tally.add(Reading(usage))

    def settlement(self, *, complete: bool) -> Settlement:
        self._tally.estimates = self.estimates
        return self._tally.settlement(complete=complete)


def _in_header(headers: Mapping[str, str]) -> Usage | None:
    """The usage in the header that vLLM describes vectors in, which it sends as bytes."""
    usage = read_answer(headers.get("metadata", "").encode()).usage
    return usage if isinstance(usage, Usage) else None


class EncodedAnswer(WrappingReader):
    """A compressed answer: passes untouched, is inflated for reading only, within the bounds of `core/inflate.py`.

    Nothing can be taken out of it: a usage chunk passes to the client, and a stream that goes beyond its bound is
    flagged only. If it can't be inflated to its end, because it is corrupt or too large, the rest is taken to have
    as many tokens for each byte as what was read. If that had none, it is estimated from its size.
    """

    changes_body = False

    def __init__(self, reader: AnswerReader, inflater: Inflater, estimates: Estimates) -> None:
        self._reader = reader
        self._inflater = inflater
        self._opaque = OpaqueAnswer(estimates)
        self._read_bytes = 0  # that came before inflating failed

    @property
    def estimates(self) -> Estimates:
        return self._opaque.estimates

    @estimates.setter
    def estimates(self, estimates: Estimates) -> None:
        self._opaque.estimates = self._reader.estimates = estimates

    @property
    def output_tokens(self) -> int:
        read = self._reader.output_tokens
        if not self._inflater.failed:
            return read
        whole = read * self._opaque.bytes // max(1, self._read_bytes)
        bound = self.estimates.bound
        return max(read, whole if bound is None else min(whole, bound))

    def feed(self, chunk: bytes) -> bytes:
        for _ in self.steps(chunk):
            pass
        return chunk

    def steps(self, chunk: bytes) -> Steps:
        """Feed `chunk` in steps of bounded work; it passes as it is."""
        self._opaque.feed(chunk)
        for piece in self._inflater.feed(chunk):
            self._reader.feed(piece)
            yield
        if not self._inflater.failed:
            self._read_bytes = self._opaque.bytes
        return chunk

    def spill(self, out: bytes) -> bytes:
        self._reader.spill(b"")
        return out

    def finish(self) -> bytes:
        self._reader.finish()
        return b""

    def settlement(self, *, complete: bool) -> Settlement:
        if not self._inflater.failed:
            return self._reader.settlement(complete=complete)
        return self._opaque.settlement(complete=complete, tokens=self.output_tokens)
