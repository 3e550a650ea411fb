"""Define the phases of an exchange up to its decision: identify the caller, read the request, reserve."""

from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from extproc.core import rejections
from extproc.core.answer_phases import AdmittedRequest, Forwarded, asks_continuously, hides_usage
from extproc.core.events import (
    BodyRead,
    BodyReply,
    Decided,
    Effect,
    Finish,
    HeadReply,
    Inspect,
    Inspected,
    ReadBody,
    RequestBody,
    RequestHead,
    RequestTrailers,
    Reserve,
    ResponseHead,
    StreamClosed,
    TrailersReply,
)
from extproc.core.phase import Done, ExchangeRules, Phase, Step
from extproc.core.quota.drafting import Ask, Caller
from extproc.core.quota.insight import asked_about, quota_document
from extproc.core.quota.reservation import (
    Admitted,
    Denied,
    Reservation,
    Suspended,
    Unavailable,
    Unbounded,
    Unnamed,
)
from extproc.core.quota.routes import Route
from extproc.core.request.apart import BodyFacts, Reading, Unread
from extproc.core.request.bodies.multipart import is_multipart
from extproc.core.request.bodies.steering import STEERING_HEADERS, steers
from extproc.core.request.body import (
    UNNAMED,
    Malformed,
    RequestFacts,
    Rewriting,
    read_request,
    reads_body,
    upstream_body,
    upstream_parts,
)
from extproc.core.request.buffers import declared_bytes
from extproc.core.request.endpoints import Endpoint, PathProblem, Target, classify
from extproc.core.request.gathered_body import GatheredBody
from extproc.core.request.identity import Identity, UnusableIdentity, identify
from extproc.core.request.in_flight import Place
from extproc.core.request.layout import Layout
from extproc.core.unmetered import asks_for_websocket, generates_nothing, may_post, refusal

_MAX_REQUEST_ID_CHARS = 128
_WITHOUT_USAGE = Malformed(
    "'encoding_format' must not be 'bytes_only': the answer would come without usage. Use 'bytes', 'base64' or"
    " 'float'.",
    "encoding_format",
    "answer_without_usage",
)
# A form's boundary has at most 70 characters. Each parameter of a content type takes a microsecond to read.
_MAX_CONTENT_TYPE_CHARS = 512
# Envoy's `buffer` filter gives a body in one piece; without it, Envoy sends pieces of 16 KiB and more.
_MAX_PIECES = 8192
# Up to this size a body is read at once whatever it consists of.
_TINY_BYTES = 8192
# A field, an object, an array or a part of a form takes a hundred times as long to read as a byte.
_DIRECT_VALUES = 1500
_MANY_PIECES = Malformed(
    f"The body came in more than {_MAX_PIECES} pieces; send larger ones.", None, "too_many_pieces"
)
_LONG_CONTENT_TYPE = Malformed(
    f"'content-type' must have at most {_MAX_CONTENT_TYPE_CHARS} characters.",
    "content-type",
    "invalid_content_type",
)


