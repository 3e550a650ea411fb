"""Generate steps from a prompt, one per token, and decide which text may be shown and where it ends."""

import codecs
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Literal

from extproc.local.model.replies import opening_tokens, sentences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from extproc.local.model.tokenizer import SampleTokenizer


@dataclass(frozen=True, slots=True)
class Sampling:
    """Hold the limits of one generation.

    Attributes:
        max_tokens: Tokens after which the text is cut, at least 1.
        min_tokens: Neither the end of the text nor a stop string ends it before this many tokens.
        ignore_eos: Continue past the end of the text until ``max_tokens``.
        stop: Strings before which the text is cut; none is empty.
        bounded: Whether ``max_tokens`` is the client's own bound.
    """

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Hold one prompt, counted and ready to be answered.

    Attributes:
        identity: Everything the answer depends on besides the choice's index.
        question: The text to search for a known question.
        tokens: Prompt tokens, the chat template included.
        sampling: The limits of each of its choices.
    """

    identity: str
    question: str
    tokens: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Step:
    """Hold the effect of one more token. ``text`` is empty while characters are incomplete or held back."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | None = None


def generate(prompt: Prompt, index: int, tokenizer: "SampleTokenizer") -> "Iterator[Step]":
    """Yield the steps of one choice; the same prompt and index always give the same ones.

    The end-of-sequence token is a step and is counted, as in vLLM. The last step, and only the last, has a finish
    reason.
    """
    sampling = prompt.sampling
    shown = _ShownText(sampling.stop)
    for count, token in enumerate(_tokens(prompt, index, tokenizer), start=1):
        if token == tokenizer.eos:
            yield Step(shown.rest(), "stop")
            return
        hit = shown.add(tokenizer.piece(token), may_stop=count > sampling.min_tokens)
        if hit is not None:
            yield Step(shown.rest(), "stop", hit)
            return
        if count >= sampling.max_tokens:
            yield Step(shown.rest(), "length")
            return
        yield Step(shown.take())


def _tokens(prompt: Prompt, index: int, tokenizer: "SampleTokenizer") -> "Iterator[int]":
    digest = sha256(f"{index}\0{prompt.identity}".encode()).digest()
    draw = Random(digest)
    opening = opening_tokens(prompt.question, draw, tokenizer)
    yield from opening
    produced = len(opening)
    for sentence in sentences(draw):
        if not prompt.sampling.ignore_eos and produced >= prompt.sampling.min_tokens:
            yield tokenizer.eos
            return
        more = tokenizer.encode(f" {sentence}")
        produced += len(more)
        yield from more


class _ShownText:
    """Hold decoded text that is not shown yet, because it may be the beginning of a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._hold = max((len(text) - 1 for text in stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unshown = ""
        self._ready = 0

    def add(self, piece: bytes, *, may_stop: bool) -> str | None:
        """Take in a token's bytes. Return the stop string that they complete, if any; the text is cut there."""
        self._unshown += self._decoder.decode(piece)
        if not may_stop:
            # No stop string begins this early, so nothing has to be held back.
            self._ready = len(self._unshown)
            return None
        found = [(at, text) for text in self._stop if (at := self._unshown.find(text)) >= 0]
        if not found:
            self._ready = max(0, len(self._unshown) - self._hold)
            return None
        at, hit = min(found)
        self._unshown = self._unshown[:at]
        return hit

    def take(self) -> str:
        text, self._unshown = self._unshown[: self._ready], self._unshown[self._ready :]
        return text

    def rest(self) -> str:
        """Return the rest of the text, without the bytes of an incomplete character."""
        self._ready = len(self._unshown)
        return self.take()
