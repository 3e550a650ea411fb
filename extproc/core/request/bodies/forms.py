"""Read the bodies of audio and image endpoints: a form with uploaded files, or JSON without."""

from dataclasses import dataclass
from typing import Final

import msgspec

from extproc.core.request.bodies.facts import (
    MAX_CHOICES,
    MAX_MODEL_CHARS,
    MAX_TOKENS,
    UNNAMED,
    FieldError,
    Malformed,
    RequestFacts,
    is_model,
)
from extproc.core.request.bodies.json_body import JsonBody, head
from extproc.core.request.bodies.multipart import Form

# Text fields that become prompt: the words to speak, the picture to draw, the style.
_PROMPT: Final = ("prompt", "input", "instructions", "hotwords", "negative_prompt")
MEDIA_FIELDS: Final = ("file", "image", "images", "image[]", "mask", "ref_audio")
_BOUND: Final = "max_completion_tokens"
FORM_FIELDS: Final = frozenset({"model", "stream", "stream_format", "n", _BOUND, *_PROMPT, *MEDIA_FIELDS})

_REPEATABLE: Final = frozenset({"image", "image[]", "images"})
_MAX_DIGITS: Final = 9
_SMALL_FIELDS_BYTES: Final = 1024
# The spellings of true and false in a form: those of pydantic, which FastAPI servers use.
_FLAGS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y"), True),
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), False),
}


def read_described(body: JsonBody) -> RequestFacts:
    """Read a JSON body that asks for speech or an image, or carries a file as text. Raise `FieldError`."""
    model = body.model()
    streams = body.flag("stream") or bytes(body.fields.get("stream_format", b"")) == b'"sse"'
    choices, bound = body.choices("n"), body.tokens(_BOUND)
    media = [body.fields[name] for name in MEDIA_FIELDS if body.given(name)]
    prompt, prompt_bytes = body.prompt((*_PROMPT, *MEDIA_FIELDS))
    parts = sum(_many(bytes(raw)) if head(raw) == b"[" else 1 for raw in media)
    return _facts(
        _Read(model, streams, choices, bound), prompt, prompt_bytes - sum(map(len, media)), media_parts=parts
    )


def read_uploaded(form: Form) -> RequestFacts | Malformed:
    """Read a form with files. Raise `FieldError`."""
    pieces: dict[str, list[bytes]] = {}
    names = [name for name, _ in form.fields] + [name for name, _ in form.files]
    for name in names:
        if name in FORM_FIELDS and name not in _REPEATABLE and names.count(name) > 1:
            return Malformed(f"'{name}' is given more than once.", name, "duplicate_field")
    for name, value in form.fields:
        pieces.setdefault(name, []).append(value)
    values = {name: b"".join(found) for name, found in pieces.items()}
    model = _text(values, "model") or UNNAMED
    if not is_model(model) or any(name == "model" for name, _ in form.files):
        raise FieldError("model", f"a text of 1 to {MAX_MODEL_CHARS} printable characters")
    streams = _flag(values, "stream")
    choices = _number(values, "n", MAX_CHOICES) or 1
    bound = _number(values, _BOUND, MAX_TOKENS)
    texts = {name: _text(values, name) for name in _PROMPT if name in values}
    # A picture may also come as a text: its URL, or itself in base64.
    media = [value for name in MEDIA_FIELDS for value in pieces.get(name, ()) if value]
    known_bytes = sum(len(values[name]) for name in texts) + sum(map(len, media))
    further_bytes = max(0, sum(map(len, values.values())) - known_bytes - _SMALL_FIELDS_BYTES)
    prompt = msgspec.json.encode(texts)
    return _facts(
        _Read(model, streams, choices, bound),
        prompt,
        known_bytes - sum(map(len, media)) + further_bytes,
        media_parts=len(form.files) + len(media),
    )


@dataclass(frozen=True, slots=True)
class _Read:
    model: str
    stream: bool
    choices: int
    output_bound: int | None


def _facts(read: _Read, prompt: bytes, prompt_bytes: int, *, media_parts: int) -> RequestFacts:
    return RequestFacts(
        model=read.model,
        stream=read.stream,
        choices=read.choices,
        output_bound=read.output_bound,
        prompt_bytes=prompt_bytes,
        media_parts=media_parts,
        wants_usage=True,  # these APIs have no option to ask for usage
        prompt=prompt,
        bound_is_common=False,  # vLLM's transcriptions read it, pictures and speech do not
    )


def _many(text: bytes) -> int:
    return max(1, min(text.count(b'"') // 2, MAX_CHOICES))


def _text(values: dict[str, bytes], name: str) -> str | None:
    try:
        return values[name].decode() if name in values else None
    except UnicodeDecodeError:
        raise FieldError(name, "valid UTF-8") from None


def _flag(values: dict[str, bytes], name: str) -> bool:
    text = (_text(values, name) or "false").strip().lower()
    if text not in _FLAGS:
        raise FieldError(name, "true or false")
    return _FLAGS[text]


def _number(values: dict[str, bytes], name: str, most: int) -> int | None:
    text = (_text(values, name) or "").strip()
    if not text:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0
    if not 1 <= number <= most:
        raise FieldError(name, f"an integer from 1 to {most}")
    return number