class Started(Phase):
    """Wait for the head of the request."""

    awaits_request = True

    def __init__(self, rules: ExchangeRules, route: Route, place: Place) -> None:
        self._rules = rules
        self._route = route
        self._place = place

    def request_head(self, event: RequestHead) -> Step:
        """Let pass what is not metered; else identify the caller, and wait for the body."""
        method = event.headers.get(":method", "")
        target = classify(method, event.headers.get(":path", ""))
        if target is None or (method != "POST" and generates_nothing(method, target, event.headers)):
            return self._unmetered(event, method)
        if isinstance(target, PathProblem):
            return self.rejected(rejections.unreadable_path(target))
        wanted = "GET" if target.endpoint is Endpoint.QUOTA else "POST"
        if method != wanted:
            if asks_for_websocket(event.headers):
                return self.rejected(rejections.websocket(target.endpoint))
            return self.rejected(rejections.method_not_allowed(wanted, target.endpoint))
        identity = identify(self._rules.identity, event.claims, event.headers, event.source_address, event.peer)
        if isinstance(identity, UnusableIdentity):
            return self.rejected(rejections.unusable_identity(identity, target.endpoint))
        if not self._place.take(identity.tenant):  # before anything that costs more
            cap, wait_s = self._rules.in_flight.cap, self._rules.store_retry_after_s
            return self.rejected(rejections.too_many_in_flight(cap, wait_s, target.endpoint))
        if target.endpoint is Endpoint.QUOTA:
            subject = asked_about(event.headers[":path"])
            if isinstance(subject, Malformed):
                return self.rejected(rejections.malformed(subject, target.endpoint))
            return Inspecting(self._rules), [Inspect(identity, subject, self._route)]
        return self._body_of(event, target, identity)

    def _unmetered(self, event: RequestHead, method: str) -> Step:
        """Let pass what costs nothing. A POST to a path that is not known may generate; so may a WebSocket."""
        path, allowed = event.headers.get(":path", ""), self._rules.unmetered_paths
        if may_post(method, event.headers) and (why := refusal(path, allowed)) is not None:
            return self.rejected(rejections.not_metered(why, path))
        if asks_for_websocket(event.headers) and refusal(path, allowed) is not None:
            return self.rejected(rejections.websocket())
        return Done(), [HeadReply(), Finish()]

    def _body_of(self, event: RequestHead, target: Target, identity: Identity) -> Step:
        headers, rules = event.headers, self._rules
        if not STEERING_HEADERS.isdisjoint(headers):
            steering = STEERING_HEADERS.intersection(headers) - rules.allowed
            if steering:
                return self.rejected(rejections.malformed(steers(min(steering)), target.endpoint))
        content_type = headers.get("content-type", "")
        if len(content_type) > _MAX_CONTENT_TYPE_CHARS:
            return self.rejected(rejections.malformed(_LONG_CONTENT_TYPE, target.endpoint))
        encoding = headers.get("content-encoding") or "identity"
        if encoding.lower() != "identity":
            return self.rejected(rejections.compressed(encoding, target.endpoint))
        if (declared := declared_bytes(headers)) > rules.max_body_bytes:
            return self.rejected(rejections.too_large(rules.max_body_bytes, target.endpoint))
        if not rules.buffers.fits(declared, identity.tenant):  # said before the body comes, which takes memory too
            return self.rejected(rejections.overloaded(rules.store_retry_after_s, target.endpoint))
        request = _Request(
            rules=rules,
            route=self._route,
            target=target,
            identity=identity,
            request_id=headers.get("x-request-id", "")[:_MAX_REQUEST_ID_CHARS],
            content_type=content_type,
        )
        reading = ReadingBody(request, GatheredBody(rules.buffers, identity.tenant))
        return reading.whole() if event.end_of_stream else (reading, [])


class Inspecting(Phase):
    """Wait for the limits and counts of a caller that asked for its quota."""

    def __init__(self, rules: ExchangeRules) -> None:
        self._rules = rules

    def inspected(self, event: Inspected) -> Step:
        """Answer with the caller's limits and counts."""
        if isinstance(event.insight, Unavailable):
            return self.rejected(rejections.store_unavailable(self._rules.store_retry_after_s))
        return self.rejected(rejections.document(quota_document(event.insight, event.now), "quota"))


class _Request(Struct, frozen=True):
    """Hold what the head says of a request that is metered."""

    rules: ExchangeRules
    route: Route
    target: Target
    identity: Identity
    request_id: str
    content_type: str

    def is_direct(self, gathered: GatheredBody) -> bool:
        """Tell whether the body takes so little time to read that nobody is delayed."""
        size, most = gathered.bytes, self.rules.direct_bytes
        if not reads_body(self.target):
            return True
        if size <= _TINY_BYTES or size > most:
            return size <= most
        body = gathered.joined()
        values = body.count(b":") + body.count(b"{") + body.count(b"[")
        return values <= _DIRECT_VALUES and not is_multipart(self.content_type)

    def read(self, gathered: GatheredBody) -> RequestFacts | Malformed:
        """Read the body now."""
        body = gathered.joined() if reads_body(self.target) else b""
        return read_request(self.target, body, self.content_type, self.rules.allowed)

    def read_apart(self, gathered: GatheredBody) -> ReadBody:
        """Return the effect that reads the body elsewhere."""
        rules = self.rules
        reading = Reading(self.target, self.content_type, rules.allowed, rules.counts_prompts)
        caller = Caller(self.identity, self.target.endpoint, self.target.model, self.request_id)
        return ReadBody(reading, tuple(gathered.pieces), caller)


