"""What an answer generated, measured: its bytes as JSON text, and the pieces that it came in.

An estimate needs no more than that, and a stream that is cut off has nothing better. Text is measured where the
APIs put it: in the choices of chat completions and completions, in the blocks of Anthropic's messages, in the
deltas of Responses, transcriptions and speech. Of a call of a tool its name and its arguments count. What only
repeats text that came before (`...done`, `response.completed`) counts only where none came.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.answer.json_scan import JsonScan

NOT_GIVEN: Final = Raw()  # the value of a field that was not; one that was has another object
NOTHING: Final = (b"", b"null", b'""', b"[]")
# More than the log probabilities of a long answer have.
_MAX_OBJECTS: Final = 1 << 18
UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)
# An index is a small number; a longer one is somebody's joke, and would be kept.
MAX_INDEX_BYTES: Final = 6


class Content(msgspec.Struct, frozen=True):
    """`size` is in bytes, `pieces` in choices, blocks or deltas that carried any."""

    size: int = 0
    pieces: int = 0


NO_CONTENT: Final = Content()


class Choices(msgspec.Struct, frozen=True):
    """The choices of an answer or a chunk: how many, what they carry, and the usage that Moonshot puts inside.

    `only` is the index of the choice where there is exactly one.
    """

    count: int = 0
    content: Content = NO_CONTENT
    usage: bytes = b""
    only: bytes | None = None


NO_CHOICES: Final = Choices()


class _Audio(msgspec.Struct):
    data: Raw = NOT_GIVEN
    transcript: Raw = NOT_GIVEN


class _Text(msgspec.Struct):
    content: Raw = NOT_GIVEN
    reasoning: Raw = NOT_GIVEN
    reasoning_content: Raw = NOT_GIVEN
    thinking: Raw = NOT_GIVEN  # Ollama's own
    refusal: Raw = NOT_GIVEN
    tool_calls: Raw = NOT_GIVEN
    function_call: Raw = NOT_GIVEN
    audio: _Audio | None = None


class _Tool(msgspec.Struct):
    name: Raw = NOT_GIVEN
    arguments: Raw = NOT_GIVEN
    input: Raw = NOT_GIVEN


class _Call(msgspec.Struct):
    function: _Tool | None = None
    custom: _Tool | None = None


class _Choice(msgspec.Struct):
    index: Raw = NOT_GIVEN
    delta: _Text | None = None
    message: _Text | None = None
    text: Raw = NOT_GIVEN
    usage: Raw = NOT_GIVEN


class _Block(msgspec.Struct):
    text: Raw = NOT_GIVEN
    thinking: Raw = NOT_GIVEN
    partial_json: Raw = NOT_GIVEN
    data: Raw = NOT_GIVEN  # of thinking that is not shown
    name: Raw = NOT_GIVEN  # of a tool, with its input
    input: Raw = NOT_GIVEN
    content: Raw = NOT_GIVEN  # a string: what compacts the context; a list: what a tool found


_choices = msgspec.json.Decoder(list[_Choice])
_message = msgspec.json.Decoder(_Text)
_block = msgspec.json.Decoder(_Block)
_tool = msgspec.json.Decoder(_Tool)
_calls = msgspec.json.Decoder(list[_Call])


def read_choices(text: bytes) -> Choices:
    """Measures `choices`. What has a shape that we don't know counts whole, as one piece."""
    if text in NOTHING:
        return NO_CHOICES
    if text.count(b"{") > _MAX_OBJECTS:
        return Choices(1, Content(len(text), 1))  # to build as many would keep others waiting
    try:
        choices = _choices.decode(text)
    except UNREADABLE:
        return Choices(1, Content(len(text), 1))
    if len(choices) == 1:  # what nearly every chunk has
        choice = choices[0]
        index = bytes(choice.index)
        only = index if len(index) <= MAX_INDEX_BYTES else None
        usage = b"" if choice.usage is NOT_GIVEN else bytes(choice.usage)
        return Choices(1, _content(choice), usage, only)
    contents = [_content(choice) for choice in choices]
    usages = [bytes(choice.usage) for choice in choices if bytes(choice.usage) not in NOTHING]
    content = Content(sum(content.size for content in contents), sum(content.pieces for content in contents))
    return Choices(len(choices), content, usages[-1] if usages else b"")


