"""List the members of a JSON object in order, with the duplicates that a dict would hide."""

from collections.abc import Collection
from typing import Final

import msgspec
from msgspec import Raw

# A request has a few dozen fields. Each one costs a call: a body full of fields would take half a second.
MAX_MEMBERS: Final = 1000
# A larger text may have so many members that it takes long to find them all.
_SMALL_BYTES: Final = 16 << 10
# With white space behind its first keys a text is not compact.
_SPACED: Final = b'": '
_LOOKED_AT_BYTES: Final = 64
# Around a key and before the next one: two quotes, a colon, a comma.
_SYNTAX_BYTES: Final = 4

_decoded: Final = msgspec.json.Decoder(dict[str, Raw]).decode


class _Key:
    """Stand for one occurrence of a key. A `_Key` equals only itself, so a dict keeps each value of a repeated
    key.
    """

    __slots__ = ()


def members(text: bytes | Raw) -> list[tuple[str, Raw]]:
    """Return key and raw value of each member. Takes linear time: values are skipped, not built.

    Raise `msgspec.DecodeError` if the text is no JSON (its subclass `ValidationError` if it is no object or has
    more than `MAX_MEMBERS`), `UnicodeDecodeError` if a key is no UTF-8, and `RecursionError` if it is nested too
    deeply. The bytes of values are not checked to be UTF-8.
    """
    if len(text) <= _SMALL_BYTES:
        text = bytes(text)
        if _SPACED not in text[:_LOOKED_AT_BYTES] and (found := _compact(text)) is not None:
            return found
    keys: list[str] = []

    def key(_type: type, name: str) -> _Key:
        if len(keys) == MAX_MEMBERS:
            raise ValueError("too many members")  # msgspec turns it into a ValidationError
        keys.append(name)
        return _Key()

    values = msgspec.json.decode(text, type=dict[_Key, Raw], dec_hook=key)
    return list(zip(keys, values.values(), strict=True))


def _compact(text: bytes) -> list[tuple[str, Raw]] | None:
    """Return the members of an object without white space, escaped keys or repeated ones; None if it has any.

    All of its bytes are then in its keys, its values and the characters between them. It is what most clients
    write, and no key costs a call. Raise as `members` does.
    """
    found = _decoded(text)
    if len(found) > MAX_MEMBERS:
        return None
    told = sum(map(len, found)) + sum(map(len, found.values())) + _SYNTAX_BYTES * len(found) + 1
    return list(found.items()) if told == len(text) else None


def repeated(found: list[tuple[str, Raw]], names: Collection[str]) -> str | None:
    """Return the first of `names` that occurs a second time, or None."""
    seen: set[str] = set()
    for name, _ in found:
        if name in names:
            if name in seen:
                return name
            seen.add(name)
    return None
