"""One HTTP exchange as a state machine: an event goes in, effects come out. It knows no transport.

The order of effects is the order in which they are to be performed. Of the effects that end a reservation
(`Close`) there is exactly one after each `Admitted`, whatever happens; after `Finish` nothing follows.

    head -> body -> Reserve -> Admitted -> forward -> answer head -> answer body -> Close, Finish
                            -> Denied   -> reject
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from typing import assert_never

from extproc.core import rejections
from extproc.core.answers import AnswerReader, ErrorAnswer, JsonAnswer, OpaqueAnswer, StreamAnswer
from extproc.core.endpoints import Endpoint, classify
from extproc.core.events import (
    Ask,
    BodyReply,
    Close,
    Decided,
    Effect,
    Event,
    Finish,
    Headers,
    HeadReply,
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
from extproc.core.identity import Identity, IdentityRules, UnusableIdentity, identify
from extproc.core.quota import Admitted, Denied, Reservation, Unavailable, tightest
from extproc.core.rejections import DeniedStyle, Rejection
from extproc.core.requests import Malformed, RequestFacts, read_chat, with_usage
from extproc.core.settlement import Estimates, Settlement, released


class ProtocolError(Exception):
    """Events in an order that no HTTP exchange has: the filter is set up wrongly, or the peer is no Envoy."""


@dataclass(frozen=True, slots=True)
class ExchangeRules:
    """What is the same for every exchange. `max_body_bytes` bounds the memory of one request."""

    identity: IdentityRules
    max_body_bytes: int = 4 << 20
    denied_style: DeniedStyle = DeniedStyle.OPENAI
    bytes_per_output_token: int = 4
    store_retry_after_s: int = 1


class _State(Enum):
    REQUEST_HEAD = auto()
    REQUEST_BODY = auto()
    DECISION = auto()
    RESPONSE_HEAD = auto()
    RESPONSE_BODY = auto()
    DONE = auto()


_OK = range(200, 300)


class Exchange:
    """One exchange. Not thread-safe, not reusable."""

    def __init__(self, rules: ExchangeRules) -> None:
        self._rules = rules
        self._state = _State.REQUEST_HEAD
        self._request_id = ""
        self._endpoint: Endpoint | None = None
        self._identity: Identity | None = None
        self._chunks: list[bytes] = []
        self._body_bytes = 0
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
            case RequestHead():
                self._expect(event, _State.REQUEST_HEAD)
                return self._on_request_head(event)
            case RequestBody():
                return self._on_request_body(event)
            case RequestTrailers():
                return self._on_request_trailers()
            case ResponseHead():
                return self._on_response_head(event)
            case ResponseBody():
                self._expect(event, _State.RESPONSE_BODY)
                return self._on_response_body(event)
            case ResponseTrailers():
                self._expect(event, _State.RESPONSE_BODY)
                return self._on_response_trailers()
            case _:
                assert_never(event)

    # ------------------------------------------------ request

    def _on_request_head(self, head: RequestHead) -> list[Effect]:
        headers = head.headers
        self._endpoint = classify(headers.get(":path", ""))
        method = headers.get(":method", "")
        if self._endpoint is None or method == "OPTIONS":  # a CORS preflight costs nothing
            return self._finish(HeadReply())
        if method != "POST":
            return self._reject(rejections.method_not_allowed())
        identity = identify(self._rules.identity, head.claims, headers, head.source_address)
        if isinstance(identity, UnusableIdentity):
            return self._reject(rejections.unusable_identity(identity))
        encoding = headers.get("content-encoding") or "identity"
        if encoding.lower() != "identity":
            return self._reject(rejections.compressed(encoding))
        if _declared_length(headers) > self._rules.max_body_bytes:
            return self._reject(rejections.too_large(self._rules.max_body_bytes))
        self._identity = identity
        self._request_id = headers.get("x-request-id", "")[:128]
        self._state = _State.REQUEST_BODY
        return self._on_request_end() if head.end_of_stream else []

    def _on_request_body(self, body: RequestBody) -> list[Effect]:
        if self._admitted is not None and not body.data.strip():
            return [BodyReply()]  # the end of a body that was whole before
        self._expect(body, _State.REQUEST_BODY)
        self._chunks.append(body.data)
        self._body_bytes += len(body.data)
        if self._body_bytes > self._rules.max_body_bytes:
            return self._reject(rejections.too_large(self._rules.max_body_bytes))
        return self._on_request_end() if body.end_of_stream or self._is_whole() else []

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
        return len(self._chunks) == 1 and isinstance(read_chat(self._chunks[0]), RequestFacts)

    def _on_request_end(self) -> list[Effect]:
        facts = read_chat(b"".join(self._chunks))
        if isinstance(facts, Malformed):
            return self._reject(rejections.malformed(facts))
        assert self._identity is not None  # noqa: S101 - set with the state that leads here
        assert self._endpoint is not None  # noqa: S101
        self._facts = facts
        self._state = _State.DECISION
        return [Reserve(Ask(self._identity, self._endpoint, facts, self._request_id))]

    def _on_decided(self, decided: Decided) -> list[Effect]:
        match decided.decision:
            case Admitted() as admitted:
                self._admitted = admitted
                self._decided_at = decided.now
                self._state = _State.RESPONSE_HEAD
                return self._forward()
            case Denied() as denied:
                return self._reject(rejections.over_limit(denied, decided.now, self._rules.denied_style))
            case Unavailable():
                return self._reject(rejections.store_unavailable(self._rules.store_retry_after_s))
            case _:
                assert_never(decided.decision)

    def _forward(self) -> list[Effect]:
        # The identity headers of a client are never the upstream's to trust; an answer must arrive readable.
        removed = ("accept-encoding", *self._rules.identity.headers)
        effects: list[Effect] = [HeadReply(remove_headers=removed)]
        if self._hides_usage():
            # The replies to all chunks but the last empty them; the last carries the whole body.
            effects += [BodyReply(b"") for _ in self._chunks[1:]]
            effects.append(BodyReply(with_usage(b"".join(self._chunks))))
        else:
            effects += [BodyReply() for _ in self._chunks]
        if self._trailers:
            effects.append(TrailersReply())
        self._chunks.clear()
        return effects

    def _hides_usage(self) -> bool:
        return self._facts is not None and self._facts.stream and not self._facts.wants_usage

    # ------------------------------------------------ response

    def _on_response_head(self, head: ResponseHead) -> list[Effect]:
        if self._admitted is None or self._decided_at is None:
            # Envoy's own answer (a timeout, say) to a request that never got as far as a decision.
            return self._finish(HeadReply())
        self._expect(head, _State.RESPONSE_HEAD)
        self._status = head.status
        self._state = _State.RESPONSE_BODY
        self._reader, hides = self._choose_reader(head, self._admitted.reservation)
        state = tightest(self._admitted.states)
        quota = rejections.quota_headers(state, self._decided_at) if head.status in _OK else ()
        reply = HeadReply(quota, ("content-length",) if hides else ())
        return [reply, *self._end(complete=True)] if head.end_of_stream else [reply]

    def _choose_reader(self, head: ResponseHead, reservation: Reservation) -> tuple[AnswerReader, bool]:
        estimates = Estimates(reservation.cost, self._rules.bytes_per_output_token)
        if head.status not in _OK:
            return ErrorAnswer(), False
        if head.headers.get("content-encoding", "identity").lower() != "identity":
            return OpaqueAnswer(estimates), False
        if head.headers.get("content-type", "").lower().startswith("text/event-stream"):
            hides = self._hides_usage()
            return StreamAnswer(estimates, hide_usage=hides), hides
        return JsonAnswer(estimates), False

    def _on_response_body(self, body: ResponseBody) -> list[Effect]:
        assert self._reader is not None  # noqa: S101 - set with the state that leads here
        out = self._reader.feed(body.data)
        if not body.end_of_stream:
            return [BodyReply(None if out is body.data else out)]
        rest = self._reader.finish()
        reply = BodyReply(None if out is body.data and not rest else out + rest)
        return [reply, *self._end(complete=True)]

    def _on_response_trailers(self) -> list[Effect]:
        assert self._reader is not None  # noqa: S101 - set with the state that leads here
        # Read for the usage in it. It can't be sent any more, but a client drops an event without its end anyway.
        self._reader.finish()
        return [TrailersReply(), *self._end(complete=True)]

    # ------------------------------------------------ ends

    def _end(self, *, complete: bool, forwarded: bool = True) -> list[Effect]:
        self._state = _State.DONE
        self._chunks.clear()
        if self._admitted is None:
            return [Finish()]
        reservation = self._admitted.reservation
        settlement = self._settlement(reservation, complete=complete, forwarded=forwarded)
        return [Close(reservation, replace(settlement, status=self._status)), Finish()]

    def _settlement(self, reservation: Reservation, *, complete: bool, forwarded: bool) -> Settlement:
        if self._reader is not None:
            return self._reader.settlement(complete=complete)
        if not forwarded:
            return released("not_forwarded")
        # The upstream had the request and nothing came back: the prompt was read all the same.
        estimates = Estimates(reservation.cost, self._rules.bytes_per_output_token)
        return estimates.estimate(0, 0, "left_before_answer")

    def _reject(self, rejection: Rejection) -> list[Effect]:
        return self._finish(Reject(rejection))

    def _finish(self, reply: Reply) -> list[Effect]:
        self._state = _State.DONE
        self._chunks.clear()
        return [reply, Finish()]

    def _expect(self, event: Event, state: _State) -> None:
        if self._state is not state:
            raise ProtocolError(f"{type(event).__name__} in state {self._state.name}")


def _declared_length(headers: Headers) -> int:
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0  # noqa: PLR2004
