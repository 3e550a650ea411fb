"""Usage with bounds: out of what a server reported; and what stands in when it reported none.

Every API, and many a server that speaks one of them, writes usage in a way of its own. What decides is the names
of the counts, never the endpoint: a gateway behind us may answer one API in the shape of another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from msgspec import Raw
from msgspec.structs import astuple

from extproc.core.answer.content import NOT_GIVEN, NOTHING, UNREADABLE
from extproc.core.answer.reported import (
    InputDetails,
    OutputDetails,
    Reported,
    decode_count,
    decode_reported,
    side_count,
)
from extproc.core.quota.usage import Usage
from extproc.core.request.body import MAX_TOKENS


class Absence(StrEnum):
    """Why an answer has no usage to settle on."""

    MISSING = "missing"
    ABSURD = "absurd"  # negative, fractional, NaN, a string, out of bounds, or zero for an answer with content
    UNREADABLE = "unreadable"  # not JSON, cut off, or too large
    OTHER_UNIT = "other_unit"  # seconds of audio, searches, images: no tokens


@dataclass(frozen=True, slots=True)
class Part:
    """Usage that a stream gives in parts (Anthropic's): None is what this event does not say.

    `input` is without what was read from the cache or written to it, as Anthropic counts.
    """

    input: int | None
    output: int | None
    cached: int | None
    cache_written: int | None

    def after(self, earlier: "Part") -> "Part":
        """Both as one: of each count the last that was given. What was there once does not become none."""
        read = self if self.read or not earlier.read else earlier
        return Part(
            _last(earlier.input, read.input),
            self.output or earlier.output,
            _last(earlier.cached, read.cached),
            _last(earlier.cache_written, read.cache_written),
        )

    def usage(self) -> Usage | Absence:
        cached, written = self.cached or 0, self.cache_written or 0
        prompt, output = self.read, self.output or 0
        total = prompt + output
        if not total:
            return Absence.MISSING
        if total > MAX_TOKENS:
            return Absence.ABSURD
        return Usage(prompt, output, cached, total=total, cache_written=written)

    @property
    def read(self) -> int:
        """All tokens that went in."""
        return (self.input or 0) + (self.cached or 0) + (self.cache_written or 0)


_NO_INPUT_DETAILS: Final = InputDetails()
_NO_OUTPUT_DETAILS: Final = OutputDetails()


def read_usage(text: bytes) -> Usage | Absence:
    """The usage in a usage object, as JSON text."""
    if text in NOTHING:
        return Absence.MISSING
    try:
        reported = decode_reported(text)
    except UNREADABLE:
        return Absence.ABSURD
    usage = Absence.ABSURD if reported.counts_nothing else _usage(reported)
    # No tokens, but something else: Cohere bills pictures, searches and classes, Whisper seconds.
    return Absence.OTHER_UNIT if usage is Absence.ABSURD and reported.counts_elsewhere else usage


def read_part(text: bytes) -> Part | Absence:
    """The usage in a usage object of Anthropic's streams, as JSON text."""
    if text in NOTHING:
        return Absence.MISSING
    try:
        reported = decode_reported(text)
    except UNREADABLE:
        return Absence.ABSURD
    return Part(
        _first(reported.input_tokens, reported.prompt_tokens),
        _first(reported.output_tokens, reported.completion_tokens),
        reported.cache_read_input_tokens,
        reported.cache_creation_input_tokens,
    )


def counted(prompt: Raw, output: Raw, cached: Raw) -> Usage | Absence:
    """The usage in counts that stand alone, as JSON text; `cached` is a part of the prompt."""
    if prompt is NOT_GIVEN and output is NOT_GIVEN:
        return Absence.MISSING
    try:
        tokens_in, tokens_out = decode_count(prompt), decode_count(output)
    except UNREADABLE:
        return Absence.ABSURD
    return _usage(
        Reported(prompt_tokens=tokens_in, completion_tokens=tokens_out, cached_tokens=side_count(cached))
    )


def together(usages: Iterable[Usage]) -> Usage | Absence:
    """The sum of what was counted apart."""
    rows = [astuple(usage) for usage in usages]
    total = Usage(*map(sum, zip(*rows, strict=True)))
    return total if total.total <= MAX_TOKENS else Absence.ABSURD


def exchanged(summed: Usage, earlier: Usage, later: Usage) -> Usage:
    """The sum with one of its parts exchanged. It may be more than MAX_TOKENS."""
    return Usage(*map(_exchange, astuple(summed), astuple(earlier), astuple(later)))


def _exchange(summed: int, earlier: int, later: int) -> int:
    return summed - earlier + later


def _usage(reported: Reported) -> Usage | Absence:
    """The counts of one usage object, brought to one meaning."""
    into = reported.prompt_tokens_details or reported.input_tokens_details
    into = into or reported.input_token_details or reported.prompt_token_details
    out = reported.completion_tokens_details or reported.output_tokens_details or reported.output_token_details
    into, out = into or _NO_INPUT_DETAILS, out or _NO_OUTPUT_DETAILS
    output = _first(reported.completion_tokens, reported.output_tokens) or 0
    prompt = _first(reported.prompt_tokens, reported.input_tokens)
    if prompt is None:  # rerank says no more than a total
        prompt = (reported.total_tokens or 0) - output
        if prompt <= 0:
            return Absence.ABSURD
    cached = _first(
        into.cached_tokens,
        reported.prompt_cache_hit_tokens,
        reported.cached_tokens,
        reported.num_cached_tokens,
        reported.cache_read_input_tokens,
    )
    written = _first(
        into.cache_write_tokens,
        into.cache_creation_tokens,
        into.created_cache_tokens,
        reported.cache_creation_input_tokens,
    )
    reasoning = _first(out.reasoning_tokens, reported.reasoning_tokens) or 0
    prompt += _beside_input(reported, prompt + output)
    # Counted beside the rest by xAI (reasoning) and by Mistral (audio), and so in nothing but the total.
    rest = (reported.total_tokens or 0) - prompt - output
    if rest > 0 and rest == reasoning:
        output += reasoning
    elif rest > 0 and rest == into.audio_tokens:
        prompt += rest
    total = max(reported.total_tokens or 0, prompt + output)
    if not 0 < total <= MAX_TOKENS:
        return Absence.ABSURD
    cached = min(cached or 0, prompt)
    return Usage(
        input=prompt,
        output=output,
        cached=cached,
        reasoning=min(reasoning, output),
        total=total,
        audio_input=min(into.audio_tokens or 0, prompt),
        audio_output=min(out.audio_tokens or 0, output),
        cache_written=min(written or 0, prompt - cached),
    )


def _beside_input(reported: Reported, counted: int) -> int:
    """Tokens read from the cache or written to it that `input_tokens` is without: so Anthropic counts them.

    vLLM and SGLang count so too on /v1/messages, as of 2026. Where a server says `prompt_tokens` (LiteLLM), gives
    details, or a total that has no room for more, they are a part of it as everywhere else.
    """
    if reported.prompt_tokens or reported.input_tokens_details or reported.input_token_details:
        return 0
    beside = (reported.cache_read_input_tokens or 0) + (reported.cache_creation_input_tokens or 0)
    return 0 if reported.total_tokens is not None and reported.total_tokens < counted + beside else beside


def _first(*counts: int | None) -> int | None:
    """The first that is more than 0, else 0 where any was given: some servers fill both names, one with 0."""
    found = None
    for count in counts:
        if count:
            return count
        found = found if count is None else count
    return found


def _last(earlier: int | None, later: int | None) -> int | None:
    return earlier if later is None else later
