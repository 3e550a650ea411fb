"""Inject faults that a request asks for, to test the components between client and model."""

from contextlib import aclosing
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from extproc.local.model.encodings import ENCODINGS, encoder, missing_package
from extproc.local.model.errors import ApiError, malformed
from extproc.local.model.events import DONE, Event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from extproc.local.model.encodings import Encoder
    from extproc.local.model.events import Document

FAULT_HEADER = "x-sample-fault"

# The factor by which an answer exceeds the client's bound.
BEYOND_BOUND = 3

HUGE = 2**63

# The other places of usage in an event, beside its top level.
_HOLDERS = ("response", "message")


class Fault(StrEnum):
    """List the faults, by the value of the ``x-sample-fault`` header.

    Faults in the middle of a stream strike after 3 events, or after two tokens if a stream opens with more than
    one event (``truncated-json`` cuts the last of them, or the last before ``[DONE]`` if there are fewer). On a
    plain answer ``error-in-stream`` is ``error-500``, and ``reset-mid-stream`` strikes after half the body.
    Encodings are used even if the client does not accept them.
    """

    NO_USAGE = "no-usage"
    ZERO_USAGE = "zero-usage"
    NEGATIVE_USAGE = "negative-usage"
    FLOAT_USAGE = "float-usage"
    NAN_USAGE = "nan-usage"
    HUGE_USAGE = "huge-usage"
    STRING_USAGE = "string-usage"
    USAGE_TWICE = "usage-twice"
    # Send everything, but end the body only after a long pause.
    LATE_USAGE = "late-usage"
    # Generate three times as many tokens as the client's bound, and report them correctly.
    IGNORE_BOUND = "ignore-bound"
    TRUNCATED_JSON = "truncated-json"
    ERROR_200 = "error-200"
    ERROR_500 = "error-500"
    ERROR_IN_STREAM = "error-in-stream"
    RESET_MID_STREAM = "reset-mid-stream"
    HANG = "hang"
    GZIP = "gzip"
    DEFLATE = "deflate"
    BR = "br"
    ZSTD = "zstd"
    ONE_BYTE_CHUNKS = "one-byte-chunks"

    @property
    def encodes(self) -> bool:
        return self.value in ENCODINGS

    @property
    def encoder(self) -> "Encoder | None":
        """Return a new encoder if the fault is an encoding."""
        return encoder(self.value) if self.encodes else None


class ConnectionCutError(Exception):
    """Report that the answer ends here, by cutting the connection."""


def read_fault(value: str | None) -> Fault | None:
    """Return the fault that a header asks for.

    Raises:
        ApiError: 400; there is no such fault, or not here. A test with a misspelled fault must fail.
    """
    if not value:
        return None
    try:
        fault = Fault(value.strip().lower())
    except ValueError as error:
        known = ", ".join(Fault)
        raise malformed(f"{FAULT_HEADER}: unknown fault {value!r}; known are {known}") from error
    if package := missing_package(fault.value):
        raise malformed(f"{FAULT_HEADER}: {fault} needs the package {package}, which is not installed")
    return fault


def injected(fault: Fault) -> ApiError:
    """Return the error that a fault answers with."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return ApiError(f"Injected fault: {fault}", status=status, kind="InternalServerError")


def spoil_plain(document: "Document", fault: Fault | None) -> "Document":
    """Return the document with its usage changed by the fault, if it has usage."""
    for holder in _HOLDERS:
        if isinstance(held := document.get(holder), dict):
            return document | {holder: spoil_plain(held, fault)}
    if document.get("usage") is None:
        return document
    if fault is Fault.NO_USAGE:
        return {key: value for key, value in document.items() if key != "usage"}
    if fault is Fault.USAGE_TWICE:
        usage = msgspec.json.encode(document["usage"])
        # A dict can't hold a key twice, so the second one is in the raw value of the first.
        return document | {"usage": msgspec.Raw(usage + b',"usage":' + usage)}
    return document | {"usage": _spoilt(document["usage"], fault)}


def spoil_event(event: Event, fault: Fault | None) -> list[Event]:
    """Return the events that replace one event of a stream: none, one or two."""
    document = event.document
    if "usage" in document and "choices" in document:
        usage_only = not document["choices"]
        if fault is Fault.NO_USAGE and usage_only:
            return []
        if fault is Fault.USAGE_TWICE:
            return [event, event] if usage_only else [event]
    return [Event(spoil_plain(document, fault), event.name)]


def _spoilt(usage: "Document", fault: Fault | None) -> "Document":
    return {key: _spoilt_count(value, fault) if _is_count(key, value) else value for key, value in usage.items()}


def _is_count(key: str, value: object) -> bool:
    return isinstance(value, int) and (key == "seconds" or key.endswith("_tokens"))


def _spoilt_count(count: int, fault: Fault | None) -> Any:
    match fault:
        case Fault.ZERO_USAGE:
            return 0
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


async def spoil_bytes(
    events: "AsyncGenerator[bytes]", fault: Fault | None, strike_after: int, ending: "Callable[[], bytes]"
) -> "AsyncGenerator[bytes]":
    """Yield a stream's bytes with the faults of its framing and its end.

    Args:
        events: The framed events, `DONE` included.
        fault: The fault to inject.
        strike_after: Number of events before a fault in the middle.
        ending: Returns the end of a stream that fails in its middle.

    Raises:
        ConnectionCutError: after that many events of ``reset-mid-stream``.
    """
    async with aclosing(_cut(events, fault, strike_after, ending)) as cut:
        encoding = fault.encoder if fault is not None else None
        async for event in cut:
            if fault is Fault.ONE_BYTE_CHUNKS:
                for byte in event:
                    yield bytes((byte,))
            else:
                yield event if encoding is None else encoding.feed(event)
        if encoding is not None:
            yield encoding.finish()


async def _cut(
    events: "AsyncGenerator[bytes]", fault: Fault | None, strike_after: int, ending: "Callable[[], bytes]"
) -> "AsyncGenerator[bytes]":
    sent = 0
    held = b""
    async with aclosing(events):
        async for event in events:
            if fault is Fault.TRUNCATED_JSON:
                if held and (sent == strike_after - 1 or event == DONE):
                    break
                event, held = held, event  # noqa: PLW2901  one event late: only then is it known to be the last
                if not event:
                    continue
            yield event
            sent += 1
            if sent == strike_after and fault is Fault.RESET_MID_STREAM:
                raise ConnectionCutError
            if sent == strike_after and fault is Fault.ERROR_IN_STREAM:
                break
    if fault is Fault.TRUNCATED_JSON:
        yield held[: len(held) // 2]
    if fault is Fault.ERROR_IN_STREAM:
        yield ending()