class _WithBody(Phase):
    """Hold a metered request and its body."""

    def __init__(self, request: _Request, body: GatheredBody) -> None:
        self._request = request
        self._body = body

    @property
    def endpoint(self) -> Endpoint | None:
        """Return the endpoint that was asked."""
        return self._request.target.endpoint

    def response_head(self, event: ResponseHead) -> Step:
        """Let Envoy's own answer pass."""
        self.let_go()
        return super().response_head(event)

    def stream_closed(self, event: StreamClosed) -> Step:
        """Finish: nothing is held."""
        self.let_go()
        return super().stream_closed(event)

    def let_go(self) -> None:
        """Release the memory of the body."""
        self._body.let_go()


class ReadingBody(_WithBody):
    """Gather the body of the request, within bounds, and read it."""

    awaits_request = True

    def request_body(self, event: RequestBody) -> Step:
        """Keep a piece; read the body once it is whole."""
        rules, kept = self._request.rules, self._body.keep(event.data, event.more)
        if self._body.bytes > rules.max_body_bytes:
            return self.rejected(rejections.too_large(rules.max_body_bytes, self.endpoint))
        if self._body.messages > _MAX_PIECES:
            return self.rejected(rejections.malformed(_MANY_PIECES, self.endpoint))
        if not kept:
            return self.rejected(rejections.overloaded(rules.store_retry_after_s, self.endpoint))
        if event.end_of_stream:
            return self.whole()
        return self._is_whole() if self._body.messages == 1 else (self, [])

    def request_trailers(self, event: RequestTrailers) -> Step:
        """Read the body: trailers end the request."""
        self._body.trailers = True
        return self.whole()

    def whole(self) -> Step:
        """Read the whole body, and ask for a reservation."""
        request, body = self._request, self._body
        if request.is_direct(body):
            return _taken(request, body, request.read(body), self)
        return ReadingApart(request, body), [request.read_apart(body)]

    def _is_whole(self) -> Step:
        """Read the first piece, in case that it is a whole request though more is announced: trailers, as a rule.

        Envoy shows the trailers only when the pieces before them were answered, so waiting for them would never
        end. Envoy's `buffer` filter gives the body in one piece, and whatever follows a JSON object does not
        change it.
        """
        request, body = self._request, self._body
        if not request.is_direct(body):
            return ReadingApart(request, body, otherwise=self), [request.read_apart(body)]
        facts = request.read(body)
        if isinstance(facts, Malformed):
            return self, []
        return _taken(request, body, facts, self)


class ReadingApart(_WithBody):
    """Wait for the facts of a body that is read apart. `otherwise` waits for more of it, if it is not whole."""

    def __init__(self, request: _Request, body: GatheredBody, otherwise: Phase | None = None) -> None:
        super().__init__(request, body)
        self._otherwise = otherwise

    def body_read(self, event: BodyRead) -> Step:
        """Ask for a reservation, or reject the request."""
        rules = self._request.rules
        match event.result:
            case BodyFacts(facts, layout):
                return _taken(self._request, self._body, facts, self, layout)
            case Malformed() as problem:
                if self._otherwise is not None:
                    return self._otherwise, []
                return self.rejected(rejections.malformed(problem, self.endpoint))
            case Suspended(reason):
                return self.rejected(rejections.suspended(reason, self.endpoint))
            case Denied() as denied:
                return self.rejected(rejections.over_limit(denied, event.now, rules.denied_style, self.endpoint))
            case Unread.BUSY:
                return self.rejected(rejections.overloaded(rules.store_retry_after_s, self.endpoint))
            case Unread.FAILED:
                return self.rejected(rejections.unread(rules.store_retry_after_s, self.endpoint))
            case _:
                assert_never(event.result)


