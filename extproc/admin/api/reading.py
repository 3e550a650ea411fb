"""Read requests: the path, the query, the body and the preconditions, all of them within bounds."""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import ClientDisconnect, Request

from extproc.admin.api.operation import JSON, Operation, Parameters
from extproc.admin.api.problems import Problem, invalid

_BODY_S: Final = 30.0
_MAX_DEPTH: Final = 32  # MongoDB holds 100, and documents of tenants have four
# A client that is refused for its body's size first sends the rest of it: it would not see the answer otherwise.
_DRAINED_BYTES: Final = 32 << 20
_DRAINED_S: Final = 2.0
_AT: Final = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")
_MISSING: Final = re.compile(r"missing required field `(.*?)`")
_ETAG: Final = re.compile(r'"(\d{1,15})"')
_KEY: Final = re.compile(r"[!-~]{1,64}")


def segments_of(raw_path: bytes) -> tuple[str, ...]:
    """Return the parts of a path, each decoded by itself: a name may contain an escaped `/`."""
    try:
        return tuple(unquote_to_bytes(part).decode() for part in raw_path.strip(b"/").split(b"/"))
    except UnicodeDecodeError:
        raise invalid("the path must be UTF-8, with percent escapes") from None


def query_of(request: Request, operation: Operation) -> Any:
    """Return the parameters, of the operation's type. Raise `Problem`."""
    given: dict[str, Any] = {}
    lists = operation.lists
    for name, value in request.query_params.multi_items():
        if name in lists:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise invalid(f"the parameter '{name}' is given twice", name)
        else:
            given[name] = value
    return _converted(given, operation.query)


def _converted(given: Mapping[str, Any], kind: type[Parameters]) -> Parameters:
    try:
        found = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _mistake(error, "parameter") from None
    for name in given:
        if getattr(found, name) is None:  # the text `null`: who wants none leaves the parameter out
            raise invalid(f"the parameter '{name}' must not be null: leave it out", name)
    return found


async def body_of(request: Request, operation: Operation, max_bytes: int) -> Any:
    """Return the body, of the operation's type. Raise `Problem`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await _content(request, max_bytes)
    if operation.body is None:
        if content:
            raise invalid("this operation takes no body")
        return None
    if kind != JSON:
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media-type", f"the body must be {JSON}")
    given = _parsed(content)
    try:
        typed = msgspec.convert(given, operation.body)
    except msgspec.ValidationError as error:
        raise _mistake(error, "field") from None
    return given if operation.free else typed


def _parsed(content: bytes) -> Any:
    too_deep = invalid(f"the body is nested too deeply: {_MAX_DEPTH} levels are enough")
    try:
        given = msgspec.json.decode(content)
    except RecursionError:
        raise too_deep from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise invalid(f"the body is no JSON: {error}") from None
    if _depth(given) > _MAX_DEPTH:
        raise too_deep
    return given


def _depth(value: object) -> int:
    """Return how many arrays and objects stand in each other, of what the parser has read."""
    depth, level = 0, [value]
    while level := [inner for each in level for inner in _inside(each)]:
        depth += 1
    return depth


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


async def _content(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    too_large = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"a body has at most {max_bytes} bytes")
    content = bytearray()
    try:
        if not announced.isdecimal() or int(announced) > max_bytes:
            await _drain(request)
            raise too_large
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                content += piece
                if len(content) > max_bytes:
                    break
    except TimeoutError:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the body did not arrive in time") from None
    except ClientDisconnect:
        raise invalid("the client has gone") from None
    if len(content) > max_bytes:
        await _drain(request)
        raise too_large
    return bytes(content)


async def _drain(request: Request) -> None:
    taken = 0
    try:
        async with asyncio.timeout(_DRAINED_S):
            while taken < _DRAINED_BYTES:
                message = await request.receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _mistake(error: msgspec.ValidationError, what: str) -> Problem:
    """Return the problem, which names the parameter or field."""
    text = str(error)
    unknown, missing = _UNKNOWN.search(text), _MISSING.search(text)
    at = _AT.search(text)
    inside = at[1] if at is not None else ""
    if unknown is not None or missing is not None:
        name = (unknown or missing)[1]  # type: ignore[index]
        field = f"{inside}.{name}" if inside else name
        return invalid(f"'{field}' is {'no ' + what + ' here' if unknown is not None else 'missing'}", field)
    detail = _AT.sub("", text).replace("`", "'")
    return invalid(f"'{inside}': {detail}" if inside else detail, inside or None)


@dataclass(frozen=True, slots=True)
class Precondition:
    """Say which version a change is meant for: a number, any (`version` None), or no document yet (`new`)."""

    version: int | None = None
    new: bool = False


def precondition_of(headers: Mapping[str, str]) -> Precondition | None:
    """Return the precondition; None if there is none. Raise `Problem` for one that can't be used."""
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    if match is not None and none_match is not None:
        raise invalid("send If-Match or If-None-Match, not both", "If-Match")
    if none_match is not None:
        if none_match.strip() != "*":
            raise invalid("If-None-Match must be *: the tenant must not exist yet", "If-None-Match")
        return Precondition(version=0, new=True)
    if match is None:
        return None
    if match.strip() == "*":
        return Precondition()
    found = _ETAG.fullmatch(match.strip())
    if found is None:
        raise invalid('If-Match must be an ETag such as "7", or *', "If-Match")
    return Precondition(version=int(found[1]))


def key_of(request: Request) -> str | None:
    """Return the Idempotency-Key; None if there is none. Raise `Problem` for one that can't be used."""
    key = only(request.headers.raw, b"idempotency-key")
    if key is not None and _KEY.fullmatch(key) is None:
        raise invalid(
            "Idempotency-Key must be 1 to 64 printable ASCII characters without spaces", "Idempotency-Key"
        )
    return key


def only(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the value of a header; None if it is absent. Raise `Problem` if it came twice."""
    found = [value for key, value in headers if key == name]
    if len(found) > 1:
        raise invalid(f"the header {name.decode()} came twice", name.decode())
    return found[0].decode("latin-1") if found else None
