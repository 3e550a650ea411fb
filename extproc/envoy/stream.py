"""Carry one stream: receive a message, give it to the exchange, perform the effects that come back, send.

Pieces in the middle of an answer take a shorter way: where the transport can, it hands them over as they come
(`Stream.hear`), and they are read, answered and forgotten without waking the task of the stream. All else, and
whatever has to wait, goes through the task in the order in which it came.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from extproc.core.answer_phases import PASSES
from extproc.core.events import (
    BodyRead,
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
    Pause,
    ReadBody,
    Reject,
    RequestHead,
    Reserve,
    ResponseBody,
    ResponseHead,
    Resumed,
    StreamClosed,
    TrailersReply,
)
from extproc.core.exchange import Exchange
from extproc.envoy.codec import ANSWER_PASSES, Codec, reply_message
from extproc.envoy.patience import Patience
from extproc.envoy.reading import BodyReader
from extproc.envoy.turns import Turn, Turns
from extproc.metering.service import MeteringService
from extproc.observe import logs
from extproc.observe.metrics import Metrics

_log = logging.getLogger(__name__)
# An answer to one who is slow: how long he may take to take it.
_LAST_WORD_S: Final = 1.0
_MAX_REQUEST_ID_CHARS: Final = 128
_REPLIES: Final = (HeadReply, BodyReply, TrailersReply)  # written as a union it is made each time

Hearer = Callable[[bytes], bool]


class IdleError(Exception):
    """A stream said nothing for too long."""


class Channel(Protocol):
    """Carry messages both ways, whatever is below."""

    def take(self) -> bytes | list[bytes] | None:
        """Return the next message if it is here already. A large one may come in parts."""

    async def read(self) -> bytes | list[bytes] | None:
        """Return the next message; None when no more will come. A large one may come in parts."""

    def hand_over(self, hearer: Hearer) -> None:
        """Give each message to `hearer` while somebody waits in `read`, if that is possible, in the context of the
        stream's task. If `hearer` returns False the message is read as any other.
        """

    def send(self, message: bytes) -> bool:
        """Begin to send a message. Return False if it waits: then wait with `drained` before the next."""

    def send_parts(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Begin to send a large message in parts. Return as `send` does."""

    async def drained(self) -> None:
        """Wait until the last message has been sent."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Hold what all streams share. `now` is the time of decisions."""

    codec: Codec
    metering: MeteringService
    metrics: Metrics
    now: Callable[[], datetime]
    patience: Patience
    reader: BodyReader
    turns: Turns


