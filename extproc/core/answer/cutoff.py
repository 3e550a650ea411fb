"""Ending a stream of chunks before its time: well formed, as a server ends it that keeps to its bound."""

from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.answer.content import NOTHING, UNREADABLE
from extproc.core.answer.entries import NO_ENTRIES
from extproc.core.answer.reading import is_dense

# Indexes above this are not believed; a request never has so many choices.
_MAX_INDEX: Final = 1023
# What every chunk of a stream repeats, in the order that servers write it.
_REPEATED: Final = ("id", "object", "created", "model", "system_fingerprint")
# What is longer is not repeated: memory per exchange is bounded.
_MAX_FIELD_BYTES: Final = 1024


class _Choice(msgspec.Struct):
    index: int = 0
    text: Raw = Raw()
    finish_reason: Raw = Raw()


class _Chunk(msgspec.Struct):
    id: Raw = Raw()
    object: Raw = Raw()
    created: Raw = Raw()
    model: Raw = Raw()
    system_fingerprint: Raw = Raw()
    choices: list[_Choice] = []


_chunk = msgspec.json.Decoder(_Chunk)


class OpenChoices:
    """The choices of a stream of (chat) completions that have not finished, and how to finish them."""

    __slots__ = ("_fields", "_open", "_text")

    def __init__(self) -> None:
        self._fields: dict[str, bytes] = NO_ENTRIES
        self._open: dict[int, bool] = NO_ENTRIES
        self._text = False  # completions write text, chat completions a delta

    def __len__(self) -> int:
        """How many choices the stream has shown, finished or not."""
        return len(self._open)

    @property
    def any(self) -> bool:
        return any(self._open.values())

    def see(self, data: bytes) -> frozenset[int]:
        """Takes note of a chunk, and gives the choices that it finishes. What is no chunk changes nothing."""
        if is_dense(data):
            return frozenset()
        try:
            chunk = _chunk.decode(data)
        except UNREADABLE:
            return frozenset()
        choices = [choice for choice in chunk.choices if 0 <= choice.index <= _MAX_INDEX]
        if not choices:
            return frozenset()
        values = {name: bytes(getattr(chunk, name)) for name in _REPEATED}
        self._fields = {name: value for name, value in values.items() if 0 < len(value) <= _MAX_FIELD_BYTES}
        self._text = any(bytes(choice.text) for choice in choices)
        self._open = self._open or {}
        for choice in choices:
            self._open.setdefault(choice.index, True)
        return frozenset(choice.index for choice in choices if bytes(choice.finish_reason) not in NOTHING)

    def finished(self, indexes: frozenset[int]) -> None:
        """The client got the end of these choices."""
        if indexes:
            self._open.update(dict.fromkeys(indexes, False))

    def closing(self) -> bytes:
        """A last chunk with `finish_reason: length` for each open choice, and the end of the stream."""
        events = [self._last_chunk(index) for index, is_open in sorted(self._open.items()) if is_open]
        return b"".join([*events, b"data: [DONE]\n\n"])

    def _last_chunk(self, index: int) -> bytes:
        fields = b"".join(b'"%s":%s,' % (name.encode(), value) for name, value in self._fields.items())
        said = b'"text":""' if self._text else b'"delta":{}'
        choice = b'{"index":%d,%s,"logprobs":null,"finish_reason":"length"}' % (index, said)
        return b'data: {%s"choices":[%s]}\n\n' % (fields, choice)
