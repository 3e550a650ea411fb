"""Describe the limits that bind an identity, for a caller or an operator."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs

from extproc.core.quota.limits import Limit, Subject
from extproc.core.quota.policies import METERED
from extproc.core.quota.reservation import BucketState
from extproc.core.request.body import Malformed
from extproc.core.request.endpoints import MAX_MODEL_CHARS, Endpoint
from extproc.core.request.identity import Identity

_NO_ENDPOINT: Final = Malformed(f"'endpoint' must be one of {', '.join(METERED)}.", "endpoint", "invalid_value")
# The query of a longer path is ignored.
_PATH: Final = 4096


@dataclass(frozen=True, slots=True)
class Insight:
    """Hold the limits of an identity now. The state is None if it depends on a model or endpoint not asked
    about.
    """

    identity: Identity
    limits: tuple[tuple[Limit, BucketState | None], ...]
    suspended: str | None = None


def quota_document(insight: Insight, now: datetime) -> dict[str, object]:
    """Build the answer to `GET /v1/quota`. Shadow limits are for the operator and are left out."""
    who = insight.identity
    return {
        "object": "quota",
        "tenant": who.tenant,
        "service_account": who.service_account,
        "client_ip": who.client_ip,
        "suspended": insight.suspended,
        "limits": [row(limit, state, now) for limit, state in insight.limits if not limit.shadow],
    }


def row(limit: Limit, state: BucketState | None, now: datetime) -> dict[str, object]:
    """Describe one limit with its counts; null if they depend on a model or endpoint that is not known."""
    end = state.bucket.interval.end if state is not None else None
    return {
        "scope": limit.scope.value,
        "unit": limit.unit.value,
        "window": limit.window.value,
        "limit": limit.amount,
        "used": state.count.used if state is not None else None,
        "held": state.count.held if state is not None else None,
        "remaining": state.remaining if state is not None else None,
        "resets_at": f"{datetime.fromtimestamp(end, UTC):%Y-%m-%dT%H:%M:%SZ}" if end is not None else None,
        "resets_in_s": max(1, end - int(now.timestamp())) if end is not None else None,
        "mode": limit.mode.value,
        "model": limit.model,
        "endpoints": list(limit.endpoints) or None,
    }


def asked_about(path: str) -> Subject | Malformed:
    """Return the subject in `?model=` and `?endpoint=`. Limits that count by them have numbers only then."""
    fields = parse_qs(path.partition("?")[2]) if len(path) < _PATH else {}
    model = fields["model"][0][:MAX_MODEL_CHARS] if "model" in fields else None
    endpoint = fields["endpoint"][0] if "endpoint" in fields else None
    if endpoint is not None and endpoint not in METERED:
        return _NO_ENDPOINT
    return Subject(model, Endpoint(endpoint) if endpoint is not None else None)
