"""Find images, audio and files in messages: their number, and the size of their text.

The payload of media is no prompt text, so the prompt's size excludes it. Only the places that an API reserves for
media count as media. Text that looks like media, in a message or in a tool's arguments, counts as text: servers
read it as text. Texts to embed or to compare are different: there, a data URL stands for what it holds.
"""

import re
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from extproc.core.request import jsonkeys
from extproc.core.request.bodies.facts import MAX_CHOICES, FieldError
from extproc.core.request.bodies.json_body import head

# The fields of a content part that carry or name media, in OpenAI's and vLLM's spelling. Each picture or recording
# is bounded by `media_bound_tokens`. A part of the second kind may become any number of tokens: a document has
# pages, a video has any length, and so has an embedding. Fields of the third kind hold one picture or recording,
# or an array of them: Qwen, Jina, Voyage, llama.cpp, SGLang, Gemini.
_BY_THE_PIECE: Final = frozenset({"image_url", "audio_url", "input_audio"})
_OF_ANY_SIZE: Final = frozenset(
    {
        "video_url",
        *("file", "file_data", "file_id", "file_url"),
        *("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"),
        *("video", "videos", "video_data"),
    }
)
_ONE_OR_MANY: Final = frozenset(
    {
        *("image", "images", "image_base64", "image_data", "audio", "audio_data"),
        *("inline_data", "inlineData", "multimodal_data"),
    }
)
MEDIA_FIELDS: Final = _BY_THE_PIECE | _OF_ANY_SIZE | _ONE_OR_MANY | {"source"}  # `source` is Anthropic's
# Pictures of an assistant, in a message beside its content.
OF_MESSAGES: Final = frozenset({"image", "images"})
# The fields of a body that hold media beside its prompt: Cohere, llama.cpp, SGLang.
OF_BODIES: Final = ("image", "images", "image_data", "audio_data", "video_data", "multimodal_data")
# The fields that hold content: in a message, in the result of a tool, in a document.
CONTAINERS: Final = frozenset({"content", "output", "outputs"})
# The types of a part or item whose media stands in one of these fields.
_PICTURES: Final = frozenset({"image", "image_url", "input_image", "audio"})
_GENERATED: Final = "image_generation_call"  # a picture in an earlier response
_OTHER_MEDIA: Final = frozenset({"video", "media", "file"})
_PAYLOADS: Final = frozenset({"data", "url", "base64", "b64_json"})
_DATA_URL: Final = re.compile(r"data:(?:image|audio|video|application)/[^,\"]{1,256}[;,]")
_DATA_URL_CHARS: Final = 300
# One of these stands in each text that has media; the escape, because a name may be written with escapes. The
# expression begins with a fixed character, by which it is found ten times faster than one that does not.
_HINT: Final = re.compile(
    rb'"(?=[iavfspmc])(?:image(?:|s|_url|_base64|_data|_embeds|_generation_call)|input_audio|inline_data|inlineData'
    rb"|(?:audio|video)(?:|s|_url|_data|_embeds)|file(?:|_id|_data|_url)|source|prompt_embeds|multimodal_data|media"
    rb'|citations)"'
)
_ESCAPE: Final = b"\\u00"
# The deepest place that an API has for media: a part of a document in a tool's result. Each level is parsed again.
_MAX_LEVELS: Final = 12
# The most elements and fields to parse. Each takes a microsecond and blocks the event loop.
_MAX_OPENED: Final = MAX_CHOICES // 2
MESSAGE, PART, NEITHER = range(3)  # the kind of value at a place

T = TypeVar("T")

_elements: Final = msgspec.json.Decoder(list[Raw]).decode


