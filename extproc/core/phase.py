"""Describe a phase of an exchange: which events may come now, and which phase follows each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from extproc.core import rejections
from extproc.core.events import (
    BodyRead,
    Decided,
    Effect,
    Event,
    Finish,
    HeadReply,
    Inspected,
    Reject,
    RequestBody,
    RequestHead,
    RequestTrailers,
    ResponseBody,
    ResponseHead,
    ResponseTrailers,
    Resumed,
    StreamClosed,
)
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.rejections import DeniedStyle, Rejection
from extproc.core.request.body import UNNAMED
from extproc.core.request.buffers import MAX_BODY_BYTES, Buffers
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import IdentityRules
from extproc.core.request.in_flight import InFlight


class ProtocolError(Exception):
    """Say that events came in an order that no HTTP exchange has.

    The filter is set up wrongly, or the peer is not Envoy.
    """


@dataclass(frozen=True, slots=True)
class ExchangeRules:
    """Hold what is the same for every exchange.

    `max_body_bytes` bounds the memory of one request, `buffers` the memory of all of them together, and
    `in_flight` the requests of one tenant at once. With `refuse_without_usage` a request is refused if its answer
    would come without usage. Bodies of more than `direct_bytes` are read apart, and so are smaller ones that take
    as long to read. A caller may use what is `allowed` of `STEERING`, and POST to the paths that `unmetered_paths`
    name (globs) although nothing meters them. `counts_prompts`: a tokenizer needs the texts of prompts. `models`
    says how usage of each model is asked for. `unnamed_model` is the model of requests that name none.
    """

    identity: IdentityRules
    max_body_bytes: int = MAX_BODY_BYTES
    denied_style: DeniedStyle = DeniedStyle.OPENAI
    bytes_per_output_token: int = 4
    store_retry_after_s: int = 1
    buffers: Buffers = field(default_factory=Buffers)
    in_flight: InFlight = field(default_factory=InFlight)
    refuse_without_usage: bool = True
    direct_bytes: int = 1 << 62
    allowed: frozenset[str] = frozenset()
    counts_prompts: bool = False
    unnamed_model: str = UNNAMED
    unmetered_paths: tuple[str, ...] = ()
    models: Models = field(default_factory=lambda: Models(ModelProfile()))


class Phase:
    """Answer events with effects, and name the phase that follows.

    Each method returns (next phase, effects). A method that a phase does not override raises `ProtocolError`: its
    event can't come in that phase.
    """

    awaits_request = False  # whether the request is not whole yet

    def receive(self, event: Event) -> "Step":  # noqa: C901 - one case for each event
        """Return the next phase and the effects of an event. Raise `ProtocolError`, and nothing else."""
        match event:
            case ResponseBody():
                return self.response_body(event)
            case RequestHead():
                return self.request_head(event)
            case RequestBody():
                return self.request_body(event)
            case Decided():
                return self.decided(event)
            case ResponseHead():
                return self.response_head(event)
            case StreamClosed():
                return self.stream_closed(event)
            case RequestTrailers():
                return self.request_trailers(event)
            case ResponseTrailers():
                return self.response_trailers(event)
            case BodyRead():
                return self.body_read(event)
            case Inspected():
                return self.inspected(event)
            case Resumed():
                return self.resumed(event)
            case _:
                assert_never(event)

    def request_head(self, event: RequestHead) -> "Step":
        """Take the head of the request."""
        raise self._unexpected(event)

    def request_body(self, event: RequestBody) -> "Step":
        """Take a piece of the request's body."""
        raise self._unexpected(event)

    def request_trailers(self, event: RequestTrailers) -> "Step":
        """Take the end of a request that has trailers."""
        raise self._unexpected(event)

    def inspected(self, event: Inspected) -> "Step":
        """Take the answer to `Inspect`."""
        raise self._unexpected(event)

    def body_read(self, event: BodyRead) -> "Step":
        """Take the answer to `ReadBody`."""
        raise self._unexpected(event)

    def decided(self, event: Decided) -> "Step":
        """Take the answer to `Reserve`."""
        raise self._unexpected(event)

    def response_head(self, event: ResponseHead) -> "Step":
        """Take the head of the answer.

        Before a decision it is Envoy's own answer (a timeout, say): let it pass.
        """
        return Done(), [HeadReply(), Finish()]

    def response_body(self, event: ResponseBody) -> "Step":
        """Take a piece of the answer's body."""
        raise self._unexpected(event)

    def read_at_once(self, event: ResponseBody) -> Sequence[Effect] | None:
        """Take a piece of the answer's body that needs no wait and no other phase; None if this one may."""
        del event
        return None

    def response_trailers(self, event: ResponseTrailers) -> "Step":
        """Take the end of an answer that has trailers."""
        raise self._unexpected(event)

    def resumed(self, event: Resumed) -> "Step":
        """Take the answer to `Pause`."""
        raise self._unexpected(event)

    def stream_closed(self, event: StreamClosed) -> "Step":
        """Take the end of Envoy's stream, at any time."""
        return Done(), [Finish()]

    def give_up(self) -> "Step":
        """Reject a request whose rest takes too long."""
        return self.rejected(rejections.too_slow(self.endpoint))

    @property
    def endpoint(self) -> Endpoint | None:
        """Return the endpoint that was asked; None while it is not known."""
        return None

    def rejected(self, rejection: Rejection) -> "Step":
        """Answer the client, and finish."""
        self.let_go()
        return Done(), [Reject(rejection), Finish()]

    def let_go(self) -> None:
        """Release the memory that this phase keeps of the body."""

    def _unexpected(self, event: Event) -> ProtocolError:
        return ProtocolError(f"{type(event).__name__} in phase {type(self).__name__}")


class Done(Phase):
    """Ignore all that comes, except a decision: a hold that comes too late must not be lost silently."""

    def receive(self, event: Event) -> "Step":
        """Return no effects."""
        if isinstance(event, Decided):
            raise self._unexpected(event)
        return self, []


Step = tuple[Phase, list[Effect]]
