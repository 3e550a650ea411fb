"""Reading an upstream's answer while it passes: what goes to the client, and what the exchange cost.

A reader gets the bytes as they come and says what the client gets for them; at the end it says how the
reservation ends. Only the usage chunk of a stream whose client did not ask for it is ever kept from the client.
"""

from typing import Final, Protocol

from extproc.core.settlement import Estimates, Settlement, released
from extproc.core.sse import Event, Framer
from extproc.core.usage import Absence, Reading, Usage, read_answer

# A JSON answer up to this size is read; a larger one passes and is estimated. Memory per exchange is bounded.
MAX_ANSWER_BYTES: Final = 8 << 20


class AnswerReader(Protocol):
    """Reads one answer as it passes."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`: the same object where nothing changes."""

    def finish(self) -> bytes:
        """The answer is complete: what was held back and is the client's after all."""

    def settlement(self, *, complete: bool) -> Settlement:
        """How the reservation ends; `complete` is False where the answer was cut off."""


class ErrorAnswer:
    """An upstream error: nothing was generated, so nothing is charged."""

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> bytes:
        return b""

    def settlement(self, *, complete: bool) -> Settlement:  # noqa: ARG002 - the same either way
        return released("upstream_error")


class OpaqueAnswer:
    """A successful answer that can't be read (compressed): estimated from its size."""

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        self._bytes += len(chunk)
        return chunk

    def finish(self) -> bytes:
        return b""

    def settlement(self, *, complete: bool) -> Settlement:  # noqa: ARG002 - an estimate either way
        return self._estimates.estimate(self._bytes, 1 if self._bytes else 0, "encoded")


class JsonAnswer:
    """A plain answer: passes untouched, is read once when it is complete."""

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._parts: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        self._bytes += len(chunk)
        if self._bytes <= MAX_ANSWER_BYTES:
            self._parts.append(chunk)
        else:
            self._parts.clear()
        return chunk

    def finish(self) -> bytes:
        return b""

    def settlement(self, *, complete: bool) -> Settlement:
        if not self._bytes:
            return self._estimates.estimate(0, 0, "empty" if complete else "cut_off")
        reading = read_answer(b"".join(self._parts)) if self._parts else Reading(Absence.UNREADABLE)
        if isinstance(reading.usage, Usage):
            return self._estimates.settle(reading.usage, complete=complete)
        if reading.error and not reading.content_bytes:
            return released("upstream_error")
        size = reading.content_bytes or self._bytes
        return self._estimates.estimate(size, reading.pieces, reading.usage if complete else "cut_off")


class StreamAnswer:
    """A stream of events: each passes as it comes and is read on the way.

    With `hide_usage` the chunk that carries nothing but usage is taken out, because it is there on our account.
    An event is then passed on when it is complete: before that, no client can read it either.
    """

    def __init__(self, estimates: Estimates, *, hide_usage: bool) -> None:
        self._estimates = estimates
        self._hide_usage = hide_usage
        self._framer = Framer()
        self._usage: Usage | None = None
        self._absence = Absence.MISSING
        self._content_bytes = 0
        self._pieces = 0
        self._error = False
        self._hidden = False  # the last event was, and so is what belongs to it

    def feed(self, chunk: bytes) -> bytes:
        nothing_held = not self._framer.pending_bytes
        kept = [self._pass_on(event) for event in self._framer.feed(chunk)]
        if not self._hide_usage:
            return chunk
        out = b"".join(kept)
        return chunk if nothing_held and len(out) == len(chunk) else out

    def finish(self) -> bytes:
        event = self._framer.close()
        rest = self._pass_on(event) if event is not None else b""
        return rest if self._hide_usage else b""

    def settlement(self, *, complete: bool) -> Settlement:
        if self._usage is not None:
            return self._estimates.settle(self._usage, complete=complete)
        if not self._content_bytes and (self._error or not complete):
            # Cut off before content: the upstream had read the prompt, so the prompt is charged.
            return released("upstream_error") if self._error else self._estimates.estimate(0, 0, "cut_off")
        return self._estimates.estimate(
            self._content_bytes, self._pieces, self._absence if complete else "cut_off"
        )

    def _pass_on(self, event: Event) -> bytes:
        """The client's part of an event where usage is hidden: all of it or nothing."""
        if not event.tail:
            self._hidden = self._read(event)
        return b"" if self._hidden else event.raw

    def _read(self, event: Event) -> bool:
        """Counts an event; True where it is the usage chunk."""
        if not event.data or event.data == b"[DONE]":
            return False
        reading = read_answer(event.data)
        self._content_bytes += reading.content_bytes
        self._pieces += reading.pieces
        self._error = self._error or reading.error
        if isinstance(reading.usage, Usage):
            self._usage = reading.usage  # the last usage seen counts
        elif reading.usage is Absence.ABSURD:
            self._absence = Absence.ABSURD
        reported = reading.usage not in (Absence.MISSING, Absence.UNREADABLE)
        return reported and not reading.choices and not reading.error
