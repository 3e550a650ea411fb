"""Protobuf <-> core values: what Envoy sends as events, what an exchange wants as replies."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from extproc.core.events import (
    GATEWAY_TIMEOUT,
    BodyReply,
    Event,
    HeadReply,
    Reject,
    Reply,
    RequestBody,
    RequestHead,
    RequestTrailers,
    ResponseBody,
    ResponseHead,
    ResponseTrailers,
    TrailersReply,
)
from extproc.core.phase import ProtocolError
from extproc.core.request.bodies.steering import STEERING_HEADERS
from extproc.core.request.endpoints import NO_GET
from extproc.core.request.identity import IdentityRules
from extproc.envoy import large_bodies
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb

# Envoy puts all requested attributes under the name of the filter itself.
_ATTRIBUTES: Final = "envoy.filters.http.ext_proc"
# Marks an answer as ours in access logs, and lets Envoy's local_reply_config tell it from Envoy's own.
DETAILS: Final = "tokenweir"
_OVERWRITE: Final = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_REQUEST_HEADERS = NO_GET | {
    *(":method", ":path", "content-encoding", "content-length", "content-type", "x-request-id"),
    *STEERING_HEADERS,
}
# vLLM describes vectors that it sends as bytes in `metadata`, with their usage.
_RESPONSE_HEADERS = frozenset({":status", "content-type", "content-encoding", "metadata"})
_BAD_STATUS: Final = 500

# Tags of fields as they are sent: the field's number, and that a length follows.
_LENGTHS: Final = [bytes([size]) for size in range(128)]
_RESPONSE_HEADERS_TAG: Final = b"\x12"  # ProcessingResponse.response_headers
_COMMON_RESPONSE: Final = b"\x0a"  # HeadersResponse.response
_HEADER_MUTATION: Final = b"\x12"  # CommonResponse.header_mutation
_SET_HEADER: Final = b"\x0a"  # HeaderMutation.set_headers
_REMOVE_HEADER: Final = b"\x12"  # HeaderMutation.remove_headers
_HEADER: Final = b"\x0a"  # HeaderValueOption.header
_OVERWRITES: Final = bytes([0x18, _OVERWRITE])  # HeaderValueOption.append_action
_KEY: Final = b"\x0a"  # HeaderValue.key
_RAW_VALUE: Final = b"\x1a"  # HeaderValue.raw_value


@dataclass(frozen=True, slots=True)
class MetadataKeys:
    """Where jwt_authn puts the verified payload: namespace and `payload_in_metadata`."""

    namespace: str = "envoy.filters.http.jwt_authn"
    payload: str = "payload"


class Codec:
    """Reads only the headers and claims that somebody wants; the rest stays undecoded."""

    def __init__(self, rules: IdentityRules, keys: MetadataKeys) -> None:
        self._request_headers = _REQUEST_HEADERS | frozenset(rules.headers)
        self._claims = rules.claims
        self._keys = keys

    def event(self, data: bytes | list[bytes]) -> Event:
        """Return what a message says. A large message, in parts, stays so if it is a piece of a request's body.

        Raise `ProtocolError` for bytes that are no message, or none of the six kinds.
        """
        if isinstance(data, list):
            return large_bodies.event(data) or self.event(b"".join(data))
        try:
            message = pb.ProcessingRequest.FromString(data)
        except DecodeError:
            raise ProtocolError("a message that is no ProcessingRequest") from None
        kind = message.WhichOneof("request")
        match kind:
            case "request_headers":
                return self._request_head(message)
            case "request_body":
                body = message.request_body
                return RequestBody(body.body, body.end_of_stream)
            case "request_trailers":
                return RequestTrailers()
            case "response_headers":
                head = message.response_headers
                headers = _headers(head.headers, _RESPONSE_HEADERS)
                status = _status(headers.get(":status", ""))
                details = _attribute(message, "response.code_details") if status == GATEWAY_TIMEOUT else ""
                return ResponseHead(status, headers, head.end_of_stream, details)
            case "response_body":
                body = message.response_body
                return ResponseBody(body.body, body.end_of_stream)
            case "response_trailers":
                return ResponseTrailers()
            case _:
                raise ProtocolError("a message of no known kind")

    @staticmethod
    def piece(data: bytes) -> ResponseBody | None:
        """Return a piece of an answer's body; None if the message says anything else."""
        try:
            message = pb.ProcessingRequest.FromString(data)
        except DecodeError:
            return None
        if not message.HasField("response_body"):
            return None
        body = message.response_body
        return ResponseBody(body.body, body.end_of_stream)

    def _request_head(self, message: pb.ProcessingRequest) -> RequestHead:
        head = message.request_headers
        return RequestHead(
            headers=_headers(head.headers, self._request_headers),
            claims=self._verified_claims(message.metadata_context),
            source_address=_attribute(message, "source.address"),
            end_of_stream=head.end_of_stream,
            peer=_attribute(message, "connection.uri_san_peer_certificate"),
        )

    def _verified_claims(self, metadata: pb.Metadata) -> dict[str, object]:
        namespaces = metadata.filter_metadata
        if self._keys.namespace not in namespaces:
            return {}
        payload = namespaces[self._keys.namespace].fields.get(self._keys.payload)
        if payload is None:
            return {}
        fields = payload.struct_value.fields  # empty where the payload is no object
        return {name: _plain(fields[name]) for name in self._claims if name in fields}


