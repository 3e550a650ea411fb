"""A bucket's usage that crossed a threshold, as a value: its id, its document for receivers, and its signature."""

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from extproc.core.quota.limits import Bucket

EVENT_TYPE: Final = "tokenweir.quota.threshold"
# Counts up when a field changes its meaning or goes; a new field alone is no new version.
EVENT_VERSION: Final = 1

# 128 bits of the digest: ids of different alerts never meet.
_ID_CHARS = 32


@dataclass(frozen=True, slots=True)
class Alert:
    """`used` (0 or more, in the limit's unit) of a tenant's bucket has reached `threshold` percent of its limit.

    `at` (aware) is when that was noticed.
    """

    tenant: str
    bucket: Bucket
    used: int
    threshold: int
    at: datetime

    @property
    def id(self) -> str:
        """The same for one tenant, bucket and threshold, whoever tells of it and however often.

        A bucket belongs to one window, so the next window's alerts have other ids.
        """
        # JSON keeps the parts apart, and its escapes take any text, lone surrogates too.
        named = json.dumps([self.tenant, self.bucket.key, self.threshold])
        return hashlib.sha256(named.encode()).hexdigest()[:_ID_CHARS]

    @property
    def used_percent(self) -> int | None:
        """The used part of the limit, rounded down; over 100 where usage outgrew it. None for a limit of 0."""
        amount = self.bucket.limit.amount
        return self.used * 100 // amount if amount > 0 else None

    def document(self) -> dict[str, object]:
        """What a receiver is told, ready for JSON. Identity parts that the scope does not have are left out."""
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
        # What narrows the limit; not to be taken for the model or endpoint of a scope that has one.
        if limit.model is not None:
            document["model_pattern"] = limit.model
        if limit.endpoints:
            document["endpoints"] = sorted(endpoint.value for endpoint in limit.endpoints)
        return document

    def payload(self) -> bytes:
        """The document as JSON in ASCII: the same bytes each time."""
        return json.dumps(self.document(), separators=(",", ":")).encode()


def signature(secret: bytes, payload: bytes, second: int) -> str:
    """The value of `tokenweir-signature`: the time of sending in Unix seconds, and an HMAC-SHA256 over
    `<time>.<payload>`. With the time inside, a receiver can refuse what somebody recorded and sends again later.
    """
    digest = hmac.new(secret, b"%d." % second + payload, hashlib.sha256).hexdigest()
    return f"t={second},v1={digest}"


def _rfc3339(second: float) -> str:
    """To the second, in UTC."""
    return datetime.fromtimestamp(int(second), UTC).isoformat().replace("+00:00", "Z")
