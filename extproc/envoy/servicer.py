"""One loop per stream: receive a message, give it to the exchange, perform the effects that come back, send."""

import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

import grpc

from extproc.accounting import Accounting
from extproc.core.events import (
    Close,
    Decided,
    Effect,
    Event,
    Finish,
    Grow,
    Inspect,
    Inspected,
    Reject,
    RequestHead,
    Reserve,
    StreamClosed,
)
from extproc.core.exchange import Exchange, ExchangeRules, ProtocolError
from extproc.core.routes import LIMITS_KEY, NO_ROUTE, ROUTE_KEY, BadRoute, Route, read_route
from extproc.envoy.codec import Codec, reply_message
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.observe import logs
from extproc.observe.metrics import Metrics

_log = logging.getLogger(__name__)


class Channel(Protocol):
    """A bidirectional stream of messages, whatever carries it."""

    async def read(self) -> pb.ProcessingRequest | None:
        """The next message; None when no more will come."""

    async def write(self, message: pb.ProcessingResponse) -> None:
        """Hands a message over."""


class Servicer:
    """Serves exchanges; knows no transport but `Channel`."""

    def __init__(
        self,
        rules: ExchangeRules,
        codec: Codec,
        accounting: Accounting,
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        self._rules = rules
        self._codec = codec
        self._accounting = accounting
        self._metrics = metrics
        self._now = now

    async def serve(self, channel: Channel, route: Route = NO_ROUTE) -> None:
        """Serves one stream to its end, with the limits that its route has of its own. Raises `ProtocolError`;
        whatever happens, a reservation is closed.

        Nothing is awaited on the way out: when Envoy resets a stream the task is cancelled, and an await would
        die with it. Closing is only putting into a queue.
        """
        exchange = Exchange(self._rules, route)
        effects: deque[Effect] = deque()
        try:
            while (message := await channel.read()) is not None:
                event = self._codec.event(message)
                if isinstance(event, RequestHead):
                    logs.request_id.set(event.headers.get("x-request-id", ""))
                effects.extend(exchange.receive(event))
                while effects:
                    if isinstance(effects[0], Finish):
                        return
                    follow_up = await self._perform(exchange, event, effects[0], channel)
                    effects.popleft()
                    effects.extendleft(reversed(follow_up))
        finally:
            # Effects that are left could not be carried out: the reply at their head did not reach Envoy.
            left = [*effects, *exchange.receive(StreamClosed(delivered=not effects))]
            for effect in left:
                if isinstance(effect, Close):
                    self._accounting.close(effect.reservation, effect.settlement)

    async def _perform(self, exchange: Exchange, event: Event, effect: Effect, channel: Channel) -> list[Effect]:
        match effect:
            case Reserve(ask):
                return exchange.receive(Decided(await self._accounting.reserve(ask), self._now()))
            case Inspect(identity, subject, route):
                insight = await self._accounting.inspect(identity, subject, route)
                return exchange.receive(Inspected(insight, self._now()))
            case Grow(reservation):
                self._accounting.grow(reservation)
            case Close(reservation, settlement):
                self._accounting.close(reservation, settlement)
            case Finish():
                pass
            case _:
                if isinstance(effect, Reject):
                    self._metrics.rejected(effect.rejection.reason)
                    _log.debug("rejected", extra={"reason": effect.rejection.reason})
                await channel.write(reply_message(event, effect))
        return []


class GrpcServicer:
    """The adapter to grpc.aio: one call is one stream."""

    def __init__(self, servicer: Servicer, metrics: Metrics) -> None:
        self._servicer = servicer
        self._metrics = metrics

    async def process(self, _requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        with self._metrics.stream():
            try:
                await self._servicer.serve(_GrpcChannel(context), _route(context))
            except ProtocolError as error:
                self._metrics.stream_fault("protocol")
                _log.error("the filter is set up wrongly", extra={"error": str(error)})
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            except Exception:
                self._metrics.stream_fault("unexpected")
                _log.exception("stream failed")
                raise


def _route(context: "grpc.aio.ServicerContext[Any, Any]") -> Route:
    """What the metadata of the stream says of the route. Raises `ProtocolError`: a limit is never left out."""
    name = limits = ""
    for key, value in context.invocation_metadata() or ():
        if key == ROUTE_KEY:
            name = str(value)
        elif key == LIMITS_KEY:
            limits = f"{limits},{value}"
    if not name and not limits:
        return NO_ROUTE
    route = read_route(name, limits)
    if isinstance(route, BadRoute):
        raise ProtocolError(route.message)
    return route


class _GrpcChannel:
    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self._context = context

    async def read(self) -> pb.ProcessingRequest | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    async def write(self, message: pb.ProcessingResponse) -> None:
        await self._context.write(message)
