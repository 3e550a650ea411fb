"""Define the phases of an exchange after its admission: forward the request, read the answer, settle."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from extproc.core import rejections
from extproc.core.answer.answer_protocol import AnswerReader
from extproc.core.answer.labelled import LabelledAnswer
from extproc.core.answer.reader import (
    STEP_BYTES,
    OpaqueAnswer,
    Steps,
    TimeoutAnswer,
    answer_reader,
    feed_in_steps,
    flagged,
    is_long,
)
from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.events import (
    GATEWAY_TIMEOUT,
    BodyReply,
    Close,
    Effect,
    Finish,
    Grow,
    HeadReply,
    Pause,
    RequestBody,
    RequestTrailers,
    ResponseBody,
    ResponseHead,
    ResponseTrailers,
    Resumed,
    StreamClosed,
    TrailersReply,
)
from extproc.core.phase import Done, ExchangeRules, Phase, Step
from extproc.core.quota.growth import beyond, enough, grown
from extproc.core.quota.reservation import Admitted
from extproc.core.quota.settlement import Estimates, Outcome, Settlement, released
from extproc.core.quota.usage import NO_USAGE
from extproc.core.request.body import RequestFacts
from extproc.core.request.buffers import Kept
from extproc.core.request.endpoints import Endpoint

_OK: Final = range(200, 300)
# Envoy's word for an answer that the upstream gave.
_OF_UPSTREAM: Final = "via_upstream"
_PER_REQUEST: Final = Settlement(Outcome.SETTLED, NO_USAGE, 0, "request")
PASSES: Final = (BodyReply(),)
# Streams of these endpoints report usage only when asked to; all others report it anyway.
_USAGE_ON_REQUEST: Final = (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS)


def asks_continuously(rules: ExchangeRules, endpoint: Endpoint, facts: RequestFacts) -> bool:
    """Tell whether usage in every chunk is asked for on our account only."""
    return (
        endpoint in _USAGE_ON_REQUEST
        and facts.stream
        and not facts.wants_continuous
        and rules.models.profile(facts.model).continuous_usage
    )


def hides_usage(rules: ExchangeRules, endpoint: Endpoint, facts: RequestFacts) -> bool:
    """Tell whether usage is asked for on our account only, so that the client must not see it."""
    return (
        endpoint in _USAGE_ON_REQUEST
        and facts.stream
        and not facts.wants_usage
        and rules.models.profile(facts.model).asks_for_usage
    )


class AdmittedRequest(Struct):
    """Hold what is known of an admitted request. `facts` has no prompt: most of a body is not kept any longer."""

    rules: ExchangeRules
    endpoint: Endpoint
    facts: RequestFacts
    admitted: Admitted
    decided_at: datetime

    @property
    def uncounted(self) -> bool:
        """Tell whether the request counts as a request only, not by its tokens."""
        return not self.facts.counts_tokens

    @property
    def hides_usage(self) -> bool:
        """Tell whether the usage chunk must be hidden from the client."""
        return hides_usage(self.rules, self.endpoint, self.facts)

    @property
    def estimates(self) -> Estimates:
        """Return what a settlement without usage is made of."""
        bound, choices = self.facts.output_bound, self.facts.choices
        return Estimates.of(
            self.admitted.reservation,
            self.rules.bytes_per_output_token,
            bound=None if bound is None else bound * choices,
            choices=choices,
            # A prompt that the server was told to cut may have any number of tokens.
            prompt_bytes=0 if self.facts.truncates else self.facts.prompt_bytes,
        )

    def close(self, settlement: Settlement, status: int) -> Step:
        """End the reservation, and finish."""
        return Done(), [Close(self.admitted.reservation, replace(settlement, status=status)), Finish()]


class Forwarded(Phase):
    """Wait for the head of the answer; let the rest of the request pass."""

    def __init__(self, request: AdmittedRequest) -> None:
        self._request = request

    def request_body(self, event: RequestBody) -> Step:
        """Let the end of a body pass that was whole before, or the rest of a body that is not read."""
        if not event.data.strip() or self._request.uncounted:
            return self, [BodyReply()]
        raise self._unexpected(event)

    def request_trailers(self, event: RequestTrailers) -> Step:
        """Let the trailers pass."""
        return self, [TrailersReply()]

    def response_head(self, event: ResponseHead) -> Step:
        """Choose how to read the answer, and tell the client its quota."""
        request = self._request
        reader = self._reader(event)
        quota = rejections.quota_headers(request.admitted.states, request.decided_at)
        request.admitted = replace(request.admitted, states=())  # nobody asks for them any more
        reply = HeadReply(quota, ("content-length",) if reader.changes_body else ())
        answered = Answered(request, reader, event.status)
        if not event.end_of_stream:
            return answered, [reply]
        phase, effects = answered.settled(complete=True)
        return phase, [reply, *effects]

    def stream_closed(self, event: StreamClosed) -> Step:
        """Release what never reached the upstream; else charge the prompt, which was read all the same."""
        if not event.delivered:
            return self._request.close(released("not_forwarded", forwarded=False), 0)
        return self._request.close(self._request.estimates.estimate(0, 0, "left_before_answer"), 0)

    def _reader(self, head: ResponseHead) -> AnswerReader:
        request = self._request
        reservation = request.admitted.reservation
        if request.uncounted and head.status in _OK:
            return OpaqueAnswer(request.estimates)
        if head.status == GATEWAY_TIMEOUT and head.details != _OF_UPSTREAM:
            return TimeoutAnswer(request.estimates)
        return answer_reader(
            head.status,
            head.headers,
            reservation.endpoint,
            request.estimates,
            hide_usage=request.hides_usage,
            strip_usage=asks_continuously(request.rules, request.endpoint, request.facts),
            output_bound=reservation.output_held if reservation.output_bound is not None else None,
            streams=request.facts.stream,
        )


class Answered(Forwarded):
    """Read the answer as it passes, hold more when it outgrows its hold, and settle at its end."""

    def __init__(self, request: AdmittedRequest, reader: AnswerReader, status: int) -> None:
        super().__init__(request)
        self._reader_of_body = reader
        self._labelled = reader if isinstance(reader, LabelledAnswer) else None
        self._stream: StreamAnswer | None = None
        self._status = status
        self._kept = Kept(request.rules.buffers)
        self._enough = enough(request.admitted.reservation, request.facts)
        self._beyond = 0

    def response_head(self, event: ResponseHead) -> Step:
        """Refuse a second head."""
        raise self._unexpected(event)

    def response_body(self, event: ResponseBody) -> Step:
        """Pass a piece on, without usage that the client did not ask for."""
        if is_long(self._reader_of_body, event.data):
            return ReadingPiece(self, event), [Pause()]
        return self.passed(event, self._reader_of_body.feed(event.data))

    def read_at_once(self, event: ResponseBody) -> Sequence[Effect] | None:
        """Pass a piece on, unless it is the last one or may need long."""
        if event.end_of_stream:
            return None
        data, stream = event.data, self._stream
        if stream is not None and len(data) <= STEP_BYTES and stream.pass_by(data):
            return PASSES if stream.pieces + self._beyond <= self._enough else [*self._grown(), BodyReply()]
        if is_long(self._reader_of_body, data):
            return None
        _, effects = self.passed(event, self._reader_of_body.feed(data))
        return effects

    def in_steps(self, data: bytes) -> Steps:
        """Read a piece in steps."""
        return feed_in_steps(self._reader_of_body, data)

    def passed(self, event: ResponseBody, out: bytes) -> Step:
        """Pass a piece on that was read; the client gets `out` for it."""
        if self._labelled is not None and self._labelled.reader is not None:
            self._reader_of_body = self._labelled.reader  # the first bytes have decided
            self._labelled = None
            self._stream = self._reader_of_body if isinstance(self._reader_of_body, StreamAnswer) else None
        reader = self._reader_of_body
        if event.end_of_stream:
            rest = reader.finish()
            phase, effects = self.settled(complete=True)
            return phase, [BodyReply(None if out is event.data and not rest else out + rest), *effects]
        if not self._kept.keep(reader.kept_bytes):
            out = reader.spill(out)  # less of it is read; it passes all the same
            self._kept.keep(0)
        # The hold grows before the client gets what it is for.
        return self, [*self._grown(), BodyReply(None if out is event.data else out)]

    def response_trailers(self, event: ResponseTrailers) -> Step:
        """Settle. An event that the reader still held back is not sent: clients drop an event without its end."""
        self._reader_of_body.finish()
        phase, effects = self.settled(complete=True)
        return phase, [TrailersReply(), *effects]

    def stream_closed(self, event: StreamClosed) -> Step:
        """Settle on what was read of an answer that broke off."""
        self._reader_of_body.look()
        self._grown()  # by what came since: the reservation that ends has the hold
        return self.settled(complete=False)

    def settled(self, *, complete: bool) -> Step:
        """End the reservation on what the reader knows."""
        self._kept.keep(0)
        if self._request.uncounted and self._status in _OK:
            return self._request.close(_PER_REQUEST, self._status)
        reader = self._reader_of_body
        return self._request.close(flagged(reader.settlement(complete=complete), reader), self._status)

    def _grown(self) -> list[Effect]:
        """Hold more, if the answer has outgrown what is held."""
        request, reader = self._request, self._reader_of_body
        self._beyond = beyond(request.admitted.reservation, reader.input_tokens)
        needed = reader.output_tokens + self._beyond
        if needed <= self._enough:
            return []
        larger = grown(request.admitted.reservation, needed, self._beyond)
        request.admitted = replace(request.admitted, reservation=larger)
        reader.estimates = request.estimates
        self._enough = enough(larger, request.facts)
        return [Grow(larger)]


class ReadingPiece(Phase):
    """Read a piece of the answer that may need long, one step each time."""

    def __init__(self, answered: Answered, event: ResponseBody) -> None:
        self._answered = answered
        self._event = event
        self._steps = answered.in_steps(event.data)

    def resumed(self, event: Resumed) -> Step:
        """Do the next step; pass the piece on after the last."""
        try:
            next(self._steps)
        except StopIteration as end:
            return self._answered.passed(self._event, end.value)
        return self, [Pause()]

    def response_head(self, event: ResponseHead) -> Step:
        """Refuse a second head."""
        raise self._unexpected(event)

    def stream_closed(self, event: StreamClosed) -> Step:
        """Settle on what was read so far. The hold does not grow by a piece that the client did not get."""
        return self._answered.settled(complete=False)
