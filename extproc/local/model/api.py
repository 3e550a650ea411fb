"""Define the request fields that matter here, with their types and bounds."""

import re
from typing import Any, TypeVar

import msgspec

from extproc.local.model.errors import ApiError, malformed
from extproc.local.model.tokenizer import Message

MAX_CHOICES = 128
MAX_STOP_STRINGS = 4

# msgspec ends a message with the place of the error: "... - at `$.messages[0].role`".
_WHERE = re.compile(r" - at `\$\.?([^`.\[]*)[^`]*`$")

# The content parts whose text is read: those of OpenAI's chats, Anthropic's blocks, and Responses.
_TEXT_PARTS = {"text", "input_text", "output_text"}


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the one field of all requests. Unknown fields (temperature, tools, ...) are accepted and ignored."""

    model: str


class GenerationRequest(ModelRequest, frozen=True, kw_only=True):
    """Hold the fields of all requests that generate text; the last three are vLLM's own."""

    stream: bool | None = None
    seed: Any = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ChoicesRequest(GenerationRequest, frozen=True, kw_only=True):
    """Hold the fields of chats and completions."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[str | dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None


class ChatRequest(ChoicesRequest, frozen=True, kw_only=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None


class CompletionRequest(ChoicesRequest, frozen=True, kw_only=True):
    prompt: str | list[str | int | list[int]]
    best_of: int | None = None


_RequestT = TypeVar("_RequestT")


def parse(body: bytes, content_type: str, kind: type[_RequestT]) -> _RequestT:
    """Return the request in a body, with fields of the right types.

    Raises:
        ApiError: 400; it is not JSON, a field is missing or has a wrong type.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise malformed("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        where = _WHERE.search(str(error))
        raise malformed(str(error), where[1] if where and where[1] else _missing_field(str(error))) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f"The body is not valid JSON: {error}") from error


def _missing_field(message: str) -> str | None:
    found = re.fullmatch(r"Object missing required field `(\w+)`", message)
    return found[1] if found else None


def check_choices(request: ChoicesRequest) -> None:
    """Check the bounds of a chat or completion that do not depend on the served model.

    Raises:
        ApiError: 400; a value is out of its bounds.
    """
    if request.stream_options is not None and not request.stream:
        raise malformed("Stream options can only be defined when `stream=True`.", "stream_options")
    check_count(request.n, "n")


def check_count(count: int | None, param: str) -> None:
    """Check the number of choices.

    Raises:
        ApiError: 400; less than one, or too many.
    """
    if count is not None and not 1 <= count <= MAX_CHOICES:
        raise ApiError(f"{param} must be between 1 and {MAX_CHOICES}, got {count}.", param=param)


def check_stop(stop: tuple[str, ...], param: str) -> tuple[str, ...]:
    """Return the stop strings unchanged.

    Raises:
        ApiError: 400; too many, or an empty one.
    """
    if len(stop) > MAX_STOP_STRINGS:
        raise ApiError(f"{param} takes up to {MAX_STOP_STRINGS} strings, got {len(stop)}.", param=param)
    if "" in stop:
        raise ApiError(f"{param} cannot contain an empty string.", param=param)
    return stop


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def token_inputs(given: str | list[str | int | list[int]], param: str) -> list[str | list[int]]:
    """Return the inputs, each a text or tokens: a list of numbers is one input, a list of lists is several.

    Raises:
        ApiError: 400; there is none, one is empty, or the kinds are mixed.
    """
    if isinstance(given, str):
        inputs: list[str | list[int]] = [given]
    elif numbers := [item for item in given if isinstance(item, int)]:
        inputs = [numbers]
        if len(numbers) != len(given):
            raise malformed(f"{param} mixes tokens with something else.", param)
    else:
        inputs = [item for item in given if not isinstance(item, int)]
        if len({type(item) for item in inputs}) > 1:
            raise malformed(f"{param} mixes texts and tokens.", param)
    if not inputs or not all(inputs):
        raise malformed(f"{param} must be provided and non-empty.", param)
    return inputs


def countable(message: ChatMessage, param: str = "messages") -> Message:
    """Return a message reduced to its text. Other parts cost nothing but the template.

    Raises:
        ApiError: 400; a text part has no text.
    """
    if message.content is None or isinstance(message.content, str):
        return Message(message.role, message.content or "", plain=not message.tool_calls)
    texts = [_part_text(part, param) for part in message.content]
    only_text = None not in texts and not message.tool_calls
    return Message(message.role, "\n".join(text for text in texts if text is not None), plain=only_text)


def _part_text(part: str | dict[str, Any], param: str) -> str | None:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        return None
    text = part.get("text")
    if not isinstance(text, str):
        raise malformed(f"A content part of type {kind} needs a string `text`", param)
    return text
