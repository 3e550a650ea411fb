"""One loop per stream: receive a message, give it to the exchange, perform the effects that come back, send."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from extproc.core.events import (
    BodyRead,
    Close,
    Decided,
    Effect,
    Event,
    Finish,
    Grow,
    Inspect,
    Inspected,
    Pause,
    ReadBody,
    Reject,
    RequestHead,
    Reserve,
    ResponseBody,
    Resumed,
    StreamClosed,
)
from extproc.core.exchange import Exchange
from extproc.core.phase import ExchangeRules
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.envoy.codec import Codec, reply_message
from extproc.envoy.patience import Patience, Waits
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.reading import BodyReader, ReadHere
from extproc.envoy.turns import Turn, Turns
from extproc.metering.service import MeteringService
from extproc.observe import logs
from extproc.observe.metrics import Metrics

_log = logging.getLogger(__name__)
_WAITS = Waits()
_READ_HERE = ReadHere()
# An answer to one who is slow: how long he may take to take it.
_LAST_WORD_S = 1.0
_MAX_REQUEST_ID_CHARS = 128


class IdleError(Exception):
    """A stream said nothing for too long."""


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
        metering: MeteringService,
        metrics: Metrics,
        now: Callable[[], datetime],
        *,
        waits: Waits = _WAITS,
        reader: BodyReader = _READ_HERE,
    ) -> None:
        self._rules = rules
        self._waits = waits
        self._codec = codec
        self._metering = metering
        self._metrics = metrics
        self._now = now
        self._turns = Turns()
        self._reader = reader

    async def serve(self, channel: Channel, route: Route = NO_ROUTE) -> None:
        """Serves one stream to its end, with the limits that its route has of its own. Raises `ProtocolError`, or
        `IdleError`; whatever happens, a reservation is closed.

        Nothing is awaited on the way out: when Envoy resets a stream the task is cancelled, and an await would
        die with it. Closing is only putting into a queue.
        """
        exchange = Exchange(self._rules, route)
        effects: deque[Effect] = deque()
        patience = Patience(self._waits, lambda: exchange.awaits_request)
        turn = Turn(self._turns)
        try:
            await self._converse(exchange, effects, channel, patience, turn)
        except asyncio.CancelledError:
            if not patience.lost:
                raise
            await self._part(exchange, channel)
        finally:
            patience.end()
            # Effects that are left were not begun: Envoy did not get the reply among them.
            left = [*effects, *exchange.receive(StreamClosed(delivered=not effects))]
            for effect in left:
                if isinstance(effect, Close):
                    self._metering.close(effect.reservation, effect.settlement)

    async def _converse(
        self, exchange: Exchange, effects: deque[Effect], channel: Channel, patience: Patience, turn: Turn
    ) -> None:
        """Until all is said. `effects` are those not begun yet."""
        while (message := await channel.read()) is not None:
            patience.heard()
            turn.heard()
            event = self._codec.event(message)
            if isinstance(event, RequestHead):
                logs.request_id.set(event.headers.get("x-request-id", "")[:_MAX_REQUEST_ID_CHARS])
            await turn.rest()
            if isinstance(event, ResponseBody):
                turn.begin()
                effects.extend(exchange.receive(event))
                turn.end()
            else:
                effects.extend(exchange.receive(event))
            while effects:
                if isinstance(effects[0], Finish):
                    return
                # First out of the queue: once its write begins Envoy may have it, even if the write then fails.
                effect = effects.popleft()
                if isinstance(effect, Pause):
                    effects.extend(await _resumed(exchange, turn))
                else:
                    effects.extendleft(reversed(await self._perform(exchange, event, effect, channel)))

    async def _part(self, exchange: Exchange, channel: Channel) -> None:
        """Ends a stream that took too long: with an answer, where its request is the reason."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        if not exchange.awaits_request:
            raise IdleError
        effects = exchange.give_up()
        async with asyncio.timeout(_LAST_WORD_S):
            for effect in effects:
                await self._perform(exchange, StreamClosed(), effect, channel)

    async def _perform(self, exchange: Exchange, event: Event, effect: Effect, channel: Channel) -> list[Effect]:
        match effect:
            case Reserve(ask):
                return exchange.receive(Decided(await self._metering.reserve(ask), self._now()))
            case ReadBody():
                return exchange.receive(BodyRead(await self._reader.read(effect), self._now()))
            case Inspect(identity, subject, route):
                insight = await self._metering.inspect(identity, subject, route)
                return exchange.receive(Inspected(insight, self._now()))
            case Grow(reservation):
                self._metering.grow(reservation)
            case Close(reservation, settlement):
                self._metering.close(reservation, settlement)
            case Finish() | Pause():
                pass
            case _:
                if isinstance(effect, Reject):
                    self._metrics.rejected(effect.rejection.reason)
                    _log.debug("rejected", extra={"reason": effect.rejection.reason})
                await channel.write(reply_message(event, effect))
        return []


async def _resumed(exchange: Exchange, turn: Turn) -> list[Effect]:
    """Does a slice of long work, once it is its turn."""
    await turn.wait()
    turn.begin()
    effects: list[Effect] = [Pause()]
    while effects and isinstance(effects[0], Pause) and not turn.over:
        effects = exchange.receive(Resumed())
    turn.end()
    return effects
