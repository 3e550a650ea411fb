"""Usage with bounds: out of any JSON answer, out of any event of a stream; and what stands in when there is none.

Every API, and many a server that speaks one of them, writes usage in a way of its own. What decides is the names
of the counts, never the endpoint: a gateway behind us may answer one API in the shape of another.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.content import (
    NO_CHOICES,
    NO_CONTENT,
    NOT_GIVEN,
    NOTHING,
    UNREADABLE,
    Choices,
    Content,
    measured,
    read_block,
    read_choices,
    read_delta,
)
from extproc.core.reported import InputDetails, OutputDetails, Reported, decode_reported
from extproc.core.requests import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one exchange, each 0 <= n <= MAX_TOKENS.

    `cached`, `cache_written` and `audio_input` are parts of `input`; `reasoning` and `audio_output` of `output`.
    `total` is what the upstream called total, but never less than input + output: a server whose total is smaller
    contradicts itself. Where it is larger (thinking that Gemini counts nowhere else), the rest belongs to neither.
    """

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    total: int = 0
    audio_input: int = 0
    audio_output: int = 0
    cache_written: int = 0


NO_USAGE: Final = Usage(0, 0)


class Absence(StrEnum):
    """Why an answer has no usage to settle on."""

    MISSING = "missing"
    ABSURD = "absurd"  # negative, fractional, NaN, a string, out of bounds, or zero for an answer with content
    UNREADABLE = "unreadable"  # not JSON, cut off, or too large
    OTHER_UNIT = "other_unit"  # seconds of audio, searches: no tokens


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


class Reading(msgspec.Struct, frozen=True):
    """What one JSON answer or one stream event said.

    Attributes:
        usage: what it reported, or why there is nothing.
        content_bytes: the size of what was generated, as JSON text.
        pieces: the choices, blocks or deltas that carried some.
        choices: whether there is any choice at all.
        error: whether it tells of an error.
        part: usage of an event that gives only a part of the stream's; `usage` is then this part alone.
        only_usage: whether it carries usage and nothing else: the chunk that `include_usage` asks for.
        choice: the index of the choice, as JSON text, where there is exactly one.
    """

    usage: Usage | Absence
    content_bytes: int = 0
    pieces: int = 0
    choices: bool = False
    error: bool = False
    part: Part | None = None
    only_usage: bool = False
    choice: bytes | None = None


class _Holder(msgspec.Struct):
    usage: Raw = NOT_GIVEN


class _Answer(msgspec.Struct):
    usage: Raw = NOT_GIVEN
    choices: Raw = NOT_GIVEN
    error: Raw = NOT_GIVEN
    type: Raw = NOT_GIVEN
    object: Raw = NOT_GIVEN
    delta: Raw = NOT_GIVEN
    text: Raw = NOT_GIVEN
    audio: Raw = NOT_GIVEN
    content_block: Raw = NOT_GIVEN
    content: Raw = NOT_GIVEN
    output: Raw = NOT_GIVEN
    message: Raw = NOT_GIVEN
    response: Raw = NOT_GIVEN
    x_groq: Raw = NOT_GIVEN
    meta: Raw = NOT_GIVEN


_answer = msgspec.json.Decoder(_Answer)
_holder = msgspec.json.Decoder(_Holder)
_NO_INPUT_DETAILS: Final = InputDetails()
_NO_OUTPUT_DETAILS: Final = OutputDetails()
_PARTS = (b"message_start", b"message_delta")


def read_answer(text: bytes) -> Reading:
    """Reads a whole JSON answer or the data of one stream event. Never raises; cost is linear.

    It needs not be told which API the answer is of, nor which server wrote it.
    """
    if text == b"[DONE]":
        return Reading(Absence.MISSING)
    try:
        answer = _answer.decode(text)
    except UNREADABLE:
        return Reading(Absence.UNREADABLE, content_bytes=len(text), pieces=1)
    kind = b"" if answer.type is NOT_GIVEN else bytes(answer.type)[1:-1]
    choices = NO_CHOICES if answer.choices is NOT_GIVEN else read_choices(bytes(answer.choices))
    content = choices.content if choices.count else _content(answer, kind)
    part = _read_part(answer, kind) if kind in _PARTS else None
    usage = part.usage() if isinstance(part, Part) else part or _find_usage(answer, kind, choices)
    error = _is_error(answer, kind)
    reported = usage is not Absence.MISSING and bytes(answer.usage) not in NOTHING
    return Reading(
        usage=usage,
        content_bytes=content.size,
        pieces=content.pieces,
        choices=bool(choices.count),
        error=error,
        part=part if isinstance(part, Part) else None,
        only_usage=reported and not (choices.count or content.pieces or error or kind),
        choice=choices.only,
    )


