"""Describe one message of the inference logger, and its printed and stored form."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

# S3 accepts keys of 1024 bytes: four segments of this length, a prefix and the ending are shorter.
_MAX_SEGMENT: Final = 180


class Kind(StrEnum):
    REQUEST = "request"
    RESPONSE = "response"


@dataclass(frozen=True, slots=True)
class Message:
    """Describe one message. `size` is the length of the whole body in bytes; `body` is the kept part of it.

    `body` is None if bodies are not kept.
    """

    id: str
    kind: Kind
    source: str
    time: datetime
    received_at: datetime
    namespace: str
    inference_service: str
    component: str
    endpoint: str
    content_type: str
    metadata: Mapping[str, Any]
    annotations: Mapping[str, Any]
    size: int
    body: bytes | None

    def without_body(self) -> "Message":
        return replace(self, body=None)

    def cut(self, limit: int) -> "Message":
        """Return the message with at most `limit` bytes of its body."""
        return self if self.body is None or len(self.body) <= limit else replace(self, body=self.body[:limit])


def path_of(message: Message) -> str:
    """Return `namespace/service/date/id-kind`. No name can leave its segment or make the key too long."""
    day = message.time.date().isoformat()
    return "/".join((*_place(message), day, f"{_segment(message.id)}-{message.kind}"))


def identity_of(message: Message) -> str:
    """Return the identity of a message: namespace, service, id, and request or response."""
    return "/".join((*_place(message), f"{_segment(message.id)}-{message.kind}"))


def record_of(message: Message) -> dict[str, Any]:
    """Return the message as it is printed and stored. A body that is not UTF-8 is base64."""
    text, encoding = _shown(message)
    return {
        "id": message.id,
        "type": message.kind.value,
        "namespace": message.namespace,
        "inference_service": message.inference_service,
        "component": message.component,
        "endpoint": message.endpoint,
        "source": message.source,
        "time": message.time,
        "received_at": message.received_at,
        "content_type": message.content_type,
        "metadata": dict(message.metadata),
        "annotations": dict(message.annotations),
        "body_bytes": message.size,
        "body_encoding": encoding,
        "body_cut": message.body is not None and len(message.body) < message.size,
        "body": text,
    }


def json_line(message: Message) -> bytes:
    """Return the record as one line of ASCII JSON, in which control characters and ANSI escapes are harmless."""
    return json.dumps(record_of(message), default=datetime.isoformat, separators=(",", ":")).encode() + b"\n"


def _shown(message: Message) -> tuple[str | None, str | None]:
    if message.body is None:
        return None, None
    try:
        return message.body.decode(), "text"
    except UnicodeDecodeError as error:
        # The body may be cut inside of its last character: the part before it is still text.
        if len(message.body) < message.size and error.reason == "unexpected end of data":
            return message.body[: error.start].decode(), "text"
    return base64.b64encode(message.body).decode("ascii"), "base64"


def _place(message: Message) -> tuple[str, str]:
    return _segment(message.namespace), _segment(message.inference_service)


def _segment(name: str) -> str:
    quoted = quote(name, safe="").replace("~", "%7E") or "_"
    if set(quoted) == {"."}:
        quoted = quoted.replace(".", "%2E")
    if len(quoted) > _MAX_SEGMENT:
        return f"sha256={hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return quoted
