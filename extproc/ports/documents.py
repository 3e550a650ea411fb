"""Name the fields of a tenant's document, and tell its content from any other."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Final

from extproc.core.quota.policies import RATE_LIMITS, SHORT_LIMITS

Document = Mapping[str, object]

AMOUNTS: Final = (*SHORT_LIMITS, *RATE_LIMITS)
# Fields that describe the document itself.
BOOKKEEPING: Final = frozenset({"tenant_id", "version", "updated_at", "updated_by"})
FIELDS: Final = frozenset(
    {
        *AMOUNTS, "limits", "unlimited", "suspended", "mode", "shadows", "timezone", "service_accounts",
        "unknown_service_accounts", "top_ups", "models", "weights", "min_output_tokens", "on_store_failure",
        "note", "labels", "managed_by",
    }
)  # fmt: skip
_DIGEST_BYTES: Final = 16


def digest(document: Document | None) -> str | None:
    """Return what tells the content of a tenant's document from any other; None for no document.

    Counts are compared as numbers: a shell may write 12000 as 12000.0. Fields that Tokenweir does not know are
    left out, because other programs may write them at any time.
    """
    if document is None:
        return None
    content = {name: plain(document[name]) for name in FIELDS if document.get(name) is not None}
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":")
    )  # ASCII: takes any text, unpaired surrogates too
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def plain(value: object) -> object:
    """Return the value in JSON form: instants as text to the millisecond, as they are stored; whole numbers as
    integers; all other types as their text.
    """
    match value:
        case None | bool():
            return value
        case str():
            return str(value)  # and the driver's own kind of text
        case int():
            return int(value)  # and the driver's own integer types
        case float():
            return int(value) if value.is_integer() else value
        case datetime():
            aware = (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).astimezone(UTC)
            stored = aware.replace(microsecond=aware.microsecond // 1000 * 1000)
            return stored.isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case Mapping():
            return {str(name): plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return str(value)
