"""Find images, audio and files in messages: their number, and the size of their text.

The payload of media is no prompt text, so the prompt's size excludes it. Only the places that an API reserves for
media count as media. Text that looks like media, in a message or in a tool's arguments, counts as text.
"""

from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from extproc.core.request import jsonkeys
from extproc.core.request.bodies.facts import MAX_CHOICES, FieldError
from extproc.core.request.bodies.json_body import head

# The fields of a content part that carry or name media, in OpenAI's and vLLM's spelling. Each picture or recording
# is bounded by `media_bound_tokens`. A part of the second kind may become any number of tokens: a document has
# pages, a video has any length, and so has an embedding.
_BY_THE_PIECE: Final = frozenset({"image_url", "audio_url", "input_audio"})
_OF_ANY_SIZE: Final = frozenset(
    {
        "video_url",
        *("file", "file_data", "file_id", "file_url"),
        *("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"),
    }
)
MEDIA_FIELDS: Final = _BY_THE_PIECE | _OF_ANY_SIZE | {"source"}  # `source` is Anthropic's
# The fields that hold content: in a message, in the result of a tool, in a document.
CONTAINERS: Final = frozenset({"content", "output"})
# One of these stands in each text that has a field of media; the last one, because a name may be written with
# escapes. One fixed text is found 5 to 20 times faster than one of many by a regular expression.
_HINTS: Final = (
    *(b'_url"', b'"audio"', b'"input_audio"', b'"source"', b'"file"', b'"file_data"', b'"file_id"', b'_embeds"'),
    b"\\u00",
)
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

    def find(self, raw: Raw, place: int = MESSAGE, level: int = 0, hint: int = 0) -> None:
        """Search messages, or content parts if `place` is `PART`. Takes linear time. Raise `FieldError`.

        `hint` is the first of `_HINTS` that the text around this value has. A text is searched once for each hint
        that it lacks; a level below, the search begins with the hint that was found.
        """
        first = head(raw)
        if first not in (b"[", b"{") or level > _MAX_LEVELS or (hint := _first_hint(raw, hint)) == len(_HINTS):
            return
        if first == b"[":
            for element in self._open(_elements(raw)):
                self.find(element, place, level + 1, hint)
        else:
            self._find_in_object(raw, place, level, hint)

    def _find_in_object(self, raw: Raw, place: int, level: int, hint: int) -> None:
        members = self._members(raw)
        types = [(field, bytes(value)) for field, value in members if field == "type"]
        for field, value in members:
            if field in CONTAINERS:
                self.find(value, PART, level + 1, hint)
            elif place == PART and field == "source":
                self._take_source(value, level + 1, hint, of_image=("type", b'"image"') in types)
            elif place == PART and field in _BY_THE_PIECE:
                self._count(value, unbounded=False)
            elif place == PART and field in _OF_ANY_SIZE and bytes(value) != b"null":
                self._count(value, unbounded=True)
            elif place == MESSAGE and field == "audio" and head(value) == b"{":
                self._count(value, unbounded=True)  # an earlier answer, by its id

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

    def _take_source(self, value: Raw, level: int, hint: int, *, of_image: bool) -> None:
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


def _first_hint(raw: Raw, start: int) -> int:
    """Return the index of the first hint from `start` on that the text has; `len(_HINTS)` if it has none."""
    text = bytes(raw)
    for index in range(start, len(_HINTS)):
        if _HINTS[index] in text:
            return index
    return len(_HINTS)
