"""Reading a JSON answer, or the data of one event of a stream: its usage, and the content that it carries.

Servers put usage in different places. Where there are several, the first that has any counts.
"""

from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.answer.content import (
    MAX_INDEX_BYTES,
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
    read_message,
    text_size,
)
from extproc.core.answer.usage_reader import Absence, Part, counted, read_part, read_usage, together
from extproc.core.quota.usage import Usage


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
        again: the size of text that repeats what came before; it counts where nothing came.
        apart: whether the usage is of that choice alone, its prompt too: there may be others with their own.
    """

    usage: Usage | Absence
    content_bytes: int = 0
    pieces: int = 0
    choices: bool = False
    error: bool = False
    part: Part | None = None
    only_usage: bool = False
    choice: bytes | None = None
    apart: bool = False
    again: int = 0


class _Holder(msgspec.Struct):
    usage: Raw = NOT_GIVEN


class _Output(msgspec.Struct):
    output: Raw = NOT_GIVEN


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
    meta_info: Raw = NOT_GIVEN  # SGLang's own
    # llama.cpp's own, and Ollama's: what others put into usage stands beside the rest.
    index: Raw = NOT_GIVEN
    tokens_evaluated: Raw = NOT_GIVEN
    tokens_predicted: Raw = NOT_GIVEN
    timings: Raw = NOT_GIVEN
    prompt_eval_count: Raw = NOT_GIVEN
    prompt_eval_cached_count: Raw = NOT_GIVEN
    eval_count: Raw = NOT_GIVEN
    thinking: Raw = NOT_GIVEN
    # Errors under a status of 200: MiniMax's, Baidu's, Cloudflare's; Zhipu's and others' with `success: false`.
    success: Raw = NOT_GIVEN
    base_resp: Raw = NOT_GIVEN
    error_code: Raw = NOT_GIVEN
    errors: Raw = NOT_GIVEN


class _Outcome(msgspec.Struct):
    status_code: Raw = NOT_GIVEN


class _Timings(msgspec.Struct):
    cache_n: Raw = NOT_GIVEN


_answer = msgspec.json.Decoder(_Answer)
_answers = msgspec.json.Decoder(list[_Answer])
_timings = msgspec.json.Decoder(_Timings)
_outcome = msgspec.json.Decoder(_Outcome)
_holder = msgspec.json.Decoder(_Holder)
_output = msgspec.json.Decoder(_Output)
_NO_ERROR: Final = (*NOTHING, b"0", b'"0"', b"{}")
_PARTS = (b"message_start", b"message_delta")
_WHOLE: Final = b"response.completed"
_REPEATING: Final = (b".done", _WHOLE)
# White space and a byte order mark: no JSON begins with a part of them, or with another order.
BEFORE_JSON: Final = b" \t\r\n\xef\xbb\xbf"
# A text with more objects is not taken apart at once: what stands for each of them takes time and memory.
MAX_OBJECTS: Final = 512
# So many objects need more bytes.
_SPARSE_BYTES: Final = 2 * MAX_OBJECTS


def is_dense(text: bytes | bytearray) -> bool:
    """Tell whether a text has too many objects for `read_answer`."""
    return len(text) > _SPARSE_BYTES and text.count(b"{") > MAX_OBJECTS


def read_answer(text: bytes) -> Reading:
    """Reads a whole JSON answer or the data of one stream event. Never raises; cost is linear.

    It needs not be told which API the answer is of, nor which server wrote it. The text is not larger than some 64
    KiB and not dense: see `is_dense`.
    """
    if text == b"[DONE]":
        return Reading(Absence.MISSING)
    json = text if text.startswith(b"{") else text.lstrip(BEFORE_JSON)
    if not json.startswith((b"{", b"[")):
        return Reading(Absence.UNREADABLE, content_bytes=len(text), pieces=1)
    try:
        found = _read_list(json) if json.startswith(b"[") else _read(_answer.decode(json))
    except UNREADABLE:
        found = None
    return found or Reading(Absence.UNREADABLE, content_bytes=len(text), pieces=1)


def _read(answer: _Answer) -> Reading:
    kind = b"" if answer.type is NOT_GIVEN else bytes(answer.type)[1:-1]
    choices = NO_CHOICES if answer.choices is NOT_GIVEN else read_choices(bytes(answer.choices))
    content = choices.content if choices.count else _content(answer, kind)
    part = _read_part(answer, kind) if kind in _PARTS else None
    usage = part.usage() if isinstance(part, Part) else part or _find_usage(answer, kind, choices)
    reported = usage is not Absence.MISSING and bytes(answer.usage) not in NOTHING
    choice, apart = choices.only, False
    if usage is Absence.MISSING and not choices.count and not kind:
        usage = _native_usage(answer)
        apart = isinstance(usage, Usage) and 0 < len(bytes(answer.index)) <= MAX_INDEX_BYTES
        choice = bytes(answer.index) if apart else None
    error = _is_error(answer, kind)
    return Reading(
        usage=usage,
        content_bytes=content.size,
        pieces=content.pieces,
        choices=bool(choices.count),
        error=error,
        part=part if isinstance(part, Part) else None,
        only_usage=reported and not (choices.count or content.pieces or error or kind),
        choice=choice,
        apart=apart,
        again=_again(answer, kind, usage) if kind.endswith(_REPEATING) else 0,
    )


def _read_list(text: bytes) -> Reading | None:
    """Several answers as one: so llama.cpp and SGLang answer several prompts. None where not all have usage."""
    readings = [_read(answer) for answer in _answers.decode(text)]
    usages = [reading.usage for reading in readings if isinstance(reading.usage, Usage)]
    if not usages or len(usages) < len(readings):
        return None
    return Reading(
        together(usages),
        content_bytes=sum(reading.content_bytes for reading in readings),
        pieces=sum(reading.pieces for reading in readings),
    )


def _is_error(answer: _Answer, kind: bytes) -> bool:
    if answer.error is not NOT_GIVEN and bytes(answer.error) not in NOTHING:
        return True
    if answer.base_resp is not NOT_GIVEN or answer.error_code is not NOT_GIVEN or answer.errors is not NOT_GIVEN:
        codes = (_status_code(bytes(answer.base_resp)), bytes(answer.error_code), bytes(answer.errors))
        if any(code not in _NO_ERROR for code in codes):
            return True
    if kind in (b"error", b"response.failed") or bytes(answer.object) == b'"error"':
        return True
    return bytes(answer.success) == b"false"


def _status_code(outcome: bytes) -> bytes:
    if outcome in NOTHING:
        return b""
    try:
        return bytes(_outcome.decode(outcome).status_code)
    except UNREADABLE:
        return b""


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
    strings = (raw for raw in (answer.text, answer.response, answer.thinking) if bytes(raw).startswith(b'"'))
    content = measured((answer.content, answer.output, *strings))
    return content if content.pieces else read_message(bytes(answer.message))


def _again(answer: _Answer, kind: bytes, usage: Usage | Absence) -> int:
    """The size of the text in an event that ends a part of a stream, or the whole."""
    if kind != _WHOLE:
        return measured((answer.text,)).size
    return 0 if isinstance(usage, Usage) else _output_size(bytes(answer.response))


def _output_size(response: bytes) -> int:
    try:
        output = bytes(_output.decode(response).output)
    except UNREADABLE:
        return 0
    return 0 if output in NOTHING else text_size(output)


def _find_usage(answer: _Answer, kind: bytes, choices: Choices) -> Usage | Absence:
    """Usage from where servers put it; the first place that has any counts."""
    if answer.usage is not NOT_GIVEN and bytes(answer.usage) not in NOTHING:
        return read_usage(bytes(answer.usage))
    if kind.startswith(b"response."):
        return read_usage(_held(answer.response))
    for place in (_held(answer.x_groq), choices.usage):
        if place not in NOTHING:
            return read_usage(place)
    for raw in (answer.meta, answer.meta_info):
        found = Absence.MISSING if raw is NOT_GIVEN else read_usage(bytes(raw))
        # There is much that is called meta; it is usage where it counts something.
        if isinstance(found, Usage) or found is Absence.OTHER_UNIT:
            return found
    return Absence.MISSING


def _native_usage(answer: _Answer) -> Usage | Absence:
    """llama.cpp's own counts, or Ollama's, which stand beside the rest.

    llama.cpp's `timings.prompt_n` is without what was cached, and `tokens_cached` is what the cache holds
    afterwards: `tokens_evaluated` is all of the prompt. Ollama, too, counts what was cached as a part of it.
    """
    usage = counted(answer.tokens_evaluated, answer.tokens_predicted, _cache_n(answer.timings))
    if usage is not Absence.MISSING:
        return usage
    return counted(answer.prompt_eval_count, answer.eval_count, answer.prompt_eval_cached_count)


def _cache_n(timings: Raw) -> Raw:
    try:
        return NOT_GIVEN if timings is NOT_GIVEN else _timings.decode(timings).cache_n
    except UNREADABLE:
        return NOT_GIVEN


def _held(raw: Raw) -> bytes:
    """The usage inside an object."""
    if raw is NOT_GIVEN:
        return b""
    try:
        return bytes(_holder.decode(raw).usage)
    except UNREADABLE:
        return b""


def _read_part(answer: _Answer, kind: bytes) -> Part | Absence:
    return read_part(_held(answer.message) if kind == b"message_start" else bytes(answer.usage))
