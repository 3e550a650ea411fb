"""Usage with bounds: out of a JSON answer, out of one event of a stream; and what stands in when there is none."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw

from extproc.core.requests import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one exchange, each 0 <= n <= MAX_TOKENS. `cached` is a part of `input`, `reasoning` of `output`.

    `total` is what the upstream called total, but never less than input + output: a server whose total is
    smaller contradicts itself.
    """

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    total: int = 0


NO_USAGE: Final = Usage(0, 0)


class Absence(StrEnum):
    """Why an answer has no usage to settle on."""

    MISSING = "missing"
    ABSURD = "absurd"  # negative, fractional, NaN, a string, out of bounds, or zero for an answer with content
    UNREADABLE = "unreadable"  # not JSON, cut off, or too large


@dataclass(frozen=True, slots=True)
class Reading:
    """What one JSON answer or one stream event said.

    `content_bytes` is the size of what was generated, as JSON text; `pieces` counts the choices that carried
    some. `choices` says whether there is any choice at all: usage without one is the usage chunk of a stream.
    """

    usage: Usage | Absence
    content_bytes: int = 0
    pieces: int = 0
    choices: bool = False
    error: bool = False


_Count = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class _InputDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Answer(msgspec.Struct):
    usage: Raw = Raw()
    choices: Raw = Raw()
    error: Raw = Raw()


class _Text(msgspec.Struct):
    content: Raw = Raw()
    reasoning: Raw = Raw()
    reasoning_content: Raw = Raw()
    refusal: Raw = Raw()
    tool_calls: Raw = Raw()
    function_call: Raw = Raw()


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None


_answer = msgspec.json.Decoder(_Answer)
_usage = msgspec.json.Decoder(_Usage)
_choices = msgspec.json.Decoder(list[_Choice])
_NOTHING = (b"", b"null", b'""', b"[]")
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeError)


def read_answer(text: bytes) -> Reading:
    """Reads a whole JSON answer or the data of one stream event. Never raises; cost is linear."""
    try:
        answer = _answer.decode(text)
    except _UNREADABLE:
        return Reading(Absence.UNREADABLE, content_bytes=len(text), pieces=1)
    sizes = _sizes(bytes(answer.choices))
    return Reading(
        usage=_read_usage(answer.usage),
        content_bytes=sum(sizes),
        pieces=sum(1 for size in sizes if size),
        choices=bool(sizes),
        error=bytes(answer.error) not in _NOTHING,
    )


def estimated_output(content_bytes: int, pieces: int, bytes_per_token: int) -> int:
    """Output tokens of an answer that did not tell, at least 1 where there was content.

    Servers send about one token in a piece of a stream; those that send more are caught by the bytes.
    """
    return min(MAX_TOKENS, max(pieces, -(-content_bytes // bytes_per_token)))


def _read_usage(raw: Raw) -> Usage | Absence:
    if bytes(raw) in _NOTHING:
        return Absence.MISSING
    try:
        read = _usage.decode(raw)
    except _UNREADABLE:
        return Absence.ABSURD
    output = read.completion_tokens or 0
    total = max(read.total_tokens or 0, read.prompt_tokens + output)
    if not 0 < total <= MAX_TOKENS:
        return Absence.ABSURD
    input_details, output_details = read.prompt_tokens_details, read.completion_tokens_details
    return Usage(
        input=read.prompt_tokens,
        output=output,
        cached=min((input_details and input_details.cached_tokens) or 0, read.prompt_tokens),
        reasoning=min((output_details and output_details.reasoning_tokens) or 0, output),
        total=total,
    )


def _sizes(choices: bytes) -> list[int]:
    """The size of each choice's content."""
    if choices in _NOTHING:
        return []
    try:
        return [_size(choice.delta or choice.message) for choice in _choices.decode(choices)]
    except _UNREADABLE:
        return [len(choices)]  # of a shape that we don't know: all of it counts


def _size(text: _Text | None) -> int:
    if text is None:
        return 0
    fields = (
        text.content,
        text.reasoning,
        text.reasoning_content,
        text.refusal,
        text.tool_calls,
        text.function_call,
    )
    written = [field for field in map(bytes, fields) if field not in _NOTHING]
    return sum(len(field) - 2 * field.startswith(b'"') for field in written)  # a string without its quotes
