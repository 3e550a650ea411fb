"""Describe a bucket whose usage crossed a threshold: id, and document for receivers."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from extproc.core.quota.limits import Bucket

EVENT_TYPE: Final = "tokenweir.quota.threshold"
# Increases if a field changes its meaning or is removed. A new field alone does not change the version.
EVENT_VERSION: Final = 1

# 128 bits of the digest: different alerts never share an id.
_ID_CHARS = 32


@dataclass(frozen=True, slots=True)
class Alert:
    """Report that `used` (0 or more, in the limit's unit) of a tenant's bucket reached `threshold` percent of its
    limit.

    `at` (an aware datetime) is the time of the check that found it.
    """

    tenant: str
    bucket: Bucket
    used: int
    threshold: int
    at: datetime

    @property
    def id(self) -> str:
        """Return the alert's id: the same for one tenant, bucket and threshold, however often and by whom it is
        sent.

        A bucket belongs to one window, so the alerts of the next window have other ids.
        """
        # JSON separates the parts, and its escapes take any text, lone surrogates too.
        named = json.dumps([self.tenant, self.bucket.key, self.threshold])
        return hashlib.sha256(named.encode()).hexdigest()[:_ID_CHARS]

    @property
    def used_percent(self) -> int | None:
        """Return the used share in percent, rounded down; over 100 if usage outgrew the limit. None for a limit of
        0.
        """
        amount = self.bucket.limit.amount
        return self.used * 100 // amount if amount > 0 else None

    def document(self) -> dict[str, object]:
        """Return the document for receivers, ready for JSON. Leaves out identity parts that the scope does not
        have.
        """
        limit, interval = self.bucket.limit, self.bucket.interval
        document: dict[str, object] = {
            "id": self.id,
            "type": EVENT_TYPE,
            "version": EVENT_VERSION,
            "occurred_at": _rfc3339(self.at.timestamp()),
            "tenant": self.tenant,
            "scope": limit.scope.value,
            **dict(zip(limit.scope.names, self.bucket.parts, strict=False)),
            "unit": limit.unit.value,
            "window": limit.window.value,
            "window_started_at": _rfc3339(interval.start),
            "resets_at": _rfc3339(interval.end),
            "limit": limit.amount,
            "used": self.used,
            "used_percent": self.used_percent,
            "threshold_percent": self.threshold,
            "shadow": limit.shadow,
        }
        # The filter of the limit. Not the same as the model or endpoint in a scope.
        if limit.model is not None:
            document["model_pattern"] = limit.model
        if limit.endpoints:
            document["endpoints"] = sorted(endpoint.value for endpoint in limit.endpoints)
        return document

    def payload(self) -> bytes:
        """Return the document as JSON in ASCII: the same bytes each time."""
        return json.dumps(self.document(), separators=(",", ":")).encode()


def _rfc3339(second: float) -> str:
    """Format an instant in UTC, to the second."""
    return datetime.fromtimestamp(int(second), UTC).isoformat().replace("+00:00", "Z")
