"""Server-sent events: how the streams of all endpoints are framed."""

from dataclasses import dataclass
from typing import Any

import msgspec

Document = dict[str, Any]

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; a name makes it one of the Responses or Messages API."""

    document: Document
    name: str | None = None

    @property
    def framed(self) -> bytes:
        line = b"" if self.name is None else b"event: %b\n" % self.name.encode()
        return line + b"data: " + msgspec.json.encode(self.document) + b"\n\n"


def typed(name: str, **fields: Any) -> Event:
    """An event whose document begins with its own name, as those of the Messages API do."""
    return Event({"type": name, **fields}, name)