def read_block(text: bytes) -> Content:
    """Measures a block of Anthropic's, or a delta of one. A signature is no content."""
    if text in NOTHING:
        return NO_CONTENT
    try:
        block = _block.decode(text)
    except UNREADABLE:
        return Content(len(text), 1)
    summary = block.content if bytes(block.content).startswith(b'"') else NOT_GIVEN
    called = NOT_GIVEN if bytes(block.input) == b"{}" else block.input  # it comes in the deltas
    content = measured((block.text, block.thinking, block.partial_json, block.name, called, summary))
    # Encrypted thinking is a piece; its size tells nothing.
    return content if content.pieces or bytes(block.data) in NOTHING else Content(0, 1)


def read_delta(delta: bytes, text: bytes, audio: bytes) -> Content:
    """Measures an event whose type ends with `.delta`. Encoded audio is a piece; its size tells nothing."""
    written = measured((delta, text))
    return written if written.pieces or audio in NOTHING else Content(0, 1)


def measured(fields: Iterable[Raw | bytes]) -> Content:
    """The size of all `fields` together, strings without their quotes: one piece where there is any.

    Of an array or object the text in it counts, and all of it where there is none.
    """
    size = 0
    for raw in fields:
        if raw is NOT_GIVEN:
            continue
        field = bytes(raw)
        if field not in NOTHING:
            size += len(field) - 2 if field.startswith(b'"') else text_size(field)
    return Content(size, 1) if size else NO_CONTENT


def text_size(value: bytes) -> int:
    """The size of the text in a JSON value: of what was generated, not of names, ids, pictures and found pages."""
    scan = JsonScan()
    scan.feed(b'{"choices":%b}' % value)
    holds_other = scan.media_bytes or scan.sealed_bytes
    return scan.text.size or (1 if holds_other else len(value))


def read_message(text: bytes) -> Content:
    """Measures a message that stands alone, as Ollama and Cohere write it. A string is a notice, no content."""
    if not text.startswith(b"{"):
        return NO_CONTENT
    try:
        return _said(_message.decode(text))
    except UNREADABLE:
        return Content(len(text), 1)


def _content(choice: _Choice) -> Content:
    said = choice.delta or choice.message
    return measured((choice.text,)) if said is None else _said(said)


def _said(said: _Text) -> Content:
    content = measured(
        (
            said.content,
            said.reasoning,
            said.reasoning_content,
            said.thinking,
            said.refusal,
            NOT_GIVEN if said.audio is None else said.audio.transcript,
        )
    )
    if said.tool_calls is not NOT_GIVEN or said.function_call is not NOT_GIVEN:
        size = content.size + _called(bytes(said.tool_calls)) + _called_once(bytes(said.function_call))
        content = Content(size, int(size > 0))
    if not content.pieces and said.audio is not None and bytes(said.audio.data) not in NOTHING:
        return Content(0, 1)
    return content


def _called(calls: bytes) -> int:
    """The size of the names and arguments of calls of tools; of what has another shape, all of it."""
    if calls in NOTHING:
        return 0
    try:
        decoded = _calls.decode(calls)
    except UNREADABLE:
        return len(calls)
    size = 0
    for call in decoded:
        if call.function is not None:
            size += _tool_size(call.function)
        if call.custom is not None:
            size += _tool_size(call.custom)
    return size


def _called_once(call: bytes) -> int:
    if call in NOTHING:
        return 0
    try:
        return _tool_size(_tool.decode(call))
    except UNREADABLE:
        return len(call)


def _tool_size(tool: _Tool) -> int:
    size = 0
    for raw in (tool.name, tool.arguments, tool.input):
        if raw is not NOT_GIVEN:
            field = bytes(raw)
            size += 0 if field in NOTHING else len(field) - 2 * field.startswith(b'"')
    return size
