"""What an answer generated, measured: its bytes as JSON text, and the pieces that it came in.

An estimate needs no more than that, and a stream that is cut off has nothing better. Text is measured where the
APIs put it: in the choices of chat completions and completions, in the blocks of Anthropic's messages, in the
deltas of Responses, transcriptions and speech. What only repeats text that came before (`...done`,
`response.completed`) does not count again.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw

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


_choices = msgspec.json.Decoder(list[_Choice])
_message = msgspec.json.Decoder(_Text)
_block = msgspec.json.Decoder(_Block)


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
    return measured((block.text, block.thinking, block.partial_json, block.data))


def read_delta(delta: bytes, text: bytes, audio: bytes) -> Content:
    """Measures an event whose type ends with `.delta`. Encoded audio is a piece; its size tells nothing."""
    written = measured((delta, text))
    return written if written.pieces or audio in NOTHING else Content(0, 1)


def measured(fields: Iterable[Raw | bytes]) -> Content:
    """The size of all `fields` together, strings without their quotes: one piece where there is any."""
    size = 0
    for raw in fields:
        if raw is NOT_GIVEN:
            continue
        field = bytes(raw)
        if field not in NOTHING:
            size += len(field) - 2 * field.startswith(b'"')
    return Content(size, 1) if size else NO_CONTENT


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
            said.tool_calls,
            said.function_call,
            NOT_GIVEN if said.audio is None else said.audio.transcript,
        )
    )
    if not content.pieces and said.audio is not None and bytes(said.audio.data) not in NOTHING:
        return Content(0, 1)
    return content
