"""Describe Envoy's own answers: in the shape of the endpoint's API, in words for people, each with a request id.

`envoy.yaml` and the chart `tokenweir` have the same mappers: charts/generate.py writes the chart's from here. The
first mapper that matches decides. A mapper without a format leaves the body and its content type as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_WEBSOCKET: Final = "WebSockets are not served here; send the request as a POST, streamed if you like."
_SEND_ONE: Final = "send a valid one as 'Authorization: Bearer ...'"
_INVALID: Final = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class _Reply:
    """Describe one kind of answer. `when` is an expression in CEL; `status` replaces Envoy's own."""

    when: str
    message: str
    code: str
    type: str = _INVALID
    anthropic: str = _INVALID
    status: int | None = None


def _replies(too_large: str) -> Iterator[_Reply]:
    missing = f"The request has no token; {_SEND_ONE}."
    denied = f"The token is not valid here; {_SEND_ONE}."
    expired = f"The token has expired; {_SEND_ONE}."
    for words, message in (("Jwt_is_missing", missing), ("Jwt_is_expired", expired), ("", denied)):
        named = f" && response.code_details.contains('{words}')" if words else ""
        yield _Reply(f"response.code == 401{named}", message, "invalid_api_key", _INVALID, "authentication_error")
    # Some clients try a WebSocket first, and go on with a POST after this status only.
    yield _Reply("response.code_details == 'upgrade_failed'", _WEBSOCKET, "websocket_not_supported", status=426)
    forbidden = "You have no permission for this; the token may be for another service."
    yield _Reply("response.code == 403", forbidden, "permission_denied", _INVALID, "permission_error")
    nothing = "There is nothing at this address."
    yield _Reply("response.code == 404", nothing, "not_found", _INVALID, "not_found_error")
    late = "The request did not arrive in time; send it again."
    yield _Reply("response.code == 408", late, "request_timeout")
    yield _Reply("response.code == 413", too_large, "request_too_large", _INVALID, "request_too_large")
    old = "HTTP/1.0 is not served here; use HTTP/1.1 or HTTP/2."
    yield _Reply("response.code == 426", old, "http_version_not_supported")
    large = "The headers of the request are too large or too many; send fewer."
    yield _Reply("response.code == 431", large, "headers_too_large")
    # The processor, or the model server, gave no answer in time.
    timeout = "The server did not answer in time. Try again."
    yield _Reply("response.code == 504", timeout, "timeout", "server_error", "api_error")
    strange = "The request uses something of HTTP that is not served here."
    yield _Reply("response.code == 501", strange, "not_implemented")
    # Everything else of Envoy's own. Its words may name addresses inside: they go to the access log (details), not
    # to the client.
    away = "The service is not available for the moment. Try again."
    yield _Reply("response.code >= 500", away, "service_unavailable", "server_error", "api_error")
    yield _Reply("response.code >= 400", "The request can not be served as it was sent.", "invalid_request")


# The same endpoints as in extproc/core/request/endpoints.py. A request that Envoy could not read has no path: an
# expression that asks for it is an error, and does not match.
_ANTHROPIC: Final = "request.url_path.matches('(?i)/messages(/|$)') && !request.url_path.matches('(?i)/threads/')"
_KSERVE: Final = (
    "request.url_path.matches('(?i)/models/.*(:(predict|explain|classify|regress)"
    "|/(infer|explain|generate|generate_stream))/?$')"
)


def mappers(too_large: str) -> list[Mapping[str, object]]:
    """Return the mappers. `too_large` is the message of 413."""
    # The processor's answers are local replies to Envoy as well. Each carries the response code detail that the
    # processor gave it: "tokenweir..." or none. Envoy's own details are never empty. The answer of the ratelimit
    # filter, where somebody adds that, is the processor's too.
    ours = "response.code_details == '' || response.code_details.startsWith('tokenweir')"
    kept: list[Mapping[str, object]] = [
        {"filter": _expression(ours)},
        {"filter": {"response_flag_filter": {"flags": ["RL"]}}},
    ]
    replies = list(_replies(too_large))
    anthropic = [_mapper(_ANTHROPIC, each, _as_anthropics(each)) for each in replies]
    kserve = [_mapper(_KSERVE, each, {"error": each.message}) for each in replies]
    return kept + anthropic + kserve + [_mapper("", each, _as_openais(each)) for each in replies]


def _as_openais(reply: _Reply) -> Mapping[str, object]:
    return {"error": {"message": reply.message, "type": reply.type, "param": None, "code": reply.code}}


def _as_anthropics(reply: _Reply) -> Mapping[str, object]:
    return {"type": "error", "error": {"type": reply.anthropic, "message": reply.message}}


def _mapper(path: str, reply: _Reply, body: Mapping[str, object]) -> Mapping[str, object]:
    when = f"{path} && {reply.when}" if path else reply.when
    # A request that Envoy could not read has no id: its connection and time find it in the access log. Any other
    # request's own id replaces this one.
    unread = {"key": "x-request-id", "value": "connection-%CONNECTION_ID%-%START_TIME(%s%3f)%"}
    mapper: dict[str, object] = {
        "filter": _expression(when),
        "headers_to_add": [{"header": unread, "append_action": "ADD_IF_ABSENT"}],
        "body_format_override": {"json_format": body},
    }
    return mapper if reply.status is None else {**mapper, "status_code": reply.status}


def _expression(text: str) -> Mapping[str, object]:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": text,
            },
        }
    }
