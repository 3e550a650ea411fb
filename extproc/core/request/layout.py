"""Remember where the fields of a large body lie, so that it can be changed later without being parsed again."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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

    def behind(self, size: int) -> "Layout":
        """Return the layout of the same body behind `size` more bytes, of which none is a field."""
        if not size:
            return self
        return Layout(self.kept, tuple((start + size, end + size) for start, end in self.spans))

    def changed(self, body: Sequence[bytes], fields: Mapping[str, Raw]) -> list[bytes | memoryview]:
        """Return the parts of the body with `fields` instead of those that were kept. Copy and parse nothing.

        The first part is small. The others are views of the parts of `body`, and of what stands between them.
        """
        parts: list[bytes | memoryview] = [b"{"]
        cut = _Cut(body)
        for start, end in self.spans:
            parts += (*cut.views(start, end), b",")
        parts += (memoryview(msgspec.json.encode(dict(fields)))[1:-1], b"}")
        return parts


class _Cut:
    """Cut ranges out of a body in parts, in ascending order."""

    def __init__(self, body: Sequence[bytes]) -> None:
        self._parts = iter(body)
        self._part = memoryview(b"")
        self._begin = 0  # where the part begins in the body

    def views(self, start: int, end: int) -> Iterator[memoryview]:
        """Give the parts of the range from `start` to `end`. It lies behind the range before, within the body."""
        while start < end:
            while start >= self._begin + len(self._part):
                self._begin += len(self._part)
                self._part = memoryview(next(self._parts))
            view = self._part[start - self._begin : end - self._begin]
            yield view
            start += len(view)


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