class Media:
    """Collect the media of one field. `unbounded`: the prompt can get longer than the body shows."""

    __slots__ = ("_name", "_opened", "parts", "payload_bytes", "unbounded")

    def __init__(self, name: str) -> None:
        self._name = name
        self._opened = 0
        self.parts = 0
        self.payload_bytes = 0
        self.unbounded = False

    def find(self, raw: Raw, place: int = MESSAGE, level: int = 0, hint: bytes = b"") -> None:
        """Search messages, or content parts if `place` is `PART`. Takes linear time. Raise `FieldError`.

        `hint` is one that the text around this value has. It is looked for first, because one fixed text is found
        faster than one of many.
        """
        first = head(raw)
        if first not in (b"[", b"{") or level > _MAX_LEVELS or not (hint := _hint_in(raw, hint)):
            return
        if first == b"[":
            for element in self._open(_elements(raw)):
                self.find(element, place, level + 1, hint)
        else:
            self._find_in_object(raw, place, level, hint)

    def _find_in_object(self, raw: Raw, place: int, level: int, hint: bytes) -> None:
        members = self._members(raw)
        types = [_short(value) for field, value in members if field == "type"]
        kind = types[0] if len(types) == 1 else ""
        for field, value in members:
            if field in CONTAINERS:
                self.find(value, PART, level + 1, hint)
            elif place == PART:
                self._find_in_part(field, value, kind, level + 1, hint)
            elif field == "audio" and head(value) == b"{":
                self._count(value, unbounded=True)  # an earlier answer, by its id
            elif field in OF_MESSAGES:
                self.take(value, level + 1, hint)
            elif is_payload(field, kind, MESSAGE) and head(value) == b'"':
                self._count(value, unbounded=False)

    def _find_in_part(self, field: str, value: Raw, kind: str, level: int, hint: bytes) -> None:
        if field == "source":
            self._take_source(value, level, hint, of_image=kind == "image")
        elif field in _BY_THE_PIECE:
            self._count(value, unbounded=False)
        elif field in _OF_ANY_SIZE:
            if bytes(value) != b"null":
                self._count(value, unbounded=True)
        elif field in _ONE_OR_MANY:
            self.take(value, level, hint)
        elif field == "citations":  # of a document: what is written into the prompt to have it cited
            self.unbounded = self.unbounded or (head(value) == b"{" and b"true" in bytes(value))
        elif is_payload(field, kind, PART) and head(value) == b'"':
            self._count(value, unbounded=kind in _OTHER_MEDIA)

    def take(self, value: Raw, level: int = 0, hint: bytes = b"") -> None:
        """Count a picture or recording, or an array of them. Raise `FieldError`."""
        first = head(value)
        if first == b"n":  # null
            return
        if first == b"[" and level <= _MAX_LEVELS:
            for element in self._open(_elements(value)):
                self.take(element, level + 1, hint)
            return
        before = self.parts
        self.find(value, PART, level, hint)  # a part with its type, as in a message
        if self.parts == before:
            self._count(value, unbounded=False)

    def take_from(self, value: Raw, name: str) -> None:
        """Count the media in a field of the body. Raise `FieldError`."""
        if name in _OF_ANY_SIZE:
            self._count(value, unbounded=True)
        else:
            self.take(value)

    def find_urls(self, value: Raw) -> None:
        """Count a text, or those texts of an array, that are data URLs.

        A server for pictures takes them for pictures, any other one for text, so nothing bounds them.
        """
        if b'"data:' not in bytes(value):
            return
        if head(value) == b"[":
            for element in _elements(value):
                if is_data_url(_short(element)):
                    self._count(element, unbounded=True)
        elif is_data_url(_short(value)):
            self._count(value, unbounded=True)

    def _members(self, raw: Raw) -> list[tuple[str, Raw]]:
        try:
            return self._open(jsonkeys.members(raw))
        except msgspec.ValidationError:
            rule = f"made of objects of at most {jsonkeys.MAX_MEMBERS} fields"
            raise FieldError(self._name, rule) from None

    def _open(self, things: list[T]) -> list[T]:
        self._opened += len(things)
        if self._opened > _MAX_OPENED:
            rule = f"made of at most {_MAX_OPENED} parts and fields where images or files are among them"
            raise FieldError(self._name, rule)
        return things

    def _take_source(self, value: Raw, level: int, hint: bytes, *, of_image: bool) -> None:
        source = self._members(value) if head(value) == b"{" else []
        match [bytes(of) for name, of in source if name == "type"]:
            case [b'"base64"']:
                is_image = any(head(of, 7) == b'"image/' for name, of in source if name == "media_type")
                self._count(value, unbounded=not is_image)
            case [b'"url"'] | [b'"file"']:
                self._count(value, unbounded=not of_image)
            case types:  # text or content; any other type may become anything
                self.unbounded = self.unbounded or types not in ([b'"text"'], [b'"content"'])
                self.find(value, PART, level, hint)

    def _count(self, value: Raw, *, unbounded: bool) -> None:
        self.parts += 1
        self.payload_bytes += len(value)
        self.unbounded = self.unbounded or unbounded


def is_data_url(text: str) -> bool:
    """Return whether a text is one data URL of a picture, recording, film or document."""
    return _DATA_URL.match(text) is not None


def is_payload(name: str, kind: object, place: int) -> bool:
    """Return whether a field of a part, or of a message, of this type holds the media itself."""
    if place == MESSAGE:
        return name == "result" and kind == _GENERATED
    return name in _PAYLOADS and isinstance(kind, str) and (kind in _PICTURES or kind in _OTHER_MEDIA)


def _short(raw: Raw) -> str:
    """Return the beginning of a text as it is written; empty if the value is no text."""
    written = head(raw, _DATA_URL_CHARS)
    return written[1:].decode(errors="replace").removesuffix('"') if written[:1] == b'"' else ""


def _hint_in(raw: Raw, hint: bytes) -> bytes:
    """Return a text that only a value with media has, empty if there is none."""
    text = bytes(raw)
    if hint and hint in text:
        return hint
    found = _HINT.search(text)
    if found is not None:
        return found[0]
    return _ESCAPE if _ESCAPE in text else b""
