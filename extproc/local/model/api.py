"""What a request may contain: the fields that matter here, their types and their bounds."""

import re
from typing import Any, TypeVar

import msgspec

from extproc.local.model.errors import ApiError, malformed
from extproc.local.model.tokenizer import Message

MAX_CHOICES = 128
MAX_STOP_STRINGS = 4

# msgspec ends a message with where it happened: "... - at `$.messages[0].role`".
_WHERE = re.compile(r" - at `\$\.?([^`.\[]*)[^`]*`$")


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields both endpoints know. All others (temperature, tools, ...) are accepted and ignored."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    seed: Any = None


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[str | dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    prompt: str | list[str]


_RequestT = TypeVar("_RequestT", bound=GenerationRequest)


def parse(body: bytes, content_type: str, kind: type[_RequestT]) -> _RequestT:
    """The request in a body, checked for all that does not depend on the model served.

    Raises:
        ApiError: 400; it is not JSON, a field is missing or has a wrong type, or a bound is broken.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise malformed("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        where = _WHERE.search(str(error))
        raise malformed(str(error), where[1] if where and where[1] else _missing_field(str(error))) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f"The body is not valid JSON: {error}") from error
    _check(request)
    return request


def _missing_field(message: str) -> str | None:
    found = re.fullmatch(r"Object missing required field `(\w+)`", message)
    return found[1] if found else None


def _check(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise malformed("Stream options can only be defined when `stream=True`.", "stream_options")
    if request.n is not None and not 1 <= request.n <= MAX_CHOICES:
        raise ApiError(f"n must be between 1 and {MAX_CHOICES}, got {request.n}.", param="n")
    if request.min_tokens is not None and request.min_tokens < 0:
        message = f"min_tokens must be greater than or equal to 0, got {request.min_tokens}."
        raise ApiError(message, param="min_tokens")
    stop = stop_strings(request)
    if len(stop) > MAX_STOP_STRINGS:
        raise ApiError(f"stop takes up to {MAX_STOP_STRINGS} strings, got {len(stop)}.", param="stop")
    if "" in stop:
        raise ApiError("stop cannot contain an empty string.", param="stop")


def stop_strings(request: GenerationRequest) -> tuple[str, ...]:
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def countable(message: ChatMessage) -> Message:
    """A message reduced to its text. Parts other than text cost nothing but the template.

    Raises:
        ApiError: 400; a text part has no text.
    """
    if message.content is None or isinstance(message.content, str):
        return Message(message.role, message.content or "", plain=not message.tool_calls)
    texts = [_part_text(part) for part in message.content]
    only_text = None not in texts and not message.tool_calls
    return Message(message.role, "\n".join(text for text in texts if text is not None), plain=only_text)


def _part_text(part: str | dict[str, Any]) -> str | None:
    if isinstance(part, str):
        return part
    if part.get("type", "text") != "text":
        return None
    text = part.get("text")
    if not isinstance(text, str):
        raise malformed("A content part of type text needs a string `text`", "messages")
    return text
