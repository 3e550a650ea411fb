"""Request body -> `RequestFacts`, or what is wrong with it; and the body that goes upstream.

Only what is metered is read; everything else is the upstream's to judge. A field that is read is read strictly:
a server that takes `"stream": "true"` for true must not make us believe that there is no stream.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from extproc.core import jsonkeys

# One request may ask for at most this many tokens per choice (product bound) ...
MAX_TOKENS: Final = 10_000_000
# ... and for as many choices as the most permissive server takes (vLLM's default cap).
MAX_CHOICES: Final = 16_384
MAX_MODEL_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What admission and metering need to know of a request.

    `output_bound` is tokens per choice, None where the client gave none. `prompt_bytes` is the size of all that
    becomes prompt, media left out; `media_parts` counts images and audio that the body carries or names.
    """

    model: str
    stream: bool
    choices: int
    output_bound: int | None
    prompt_bytes: int
    media_parts: int
    wants_usage: bool


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that can't be metered: what the client reads. `param` names the field, None for the body."""

    message: str
    param: str | None = None
    code: str = "invalid_value"


class _Chat(msgspec.Struct):
    model: Raw = Raw()
    messages: Raw = Raw()
    stream: Raw = Raw()
    stream_options: Raw = Raw()
    max_tokens: Raw = Raw()
    max_completion_tokens: Raw = Raw()
    n: Raw = Raw()
    tools: Raw = Raw()
    functions: Raw = Raw()
    response_format: Raw = Raw()
    # vLLM's: what they hold becomes prompt as well.
    documents: Raw = Raw()
    chat_template: Raw = Raw()
    chat_template_kwargs: Raw = Raw()


_Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
_Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
_Model = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]

_tokens = msgspec.json.Decoder(_Tokens | None).decode
_choices = msgspec.json.Decoder(_Choices | None).decode
_flag = msgspec.json.Decoder(bool | None).decode
_model = msgspec.json.Decoder(_Model).decode
_object = msgspec.json.Decoder(dict[str, Raw] | None)

_TOKENS_RULE = f"an integer from 1 to {MAX_TOKENS}"
_READ: Final = frozenset(_Chat.__struct_fields__)
_OPTIONS: Final = frozenset({"include_usage", "continuous_usage_stats"})
_OMITTED: Final = (b"", b"null")
_PROMPT: Final = ("tools", "functions", "response_format", "documents", "chat_template", "chat_template_kwargs")
# Fields that we don't know may become prompt too: what such a body has beyond this is counted.
_SMALL_FIELDS_BYTES: Final = 1024
# Images and audio that a body carries or names. Within a string each quote is escaped, so a key with bare quotes
# is a key: text that looks like this inside a message is text.
_MEDIA_PART = re.compile(rb'"(?:image_url|input_audio|audio_url|video_url|file)"\s{0,8}:')
_MEDIA = re.compile(
    rb'"(?:url|data|file_data)"\s{0,8}:\s{0,8}"(?:data:[\w.+/;=-]{0,64}?;base64,)?[A-Za-z0-9+/=_-]{256,}+"'
)


class _FieldError(Exception):
    def __init__(self, param: str, rule: str) -> None:
        self.malformed = Malformed(f"'{param}' must be {rule}.", param)


def read_chat(body: bytes) -> RequestFacts | Malformed:
    """The facts of a chat completion's body, or the first thing that is wrong with it. Never raises."""
    raw = _envelope(body)
    if isinstance(raw, Malformed):
        return raw
    try:
        return _facts(raw, len(body))
    except _FieldError as error:
        return error.malformed


