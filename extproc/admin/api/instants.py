"""Read instants in a query: RFC 3339 with a time zone, and nothing else that could be meant as one."""

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from extproc.admin.api.problems import invalid

INSTANT: Final = Meta(max_length=64, extra_json_schema={"format": "date-time"})
_Aware = Annotated[datetime, Meta(tz=True)]


def instant(field: str, text: str | None) -> datetime | None:
    """Return the instant of a parameter; None if it is absent. Raise `Problem`, which names the parameter."""
    if text is None:
        return None
    try:
        return msgspec.convert(text, _Aware)
    except msgspec.ValidationError:
        raise invalid(f"'{field}' must be an instant such as 2026-03-01T00:00:00Z, not {text!r}", field) from None