def reply_message(event: Event, reply: Reply) -> bytes | list[bytes | memoryview]:
    """Return the reply to the message that `event` came from, as it is sent; in parts, if its body is."""
    match reply:
        case BodyReply(data, more) if more:
            return large_bodies.reply([data or b"", *more])
        case BodyReply(data=None):
            return ANSWER_PASSES if isinstance(event, ResponseBody) else _REQUEST_PASSES
        case BodyReply(data):
            return _body(data, of_answer=isinstance(event, ResponseBody))
        case HeadReply():
            if isinstance(event, ResponseHead):
                return _head_of_answer(reply.set_headers, reply.remove_headers)
            return _head_of_request(reply.set_headers, reply.remove_headers)
        case TrailersReply():
            return _TRAILERS_OF_ANSWER_PASS if isinstance(event, ResponseTrailers) else _TRAILERS_OF_REQUEST_PASS
        case Reject(rejection):
            immediate = pb.ImmediateResponse(
                status=pb.HttpStatus(code=rejection.status),
                headers=_mutation(rejection.headers, ()),
                body=rejection.body,
                details=DETAILS,
            )
            return pb.ProcessingResponse(immediate_response=immediate).SerializeToString()


def _body(data: bytes | None, *, of_answer: bool) -> bytes:
    response = pb.ProcessingResponse()
    part = response.response_body if of_answer else response.request_body
    part.SetInParent()
    if data:
        # In place: each message that is given to another one's constructor is copied, with its body.
        part.response.body_mutation.body = data
    else:
        part.response.body_mutation.clear_body = True
    return response.SerializeToString()


# Messages that say the same each time are made once.
ANSWER_PASSES: Final = pb.ProcessingResponse(response_body=pb.BodyResponse()).SerializeToString()
_REQUEST_PASSES: Final = pb.ProcessingResponse(request_body=pb.BodyResponse()).SerializeToString()
_TRAILERS_OF_ANSWER_PASS: Final = pb.ProcessingResponse(
    response_trailers=pb.TrailersResponse()
).SerializeToString()
_TRAILERS_OF_REQUEST_PASS: Final = pb.ProcessingResponse(
    request_trailers=pb.TrailersResponse()
).SerializeToString()


@lru_cache(maxsize=256)
def _head_of_request(set_headers: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> bytes:
    return pb.ProcessingResponse(request_headers=_head(set_headers, remove)).SerializeToString()


def _head_of_answer(set_headers: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> bytes:
    """Return `ProcessingResponse(response_headers=_head(...))` as it is sent, for a fifth of the time."""
    mutation = b"".join([_set_header(*each) for each in set_headers])
    if remove:
        mutation += b"".join([_field(_REMOVE_HEADER, name.encode()) for name in remove])
    return _field(_RESPONSE_HEADERS_TAG, _field(_COMMON_RESPONSE, _field(_HEADER_MUTATION, mutation)))


def _field(tag: bytes, data: bytes) -> bytes:
    """Return a field of a message: its tag, the length of `data`, `data`."""
    size = len(data)
    if size < len(_LENGTHS):
        return tag + _LENGTHS[size] + data
    length = []
    while size >= len(_LENGTHS):
        length.append(size & 127 | 128)
        size >>= 7
    return tag + bytes([*length, size]) + data


@lru_cache(maxsize=1024)  # most say what they said in the same second
def _set_header(key: str, value: str) -> bytes:
    header = _field(_KEY, key.encode()) + _field(_RAW_VALUE, value.encode())
    return _field(_SET_HEADER, _field(_HEADER, header) + _OVERWRITES)


def _head(set_headers: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> pb.HeadersResponse:
    return pb.HeadersResponse(response=pb.CommonResponse(header_mutation=_mutation(set_headers, remove)))


def _mutation(set_headers: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> pb.HeaderMutation:
    options = [
        pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value.encode()), append_action=_OVERWRITE)
        for name, value in set_headers
    ]
    return pb.HeaderMutation(set_headers=options, remove_headers=remove)


def _headers(header_map: pb.HeaderMap, wanted: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for header in header_map.headers:
        name = header.key
        if name in wanted:
            raw = header.raw_value
            value = raw.decode("utf-8", "replace") if raw else header.value
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _status(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) == 3 else _BAD_STATUS  # noqa: PLR2004


def _attribute(message: pb.ProcessingRequest, name: str) -> str:
    attributes = message.attributes
    if _ATTRIBUTES not in attributes:
        return ""
    value = attributes[_ATTRIBUTES].fields.get(name)
    return value.string_value if value is not None else ""


def _plain(value: Value) -> object:
    """A claim as far as a name needs it: a string as it is, anything else as something that is no string."""
    return value.string_value if value.WhichOneof("kind") == "string_value" else None
