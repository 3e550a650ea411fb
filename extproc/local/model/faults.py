"""Faults a request can ask for, to see what whoever stands between client and model makes of them."""

import zlib
from contextlib import aclosing
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from extproc.local.model.errors import error_body, malformed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from http import HTTPStatus

    from extproc.local.model.shapes import Document

FAULT_HEADER = "x-sample-fault"

# Whole events a stream sends before a fault that strikes in its middle.
EVENTS_BEFORE_FAULT = 3

HUGE = 2**63

DONE = b"data: [DONE]\n\n"


class Fault(StrEnum):
    """What goes wrong, by the value of the ``x-sample-fault`` header.

    Faults of a stream's middle strike after 3 events (``truncated-json`` cuts the third, or the last
    before ``[DONE]`` if there are fewer). On a plain answer ``error-in-stream`` is ``error-500`` and
    ``reset-mid-stream`` strikes after half the body.
    """

    NO_USAGE = "no-usage"
    NEGATIVE_USAGE = "negative-usage"
    FLOAT_USAGE = "float-usage"
    NAN_USAGE = "nan-usage"
    HUGE_USAGE = "huge-usage"
    STRING_USAGE = "string-usage"
    USAGE_TWICE = "usage-twice"
    TRUNCATED_JSON = "truncated-json"
    ERROR_200 = "error-200"
    ERROR_500 = "error-500"
    ERROR_IN_STREAM = "error-in-stream"
    RESET_MID_STREAM = "reset-mid-stream"
    HANG = "hang"
    GZIP = "gzip"
    ONE_BYTE_CHUNKS = "one-byte-chunks"


class ConnectionCutError(Exception):
    """The answer ends here, by cutting the connection."""


def read_fault(value: str | None) -> Fault | None:
    """The fault a header asks for.

    Raises:
        ApiError: 400; there is no such fault. A test that misspells one should hear of it.
    """
    if not value:
        return None
    try:
        return Fault(value.strip().lower())
    except ValueError as error:
        known = ", ".join(Fault)
        raise malformed(f"{FAULT_HEADER}: unknown fault {value!r}; known are {known}") from error


def fault_error(fault: Fault, status: "HTTPStatus") -> "Document":
    return error_body(f"Injected fault: {fault}", "InternalServerError", status)


def spoil_plain(document: "Document", fault: Fault | None) -> "Document":
    """A plain answer with its usage spoilt, if that is the fault."""
    if fault is Fault.NO_USAGE:
        return {key: value for key, value in document.items() if key != "usage"}
    if fault is Fault.USAGE_TWICE:
        usage = msgspec.json.encode(document["usage"])
        # No dictionary holds a key twice, so the second one travels in the raw value of the first.
        return document | {"usage": msgspec.Raw(usage + b',"usage":' + usage)}
    return document | {"usage": _spoilt(document["usage"], fault)}


def spoil_chunk(document: "Document", fault: Fault | None) -> "list[Document]":
    """What becomes of one chunk of a stream: nothing, one chunk or two."""
    if "usage" not in document:
        return [document]
    closing = not document["choices"]
    if fault is Fault.NO_USAGE:
        return [] if closing else [spoil_plain(document, fault)]
    if fault is Fault.USAGE_TWICE:
        return [document, document] if closing else [document]
    return [spoil_plain(document, fault)]


def _spoilt(usage: "Document", fault: Fault | None) -> "Document":
    return {key: _spoilt_count(value, fault) if key.endswith("_tokens") else value for key, value in usage.items()}


def _spoilt_count(count: int, fault: Fault | None) -> Any:
    match fault:
        case Fault.NEGATIVE_USAGE:
            return -max(count, 1)
        case Fault.FLOAT_USAGE:
            return count + 0.5
        case Fault.NAN_USAGE:
            return msgspec.Raw(b"NaN")
        case Fault.HUGE_USAGE:
            return HUGE
        case Fault.STRING_USAGE:
            return str(count)
        case _:
            return count


async def spoil_events(events: "AsyncGenerator[bytes]", fault: Fault | None) -> "AsyncGenerator[bytes]":
    """A stream's bytes with the faults of its framing and its end.

    Raises:
        ConnectionCutError: after 3 events of ``reset-mid-stream``.
    """
    async with aclosing(_cut(events, fault)) as cut:
        deflate = zlib.compressobj(wbits=31)
        async for event in cut:
            if fault is Fault.ONE_BYTE_CHUNKS:
                for byte in event:
                    yield bytes((byte,))
            elif fault is Fault.GZIP:
                yield deflate.compress(event) + deflate.flush(zlib.Z_SYNC_FLUSH)
            else:
                yield event
        if fault is Fault.GZIP:
            yield deflate.flush()


async def _cut(events: "AsyncGenerator[bytes]", fault: Fault | None) -> "AsyncGenerator[bytes]":
    sent = 0
    held = b""
    async with aclosing(events):
        async for event in events:
            if fault is Fault.TRUNCATED_JSON:
                if held and (sent == EVENTS_BEFORE_FAULT - 1 or event == DONE):
                    yield held[: len(held) // 2]
                    return
                event, held = held, event  # noqa: PLW2901  one event late: only then is it known to be the last
                if not event:
                    continue
            yield event
            sent += 1
            if sent == EVENTS_BEFORE_FAULT and fault is Fault.RESET_MID_STREAM:
                raise ConnectionCutError
            if sent == EVENTS_BEFORE_FAULT and fault is Fault.ERROR_IN_STREAM:
                break
    if fault is Fault.ERROR_IN_STREAM:
        yield _error_event(fault)
        yield DONE


def _error_event(fault: Fault) -> bytes:
    from http import HTTPStatus

    return b"data: " + msgspec.json.encode(fault_error(fault, HTTPStatus.INTERNAL_SERVER_ERROR)) + b"\n\n"
