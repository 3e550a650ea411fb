"""The members of a JSON object in their order, with the duplicates that a dict would hide."""

from collections.abc import Collection
from typing import Final

import msgspec
from msgspec import Raw

# A request has a few dozen fields. Each costs a call, so that a body of nothing else would take half a second.
MAX_MEMBERS: Final = 1000


class _Key:
    """Equal to nothing but itself, so that a dict keeps a value for every time that a key stands there."""

    __slots__ = ()


def members(text: bytes | Raw) -> list[tuple[str, Raw]]:
    """Key and value of each member, the values as they are written. Linear: values are skipped, not built.

    Raises `msgspec.DecodeError` for what is no JSON (`ValidationError`, a subclass, for what is no object or has
    more than `MAX_MEMBERS`), `UnicodeDecodeError` for keys that are no UTF-8 and `RecursionError` for what is
    nested too deeply. The bytes of values are not checked to be UTF-8.
    """
    keys: list[str] = []

    def key(_type: type, name: str) -> _Key:
        if len(keys) == MAX_MEMBERS:
            raise ValueError("too many members")  # msgspec makes a ValidationError of it
        keys.append(name)
        return _Key()

    values = msgspec.json.decode(text, type=dict[_Key, Raw], dec_hook=key)
    return list(zip(keys, values.values(), strict=True))


def repeated(found: list[tuple[str, Raw]], names: Collection[str]) -> str | None:
    """The first of `names` that stands there a second time, if any."""
    seen: set[str] = set()
    for name, _ in found:
        if name in names:
            if name in seen:
                return name
            seen.add(name)
    return None