class Stream:
    """Carry one stream from its first message to its end."""

    __slots__ = (
        "_blocked",
        "_channel",
        "_effects",
        "_error",
        "_exchange",
        "_here",
        "_read",
        "_task",
        "_turn",
        "heard_at",
    )

    def __init__(self, exchange: Exchange, channel: Channel, surroundings: Surroundings) -> None:
        self._exchange = exchange
        self._channel = channel
        self._here = surroundings
        self._effects: list[Effect] = []  # not begun yet; few, so a list: a deque takes 600 bytes
        self._turn = Turn(surroundings.turns)
        self._task: asyncio.Task[None] | None = None
        self.heard_at = 0.0
        self._blocked = False  # the last message that was sent waits for its peer
        self._error: Exception | None = None  # of a piece that was heard
        self._read: ResponseBody | None = None  # the message that the task reads next, if it was heard before

    async def serve(self) -> None:
        """Serve the stream. Raise `ProtocolError` or `IdleError`; whatever happens, a reservation is closed.

        Nothing is awaited on the way out: when Envoy resets a stream the task is cancelled, and an await would
        die with it. Closing is only putting into a queue.
        """
        patience = self._here.patience
        self._task = asyncio.current_task()
        patience.begin(self)
        try:
            await self._converse()
        except asyncio.CancelledError:
            if self._task is not None:  # not one that took too long
                raise
            await self._part()
        finally:
            patience.end(self)
            self._task = None
            # Effects that are left were not begun: Envoy did not get the reply among them.
            left = [*self._effects, *self._exchange.receive(StreamClosed(delivered=not self._effects))]
            for effect in left:
                if isinstance(effect, Close):
                    self._here.metering.close(effect.reservation, effect.settlement)

    async def _converse(self) -> None:
        """Until all is said."""
        exchange, channel, turn, effects = self._exchange, self._channel, self._turn, self._effects
        while (message := channel.take()) is not None or (message := await channel.read()) is not None:
            if self._error is not None:
                raise self._error
            if self._blocked:
                await self._drained()
            self.heard_at = self._here.patience.now()
            turn.heard()
            event: Event | None = self._read
            if event is None:
                event = self._here.codec.event(message)
            else:
                self._read = None
            if turn.owes:
                await turn.wait()
            if isinstance(event, RequestHead):
                logs.request_id.set(event.headers.get("x-request-id", "")[:_MAX_REQUEST_ID_CHARS])
            effects.extend(exchange.receive(event))
            if effects and await self._perform_all(event):
                return
            if isinstance(event, ResponseHead):
                channel.hand_over(self.hear)
            del event, message  # a stream may wait for long now

    async def _perform_all(self, event: Event) -> bool:
        """Perform what is to be done. Return whether the stream is finished."""
        effects = self._effects
        while effects:
            if isinstance(effects[0], Finish):
                return True
            # First out of the queue: once its write begins Envoy may have it, even if the write then fails.
            effect = effects.pop(0)
            if not self._performed(event, effect):
                effects[:0] = await self._answered(effect)
            if self._blocked:
                await self._drained()
        return False

    def _performed(self, event: Event, effect: Effect) -> bool:
        """Perform an effect that has no answer. Return False if this one has."""
        if isinstance(effect, _REPLIES):
            self._send(reply_message(event, effect))
        elif isinstance(effect, Close):
            self._here.metering.close(effect.reservation, effect.settlement)
        elif isinstance(effect, Grow):
            self._here.metering.grow(effect.reservation)
        elif isinstance(effect, Reject):
            self._here.metrics.rejected(effect.rejection.reason)
            _log.debug("rejected", extra={"reason": effect.rejection.reason})
            self._send(reply_message(event, effect))
        else:
            return False
        return True

    def _send(self, message: bytes | list[bytes | memoryview]) -> None:
        if isinstance(message, bytes):
            self._blocked = not self._channel.send(message)
        else:
            self._blocked = not self._channel.send_parts(message)

    async def _answered(self, effect: Effect) -> list[Effect]:
        """Perform an effect that has an answer. Return the effects of the answer."""
        here, receive = self._here, self._exchange.receive
        match effect:
            case Reserve(ask):
                return receive(Decided(await here.metering.reserve(ask), here.now()))
            case ReadBody():
                return receive(BodyRead(await here.reader.read(effect), here.now()))
            case Inspect(identity, subject, route):
                insight = await here.metering.inspect(identity, subject, route)
                return receive(Inspected(insight, here.now()))
            case Pause():
                return await self._resumed()
            case _:
                return []

    async def _drained(self) -> None:
        await self._channel.drained()
        self._blocked = False

    async def _resumed(self) -> list[Effect]:
        """Do a slice of long work, once it is its turn."""
        turn = self._turn
        await turn.wait()
        turn.begin()
        effects: list[Effect] = [Pause()]
        while effects and isinstance(effects[0], Pause) and not turn.over:
            effects = self._exchange.receive(Resumed())
        turn.end()
        return effects

    async def _part(self) -> None:
        """End a stream that took too long: with an answer, where its request is the reason."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        if not self._exchange.awaits_request:
            raise IdleError
        async with asyncio.timeout(_LAST_WORD_S):
            if self._blocked:
                await self._drained()
            for effect in self._exchange.give_up():
                self._performed(StreamClosed(), effect)
                if self._blocked:
                    await self._drained()

    # ------------------------------------------------------------ for patience

    @property
    def awaits_request(self) -> bool:
        """Tell whether the request is not whole yet."""
        return self._exchange.awaits_request

    def lose(self) -> None:
        """End the stream: it took too long."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    # ------------------------------------------------------------ the shorter way

    def hear(self, message: bytes) -> bool:
        """Take a message while the task waits for one, if it is a piece of an answer that nothing has to wait for.

        Return whether it was taken.
        """
        if self._blocked or self._turn.owes or self._error is not None:
            return False
        event = self._here.codec.piece(message)
        if event is None:
            return False
        try:
            effects = self._exchange.read_at_once(event)
            if effects is None:
                self._read = event
                return False
            if effects is PASSES:  # nearly every piece does
                self._blocked = not self._channel.send(ANSWER_PASSES)
            else:
                for effect in effects:
                    self._performed(event, effect)
        except Exception as error:  # noqa: BLE001  the task of the stream raises it: here, it would end the connection
            self._error = error
            return False
        self.heard_at = self._here.patience.now()
        self._turn.heard()
        return True
