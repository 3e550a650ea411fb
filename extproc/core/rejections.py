"""The answers that a client gets from us instead of the upstream's."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from extproc.core.identity import UnusableIdentity
from extproc.core.limits import Window
from extproc.core.quota import BucketState, Denied
from extproc.core.requests import Malformed

_JSON = ("content-type", "application/json")


class DeniedStyle(StrEnum):
    """How a denied request is answered: as OpenAI does, or the talk's answer to the letter."""

    OPENAI = "openai"
    TALK = "talk"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A whole HTTP answer, and the reason it is counted under (a small fixed set)."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reason: str


def malformed(problem: Malformed) -> Rejection:
    return _openai(400, problem.message, problem.code, param=problem.param, reason="malformed")


def too_large(max_body_bytes: int) -> Rejection:
    message = f"The request body is larger than {max_body_bytes} bytes; send a smaller one."
    return _openai(413, message, "request_too_large", reason="too_large")


def compressed(encoding: str) -> Rejection:
    message = f"'content-encoding: {encoding[:32]}' can't be read; send the body uncompressed."
    return _openai(415, message, "unsupported_content_encoding", param="content-encoding", reason="compressed")


def method_not_allowed() -> Rejection:
    return _openai(
        405,
        "This endpoint takes POST only.",
        "method_not_allowed",
        reason="method",
        extra=(("allow", "POST"),),
    )


def unusable_identity(problem: UnusableIdentity) -> Rejection:
    return _openai(
        403,
        problem.message,
        "unusable_identity",
        kind="permission_error",
        param=problem.source,
        reason="identity",
    )


def store_unavailable(retry_after_s: int) -> Rejection:
    return _openai(
        503,
        "Token quotas can't be checked at the moment; try again shortly.",
        "quota_unavailable",
        kind="server_error",
        reason="store_unavailable",
        extra=(("retry-after", str(retry_after_s)),),
    )


def over_limit(denied: Denied, now: datetime, style: DeniedStyle) -> Rejection:
    """The answer to a request that fits in no more: 429 with all that a client needs to wait rightly."""
    bucket = denied.state.bucket
    opening = f"Usage over limit -- {bucket.limit.scope.label}."
    reason = f"over_limit:{bucket.limit.scope}"
    if style is DeniedStyle.TALK:
        return Rejection(400, (("content-type", "text/plain"),), opening.encode(), reason)
    seconds = _seconds_left(denied.state, now)
    count, reset = denied.state.count, datetime.fromtimestamp(bucket.interval.end, UTC)
    held = f" and {count.held} held by requests in flight" if count.held else ""
    message = (
        f"{opening} Limit {bucket.limit.amount} tokens per {bucket.limit.window}: {count.used} used{held}, "
        f"this request needs up to {denied.cost.total}. "
        f"Resets at {reset:%Y-%m-%dT%H:%M:%SZ}, in {_duration(seconds)}."
    )
    if denied.cost.total > bucket.limit.amount:
        message += " That is more than the whole limit: ask for less with max_tokens."
    headers = (("retry-after", str(seconds)), *quota_headers(denied.state, now))
    if bucket.limit.window is not Window.MINUTE:
        headers += (("x-should-retry", "false"),)  # the OpenAI SDKs would wait and ask again, in vain
    return _openai(429, message, "rate_limit_exceeded", kind="tokens", reason=reason, extra=headers)


def quota_headers(state: BucketState, now: datetime) -> tuple[tuple[str, str], ...]:
    """Limit, remaining and reset of one bucket, in OpenAI's header names and duration format."""
    return (
        ("x-ratelimit-limit-tokens", str(state.bucket.limit.amount)),
        ("x-ratelimit-remaining-tokens", str(state.remaining)),
        ("x-ratelimit-reset-tokens", _duration(_seconds_left(state, now))),
    )


def _seconds_left(state: BucketState, now: datetime) -> int:
    return max(1, state.bucket.interval.end - int(now.timestamp()))


def _duration(seconds: int) -> str:
    """As OpenAI writes it: 6m0s, 11h27m14s."""
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}s"


def _openai(
    status: int,
    message: str,
    code: str,
    *,
    reason: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    extra: tuple[tuple[str, str], ...] = (),
) -> Rejection:
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Rejection(status, (_JSON, *extra), msgspec.json.encode({"error": error}), reason)
