"""Reading a stream of events while it passes, and ending it where it goes beyond its bound."""

from typing import Final

from extproc.core.answer.cutoff import OpenChoices
from extproc.core.answer.entries import NO_ENTRIES
from extproc.core.answer.large_event import LargeEvent, read_large
from extproc.core.answer.likeness import Likeness
from extproc.core.answer.reading import Reading, is_dense, read_answer
from extproc.core.answer.sse import Event, Framer
from extproc.core.answer.stripping import carries_more, without_usage
from extproc.core.answer.tally import Tally, possible_tokens
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.settlement import Estimates, Settlement

# More pieces than tokens may come of one choice: the parts of a tool call, a character in several bytes.
_SPARE_PIECES: Final = 8
# A stream without content has an event that opens it and one that ends it.
_SILENT_EVENTS: Final = 2


# Readings of small events are remembered, so that the same few events a million times cost little. Those of real
# streams are larger, and differ.
_SMALL_EVENT_BYTES: Final = 64
_MAX_REMEMBERED: Final = 256


# How an event of one line begins and ends.
_DATA: Final = b"data: "
_BLANK_LINE: Final = b"\n\n"

# Where the end of a stream stands, with white space before it.
_DONE_BYTES: Final = 16


class StreamAnswer:
    """A stream of events: each passes as it comes and is read on the way.

    With `hide_usage` the chunk that carries nothing but usage is taken out, because it is there on our account; of
    one that carries timings, citations and the like only the usage is.
    With `strip_usage` usage is taken out of all other chunks.
    With `output_bound` a stream of chunks that goes beyond it is ended there, well formed, and what the upstream
    still sends is read but not passed on; a stream of another shape is flagged and passes. In either case an event
    is passed on when it is complete: before that, no client can read it either. An event that is too large to keep
    passes as it is.

    Attributes:
        has_events: whether there was any event with data to read.
    """

    def __init__(
        self,
        estimates: Estimates,
        *,
        hide_usage: bool,
        output_bound: int | None = None,
        strip_usage: bool = False,
        whole: bool = False,
    ) -> None:
        """With `whole` every byte passes, whatever the other arguments say: the client was promised a length."""
        self._hide_usage = hide_usage
        self._strip_usage = strip_usage
        self._bound = output_bound
        self._framer = Framer()
        self._tally = Tally(estimates)
        self._choices = OpenChoices()
        self._hidden = False  # the last event was, and so is what belongs to it
        self._ended = False  # by us
        self.has_events = False
        self._silent = 0  # events that said nothing that we understand
        self._failed = False
        self._large: LargeEvent | None = None  # the event that passes in parts
        self._read: dict[bytes, Reading] = NO_ENTRIES  # small events
        self._likeness = Likeness()
        # Whatever becomes of an event with content and without usage, then: it passes.
        self._by_likeness = output_bound is None and not strip_usage
        self.changes_body = not whole and (hide_usage or strip_usage or output_bound is not None)

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
    def input_tokens(self) -> int:
        return self._tally.input_tokens

    @property
    def _unknown_pieces(self) -> int:
        """What stands in for content in a stream of a shape that we don't know: its events, but for two."""
        tally = self._tally
        understood = tally.pieces or tally.again or tally.reported is not None or self._failed
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

    def pass_by(self, chunk: bytes) -> bool:
        """Read a chunk of events like those before them, which pass as they are: nearly every chunk is one.

        Return whether it is one. If not, nothing was read: feed it.
        """
        if not (
            self._by_likeness and chunk.startswith(_DATA) and chunk.endswith(_BLANK_LINE) and self._framer.idle
        ):
            return False
        stop = len(chunk) - len(_BLANK_LINE)
        reading = self._likeness.find(chunk, len(_DATA), stop)
        if reading is not None:
            self._tally.add_like(reading)
        elif not self._several_pass_by(chunk, stop):
            return False
        self._hidden = False
        return True

    def _several_pass_by(self, chunk: bytes, stop: int) -> bool:
        """Do the same with a chunk of several events. All of them are looked at before one of them counts."""
        find, readings, start = self._likeness.find, [], 0
        while start < stop:
            end = chunk.find(_BLANK_LINE, start)
            reading = find(chunk, start + len(_DATA), end) if chunk.startswith(_DATA, start) else None
            if reading is None:
                return False
            readings.append(reading)
            start = end + len(_BLANK_LINE)
        if start < len(chunk):
            return False  # another line end: the framer is asked what that means
        for reading in readings:
            self._tally.add_like(reading)
        return True

    @property
    def pieces(self) -> int:
        """Return how many pieces of content have come: there are at least as many output tokens."""
        return self._tally.pieces

    def look(self) -> None:
        """Nothing is put off."""

    @property
    def kept_bytes(self) -> int:
        return self._framer.pending_bytes

    def spill(self, out: bytes) -> bytes:
        event = self._framer.spill()
        rest = self._pass_on(event) if event is not None else b""
        return out + rest if rest and self.changes_body else out

    def finish(self) -> bytes:
        event = self._framer.close()
        rest = self._pass_on(event) if event is not None else b""
        return rest if self.changes_body else b""

    def settlement(self, *, complete: bool) -> Settlement:
        if self._large is not None:
            self._take_large(self._large)
        if self._unknown_pieces:
            self._tally.add(Reading(Absence.MISSING, pieces=self._unknown_pieces))
        return self._tally.settlement(complete=complete)

    def _pass_on(self, event: Event) -> bytes:
        """The client's part of an event: all of it, nothing, or the end of the stream in its place."""
        if event.tail:
            return b"" if self._hidden else event.raw
        if event.last or event.part is not None:
            return self._pass_part(event)
        if not event.data or (b"[DONE]" in event.data[:_DONE_BYTES] and event.data.strip() == b"[DONE]"):
            self._hidden = self._ended
            return b"" if self._hidden else event.raw
        self.has_events = True
        reading = self._reading(event.data)
        self._take(reading, len(event.data))
        if not self._ended and self._bound is not None and self._goes_beyond(event.data, reading):
            self._ended = self._hidden = True
            return self._choices.closing()
        hides = self._hide_usage and reading.only_usage
        self._hidden = self._ended or (hides and not carries_more(event.data))
        if self._hidden:
            return b""
        strips = hides or (self._strip_usage and not reading.only_usage)
        return without_usage(event.raw, event.data) if strips else event.raw

    def _pass_part(self, event: Event) -> bytes:
        """The client's part of an event that is too large to keep: all of it, but after the end of the stream."""
        if event.part is not None:
            self.has_events = True
            self._large = self._large or LargeEvent()
            self._large.feed(event.part)
        if event.last and self._large is not None:
            self._take_large(self._large)
        self._hidden = self._ended
        return b"" if self._hidden else event.raw

    def _reading(self, data: bytes) -> Reading:
        if len(data) > _SMALL_EVENT_BYTES:
            return read_large(data) if is_dense(data) else self._likeness.read(data)
        reading = self._read.get(data)
        if reading is None:
            if len(self._read) == _MAX_REMEMBERED:
                self._read.clear()
            self._read = self._read or {}
            reading = self._read[data] = read_answer(data)
        return reading

    def _take(self, reading: Reading, size: int) -> None:
        self._tally.add(reading, possible_tokens(reading, size))
        self._silent += not reading.pieces and reading.usage is Absence.MISSING
        self._failed = self._failed or reading.error

    def _take_large(self, large: LargeEvent) -> None:
        self._take(large.reading(), large.bytes)
        self._large = None

    def _goes_beyond(self, data: bytes, reading: Reading) -> bool:
        """Whether the stream is to end before this event: it carries more, and there is a choice to end."""
        finished = self._choices.see(data)
        if reading.pieces and self.overran and self._choices.any:
            return True
        self._choices.finished(finished)
        return False
