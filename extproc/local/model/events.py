"""Frame the server-sent events of all endpoints' streams."""

from dataclasses import dataclass
from typing import Any

import msgspec

Document = dict[str, Any]

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """Hold one event of a stream; a name makes it one of the Responses or Messages API."""

    document: Document
    name: str | None = None

    @property
    def framed(self) -> bytes:
        line = b"" if self.name is None else b"event: %b\n" % self.name.encode()
        return line + b"data: " + msgspec.json.encode(self.document) + b"\n\n"


def typed(name: str, **fields: Any) -> Event:
    """Return an event whose document begins with its own name, as in the Messages API."""
    return Event({"type": name, **fields}, name)