def with_usage(body: bytes) -> bytes:
    """The body of a stream whose client did not ask for usage, changed so that the upstream reports it.

    `body` was read without a complaint. Every other value keeps the very bytes that the client wrote; of a field
    that is not read and stands there twice, the last one stays. A client that left `include_usage` out gets no
    continuous statistics either, whatever it said about them: on their own they mean nothing, and with
    `include_usage` they would show up in its chunks.
    """
    fields = _object.decode(body)
    options = _object.decode(fields["stream_options"]) if "stream_options" in fields else {}
    changed = (options or {}) | {"include_usage": Raw(b"true")}
    if "continuous_usage_stats" in changed:
        changed["continuous_usage_stats"] = Raw(b"false")
    return msgspec.json.encode(fields | {"stream_options": changed})


def _envelope(body: bytes) -> _Chat | Malformed:
    if not body.strip():
        return Malformed("The request has no body; send a JSON object.", code="empty_body")
    try:
        body.decode()
        members = jsonkeys.members(body)
    except UnicodeDecodeError as error:
        return Malformed(f"The body is not valid UTF-8 (byte {error.start}).", code="invalid_json")
    except msgspec.ValidationError:
        rule = f"a JSON object of at most {jsonkeys.MAX_MEMBERS} fields"
        return Malformed(f"The body must be {rule}.", code="invalid_json")
    except msgspec.DecodeError as error:
        return Malformed(f"The body is not valid JSON: {_reason(error)}.", code="invalid_json")
    except RecursionError:
        return Malformed("The body is nested too deeply.", code="invalid_json")
    twice = jsonkeys.repeated(members, _READ)
    if twice is not None:
        return Malformed(f"'{twice}' is given more than once.", twice, "duplicate_field")
    return _Chat(**{name: value for name, value in members if name in _READ})


def _facts(raw: _Chat, body_bytes: int) -> RequestFacts:
    model: str = _field("model", raw.model, _model, f"a string of 1 to {MAX_MODEL_CHARS} characters")
    messages = bytes(raw.messages)
    if not messages.startswith(b"["):
        raise _FieldError("messages", "an array of messages")
    stream = bool(_field("stream", raw.stream, _flag, "true or false", absent=False))
    bounds: list[int | None] = [
        _field("max_tokens", raw.max_tokens, _tokens, _TOKENS_RULE, absent=None),
        _field("max_completion_tokens", raw.max_completion_tokens, _tokens, _TOKENS_RULE, absent=None),
    ]
    choices: int | None = _field("n", raw.n, _choices, f"an integer from 1 to {MAX_CHOICES}", absent=None)
    parts = len(_MEDIA_PART.findall(messages))
    media_bytes = sum(map(len, _MEDIA.findall(messages))) if parts else 0
    known_bytes = len(messages) + sum(len(getattr(raw, name)) for name in _PROMPT)
    further_bytes = max(0, body_bytes - known_bytes - _SMALL_FIELDS_BYTES)
    return RequestFacts(
        model=model,
        stream=stream,
        choices=choices or 1,
        # Servers disagree which of the two wins when both are given: the larger one is the safe hold.
        output_bound=max((b for b in bounds if b is not None), default=None),
        prompt_bytes=known_bytes - media_bytes + further_bytes,
        media_parts=parts,
        wants_usage=_wants_usage(raw.stream_options),
    )


def _wants_usage(raw: Raw) -> bool:
    if bytes(raw) in _OMITTED:
        return False
    name = "stream_options"
    options: list[tuple[str, Raw]] = _field(name, raw, jsonkeys.members, "an object")
    twice = jsonkeys.repeated(options, _OPTIONS)
    if twice is not None:
        raise _FieldError(f"{name}.{twice}", "given once")
    value = dict(options).get("include_usage", Raw())
    return bool(_field(f"{name}.include_usage", value, _flag, "true or false", absent=False))


_REQUIRED: Final = object()


def _field(name: str, raw: Raw, decode: Callable[[Raw], Any], rule: str, absent: object = _REQUIRED) -> Any:
    if not len(raw):
        if absent is not _REQUIRED:
            return absent
        raise _FieldError(name, f"given: {rule}")
    try:
        return decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _FieldError(name, rule) from None


def _reason(error: msgspec.DecodeError) -> str:
    return str(error).removeprefix("JSON is malformed: ")
