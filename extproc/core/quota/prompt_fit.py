"""Fit the tokens of one tenant's latest prompts: so many for each byte, and so many for each prompt.

Nine in ten of the prompts needed no more than the fit says. Prompts of all sizes count alike: the fit looks for
the smallest relative errors.
"""

from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from msgspec import Struct

from extproc.core.quota.recent import ENOUGH, MOST, WINDOW, Figure

# A fit of a full window takes 0.1 ms, so it is made anew only after some more prompts.
_EACH: Final = 32
_MILLI: Final = 1000
_FOUR_BYTES: Final = "I"
# How far the truth usually is from what is expected: of the tokens of a prompt that is known by its size, of the
# tokens per byte (both as shares), and of the tokens for each prompt (in tokens).
_SPREAD_OF_PROMPTS: Final = 0.15
_SPREAD_OF_RATIOS: Final = 0.3
_SPREAD_OF_FIXED: Final = 100.0


class PromptKind(IntEnum):
    """Tell apart what one tenant's prompts are measured by, and whether there are tools among them."""

    BYTES = 0
    BYTES_WITH_TOOLS = 1
    TOKENS = 2
    TOKENS_WITH_TOOLS = 3

    @classmethod
    def of(cls, *, counted: bool, tools: bool) -> "PromptKind":
        """Return the kind of a prompt. `counted`: a tokenizer measured it, in tokens."""
        return _KINDS[counted][tools]


_KINDS: Final = (
    (PromptKind.BYTES, PromptKind.BYTES_WITH_TOOLS),
    (PromptKind.TOKENS, PromptKind.TOKENS_WITH_TOOLS),
)


class PromptSize(Struct, frozen=True):
    """Measure a prompt before its answer: weighed bytes, or tokens that a tokenizer counted. 0 or more."""

    kind: PromptKind
    size: int


class Expected(NamedTuple):
    """Hold what counts before anything is learned of prompts of one kind, and the range of what is learned.

    Ratios are thousandths of a prompt's size per token, `fixed` are tokens for each prompt.
    """

    ratio: int
    ratio_low: int
    ratio_high: int
    fixed: int
    fixed_low: int
    fixed_high: int


# Far below each share of a token that is ever used, and more than none.
_LEAST_SLOPE: Final = 1e-3


class PromptFit:
    """Hold sizes and tokens of the last `WINDOW` prompts of one kind, and what they show.

    `ratio` is in thousandths of a prompt's size per token, `fixed` in tokens for each prompt.
    """

    __slots__ = ("_oldest", "_sizes", "_tokens", "fixed", "ratio")

    def __init__(self) -> None:
        self._sizes = array(_FOUR_BYTES)
        self._tokens = array(_FOUR_BYTES)
        self._oldest = 0
        self.ratio = Figure()
        self.fixed = Figure()

    def add(self, size: int, tokens: int, expected: Expected) -> None:
        """Take in a prompt of this size (1 or more) that had so many tokens (1 or more).

        What is expected counts for as much as some prompts do.
        """
        if len(self._sizes) < WINDOW:
            self._sizes.append(min(size, MOST))
            self._tokens.append(min(tokens, MOST))
        else:
            self._sizes[self._oldest] = min(size, MOST)
            self._tokens[self._oldest] = min(tokens, MOST)
            self._oldest = (self._oldest + 1) % WINDOW
        values = len(self._sizes)
        if values <= ENOUGH or (values + self._oldest) % _EACH == 0:
            slope, fixed = _line(list(zip(self._sizes, self._tokens, strict=True)), expected)
            self.ratio.set(values, round(_MILLI / slope))
            self.fixed.set(values, round(fixed))


def _line(prompts: Sequence[tuple[int, int]], expected: Expected) -> tuple[float, float]:
    """Return tokens per size and tokens for each prompt that suffice for nine in ten of the prompts."""
    sums = _sums(prompts, expected)
    slope, fixed = _fitted(sums, expected)
    shares = _shares(prompts, slope, fixed)
    tenth = len(prompts) // 10
    if tenth:
        # An odd prompt among many moves the line far, unless it is left out.
        ordered = sorted(shares)
        low, high = ordered[tenth], ordered[-1 - tenth]
        odd = [prompt for prompt, share in zip(prompts, shares, strict=True) if not low <= share <= high]
        slope, fixed = _fitted(
            [whole - part for whole, part in zip(sums, _sums(odd, expected), strict=True)], expected
        )
        shares = _shares(prompts, slope, fixed)
    # Nine in ten of the prompts need no more than the line, times this.
    margin = max(1.0, sorted(shares)[-1 - tenth])
    return slope * margin, fixed * margin


def _sums(prompts: Sequence[tuple[int, int]], expected: Expected) -> tuple[float, float, float, float, float]:
    """Return what prompts add to the matrix of the normal equations, and to their right side."""
    likely, likely_fixed = _MILLI / expected.ratio, float(expected.fixed)
    xx = x = one = xy = y = 0.0
    for size, tokens in prompts:
        weight = 1 / (_SPREAD_OF_PROMPTS * (likely * size + likely_fixed)) ** 2
        weighted = weight * size
        xx += weighted * size
        x += weighted
        one += weight
        xy += weighted * tokens
        y += weight * tokens
    return xx, x, one, xy, y


def _fitted(sums: Sequence[float], expected: Expected) -> tuple[float, float]:
    """Return tokens per size (more than 0) and tokens for each prompt, by least squares of relative errors."""
    likely, likely_fixed = _MILLI / expected.ratio, float(expected.fixed)
    sure = 1 / (_SPREAD_OF_RATIOS * likely) ** 2
    sure_fixed = 1 / _SPREAD_OF_FIXED**2
    xx, x, one, xy, y = sums
    xx, one, xy, y = xx + sure, one + sure_fixed, xy + sure * likely, y + sure_fixed * likely_fixed
    slope = (xy * one - x * y) / (xx * one - x * x)
    # Beyond the range of what can be for each prompt, all else is for its size.
    fixed = min(max((y - x * slope) / one, float(expected.fixed_low)), float(expected.fixed_high))
    return max((xy - x * fixed) / xx, _LEAST_SLOPE), fixed


def _shares(prompts: Sequence[tuple[int, int]], slope: float, fixed: float) -> list[float]:
    """Return the prompts' tokens as shares of what the line says."""
    return [tokens / (slope * size + fixed) for size, tokens in prompts]