def estimated_output(content_bytes: int, pieces: int, bytes_per_token: int) -> int:
    """Output tokens of an answer that did not tell, at least 1 where there was content.

    Servers send about one token in a piece of a stream; those that send more are caught by the bytes.
    """
    return min(MAX_TOKENS, max(pieces, -(-content_bytes // bytes_per_token)))


def _is_error(answer: _Answer, kind: bytes) -> bool:
    if answer.error is not NOT_GIVEN and bytes(answer.error) not in NOTHING:
        return True
    return kind in (b"error", b"response.failed") or bytes(answer.object) == b'"error"'


def _content(answer: _Answer, kind: bytes) -> Content:
    """The content of what has no choices."""
    if kind == b"content_block_delta":
        return read_block(bytes(answer.delta))
    if kind == b"content_block_start":
        return read_block(bytes(answer.content_block))
    if kind.endswith(b".delta"):
        return read_delta(bytes(answer.delta), bytes(answer.text), bytes(answer.audio))
    if kind not in (b"", b"message"):
        return NO_CONTENT
    strings = (raw for raw in (answer.text, answer.response) if bytes(raw).startswith(b'"'))
    return measured((answer.content, answer.output, *strings))


def _find_usage(answer: _Answer, kind: bytes, choices: Choices) -> Usage | Absence:
    """Usage from where servers put it; the first place that has any counts."""
    if answer.usage is not NOT_GIVEN and bytes(answer.usage) not in NOTHING:
        return _read_usage(bytes(answer.usage))
    if kind.startswith(b"response."):
        return _read_usage(_held(answer.response))
    for place in (_held(answer.x_groq), choices.usage):
        if place not in NOTHING:
            return _read_usage(place)
    if answer.meta is NOT_GIVEN:
        return Absence.MISSING
    found = _read_usage(bytes(answer.meta))
    # There is much that is called meta; it is usage where it counts something.
    return found if isinstance(found, Usage) or found is Absence.OTHER_UNIT else Absence.MISSING


def _held(raw: Raw) -> bytes:
    """The usage inside an object."""
    if raw is NOT_GIVEN:
        return b""
    try:
        return bytes(_holder.decode(raw).usage)
    except UNREADABLE:
        return b""


def _read_part(answer: _Answer, kind: bytes) -> Part | Absence:
    raw = _held(answer.message) if kind == b"message_start" else bytes(answer.usage)
    if raw in NOTHING:
        return Absence.MISSING
    try:
        reported = decode_reported(raw)
    except UNREADABLE:
        return Absence.ABSURD
    return Part(
        _first(reported.input_tokens, reported.prompt_tokens),
        _first(reported.output_tokens, reported.completion_tokens),
        reported.cache_read_input_tokens,
        reported.cache_creation_input_tokens,
    )


def _read_usage(text: bytes) -> Usage | Absence:
    if text in NOTHING:
        return Absence.MISSING
    try:
        reported = decode_reported(text)
        if reported.counts_nothing:
            inner = next(
                (raw for raw in (reported.tokens, reported.billed_units) if bytes(raw) not in NOTHING), None
            )
            reported = reported if inner is None else decode_reported(inner)
    except UNREADABLE:
        return Absence.ABSURD
    if reported.counts_nothing:
        elsewhere = any(bytes(raw) not in NOTHING for raw in (reported.seconds, reported.search_units))
        return Absence.OTHER_UNIT if elsewhere else Absence.ABSURD
    return _usage(reported)


def _usage(reported: Reported) -> Usage | Absence:
    """The counts of one usage object, brought to one meaning."""
    into = reported.prompt_tokens_details or reported.input_tokens_details or reported.input_token_details
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
