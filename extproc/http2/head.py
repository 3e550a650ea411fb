"""Read the head of a request: its method, metadata and deadline, or the answer to one that is not served."""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from extproc.http2.hpack import Header
from extproc.http2.replies import http_error, only_trailers
from extproc.http2.status import Status

Handler = Callable[[Any], Coroutine[Any, Any, None]]
"""Serve a `Call`. Return to end it with OK; raise `RefusedError` to end it with another status."""
Routes = Mapping[str, Handler]
"""Map the path of each method, `/package.Service/Method`, to its handler."""
Metadata = tuple[tuple[str, str | bytes], ...]

_METHOD_NOT_ALLOWED: Final = 405
_UNSUPPORTED_MEDIA_TYPE: Final = 415
HEADERS_TOO_LARGE: Final = 431

_NAME: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_REQUIRED: Final = (b":method", b":scheme", b":path")
_OF_HTTP_1: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
# Served or refused here; no metadata of the application.
_OURS: Final = frozenset({b"te", b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding"})
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(?:\+proto)?(?:;.*)?")
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_LENGTH_DIGITS: Final = 18


class MalformedError(Exception):
    """Report headers that are no request of HTTP/2: the stream ends."""


@dataclass(frozen=True, slots=True)
class Head:
    """Hold what was read of a request's headers. `refusal` is the header block of an answer without a handler."""

    path: str
    metadata: Metadata = ()
    timeout_s: float | None = None
    content_length: int | None = None
    handler: Handler | None = None
    refusal: bytes = b""


def read_head(headers: list[Header], routes: Routes) -> Head:
    """Read the headers of a request. Raise `MalformedError`."""
    pseudo = _checked(headers)
    fields = dict(headers)
    path = pseudo[b":path"].decode("latin-1")
    if pseudo[b":method"] != b"POST":
        return Head(path, refusal=http_error(_METHOD_NOT_ALLOWED))
    if not _CONTENT_TYPE.fullmatch(fields.get(b"content-type", b"")):
        return Head(path, refusal=http_error(_UNSUPPORTED_MEDIA_TYPE))
    handler = routes.get(path)
    if handler is None:
        return Head(path, refusal=only_trailers(Status.UNIMPLEMENTED, "There is no such method."))
    try:
        return Head(
            path,
            _metadata(headers),
            _timeout(fields.get(b"grpc-timeout")),
            _length(fields.get(b"content-length")),
            handler,
        )
    except ValueError:
        return Head(path, refusal=only_trailers(Status.INTERNAL, "The metadata can't be read."))


def check_trailers(headers: list[Header]) -> None:
    """Check the trailers of a request, of which nothing else is used. Raise `MalformedError`."""
    for name, value in headers:
        _check_field(name, value)


def _checked(headers: list[Header]) -> dict[bytes, bytes]:
    """Return the pseudo-headers, and check all headers by RFC 9113, section 8."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in headers:
        if name[:1] != b":":
            regular = True
            _check_field(name, value)
        elif regular or name not in _PSEUDO or name in pseudo or _BAD_VALUE.search(value):
            raise MalformedError
        else:
            pseudo[name] = value
    if not all(pseudo.get(name) for name in _REQUIRED):
        raise MalformedError
    return pseudo


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or _BAD_VALUE.search(value) or name in _OF_HTTP_1:
        raise MalformedError
    if name == b"te" and value != b"trailers":
        raise MalformedError


def _metadata(headers: list[Header]) -> Metadata:
    """Return the headers that are the application's. Raise `ValueError`."""
    found: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name[:1] == b":" or name in _OURS:
            continue
        if name.endswith(b"-bin"):
            found.extend((name.decode(), _binary(part)) for part in value.split(b","))
        else:
            found.append((name.decode(), value.decode("utf-8", "replace")))
    return tuple(found)


def _binary(value: bytes) -> bytes:
    try:
        return b64decode(value.strip() + b"=" * (-len(value.strip()) % 4), validate=True)
    except Base64Error as error:
        raise ValueError(str(error)) from None


def _timeout(value: bytes | None) -> float | None:
    if value is None:
        return None
    found = _TIMEOUT.fullmatch(value.decode("latin-1"))
    if found is None:
        raise ValueError
    return int(found[1]) * _SECONDS[found[2]]


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise MalformedError
    return int(value)
