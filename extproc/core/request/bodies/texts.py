"""Count the texts in fields that hold one text or many, as strings, token ids or objects."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from extproc.core.request.bodies.facts import MAX_CHOICES, FieldError
from extproc.core.request.bodies.json_body import AnyObject, JsonBody, head

_TokenId = Annotated[int, Meta(ge=0)]
_decoders: Final[dict[bytes, Any]] = {
    b'"': msgspec.json.Decoder(list[str | AnyObject]),
    b"{": msgspec.json.Decoder(list[str | AnyObject]),
    b"[": msgspec.json.Decoder(list[list[_TokenId | AnyObject]]),
}
# llama.cpp takes any mix: token ids and texts make one prompt, everything else is a prompt of its own.
_mixed: Final = msgspec.json.Decoder(list[str | _TokenId | list[str | _TokenId] | AnyObject])
_token_ids: Final = msgspec.json.Decoder(list[_TokenId])
_string: Final = msgspec.json.Decoder(str)
_SPACE: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Texts:
    """Hold the number of texts, and their tokens if they were given as token ids."""

    count: int
    tokens: int | None = None


def texts_in(body: JsonBody, name: str, rule: str, *, objects: bool = False, mixed: bool = False) -> Texts:
    """Return the number of texts in a field: a string, an array of strings, token ids, or an array of such arrays.

    With `objects`, an element may also be an object (a text with its title or images), and so may the whole field.
    With `mixed`, strings, token ids, objects and arrays of them may stand in one array, as llama.cpp takes them.
    Raise `FieldError` for anything else, and for more than `MAX_CHOICES` texts.
    """
    rule = f"{rule}, at most {MAX_CHOICES}"
    texts: Texts = body.read(name, lambda raw: _count(raw, objects=objects, mixed=mixed), rule)
    if texts.count > MAX_CHOICES:
        raise FieldError(name, rule)
    return texts


def _count(raw: Raw, *, objects: bool, mixed: bool) -> Texts:
    match head(raw):
        case b'"':
            _string.decode(raw)
            return Texts(1)
        case b"{" if objects:
            # The object's content is an array of parts, and a server may score each part.
            return Texts(max(1, bytes(raw).count(b"{") - 1))
        case b"{" if mixed:
            return Texts(1)
        case b"[" if mixed:
            return _count_mixed(bytes(raw))
        case b"[":
            return _count_elements(bytes(raw), objects=objects)
        case _:
            raise msgspec.ValidationError


def _count_elements(text: bytes, *, objects: bool) -> Texts:
    first = text[1:].lstrip(_SPACE)[:1]
    if first == b"]":
        return Texts(0, 0)
    if first == b"[" and text.count(b"[") > MAX_CHOICES + 1:
        return Texts(MAX_CHOICES + 1)  # before millions of lists are built
    decoder = _decoders.get(first)
    if decoder is None:
        return Texts(1, len(_token_ids.decode(text)))
    elements = decoder.decode(text)
    # The first element decides for an inner array: no server takes a mix of numbers and objects for text.
    leaves = [element[0] if type(element) is list and element else element for element in elements]
    if not objects and any(type(leaf) is AnyObject for leaf in leaves):
        raise msgspec.ValidationError
    exact = first == b"[" and not any(type(leaf) is AnyObject for leaf in leaves)
    return Texts(len(elements), sum(map(len, elements)) if exact else None)


def _count_mixed(text: bytes) -> Texts:
    try:
        return _count_elements(text, objects=False)
    except msgspec.ValidationError:
        if text.count(b"[") > MAX_CHOICES + 1:
            return Texts(MAX_CHOICES + 1)  # before millions of lists are built
        elements = _mixed.decode(text)
    is_one = any(type(element) is int for element in elements)
    return Texts(1 if is_one else len(elements))
