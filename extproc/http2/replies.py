"""Encode the headers and trailers that a gRPC server sends: without a dynamic table, most of them beforehand."""

import re
from struct import Struct
from typing import Final

from extproc.http2.frames import END_HEADERS, HEADER, HEADERS, headers
from extproc.http2.status import Status

_STATUS_200: Final = b"\x88"
_STATUS_NAME: Final = b"\x08"  # a literal that is not indexed, with the name of entry 8
_CONTENT_TYPE: Final = b"\x0f\x10"  # the same, of entry 31
_NEW_NAME: Final = b"\x00"
_MOST_IN_A_BYTE: Final = 0x7F
_MESSAGE_BYTES: Final = 1024
_ESCAPED: Final = re.compile(rb"[^ -$&-~]")


def _text(value: bytes) -> bytes:
    size = len(value)
    if size < _MOST_IN_A_BYTE:
        return bytes((size,)) + value
    length, size = bytearray((_MOST_IN_A_BYTE,)), size - _MOST_IN_A_BYTE
    while size > _MOST_IN_A_BYTE:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + value


def _literal(name: bytes, value: bytes) -> bytes:
    return _NEW_NAME + _text(name) + _text(value)


_HEAD_BLOCK: Final = _STATUS_200 + _CONTENT_TYPE + _text(b"application/grpc")
_HEAD_PREFIX: Final = HEADER.pack(0, len(_HEAD_BLOCK), HEADERS, END_HEADERS, 0)[:-4]
_STREAM: Final = Struct(">L")
OK_TRAILERS: Final = _literal(b"grpc-status", b"0")


def response_head(stream: int) -> bytes:
    """Build the frame that begins an answer."""
    return _HEAD_PREFIX + _STREAM.pack(stream) + _HEAD_BLOCK


def trailers(status: Status, message: str) -> bytes:
    """Encode how a call ended. A message is cut at 1,024 bytes."""
    if status is Status.OK:
        return OK_TRAILERS
    escaped = _ESCAPED.sub(lambda found: b"%%%02X" % found[0][0], message.encode()[:_MESSAGE_BYTES])
    return _literal(b"grpc-status", b"%d" % status) + _literal(b"grpc-message", escaped)


def only_trailers(status: Status, message: str) -> bytes:
    """Encode an answer that has no message."""
    return _HEAD_BLOCK + trailers(status, message)


def http_error(status: int) -> bytes:
    """Encode an answer to what is no gRPC."""
    return _STATUS_NAME + _text(b"%d" % status)


def last_frame(stream: int, block: bytes) -> bytes:
    """Build the frame that ends an answer."""
    return headers(stream, block, end=True)