def _taken(
    request: _Request,
    body: GatheredBody,
    facts: RequestFacts | Malformed,
    phase: Phase,
    layout: Layout | None = None,
) -> Step:
    """Ask for a reservation for the facts of a body."""
    if isinstance(facts, Malformed):
        return phase.rejected(rejections.malformed(facts, phase.endpoint))
    if not facts.tells_usage and request.rules.refuse_without_usage:
        return phase.rejected(rejections.malformed(_WITHOUT_USAGE, phase.endpoint))
    if facts.model == UNNAMED:
        facts = replace(facts, model=request.rules.unnamed_model)
    if facts.boundable and not facts.unbounded_prompt and request.rules.models.adds_to_prompt(facts.model):
        facts = replace(facts, unbounded_prompt=True)
    ask = Ask(request.identity, request.target.endpoint, facts, request.request_id, request.route)
    return Deciding(request, body, facts, layout), [Reserve(ask)]


class Deciding(_WithBody):
    """Wait for the decision; then forward the request, or reject it."""

    def __init__(
        self, request: _Request, body: GatheredBody, facts: RequestFacts, layout: Layout | None = None
    ) -> None:
        super().__init__(request, body)
        self._layout = layout
        self._facts = replace(facts, prompt=b"")  # most of a body: not to be kept as long as the answer takes

    def decided(self, event: Decided) -> Step:
        """Forward an admitted request; reject any other, in the shape of its endpoint's API."""
        rules = self._request.rules
        match event.decision:
            case Admitted() as admitted:
                effects = self._forward(admitted.reservation)
                self.let_go()
                endpoint = self._request.target.endpoint
                return Forwarded(AdmittedRequest(rules, endpoint, self._facts, admitted, event.now)), effects
            case Denied() as denied:
                return self.rejected(rejections.over_limit(denied, event.now, rules.denied_style, self.endpoint))
            case Unbounded():
                return self.rejected(rejections.unbounded(self.endpoint))
            case Unnamed():
                return self.rejected(rejections.unnamed(self.endpoint))
            case Suspended(reason):
                return self.rejected(rejections.suspended(reason, self.endpoint))
            case Unavailable():
                return self.rejected(rejections.store_unavailable(rules.store_retry_after_s, self.endpoint))
            case _:
                assert_never(event.decision)

    def _forward(self, reservation: Reservation) -> list[Effect]:
        # A client's own identity headers must not reach the upstream. Without accept-encoding a server may encode
        # as it likes; the answer must arrive readable.
        plain = (("accept-encoding", "identity"),)
        effects: list[Effect] = [HeadReply(plain, self._request.rules.identity.headers)]
        changed = self._changed_body(reservation)
        if changed is None:
            effects += [BodyReply() for _ in range(self._body.messages)]
        else:
            # The replies to all pieces but the last empty them; the last carries the whole body.
            effects += [BodyReply(b"") for _ in range(self._body.messages - 1)]
            effects.append(changed)
        if self._body.trailers:
            effects.append(TrailersReply())
        return effects

    def _changed_body(self, reservation: Reservation) -> BodyReply | None:
        """Return the reply with the body as the upstream gets it; None if nothing changes."""
        target, bound = self._request.target, reservation.output_bound
        rules = self._request.rules
        continuous = asks_continuously(rules, target.endpoint, self._facts)
        add_usage = continuous or hides_usage(rules, target.endpoint, self._facts)
        if not add_usage and bound is None:
            return None
        bound_field = reservation.bound.field if reservation.bound is not None else None
        wanted = Rewriting(add_usage, bound, bound_field, continuous)
        if self._layout is None:
            body = upstream_body(target, self._body.joined(), wanted)
            return None if body is None else BodyReply(body)
        parts = upstream_parts(target, self._body.pieces, self._layout, wanted)
        return None if parts is None else BodyReply(bytes(parts[0]), parts[1:])
