"""Parse CloudEvents 1.0 over HTTP, as KServe's inference logger sends them, into messages.

KServe sends binary mode: attributes in `ce-` headers, and the unchanged body. Structured mode (one JSON document)
is accepted too. Header values are not percent-decoded, because the SDK of KServe's logger does not encode them.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from extproc.dumper.message import Kind, Message

_TYPES: Final = {f"org.kubeflow.serving.inference.{kind}": kind for kind in Kind}
_STRUCTURED: Final = "application/cloudevents+json"
_BATCH: Final = "application/cloudevents-batch+json"
_ATTRIBUTES: Final = (
    *("specversion", "id", "type", "source", "time"),
    *("inferenceservicename", "namespace", "component", "endpoint", "metadata", "annotations"),
)
_REQUIRED: Final = ("id", "source")
# KServe can be configured to add request headers to the metadata. Credentials must not be stored.
_CREDENTIAL: Final = re.compile(
    r"auth|cookie|token|secret|passw|credential|signature|assertion|session|private|(?:^|[-_])(?:api|access)?[-_]?key(?:$|[-_])",
    re.IGNORECASE,
)
_MAX_NAME: Final = 1024

Text = Annotated[str, msgspec.Meta(max_length=65_536)]
Named = dict[str, list[str] | str | None]


class BadEventError(ValueError):
    """Report that a POST is no message of an inference logger. The error never quotes the body."""


class UnsupportedError(BadEventError):
    """Report a type of content that is not accepted."""


class _Structured(msgspec.Struct):
    """Decode a structured event. Attributes must be texts; `data` stays as it was written."""

    specversion: Text = ""
    id: Text = ""
    type: Text = ""
    source: Text = ""
    time: Text = ""
    inferenceservicename: Text = ""
    namespace: Text = ""
    component: Text = ""
    endpoint: Text = ""
    metadata: Text = ""
    annotations: Text = ""
    datacontenttype: Text = "application/json"
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_base64: str | msgspec.UnsetType = msgspec.UNSET


def parse(headers: Mapping[str, str], body: bytes, received_at: datetime) -> Message:
    """Parse one POST; the names in `headers` are in lower case. Raise `BadEventError`."""
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedError("content-encoding: post the event as it is")
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == _BATCH:
        raise UnsupportedError("batches of CloudEvents are not taken: post one at a time")
    if media_type == _STRUCTURED:
        return _structured(body, received_at)
    attributes = {name: headers.get(f"ce-{name}", "") for name in _ATTRIBUTES}
    return _message(attributes, content_type, body, received_at)


def _structured(body: bytes, received_at: datetime) -> Message:
    try:
        event = msgspec.json.decode(body, type=_Structured)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadEventError(f"no CloudEvent in JSON: {_without_values(error)}") from None
    attributes = {name: getattr(event, name) for name in _ATTRIBUTES}
    return _message(attributes, event.datacontenttype, _data(event), received_at)


def _data(event: _Structured) -> bytes:
    if event.data_base64 is not msgspec.UNSET:
        if event.data is not msgspec.UNSET:
            raise BadEventError("both data and data_base64: one of them, please")
        try:
            return base64.b64decode(event.data_base64, validate=True)
        except (binascii.Error, ValueError):
            raise BadEventError("data_base64: not base64") from None
    if event.data is msgspec.UNSET:
        return b""
    raw = bytes(event.data)
    media_type = event.datacontenttype.partition(";")[0].strip().lower()
    if raw.startswith(b'"') and media_type != "application/json" and not media_type.endswith("+json"):
        text: str = json.loads(raw)
        return text.encode("utf-8", "replace")
    return raw


def _message(attributes: Mapping[str, str], content_type: str, body: bytes, received_at: datetime) -> Message:
    version = attributes["specversion"]
    if not version:
        raise BadEventError("ce-specversion is missing: post CloudEvents, as the logger of KServe does")
    if version != "1.0":
        raise BadEventError(f"ce-specversion {version[:20]!r} is not known; 1.0 is")
    for name in _REQUIRED:
        if not attributes[name]:
            raise BadEventError(f"ce-{name} is missing")
    for name in ("id", "source", "namespace", "inferenceservicename", "component", "endpoint"):
        if len(attributes[name]) > _MAX_NAME:
            raise BadEventError(f"ce-{name} has more than {_MAX_NAME} characters")
    return Message(
        id=attributes["id"],
        kind=_kind(attributes["type"]),
        source=attributes["source"],
        time=_time(attributes["time"], received_at),
        received_at=received_at,
        namespace=attributes["namespace"],
        inference_service=attributes["inferenceservicename"],
        component=attributes["component"],
        endpoint=attributes["endpoint"],
        content_type=content_type,
        metadata=_mapping(attributes["metadata"]),
        annotations=_mapping(attributes["annotations"]),
        size=len(body),
        body=body,
    )


def _kind(name: str) -> Kind:
    try:
        return _TYPES[name]
    except KeyError:
        raise BadEventError(f"ce-type {name[:80]!r} is none of {', '.join(sorted(_TYPES))}") from None


def _time(text: str, received_at: datetime) -> datetime:
    """Return the time in UTC, cut to the milliseconds that MongoDB stores; `received_at` if there is no time."""
    if not text:
        return received_at
    problem = BadEventError("ce-time is no time as RFC 3339 has it")
    try:
        # Go writes nanoseconds.
        parsed = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        utc = parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise problem from None
    if parsed.tzinfo is None:
        raise problem
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)


def _mapping(text: str) -> Named:
    """Return the mapping without credentials. It is empty if the text does not have the form of the logger,
    because credentials in another form can't be found.
    """
    try:
        value: Named = msgspec.json.decode(text.encode(), type=Named) if text else {}
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return {}
    return {name: item for name, item in value.items() if _CREDENTIAL.search(name) is None}


def _without_values(error: Exception) -> str:
    """Return the first line of a decoding error. The library's messages name types and places, and no values."""
    return str(error).splitlines()[0][:200] if isinstance(error, msgspec.MsgspecError) else "not UTF-8"
