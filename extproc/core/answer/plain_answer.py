"""Read an answer that is no stream: one JSON text, or text alone, measured while it passes."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from extproc.core.answer.json_scan import JsonScan, Text
from extproc.core.answer.reading import BEFORE_JSON, Reading, read_answer
from extproc.core.answer.tally import Tally
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.settlement import Estimates, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.body import MAX_TOKENS

# A JSON answer up to this size is also kept, and read as a whole once it is complete. Of a larger one only the
# members that the scan keeps are read.
MAX_ANSWER_BYTES: Final = 64 << 10
# Scanned together: most answers are smaller, come whole, and need no scan.
LATE_BYTES: Final = 4 << 10
# A picture or a sound, encoded: about as many bytes as there are for each token of an image at high quality.
MEDIA_BYTES_PER_TOKEN: Final = 512
_COUNTS: Final = Usage.__match_args__
# What usage stands in. An answer that has not ended is believed only if one of them has.
_USAGE_MEMBERS: Final = (b"usage", b"x_groq", b"meta", b"meta_info", b"choices")


class JsonAnswer:
    """A plain answer: passes untouched, and is measured on the way.

    What can't be JSON, because it does not begin so, counts as text.
    """

    changes_body = False

    def __init__(self, estimates: Estimates, *, output_bound: int | None = None, generates: bool = True) -> None:
        """With `generates` False no output is counted, whatever the answer holds."""
        self.estimates = estimates
        self._held_at_first = estimates.cost.output
        self._bound = output_bound
        self._generates = generates
        self._kept = bytearray()  # pieces may be of a byte each: a list of them would be many times as large
        self._bytes = 0
        self._begun = False  # with more than white space
        self._whole = True  # all so far is kept
        self._complete = False
        self._is_json = False
        self._unscanned = bytearray()
        self._scan: JsonScan | None = None
        self._raw = Text()  # of what is no JSON
        self._binary = False
        self._said = _Said()
        self._final: Tally | None = None

    @property
    def output_tokens(self) -> int:
        """Return the tokens delivered so far: those reported, else those that the text is likely to have.

        An estimate is never more than the client's own bound.
        """
        if self._final is not None:
            return self._final.output_tokens
        if not self._generates or self._binary:
            return 0
        reading = self._passing()
        if isinstance(reading.usage, Usage):
            return self.estimates.believable(reading.usage, self._possible()).output
        return self.estimates.tokens(reading.content_bytes, reading.pieces)

    @property
    def input_tokens(self) -> int:
        if self._final is not None:
            return self._final.input_tokens
        usage = self._said.usage(self._scan) if self._generates and self._scan is not None else None
        return usage.input if isinstance(usage, Usage) else 0

    @property
    def overran(self) -> bool:
        usage = self._final.reported if self._final is not None else None
        return self._bound is not None and usage is not None and usage.output > self._bound

    def feed(self, chunk: bytes) -> bytes:
        self._bytes += len(chunk)
        if not self._begun and (start := chunk.lstrip(BEFORE_JSON)):
            self._begin(start)
        if self._is_json:
            self._unscanned += chunk
            if len(self._unscanned) > LATE_BYTES:
                self.look()
        elif self._begun:
            self._raw.add(chunk)
            self._binary = self._binary or b"\0" in chunk
        if self._whole:
            self._keep(chunk)
        return chunk

    def look(self) -> None:
        """Scan what was not scanned yet."""
        if not self._unscanned:
            return
        if self._scan is None:
            self._scan = JsonScan()
            self._unscanned = self._unscanned.lstrip(BEFORE_JSON)
        self._scan.feed(bytes(self._unscanned))
        self._said.take(self._scan)
        self._unscanned.clear()

    @property
    def kept_bytes(self) -> int:
        return len(self._kept)

    def spill(self, out: bytes) -> bytes:
        self._let_go()
        return out

    def finish(self) -> bytes:
        self._complete = True
        self._tally()
        return b""

    def settlement(self, *, complete: bool) -> Settlement:
        if not self._bytes:
            return self.estimates.estimate(0, 0, "empty" if complete else "cut_off")
        tally = self._tally()
        tally.estimates = self.estimates
        return tally.settlement(complete=complete)

    def _begin(self, start: bytes) -> None:
        self._begun = True
        if start[:1] in {b"{", b"["}:
            self._is_json = True
        else:
            self._let_go()

    def _keep(self, chunk: bytes) -> None:
        self._kept += chunk
        if self._bytes > MAX_ANSWER_BYTES:
            self._let_go()

    def _let_go(self) -> None:
        self._whole = False
        self._kept = bytearray()

    def _tally(self) -> Tally:
        """Return what there is to settle on. It is read once."""
        if self._final is None:
            reading = self._reading()
            absence = reading.usage if isinstance(reading.usage, Absence) else Absence.MISSING
            self._final = Tally(self.estimates, absence)
            self._final.add(reading, self._possible())
            self._let_go()
        return self._final

    def _reading(self) -> Reading:
        if self._complete and self._whole and self._is_small():
            reading = self._with_text(read_answer(bytes(self._kept)))
        else:
            self.look()
            reading = self._passing()
            if self._scan is not None and _holds_no_text(self._scan):
                # Its size is a poor measure. It was asked for: at least what was held for it at first.
                reading = replace(reading, pieces=max(reading.pieces, self._held_at_first))
        if not self._generates:
            return replace(reading, content_bytes=0, pieces=0)
        told = isinstance(reading.usage, Usage) or reading.error or reading.content_bytes or reading.pieces
        return replace(reading, content_bytes=self._bytes) if self._complete and not told else reading

    def _with_text(self, reading: Reading) -> Reading:
        """Measure the text of an answer without usage: it is all that there is to go by."""
        if isinstance(reading.usage, Usage) or reading.usage is Absence.UNREADABLE:
            return reading
        self.look()
        scan = self._scan
        if scan is None or not (scan.text.size or scan.tokens or _holds_no_text(scan)):
            return reading
        passing = self._passing()
        pieces = max(passing.pieces, self._held_at_first if _holds_no_text(scan) else 0)
        return replace(reading, content_bytes=passing.content_bytes, pieces=pieces)

    def _is_small(self) -> bool:
        """Tell whether the answer has so little structure that it may be taken apart at once."""
        if self._scan is None:
            return self._is_json
        self.look()
        return self._said.is_small(self._scan)

    def _passing(self) -> Reading:
        """Return what the answer has said so far, as far as that is known without keeping it."""
        scan = self._scan
        if scan is None:
            size = self._bytes if self._begun and not self._is_json else 0
            return Reading(Absence.UNREADABLE, content_bytes=size, pieces=self._raw.words)
        guessed = not (scan.text.size or scan.tokens)
        text = scan.unknown if guessed else scan.text
        # Where text was not looked for, there is as much of it as elsewhere.
        unread = text.size * scan.unread_bytes // max(1, scan.bytes - scan.unread_bytes)
        guess = text.words + -(-scan.media_bytes // MEDIA_BYTES_PER_TOKEN)
        bound = self.estimates.bound
        usage, error = self._said.usage(scan), self._said.error
        if usage is Absence.MISSING and ((guessed and text.size) or (self._complete and not scan.complete)):
            usage = Absence.UNREADABLE
        return Reading(
            usage,
            content_bytes=text.size + unread,
            pieces=max(guess if bound is None else min(guess, bound), scan.tokens),
            error=error,
        )

    def _possible(self) -> int:
        """Return the most output tokens that the bytes so far can be: none is shorter than a byte."""
        scan = self._scan
        if scan is None:
            return self._bytes
        unseen = scan.media_bytes + scan.sealed_bytes + scan.unread_bytes
        return scan.text.size + scan.unknown.size + scan.tokens + unseen


class _Said:
    """Read usage and errors out of the members that a scan keeps; each of them once."""

    __slots__ = ("_is_list", "_read", "_sums", "_unknown", "_usage", "error")

    def __init__(self) -> None:
        self.error = False
        self._is_list = False  # an answer of a list has ended
        self._sums = [0] * len(_COUNTS)  # of the usage of all those
        self._unknown = False  # one of them has none
        self._usage: Usage | Absence = Absence.MISSING  # of the answer, or of the last one of a list
        self._read = 0  # how many members were kept when it was read

    def take(self, scan: JsonScan) -> None:
        """Take the answers of a list that have ended, and let go of them."""
        for members in scan.ended:
            usage = read_answer(_document(members)).usage if members else Absence.MISSING
            if isinstance(usage, Usage):
                self._sums = [sum_ + getattr(usage, name) for name, sum_ in zip(_COUNTS, self._sums, strict=True)]
            self._unknown = self._unknown or not isinstance(usage, Usage)
            self._is_list = True
        scan.ended.clear()

    def is_small(self, scan: JsonScan) -> bool:
        return not (self._is_list or scan.dense or scan.overfull)

    def usage(self, scan: JsonScan) -> Usage | Absence:
        """Return the usage so far. Counts that stand alone are believed at the end, when all of them are there."""
        if self._is_list:
            known = scan.complete and not self._unknown and not scan.overfull
            total = Usage(*self._sums)
            return total if known and total.total <= MAX_TOKENS else Absence.MISSING
        if scan.values != self._read:
            self._read = scan.values
            reading = read_answer(_document(scan.kept))
            self._usage, self.error = reading.usage, reading.error
        if self._usage is Absence.MISSING and scan.overfull:
            return Absence.UNREADABLE
        early = not scan.complete and not any(name in scan.kept for name in _USAGE_MEMBERS)
        return Absence.MISSING if early and isinstance(self._usage, Usage) else self._usage


def _holds_no_text(scan: JsonScan) -> bool:
    """Tell whether the answer so far holds a picture or a sound, or only what is encrypted."""
    return bool(scan.media_bytes or (scan.sealed_bytes and not scan.text.size))


def _document(members: Mapping[bytes, bytes]) -> bytes:
    return b"{%b}" % b",".join(b'"%b":%b' % member for member in members.items())
