"""What has been read of one answer so far, and how the reservation ends on it."""

from typing import Final

from msgspec.structs import replace

from extproc.core.answer.entries import NO_ENTRIES
from extproc.core.answer.reading import Reading
from extproc.core.answer.usage_reader import Absence, DoubtfulUsage, Part, exchanged
from extproc.core.quota.settlement import Estimates, Outcome, Settlement, released
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.body import MAX_TOKENS

# Choices whose usage is kept apart. There are as many as were asked for; a server that sends more is broken.
_MAX_CHOICES: Final = 1024


class Tally:
    """Adds up the readings of one answer. Memory is bounded, whatever the answer says."""

    __slots__ = (
        "_absence",
        "_all",
        "_alone",
        "_apart",
        "_choice",
        "_content_bytes",
        "_error",
        "_guessed",
        "_outputs",
        "_part",
        "_parts",
        "_possible",
        "_stale",
        "_text_bytes",
        "_usage",
        "again",
        "estimates",
        "input_tokens",
        "pieces",
    )

    def __init__(self, estimates: Estimates, absence: Absence = Absence.MISSING) -> None:
        self.estimates = estimates
        self._usage: Usage | None = None
        self._part: Part | None = None
        self._parts = 0
        self._absence = absence
        self._content_bytes = 0
        self._text_bytes = 0  # of choices: of other shapes there may be pictures in it
        self._error = False
        self._guessed = False  # what could not be read was weighed whole
        self._stale = False  # content came after the last usage
        self._outputs: dict[bytes, int] = NO_ENTRIES  # the last output of each choice, by its index
        self._choice: bytes | None = None
        self._apart = False  # usage is of one choice each
        self._alone: dict[bytes, Usage] = NO_ENTRIES  # of each answer to one of several prompts, by its index
        self._all = NO_USAGE  # their sum
        self._possible = 0  # the most tokens that what was delivered can be
        self.input_tokens = 0  # of the prompt, as they were reported; 0 where they were not
        self.again = 0  # the size of the largest text that repeats other text
        self.pieces = 0

    def add(self, reading: Reading, possible: int = 0) -> None:
        """Takes one reading in. The last usage seen counts; where it comes in parts, the last of each.

        `possible` is the most output tokens that the bytes of this reading can be: see `possible_tokens`.
        """
        self._possible += possible
        self._content_bytes += reading.content_bytes
        self.again = max(self.again, reading.again)
        if reading.choices:
            self._text_bytes += reading.content_bytes
        self.pieces += reading.pieces
        self._error = self._error or reading.error
        self._guessed = self._guessed or reading.usage is Absence.UNREADABLE
        usage = reading.usage
        if reading.part is not None:
            self._part = reading.part if self._part is None else reading.part.after(self._part)
            self._parts += 1
            usage = self._part.usage()
        if isinstance(usage, Usage) and reading.apart:
            usage = self._with_others(reading.choice or b"", usage)
        if isinstance(usage, Usage):
            if self._usage is not None and not (usage.input and usage.output):
                usage = _restated(usage, self._usage, reading)
            self._tell_choices_apart(reading, usage)
            self._usage = usage
            self.input_tokens = usage.input
            self._stale = False
            return
        self._stale = self._stale or reading.pieces > 0
        if usage in (Absence.ABSURD, Absence.OTHER_UNIT):
            self._absence = usage

    def add_like(self, reading: Reading) -> None:
        """Take in the reading of an event that was found by its likeness to one that was added."""
        size = reading.content_bytes
        self._possible += size
        self._content_bytes += size
        if reading.choices:
            self._text_bytes += size
        self.pieces += reading.pieces
        self._stale = True

    @property
    def reported(self) -> Usage | None:
        """The last usage, summed up where the server counts each choice of a stream on its own."""
        if self._usage is None or not self._apart:
            return self._usage
        return _with_output(self._usage, sum(self._outputs.values()))

    @property
    def output_tokens(self) -> int:
        """Output tokens so far: what was reported or, where that is more, one for each piece."""
        usage = self.reported
        return max(self.pieces, self._believed(usage).output if usage is not None else 0)

    def settlement(self, *, complete: bool) -> Settlement:
        """How the reservation ends; `complete` is False where the answer was cut off."""
        if self.again and not self.pieces:  # it repeats nothing
            self._content_bytes, self.pieces = self._content_bytes + self.again, 1
        usage = self.reported
        if usage is not None and not self._failed_at_once(usage):
            return self._on_usage(usage, complete=complete)
        if not self._content_bytes and not self.pieces and (self._error or not complete):
            # Cut off before content: the upstream had read the prompt, so the prompt is charged.
            return released("upstream_error") if self._error else self.estimates.estimate(0, 0, "cut_off")
        reason = self._absence if complete else "cut_off"
        # Content that is understood is charged in full; what a shape that nobody knows weighs is only a guess.
        understood = complete and self.pieces > 0 and not self._guessed
        return self.estimates.estimate(self._content_bytes, self.pieces, reason, complete=understood)

    def _failed_at_once(self, usage: Usage) -> bool:
        """Tell whether an error came before anything was generated, and usage only tells what went in.

        The usage that opens a stream of messages tells of an output of a token or a few, which nobody gets.
        """
        if not self._error or self.pieces or self._content_bytes or not self.estimates.cost.output:
            return False
        return not usage.output or self._parts == 1

    def _on_usage(self, reported: Usage, *, complete: bool) -> Settlement:
        """Settles on `reported`, but for what can't be: that is estimated.

        What can't be is an input of nothing, counts that contradict each other, more output than there can be, or
        less than came out. The last is usage which only opens a stream (Anthropic's `message_start`), or an output
        of 0 for content.
        """
        usage, reason = self._completed(reported)
        believed = self._believed(usage)
        if believed is not usage:
            reason = "implausible"
        settled = self.estimates.settle(believed, complete=complete)
        if believed is usage and self._says_too_little(usage):
            missing = (
                (Absence.MISSING if self._stale and usage.output else Absence.ABSURD) if complete else "cut_off"
            )
            # A stream that breaks off is never charged above what was held.
            full = complete and not (self._stale or self._guessed) and self.estimates.cost.output > 0
            counted = self._counted(missing, complete=full)
            if counted > usage.output:
                grown = _with_output(usage, counted)
                if not self._stale:  # a total that knows more has it already
                    grown = replace(grown, total=max(usage.total, min(MAX_TOKENS, usage.input + grown.output)))
                settled, reason = self.estimates.settle(grown, complete=full), missing
        return replace(settled, outcome=Outcome.ESTIMATED, reason=reason) if reason else settled

    def _completed(self, usage: Usage) -> tuple[Usage, str]:
        """The usage with estimates of the counts that it lacks, and the reason: empty where it lacks none."""
        if not usage.input and not usage.output:  # no more than a total: it stands, and its parts are estimated
            output = min(self._counted("", complete=True), usage.total) if self.estimates.cost.output else 0
            usage = replace(usage, input=usage.total - output, output=output)
        if isinstance(usage, DoubtfulUsage):
            return self.estimates.with_input(usage, usage.most_input), "implausible"
        whole = self.estimates.with_input(usage)
        return whole, "" if whole is usage else "partial"

    def _says_too_little(self, usage: Usage) -> bool:
        """Tell whether more came out than the output that was reported, or may have."""
        if self._stale or (self.pieces and not usage.output):
            return True
        return not self._guessed and self.estimates.is_too_few(usage.output, self._text_bytes)

    def _counted(self, reason: str, *, complete: bool) -> int:
        return self.estimates.estimate(self._content_bytes, self.pieces, reason, complete=complete).usage.output

    def _believed(self, usage: Usage) -> Usage:
        return self.estimates.believable(usage, self._possible)

    def _with_others(self, index: bytes, usage: Usage) -> Usage | Absence:
        """Usage of all answers so far: llama.cpp reports each for itself, its prompt too."""
        if index in self._alone or len(self._alone) < _MAX_CHOICES:
            # Not summed up anew: an answer with a thousand choices reports a thousand times for each.
            self._all = exchanged(self._all, self._alone.get(index, NO_USAGE), usage)
            self._alone = self._alone or {}
            self._alone[index] = usage
        return self._all if self._all.total <= MAX_TOKENS else Absence.ABSURD

    def _tell_choices_apart(self, reading: Reading, usage: Usage) -> None:
        """As they go, vLLM and SGLang report for the one choice of the chunk; only the last usage is of all.

        A count that does not grow from one choice's piece to another's can't be of both.
        """
        if reading.choice is None or reading.apart or not reading.pieces:
            if not reading.choices:
                self._apart = False
            return
        other = self._choice is not None and self._choice != reading.choice
        if other and self._usage is not None and usage.output <= self._usage.output:
            self._apart = True
        self._choice = reading.choice
        if reading.choice in self._outputs or len(self._outputs) < _MAX_CHOICES:
            self._outputs = self._outputs or {}
            self._outputs[reading.choice] = usage.output


def possible_tokens(reading: Reading, size: int) -> int:
    """The most output tokens that an event of `size` bytes can be: none is shorter than a byte.

    Text that is understood is all that counts. Of a sound, of a picture, and of what nobody understands all does.
    """
    return reading.content_bytes or (size if reading.pieces or not reading.choices else 0)


def _restated(later: Usage, earlier: Usage, reading: Reading) -> Usage:
    """Return what `later` says, and of what it does not say what was said before."""
    if reading.choices or reading.part is not None or reading.apart:
        return later
    if not later.input and not later.output:
        output = max(earlier.output, later.total - earlier.input)
        return replace(earlier, output=output, total=max(earlier.total, later.total, earlier.input + output))
    if not later.input:
        total = min(MAX_TOKENS, earlier.input + later.total)
        kept = {name: getattr(earlier, name) for name in ("input", "cached", "cache_written", "audio_input")}
        return replace(later, output=min(later.output, total - earlier.input), total=total, **kept)
    return _with_output(later, earlier.output)


def _with_output(usage: Usage, output: int) -> Usage:
    total = min(MAX_TOKENS, usage.total - usage.output + output)
    return replace(usage, output=min(output, total), total=total)
