"""Tell what a chunk with usage carries besides, and take the usage out: every other byte stays as it is."""

import re
from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.answer.content import NOTHING, UNREADABLE

_LARGEST_BYTES: Final = 4096
_NAME: Final = b'"usage"'
_SPACE: Final = b" \t"
_COLON: Final = re.compile(rb"[ \t]*:[ \t]*")


class _Chunk(msgspec.Struct):
    usage: Raw = Raw()


_chunk: Final = msgspec.json.Decoder(_Chunk)
_members: Final = msgspec.json.Decoder(dict[str, Raw])
# What a chunk with usage says of itself, and nothing that a client has not read in the chunks before.
_ENVELOPE: Final = frozenset(
    {
        *("id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"),
        *("provider", "obfuscation", "x_groq"),
    }
)


def carries_more(data: bytes) -> bool:
    """Tell whether a chunk that is there for its usage tells the client something else: timings, citations."""
    try:
        members = _members.decode(data)
    except UNREADABLE:
        return False
    return any(bytes(raw) not in NOTHING for name, raw in members.items() if name not in _ENVELOPE)


def without_usage(raw: bytes, data: bytes) -> bytes:
    """Return an event without the member `usage` of its data. Return `raw` itself if it has none.

    `raw` is the whole event, `data` the JSON text in it. Usage that is split over lines of the event stays: no
    server writes it so.
    """
    if _NAME not in data:
        return raw
    try:
        usage = bytes(_chunk.decode(data).usage)
    except UNREADABLE:
        return raw
    if not usage or len(usage) > _LARGEST_BYTES:
        return raw
    # The last one: servers write usage behind the choices. In a text its quotes would be escaped.
    start = raw.rfind(_NAME)
    colon = _COLON.match(raw, start + len(_NAME))
    if start < 0 or colon is None or not raw.startswith(usage, colon.end()):
        return raw
    before, after = raw[:start].rstrip(_SPACE), raw[colon.end() + len(usage) :].lstrip(_SPACE)
    if before.endswith(b","):
        return before[:-1] + after
    return before + after.removeprefix(b",").lstrip(_SPACE)
