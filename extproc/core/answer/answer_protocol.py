"""Say what every reader of an answer can do."""

from typing import Protocol

from extproc.core.quota.settlement import Estimates, Settlement


class AnswerReader(Protocol):
    """Read one answer as it passes.

    Attributes:
        output_tokens: tokens generated so far, as far as is known: what was reported or, where that is more, the
            pieces counted; for a plain answer, what its text so far is likely to have. 0 where there is nothing to
            count.
        input_tokens: tokens of the prompt, as the server reported them so far; 0 where it has not.
        overran: whether the upstream generated more than the bound that it was told; known as `output_tokens` is.
        estimates: what is held. A hold that grew is set here; the last one counts.
        changes_body: whether the client may get other bytes than the upstream sent: `content-length` must go.
        kept_bytes: what it keeps until more comes. It is bounded for one answer; see `spill` for all of them.
    """

    estimates: Estimates

    @property
    def output_tokens(self) -> int: ...

    @property
    def input_tokens(self) -> int: ...

    @property
    def overran(self) -> bool: ...

    @property
    def changes_body(self) -> bool: ...

    @property
    def kept_bytes(self) -> int: ...

    def spill(self, out: bytes) -> bytes:
        """Keep no more of the answer than its usage. `out` is what `feed` gave; return what the client gets
        instead: the same object where nothing changes.
        """

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk; return what the client gets for it: the same object where nothing changes."""

    def look(self) -> None:
        """Read what was put off so far: `output_tokens` is then of all that was fed."""

    def finish(self) -> bytes:
        """End the answer, which is complete; return what was held back and is the client's after all."""

    def settlement(self, *, complete: bool) -> Settlement:
        """Return how the reservation ends; `complete` is False where the answer was cut off."""
