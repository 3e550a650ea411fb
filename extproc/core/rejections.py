"""Build our own answers to a client, in the shape of the endpoint's API."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final

import msgspec

from extproc.core.quota.limits import Unit, Window
from extproc.core.quota.reservation import BucketState, Count, Denied, tightest
from extproc.core.request.body import Malformed
from extproc.core.request.endpoints import MAX_PATH_CHARS, Endpoint, PathProblem
from extproc.core.request.identity import UnusableIdentity
from extproc.core.unmetered import Refusal

_JSON = ("content-type", "application/json")
_UNITS: Final = {
    Unit.TOKENS: "tokens",
    Unit.INPUT_TOKENS: "input tokens",
    Unit.OUTPUT_TOKENS: "output tokens",
    Unit.REQUESTS: "requests",
}
_BOUND_FIELDS: Final = {
    Endpoint.CHAT_COMPLETIONS: "max_tokens",
    Endpoint.COMPLETIONS: "max_tokens",
    Endpoint.MESSAGES: "max_tokens",
    Endpoint.RESPONSES: "max_output_tokens",
}
# Of tokens and of requests: their limit, what remains of it, and when it is reset.
_QUOTA_HEADERS: Final = (
    (False, ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")),
    (True, ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")),
)
_KSERVE: Final = (Endpoint.PREDICT, Endpoint.INFER)
_ANTHROPIC_PATH: Final = "/v1/messages"
# Anthropic's error types, by status.
_ANTHROPIC_TYPES: Final = {
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "api_error",
}


class DeniedStyle(StrEnum):
    """Select the form of a denied answer: that of the endpoint's API, or a plain 400 with one line of text
    (`talk`).
    """

    OPENAI = "openai"
    TALK = "talk"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Hold a whole HTTP answer, and the reason that metrics count it under (a small fixed set)."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reason: str


def malformed(problem: Malformed, endpoint: Endpoint | None = None) -> Rejection:
    return _error(400, problem.message, problem.code, endpoint, param=problem.param, reason="malformed")


def too_large(max_body_bytes: int, endpoint: Endpoint | None = None) -> Rejection:
    message = f"The request body is larger than {max_body_bytes} bytes; send a smaller one."
    return _error(413, message, "request_too_large", endpoint, reason="too_large")


def compressed(encoding: str, endpoint: Endpoint | None = None) -> Rejection:
    message = f"'content-encoding: {encoding[:32]}' can't be read; send the body uncompressed."
    code = "unsupported_content_encoding"
    return _error(415, message, code, endpoint, param="content-encoding", reason="compressed")


def unreadable_path(problem: PathProblem) -> Rejection:
    """Answer a path that is too long to read, or that servers read differently."""
    if problem is PathProblem.TOO_LONG:
        message = f"The path is longer than {MAX_PATH_CHARS} characters; shorten it."
        return _error(414, message, problem, None, reason="path")
    message = "The path leads to different endpoints, depending on how it is decoded; write it without escapes."
    return _error(400, message, problem, None, reason="path")


def method_not_allowed(method: str = "POST", endpoint: Endpoint | None = None) -> Rejection:
    message = f"This endpoint takes {method} only."
    allow = (("allow", method),)
    return _error(405, message, "method_not_allowed", endpoint, reason="method", extra=allow)


def not_metered(refusal: Refusal, path: str) -> Rejection:
    """Answer a POST that nothing meters, in Anthropic's shape below its endpoint."""
    message = f"This path takes no POST here: {refusal.value}."
    endpoint = Endpoint.MESSAGES if _ANTHROPIC_PATH in path.partition("?")[0].lower() else None
    return _error(404, message, "endpoint_not_metered", endpoint, reason="not_metered")


def websocket(endpoint: Endpoint | None = None) -> Rejection:
    """Answer a request for a WebSocket: what it carries has no end at which it could be metered."""
    message = "WebSockets are not served here; send the request as a POST, streamed if you like."
    return _error(426, message, "websocket_not_supported", endpoint, reason="websocket")


def unusable_identity(problem: UnusableIdentity, endpoint: Endpoint | None = None) -> Rejection:
    kind = "permission_error"
    return _error(
        403, problem.message, "unusable_identity", endpoint, kind=kind, param=problem.source, reason="identity"
    )


def suspended(reason: str, endpoint: Endpoint | None = None) -> Rejection:
    """Answer a caller that is suspended."""
    message = f"Access is suspended: {reason}." if not reason.endswith(".") else f"Access is suspended: {reason}"
    if reason == "suspended":
        message = "Access is suspended."
    return _error(403, message, "suspended", endpoint, kind="permission_error", reason="suspended")


def unbounded(endpoint: Endpoint | None = None) -> Rejection:
    """Answer a request that a strict limit can't hold for, because its prompt has no bound."""
    message = (
        "A strict limit binds this request, and what it can need has no bound: it refers to an earlier "
        "conversation or a stored prompt, to files or films, to a search or citations, or to tools that the "
        "server defines. Send the conversation itself, and tools of your own."
    )
    return _error(400, message, "unbounded_prompt", endpoint, reason="unbounded_prompt")


def unnamed(endpoint: Endpoint | None = None) -> Rejection:
    """Answer a request that names no model, where a limit counts by model."""
    message = "A limit that counts by model binds this request, and it names no model: give its name in 'model'."
    return _error(400, message, "model_required", endpoint, param="model", reason="unnamed_model")


