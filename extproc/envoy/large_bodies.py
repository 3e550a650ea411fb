"""Read and write messages with a large body of a request without a copy of the body.

Protobuf would copy a body of 32 MiB twice to read its message, and three times to write one: each copy keeps the
event loop for 5 to 20 ms. Here the body stays in the parts in which it came; all else is read by protobuf.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from extproc.core.events import RequestBody
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb

# Tags of fields: the field's number, and that a length follows.
_REQUEST_BODY: Final = 0x22  # ProcessingRequest.request_body
_BODY: Final = 0x0A  # HttpBody.body
_REPLY_TAGS: Final = (b"\x0a", b"\x1a", b"\x0a", b"\x1a")
"""From within: BodyMutation.body, CommonResponse.body_mutation, BodyResponse.response,
ProcessingResponse.request_body.
"""
_VARINT_BYTES: Final = 10
# What may stand around a body: attributes, metadata.
_MOST_AROUND: Final = 1 << 20


def event(parts: Sequence[bytes]) -> RequestBody | None:
    """Return the piece of a request's body that a message brings, in parts; None if it has to be read as a whole.

    `parts` are those of the message, in order; the first one has more bytes than the tags and lengths.
    """
    first = parts[0]
    head = _Head(first)
    outer = head.length(_REQUEST_BODY)
    begun = head.at
    size = head.length(_BODY)
    if outer is None or size is None:
        return None
    begin = head.at
    whole = sum(map(len, parts))
    stop = begin + size
    # What of the HttpBody stands behind its body, and what of the message behind that.
    inner = outer - (stop - begun)
    if inner < 0 or begun + outer > whole or whole - stop > _MOST_AROUND:
        return None
    body, rest = _cut(parts, begin, stop)
    try:
        message = pb.ProcessingRequest.FromString(bytes([_REQUEST_BODY]) + _varint(inner) + rest)
    except DecodeError:
        return None
    if message.WhichOneof("request") != "request_body" or message.request_body.body:
        return None  # the message says more than one thing: the last one counts
    return RequestBody(body[0], message.request_body.end_of_stream, body[1:])


def reply(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return the message that replaces a request's body by these parts, in parts."""
    head = b""
    size = sum(map(len, parts))
    for tag in _REPLY_TAGS:
        head = tag + _varint(size + len(head)) + head
    return [head, *parts]


class _Head:
    """Read tags and lengths at the beginning of a message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def length(self, tag: int) -> int | None:
        """Return the length of the field that comes next; None if it is not this one."""
        data, at = self._data, self.at
        if at >= len(data) or data[at] != tag:
            return None
        size = 0
        for place, byte in enumerate(data[at + 1 : at + 1 + _VARINT_BYTES]):
            size |= (byte & 127) << 7 * place
            if byte < 128:  # noqa: PLR2004 - the last byte of a number
                self.at = at + 2 + place
                return size
        return None


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:  # noqa: PLR2004 - more than seven bits
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _cut(parts: Sequence[bytes], begin: int, stop: int) -> tuple[list[bytes], bytes]:
    """Return the bytes from `begin`, within the first part, to `stop`, in parts, and those behind `stop`."""
    found = [parts[0][begin:stop]]
    rest = [parts[0][stop:]]
    at = len(parts[0])
    for part in parts[1:]:
        if at + len(part) <= stop:
            found.append(part)
        elif at < stop:
            found.append(part[: stop - at])
            rest.append(part[stop - at :])
        else:
            rest.append(part)
        at += len(part)
    return found, b"".join(rest)
