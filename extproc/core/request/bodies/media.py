"""Images, audio and files in messages: how many there are, and how much of the text they take up.

Their payload is no prompt text, so it is left out of the prompt's size. Only what stands where an API has its
media is taken for media: text that looks like it, in a message or in the arguments of a tool, is counted as text.
"""

import re
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from extproc.core.request import jsonkeys
from extproc.core.request.bodies.facts import MAX_CHOICES, FieldError
from extproc.core.request.bodies.json_body import head

# The fields of a content part that carry or name media, in OpenAI's and vLLM's spelling. A picture or a recording
# has a bound of its own (`media_bound_tokens`), wherever it is. Of the second kind one part may become any number
# of tokens: a document has pages, a film goes on, an embedding is as long as it is.
_BY_THE_PIECE: Final = frozenset({"image_url", "audio_url", "input_audio"})
_OF_ANY_SIZE: Final = frozenset(
    {
        "video_url",
        *("file", "file_data", "file_id", "file_url"),
        *("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"),
    }
)
MEDIA_FIELDS: Final = _BY_THE_PIECE | _OF_ANY_SIZE | {"source"}  # the last is Anthropic's
# Where content stands: in a message, in the result of a tool, in a document.
CONTAINERS: Final = frozenset({"content", "output"})
# A cheap look before a message is opened. A field's name may be written with escapes.
_HINT: Final = re.compile(rb'"(?:%b|audio)"|\\u00' % "|".join(sorted(MEDIA_FIELDS)).encode())
# No API puts media deeper than a part of a document in the result of a tool. Each level is looked at again.
_MAX_LEVELS: Final = 12
# What is opened to be looked into: elements and fields. Each takes a microsecond, in which nothing else happens.
_MAX_OPENED: Final = MAX_CHOICES // 2
MESSAGE, PART, NEITHER = range(3)  # what stands where we look

T = TypeVar("T")

_elements: Final = msgspec.json.Decoder(list[Raw]).decode


class Media:
    """What was found in one field. `unbounded` where the prompt can get longer than the body lets us see."""

    __slots__ = ("_name", "_opened", "parts", "payload_bytes", "unbounded")

    def __init__(self, name: str) -> None:
        self._name = name
        self._opened = 0
        self.parts = 0
        self.payload_bytes = 0
        self.unbounded = False

    def find(self, raw: Raw, place: int = MESSAGE, level: int = 0) -> None:
        """Looks through messages, or (`place` = `PART`) content parts. Linear. Raises `FieldError`."""
        first = head(raw)
        if first not in (b"[", b"{") or level > _MAX_LEVELS or _HINT.search(raw) is None:
            return
        if first == b"[":
            for element in self._open(_elements(raw)):
                self.find(element, place, level + 1)
            return
        members = self._members(raw)
        types = [(field, bytes(value)) for field, value in members if field == "type"]
        for field, value in members:
            if field in CONTAINERS:
                self.find(value, PART, level + 1)
            elif place == PART and field == "source":
                self._take_source(value, level + 1, of_image=("type", b'"image"') in types)
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

    def _take_source(self, value: Raw, level: int, *, of_image: bool) -> None:
        source = self._members(value) if head(value) == b"{" else []
        match [bytes(of) for name, of in source if name == "type"]:
            case [b'"base64"']:
                is_image = any(head(of, 7) == b'"image/' for name, of in source if name == "media_type")
                self._count(value, unbounded=not is_image)
            case [b'"url"'] | [b'"file"']:
                self._count(value, unbounded=not of_image)
            case types:  # text or content; or what we do not know, and then it may be anything
                self.unbounded = self.unbounded or types not in ([b'"text"'], [b'"content"'])
                self.find(value, PART, level)

    def _count(self, value: Raw, *, unbounded: bool) -> None:
        self.parts += 1
        self.payload_bytes += len(value)
        self.unbounded = self.unbounded or unbounded
