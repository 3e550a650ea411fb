"""Usage with bounds: out of what a server reported; and what stands in when it reported none.

Every API, and many a server that speaks one of them, writes usage in a way of its own. What decides is the names
of the counts, never the endpoint: a gateway behind us may answer one API in the shape of another.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from msgspec import Raw, convert
from msgspec.structs import asdict, astuple

from extproc.core.answer.content import NOT_GIVEN, NOTHING, UNREADABLE
from extproc.core.answer.reported import (
    InputDetails,
    OddTotal,
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
    ABSURD = "absurd"  # negative, NaN, a string, out of bounds, or zero for an answer with content
    UNREADABLE = "unreadable"  # not JSON, cut off, or too large
    OTHER_UNIT = "other_unit"  # seconds of audio, searches, images: no tokens


class DoubtfulUsage(Usage, frozen=True):
    """Usage that lacks a count or contradicts itself: at least `input` went in, and at most `most_input`."""

    most_input: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """Usage that a stream gives in parts (Anthropic's): None is what this event does not say.

    `input` is without what was read from the cache or written to it, as Anthropic counts.
    """

    input: int | None
    output: int | None
    cached: int | None
    cache_written: int | None
    reasoning: int | None = None

    def after(self, earlier: "Part") -> "Part":
        """Both as one: of each count the last that was given. What was there once does not become none.

        Servers mean different things by one name, in one stream: an input with the cached part and then one
        without, or the cached part of an input that came whole. The sum is never more than one event says, unless
        each of them says what the other is silent about.
        """
        into, cached, written = self._input_after(earlier)
        return Part(into, self.output or earlier.output, cached, written, _last(earlier.reasoning, self.reasoning))

    def _input_after(self, earlier: "Part") -> tuple[int | None, int | None, int | None]:
        """Input, cached and written to the cache of both parts together."""
        if not self.read:
            return earlier.input, earlier.cached, earlier.cache_written
        if not self.cache:
            # As much as all before: now it is the whole.
            input_ = (self.input or 0) - (earlier.cache if (self.input or 0) >= earlier.read else 0)
            return input_, earlier.cached, earlier.cache_written
        if not self.input and not earlier.cache:
            # The input came whole. What is said now is which part of it was cached.
            rest = None if earlier.input is None else max(0, earlier.input - self.cache)
            return rest, self.cached, self.cache_written
        return (
            self.input or earlier.input,
            self.cached or self._kept(earlier.cached, earlier, self.cache_written, earlier.cache_written),
            self.cache_written or self._kept(earlier.cache_written, earlier, self.cached, earlier.cached),
        )

    def _kept(self, count: int | None, earlier: "Part", other: int | None, other_before: int | None) -> int | None:
        """A count of the cache that only the earlier part has: kept, unless the other one has taken its place."""
        whole = (self.input or earlier.input or 0) + self.cache + (count or 0)
        return count if whole <= earlier.read or (not self.input and other and not other_before) else 0

    def usage(self) -> Usage | Absence:
        cached, written = self.cached or 0, self.cache_written or 0
        prompt, output = self.read, self.output or 0
        total = prompt + output
        if not total:
            return Absence.MISSING
        if total > MAX_TOKENS:
            return Absence.ABSURD
        reasoning = min(self.reasoning or 0, output)
        usage = Usage(prompt, output, cached, reasoning, total, cache_written=written)
        return _doubted(usage, MAX_TOKENS) if prompt and self.input is None else usage

    @property
    def cache(self) -> int:
        """The tokens that were read from the cache or written to it."""
        return (self.cached or 0) + (self.cache_written or 0)

    @property
    def read(self) -> int:
        """All tokens that went in."""
        return (self.input or 0) + self.cache


# A total of fractions, rounded up, may be less than its parts, each rounded up.
_ROUNDED: Final = 2
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
    if isinstance(reported, OddTotal):
        return Absence.ABSURD  # a part of usage has nothing that could be marked
    part = Part(
        _first(reported.input_tokens, reported.prompt_tokens),
        _first(reported.output_tokens, reported.completion_tokens),
        reported.cache_read_input_tokens,
        reported.cache_creation_input_tokens,
        _reasoning(reported),
    )
    if part.input and part.cache and not _beside_input(reported, part.input + (part.output or 0)):
        return replace(part, input=max(0, part.input - part.cache))  # they are a part of it
    return part


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
    total = Usage(*map(sum, zip(*map(_counts, usages), strict=True)))
    return total if total.total <= MAX_TOKENS else Absence.ABSURD


def exchanged(summed: Usage, earlier: Usage, later: Usage) -> Usage:
    """The sum with one of its parts exchanged. It may be more than MAX_TOKENS."""
    return Usage(*map(_exchange, _counts(summed), _counts(earlier), _counts(later)))


def _counts(usage: Usage) -> tuple[int, ...]:
    return astuple(usage)[: len(Usage.__struct_fields__)]


def _exchange(summed: int, earlier: int, later: int) -> int:
    return summed - earlier + later


def _usage(reported: Reported) -> Usage | Absence:
    """The counts of one usage object, brought to one meaning."""
    into = reported.prompt_tokens_details or reported.input_tokens_details
    into = into or reported.input_token_details or reported.prompt_token_details
    out = reported.completion_tokens_details or reported.output_tokens_details or reported.output_token_details
    into, out = into or _NO_INPUT_DETAILS, out or _NO_OUTPUT_DETAILS
    told_output = _first(reported.completion_tokens, reported.output_tokens)
    told_prompt = _first(reported.prompt_tokens, reported.input_tokens)
    output, prompt, total = told_output or 0, told_prompt or 0, reported.total_tokens or 0
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
    reasoning = _reasoning(reported) or 0
    prompt += _beside_input(reported, prompt + output)
    # Counted beside the rest by xAI (reasoning) and by Mistral (audio), and so in nothing but the total.
    rest = total - prompt - output
    if rest > 0 and rest == reasoning:
        output += reasoning
    elif rest > 0 and rest == into.audio_tokens:
        prompt += rest
    elif rest > 0 and output and not prompt:  # rerank says no more than a total
        prompt = rest
    elif rest > 0 and prompt and told_output is None:
        output = rest
    cached = cached or 0
    if cached > prompt and total == prompt + cached + output:
        prompt += cached  # counted beside it, as Anthropic does
    went_in, most = max(prompt, cached), None
    if cached > prompt:
        most = prompt + cached if prompt else MAX_TOKENS
    elif prompt and told_prompt is None and not total:
        most = MAX_TOKENS  # what was cached is all that is known of it
    elif _has_wrong_total(reported, prompt, output):
        most = prompt
    total = max(total, went_in + output)
    if not 0 < total <= MAX_TOKENS:
        return Absence.ABSURD
    usage = Usage(
        input=went_in,
        output=output,
        cached=cached,
        reasoning=min(reasoning, output),
        total=total,
        audio_input=min(into.audio_tokens or 0, went_in),
        audio_output=min(out.audio_tokens or 0, output),
        cache_written=min(written or 0, went_in - cached),
    )
    return usage if most is None else _doubted(usage, most)


def _has_wrong_total(reported: Reported, prompt: int, output: int) -> bool:
    """Return whether the total is no count, or less than these parts."""
    if isinstance(reported, OddTotal):
        return prompt > 0
    return bool(reported.total_tokens) and (reported.total_tokens or 0) + _ROUNDED < prompt + output


def _reasoning(reported: Reported) -> int | None:
    out = reported.completion_tokens_details or reported.output_tokens_details or reported.output_token_details
    out = out or _NO_OUTPUT_DETAILS
    return _first(out.reasoning_tokens, out.thinking_tokens, reported.reasoning_tokens)


def _doubted(usage: Usage, most_input: int) -> DoubtfulUsage:
    return convert(asdict(usage) | {"most_input": most_input}, DoubtfulUsage)


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
