"""Remember where the fields of a large body lie, so that it can be changed later without being parsed again."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.request import jsonkeys
from extproc.core.request.bodies.facts import FieldError

# The fields that may be rewritten: numbers, flags, and options of a few words.
MAX_KEPT_BYTES: Final = 16 << 10
_object: Final = msgspec.json.Decoder(dict[str, Raw])
_BEFORE_VALUE: Final = re.compile(rb'[ \t\r\n,{]*(")(?:[^"\\]|\\.)*+"[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Layout:
    """Hold the fields that may be rewritten, as a JSON object, and the places of all others.

    `spans` are ranges of bytes (start, end) of the body. Each has one field or more, without a comma around them.
    """

    kept: bytes
    spans: tuple[tuple[int, int], ...]

    def fields(self) -> dict[str, Raw]:
        """Return the fields that were kept."""
        return _object.decode(self.kept)

    def joined(self, body: bytes, fields: Mapping[str, Raw]) -> bytes:
        """Return the body with `fields` instead of those that were kept. Copies the body once, parses nothing."""
        text = memoryview(body)
        parts: list[bytes | memoryview] = [b"{"]
        for start, end in self.spans:
            parts += (text[start:end], b",")
        parts += (memoryview(msgspec.json.encode(dict(fields)))[1:-1], b"}")
        return b"".join(parts)


def layout_of(body: bytes, names: Collection[str]) -> Layout:
    """Return the layout of a body that `read_request` has accepted. Raise `FieldError`.

    `names` are the fields that may be rewritten. Together they must be small.
    """
    kept: dict[str, Raw] = {}
    spans: list[tuple[int, int]] = []
    place, last_is_kept = 0, True
    for name, value in jsonkeys.members(body):
        found = _BEFORE_VALUE.match(body, place)
        assert found is not None  # noqa: S101 - the body is a JSON object
        place = found.end() + len(value)
        if name in names:
            if len(value) > MAX_KEPT_BYTES:
                raise FieldError(name, f"smaller than {MAX_KEPT_BYTES} bytes")
            kept[name] = value
            last_is_kept = True
        elif last_is_kept:
            spans.append((found.start(1), place))
            last_is_kept = False
        else:
            spans[-1] = (spans[-1][0], place)
    return Layout(msgspec.json.encode(kept), tuple(spans))