def store_unavailable(retry_after_s: int, endpoint: Endpoint | None = None) -> Rejection:
    return _error(
        503,
        "Token quotas can't be checked at the moment; try again shortly.",
        "quota_unavailable",
        endpoint,
        kind="server_error",
        reason="store_unavailable",
        extra=(("retry-after", str(retry_after_s)),),
    )


def overloaded(retry_after_s: int, endpoint: Endpoint | None = None) -> Rejection:
    """Answer a request that finds no room: the bodies of other requests fill the buffers."""
    return _error(
        503,
        "Too many large requests at once; try again shortly.",
        "overloaded",
        endpoint,
        kind="server_error",
        reason="overloaded",
        extra=(("retry-after", str(retry_after_s)),),
    )


@lru_cache(64)  # one for each endpoint: a tenant at its cap gets many
def too_many_in_flight(cap: int, retry_after_s: int, endpoint: Endpoint | None = None) -> Rejection:
    """Answer a request of a tenant that has `cap` requests in flight on this replica: 429, in every style."""
    message = (
        f"Your tenant has too many requests in flight: at most {cap} at once on each replica. "
        "Let some of them end, then try again."
    )
    return _error(
        429,
        message,
        "too_many_in_flight",
        endpoint,
        kind="requests",
        reason="in_flight",
        extra=(("retry-after", str(retry_after_s)),),
    )


def unread(retry_after_s: int, endpoint: Endpoint | None = None) -> Rejection:
    """Answer a request whose body was not read, because the process that read it failed or took too long."""
    return _error(
        503,
        "The request's body could not be read in time; try again shortly.",
        "body_not_read",
        endpoint,
        kind="server_error",
        reason="unread",
        extra=(("retry-after", str(retry_after_s)),),
    )


def too_slow(endpoint: Endpoint | None = None) -> Rejection:
    message = "The request did not arrive in time; send it again."
    return _error(408, message, "request_timeout", endpoint, reason="too_slow")


def document(content: object, reason: str) -> Rejection:
    """Answer with a document of ours: status 200."""
    return Rejection(200, (_JSON, ("cache-control", "no-store")), msgspec.json.encode(content), reason)


def over_limit(denied: Denied, now: datetime, style: DeniedStyle, endpoint: Endpoint | None = None) -> Rejection:
    """Answer a request that does not fit its limits: 429 with everything a client needs to wait correctly."""
    bucket = denied.state.bucket
    limit = bucket.limit
    opening = f"Usage over limit -- {limit.scope.label}."
    reason = f"over_limit:{limit.scope}"
    if style is DeniedStyle.TALK:
        return Rejection(400, (("content-type", "text/plain"),), opening.encode(), reason)
    seconds = _seconds_left(denied.state, now)
    count, reset = denied.state.count, datetime.fromtimestamp(bucket.interval.end, UTC)
    held = f" and {count.held} held by requests in flight" if count.held else ""
    need = f", this request needs up to {denied.need}" if limit.unit is not Unit.REQUESTS else ""
    message = (
        f"{opening} Limit {limit.amount} {_UNITS[limit.unit]} per {limit.window}: {count.used} used{held}{need}. "
        f"Resets at {reset:%Y-%m-%dT%H:%M:%SZ}, in {_duration(seconds)}."
    )
    in_vain = not BucketState(bucket, Count(0, 0)).admits(denied.need)  # not even into an unused bucket
    if in_vain and limit.unit is not Unit.REQUESTS:
        field = _BOUND_FIELDS.get(endpoint) if endpoint is not None else None
        less = f"shorten the prompt or lower {field}" if field else "ask for less"
        message += f" That is more than the whole limit: {less}."
    wait = () if in_vain else (("retry-after", str(seconds)),)
    headers: tuple[tuple[str, str], ...] = (*wait, *quota_headers((denied.state,), now))
    if limit.window is not Window.MINUTE or in_vain:
        headers += (("x-should-retry", "false"),)  # stops the OpenAI SDKs from retrying in vain
    kind = "requests" if limit.unit is Unit.REQUESTS else "tokens"
    return _error(429, message, "rate_limit_exceeded", endpoint, kind=kind, reason=reason, extra=headers)


def quota_headers(states: tuple[BucketState, ...], now: datetime) -> tuple[tuple[str, str], ...]:
    """Return limit, remaining and reset in OpenAI's header names and duration format.

    The values are those of the tightest bucket that counts tokens, and of the tightest one that counts requests.
    """
    headers: tuple[tuple[str, str], ...] = ()
    for requests, (limit, remaining, reset) in _QUOTA_HEADERS:
        state = tightest(states, requests=requests)
        if state is not None:
            headers += (
                (limit, str(state.bucket.limit.amount)),
                (remaining, str(state.remaining)),
                (reset, _duration(_seconds_left(state, now))),
            )
    return headers


def _seconds_left(state: BucketState, now: datetime) -> int:
    return max(1, state.bucket.interval.end - int(now.timestamp()))


def _duration(seconds: int) -> str:
    """Format seconds as OpenAI does: 6m0s, 11h27m14s."""
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}s"


def _error(
    status: int,
    message: str,
    code: str,
    endpoint: Endpoint | None,
    *,
    reason: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    extra: tuple[tuple[str, str], ...] = (),
) -> Rejection:
    content: dict[str, object]
    if endpoint is Endpoint.MESSAGES:
        told = _ANTHROPIC_TYPES.get(status, "invalid_request_error")
        content = {"type": "error", "error": {"type": told, "message": message}}
    elif endpoint in _KSERVE:
        content = {"error": message}
    else:
        content = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Rejection(status, (_JSON, *extra), msgspec.json.encode(content), reason)
