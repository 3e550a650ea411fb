"""Write alerts for receivers: an id, a document, and its bytes."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Final

from extproc.ports.alerts import Alert, AlertReason

EVENT_TYPE: Final = "tokenweir.quota."  # and the reason
# Increases if a field changes its meaning or is removed. A new field alone does not change the version.
EVENT_VERSION: Final = 1

# 128 bits of the digest: different alerts never share an id.
_ID_CHARS: Final = 32


def id_of(alert: Alert) -> str:
    """Return the id of an alert: the same for one tenant, bucket and threshold or reason, on every replica and at
    any time.

    A bucket belongs to one window, so the alerts of the next window have other ids.
    """
    # JSON separates the parts, and its escapes take any text, lone surrogates too.
    of_threshold = alert.reason is AlertReason.THRESHOLD
    named = json.dumps([alert.tenant, alert.bucket.key, alert.threshold if of_threshold else alert.reason.value])
    return hashlib.sha256(named.encode()).hexdigest()[:_ID_CHARS]


def document_of(alert: Alert) -> dict[str, object]:
    """Return the document for receivers, ready for JSON. Leave out identity parts that the scope does not have.

    The used share is in percent, rounded down: over 100 if usage outgrew the limit, None for a limit of 0.
    """
    limit, interval = alert.bucket.limit, alert.bucket.interval
    document: dict[str, object] = {
        "id": id_of(alert),
        "type": EVENT_TYPE + alert.reason.value,
        "version": EVENT_VERSION,
        "occurred_at": _rfc3339(alert.at.timestamp()),
        "tenant": alert.tenant,
        "scope": limit.scope.value,
        **dict(zip(limit.scope.names, alert.bucket.parts, strict=False)),
    }
    if alert.reason is AlertReason.SUSPENDED:
        return document | {"suspended": alert.told, "repeated_at": _rfc3339(interval.end)}
    document |= {
        "unit": limit.unit.value,
        "window": limit.window.value,
        "window_started_at": _rfc3339(interval.start),
        "resets_at": _rfc3339(interval.end),
        "limit": limit.amount,
        "used": alert.used,
        "used_percent": alert.used * 100 // limit.amount if limit.amount > 0 else None,
    }
    if alert.reason is AlertReason.THRESHOLD:
        document["threshold_percent"] = alert.threshold
    else:
        document |= {"held": alert.held, "needed": alert.needed}
    document["shadow"] = limit.shadow
    # The filter of the limit. Not the same as the model or endpoint in a scope.
    if limit.model is not None:
        document["model_pattern"] = limit.model
    if limit.endpoints:
        document["endpoints"] = sorted(endpoint.value for endpoint in limit.endpoints)
    return document


def payload_of(alert: Alert) -> bytes:
    """Return the document as JSON in ASCII: the same bytes each time."""
    return json.dumps(document_of(alert), separators=(",", ":")).encode()


def _rfc3339(second: float) -> str:
    """Format an instant in UTC, to the second."""
    return datetime.fromtimestamp(int(second), UTC).isoformat().replace("+00:00", "Z")
