"""One HTTP exchange as a state machine: an event goes in, effects come out. It knows no transport.

The order of effects is the order in which they are to be performed. Of the effects that end a reservation
(`Close`) there is exactly one after each `Admitted`, whatever happens; after `Finish` nothing follows.

    head -> body -> Reserve -> Admitted -> forward -> answer head -> answer body -> Close, Finish
                            -> Denied   -> reject
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from typing import assert_never

from extproc.core import rejections
from extproc.core.answer.reader import AnswerReader, OpaqueAnswer, answer_reader, flagged
from extproc.core.events import (
    BodyReply,
    Close,
    Decided,
    Effect,
    Event,
    Finish,
    Grow,
    HeadReply,
    Inspect,
    Inspected,
    Reject,
    Reply,
    RequestBody,
    RequestHead,
    RequestTrailers,
    Reserve,
    ResponseBody,
    ResponseHead,
    ResponseTrailers,
    StreamClosed,
    TrailersReply,
)
from extproc.core.quota.drafting import Ask
from extproc.core.quota.growth import outgrown
from extproc.core.quota.insight import asked_about, quota_document
from extproc.core.quota.reservation import Admitted, Denied, Reservation, Suspended, Unavailable, Unbounded
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.quota.settlement import Estimates, Outcome, Settlement, released
from extproc.core.quota.usage import NO_USAGE
from extproc.core.rejections import DeniedStyle, Rejection
from extproc.core.request.body import Malformed, RequestFacts, read_request, upstream_body
from extproc.core.request.buffers import PIECE_BYTES, Buffers, Kept, declared_bytes
from extproc.core.request.endpoints import Endpoint, Target, classify
from extproc.core.request.identity import Identity, IdentityRules, UnusableIdentity, identify


class ProtocolError(Exception):
    """Events in an order that no HTTP exchange has: the filter is set up wrongly, or the peer is no Envoy."""


@dataclass(frozen=True, slots=True)
class ExchangeRules:
    """What is the same for every exchange. `max_body_bytes` bounds the memory of one request, `buffers` of all."""

    identity: IdentityRules
    max_body_bytes: int = 4 << 20
    denied_style: DeniedStyle = DeniedStyle.OPENAI
    bytes_per_output_token: int = 4
    store_retry_after_s: int = 1
    buffers: Buffers = field(default_factory=Buffers)


class _State(Enum):
    REQUEST_HEAD = auto()
    INSPECTION = auto()
    REQUEST_BODY = auto()
    DECISION = auto()
    RESPONSE_HEAD = auto()
    RESPONSE_BODY = auto()
    DONE = auto()


_OK = range(200, 300)
# Their streams report usage when asked to; all others do it anyway.
_USAGE_ON_REQUEST = (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS)


class Exchange:
    """One exchange. Not thread-safe, not reusable."""

    def __init__(self, rules: ExchangeRules, route: Route = NO_ROUTE) -> None:
        self._rules = rules
        self._route = route
        self._state = _State.REQUEST_HEAD
        self._request_id = ""
        self._target: Target | None = None
        self._content_type = ""
        self._identity: Identity | None = None
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._kept = Kept(rules.buffers)
        self._trailers = False
        self._facts: RequestFacts | None = None
        self._admitted: Admitted | None = None
        self._decided_at: datetime | None = None
        self._reader: AnswerReader | None = None
        self._status = 0

    def receive(self, event: Event) -> list[Effect]:
        """The effects of `event`. Raises `ProtocolError` where the event can't come now, and nothing else."""
        match event:
            case Decided():
                # Before the next guard: a hold that came too late must not be lost without a sound.
                self._expect(event, _State.DECISION)
                return self._on_decided(event)
            case _ if self._state is _State.DONE:
                return []
            case StreamClosed():
                return self._end(complete=False, forwarded=event.delivered)
            case RequestHead() | RequestBody() | RequestTrailers() | Inspected():
                return self._on_request(event)
            case ResponseHead() | ResponseBody() | ResponseTrailers():
                return self._on_response(event)
            case _:
                assert_never(event)

    def _on_request(self, event: RequestHead | RequestBody | RequestTrailers | Inspected) -> list[Effect]:
        match event:
            case RequestHead():
                self._expect(event, _State.REQUEST_HEAD)
                return self._on_request_head(event)
            case RequestBody():
                return self._on_request_body(event)
            case RequestTrailers():
                return self._on_request_trailers()
            case _:
                self._expect(event, _State.INSPECTION)
                return self._on_inspected(event)

    def _on_response(self, event: ResponseHead | ResponseBody | ResponseTrailers) -> list[Effect]:
        match event:
            case ResponseHead():
                return self._on_response_head(event)
            case ResponseBody():
                self._expect(event, _State.RESPONSE_BODY)
                return self._on_response_body(event)
            case _:
                self._expect(event, _State.RESPONSE_BODY)
                return self._on_response_trailers()

    @property
    def awaits_request(self) -> bool:
        """Whether the request is not whole yet."""
        return self._state in {_State.REQUEST_HEAD, _State.REQUEST_BODY}

    def give_up(self) -> list[Effect]:
        """The effects where the rest of the request takes too long."""
        return self._reject(rejections.too_slow(self._endpoint))

    @property
    def _endpoint(self) -> Endpoint | None:
        return self._target.endpoint if self._target is not None else None

    # ------------------------------------------------ request

    def _on_request_head(self, head: RequestHead) -> list[Effect]:
        headers = head.headers
        method = headers.get(":method", "")
        self._target = target = classify(method, headers.get(":path", ""))
        if target is None or method == "OPTIONS":  # a CORS preflight costs nothing
            return self._finish(HeadReply())
        wanted = "GET" if target.endpoint is Endpoint.QUOTA else "POST"
        if method != wanted:
            return self._reject(rejections.method_not_allowed(wanted, target.endpoint))
        identity = identify(self._rules.identity, head.claims, headers, head.source_address, head.peer)
        if isinstance(identity, UnusableIdentity):
            return self._reject(rejections.unusable_identity(identity, target.endpoint))
        if target.endpoint is Endpoint.QUOTA:
            self._state = _State.INSPECTION
            return [Inspect(identity, asked_about(headers[":path"]), self._route)]
        encoding = headers.get("content-encoding") or "identity"
        if encoding.lower() != "identity":
            return self._reject(rejections.compressed(encoding, target.endpoint))
        if (declared := declared_bytes(headers)) > self._rules.max_body_bytes:
            return self._reject(rejections.too_large(self._rules.max_body_bytes, target.endpoint))
        if not self._rules.buffers.fits(declared):  # said before the body comes, which takes memory too
            return self._reject(rejections.overloaded(self._rules.store_retry_after_s, target.endpoint))
        self._identity = identity
        self._request_id = headers.get("x-request-id", "")[:128]
        self._content_type = headers.get("content-type", "")
        self._state = _State.REQUEST_BODY
        return self._on_request_end() if head.end_of_stream else []

    def _on_inspected(self, inspected: Inspected) -> list[Effect]:
        if isinstance(inspected.insight, Unavailable):
            return self._reject(rejections.store_unavailable(self._rules.store_retry_after_s))
        return self._reject(rejections.document(quota_document(inspected.insight, inspected.now), "quota"))

    def _on_request_body(self, body: RequestBody) -> list[Effect]:
        if self._admitted is not None and self._passes_on(body):
            return [BodyReply()]
        self._expect(body, _State.REQUEST_BODY)
        self._chunks.append(body.data)
        self._body_bytes += len(body.data)
        if self._body_bytes > self._rules.max_body_bytes:
            return self._reject(rejections.too_large(self._rules.max_body_bytes, self._endpoint))
        if not self._kept.keep(self._body_bytes + PIECE_BYTES * len(self._chunks)):
            return self._reject(rejections.overloaded(self._rules.store_retry_after_s, self._endpoint))
        return self._on_request_end() if body.end_of_stream or self._is_whole() else []

    def _passes_on(self, body: RequestBody) -> bool:
        """Whether this is the end of a body that was whole before, or the rest of one that is not read."""
        return not body.data.strip() or self._uncounted()

    def _on_request_trailers(self) -> list[Effect]:
        if self._admitted is not None:
            return [TrailersReply()]
        self._expect(RequestTrailers(), _State.REQUEST_BODY)
        self._trailers = True
        return self._on_request_end()

    def _is_whole(self) -> bool:
        """Whether the first piece is a request already, though more is announced: trailers, as a rule.

        Envoy shows the trailers only when the pieces before them were answered, so waiting for them would be for
        ever. Its `buffer` filter gives the body in one piece; what may follow a JSON object changes nothing in it.
        """
        return len(self._chunks) == 1 and isinstance(self._read(self._chunks[0]), RequestFacts)

    def _read(self, body: bytes) -> RequestFacts | Malformed:
        assert self._target is not None  # noqa: S101 - set with the state that leads here
        return read_request(self._target, body, self._content_type)

    def _on_request_end(self) -> list[Effect]:
        facts = self._read(b"".join(self._chunks))
        if isinstance(facts, Malformed):
            return self._reject(rejections.malformed(facts, self._endpoint))
        assert self._identity is not None  # noqa: S101 - set with the state that leads here
        assert self._endpoint is not None  # noqa: S101
        self._facts = replace(facts, prompt=b"")  # most of a body: not to be kept as long as the answer takes
        self._state = _State.DECISION
        return [Reserve(Ask(self._identity, self._endpoint, facts, self._request_id, self._route))]

    def _on_decided(self, decided: Decided) -> list[Effect]:
        match decided.decision:
            case Admitted() as admitted:
                self._admitted = admitted
                self._decided_at = decided.now
                self._state = _State.RESPONSE_HEAD
                return self._forward(admitted.reservation)
            case Denied() as denied:
                style = self._rules.denied_style
                return self._reject(rejections.over_limit(denied, decided.now, style, self._endpoint))
            case Unbounded():
                return self._reject(rejections.unbounded(self._endpoint))
            case Suspended(reason):
                return self._reject(rejections.suspended(reason, self._endpoint))
            case Unavailable():
                return self._reject(rejections.store_unavailable(self._rules.store_retry_after_s, self._endpoint))
            case _:
                assert_never(decided.decision)

    def _forward(self, reservation: Reservation) -> list[Effect]:
        # The identity headers of a client are never the upstream's to trust. Without accept-encoding a server
        # may encode as it likes; an answer must arrive readable.
        plain = (("accept-encoding", "identity"),)
        effects: list[Effect] = [HeadReply(plain, self._rules.identity.headers)]
        body = self._upstream_body(reservation)
        if body is not None:
            # The replies to all chunks but the last empty them; the last carries the whole body.
            effects += [BodyReply(b"") for _ in self._chunks[1:]]
            effects.append(BodyReply(body))
        else:
            effects += [BodyReply() for _ in self._chunks]
        if self._trailers:
            effects.append(TrailersReply())
        self._let_go()
        return effects

    def _upstream_body(self, reservation: Reservation) -> bytes | None:
        """The body as the upstream gets it, None where nothing changes."""
        bound = reservation.output_bound
        if self._target is None or not (self._hides_usage() or bound is not None):
            return None
        field = reservation.bound.field if reservation.bound is not None else None
        body = b"".join(self._chunks)
        return upstream_body(
            self._target, body, add_usage=self._hides_usage(), output_bound=bound, bound_field=field
        )

    def _hides_usage(self) -> bool:
        return (
            self._endpoint in _USAGE_ON_REQUEST
            and self._facts is not None
            and self._facts.stream
            and not self._facts.wants_usage
        )

    # ------------------------------------------------ response

    def _on_response_head(self, head: ResponseHead) -> list[Effect]:
        if self._admitted is None or self._decided_at is None:
            # Envoy's own answer (a timeout, say) to a request that never got as far as a decision.
            return self._finish(HeadReply())
        self._expect(head, _State.RESPONSE_HEAD)
        self._status = head.status
        self._state = _State.RESPONSE_BODY
        self._reader = reader = self._read_answer(head, self._admitted.reservation)
        quota = rejections.quota_headers(self._admitted.states, self._decided_at)
        reply = HeadReply(quota, ("content-length",) if reader.changes_body else ())
        return [reply, *self._end(complete=True)] if head.end_of_stream else [reply]

    def _read_answer(self, head: ResponseHead, reservation: Reservation) -> AnswerReader:
        bounded = reservation.output_bound is not None
        estimates = Estimates.of(reservation, self._rules.bytes_per_output_token)
        if self._uncounted() and head.status in _OK:
            return OpaqueAnswer(estimates)
        return answer_reader(
            head.status,
            head.headers,
            reservation.endpoint,
            estimates,
            hide_usage=self._hides_usage(),
            output_bound=reservation.output_held if bounded else None,
        )

    def _on_response_body(self, body: ResponseBody) -> list[Effect]:
        assert self._reader is not None  # noqa: S101 - set with the state that leads here
        out = self._reader.feed(body.data)
        if not body.end_of_stream:
            if not self._kept.keep(self._reader.kept_bytes):
                out = self._reader.spill(out)  # less of it is read; it passes all the same
                self._kept.keep(0)
            return [BodyReply(None if out is body.data else out), *self._grown()]
        rest = self._reader.finish()
        reply = BodyReply(None if out is body.data and not rest else out + rest)
        return [reply, *self._end(complete=True)]

    def _grown(self) -> list[Effect]:
        """Holds more where the answer has outgrown what is held."""
        assert self._reader is not None  # noqa: S101 - set with the state that leads here
        assert self._admitted is not None  # noqa: S101
        assert self._facts is not None  # noqa: S101
        grown = outgrown(self._admitted.reservation, self._facts, self._reader.output_tokens)
        if grown is None:
            return []
        self._admitted = replace(self._admitted, reservation=grown)
        self._reader.estimates = Estimates.of(grown, self._rules.bytes_per_output_token)
        return [Grow(grown)]

    def _on_response_trailers(self) -> list[Effect]:
        assert self._reader is not None  # noqa: S101 - set with the state that leads here
        # Read for the usage in it. It can't be sent any more, but a client drops an event without its end anyway.
        self._reader.finish()
        return [TrailersReply(), *self._end(complete=True)]

    # ------------------------------------------------ ends

    def _let_go(self) -> None:
        self._chunks.clear()
        self._kept.keep(0)

    def _end(self, *, complete: bool, forwarded: bool = True) -> list[Effect]:
        self._state = _State.DONE
        self._let_go()
        if self._admitted is None:
            return [Finish()]
        reservation = self._admitted.reservation
        settlement = self._settlement(reservation, complete=complete, forwarded=forwarded)
        return [Close(reservation, replace(settlement, status=self._status)), Finish()]

    def _settlement(self, reservation: Reservation, *, complete: bool, forwarded: bool) -> Settlement:
        if self._uncounted() and self._status in _OK:
            return Settlement(Outcome.SETTLED, NO_USAGE, 0, "request")
        if self._reader is not None:
            return flagged(self._reader.settlement(complete=complete), self._reader)
        if not forwarded:
            return released("not_forwarded", forwarded=False)
        # The upstream had the request and nothing came back: the prompt was read all the same.
        estimates = Estimates.of(reservation, self._rules.bytes_per_output_token)
        return estimates.estimate(0, 0, "left_before_answer")

    def _uncounted(self) -> bool:
        """Whether the request only counts as one."""
        return self._facts is not None and not self._facts.counts_tokens

    def _reject(self, rejection: Rejection) -> list[Effect]:
        return self._finish(Reject(rejection))

    def _finish(self, reply: Reply) -> list[Effect]:
        self._state = _State.DONE
        self._let_go()
        return [reply, Finish()]

    def _expect(self, event: Event, state: _State) -> None:
        if self._state is not state:
            raise ProtocolError(f"{type(event).__name__} in state {self._state.name}")
