"""Serve exchanges: make what a stream needs, and see to it that each reservation is closed."""

from collections.abc import Callable, Coroutine
from datetime import datetime

from extproc.core.exchange import Exchange
from extproc.core.phase import ExchangeRules
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.envoy.codec import Codec
from extproc.envoy.patience import Patience, Waits
from extproc.envoy.reading import BodyReader, ReadHere
from extproc.envoy.stream import Channel, Stream, Surroundings
from extproc.envoy.turns import Turns
from extproc.metering.service import MeteringService
from extproc.observe.metrics import Metrics

_WAITS = Waits()
_READ_HERE = ReadHere()


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
        turns: Turns | None = None,
    ) -> None:
        """Let long work take turns with that of all who share `turns`."""
        self._rules = rules
        self._surroundings = Surroundings(codec, metering, metrics, now, Patience(waits), reader, turns or Turns())

    def serve(self, channel: Channel, route: Route = NO_ROUTE) -> Coroutine[None, None, None]:
        """Serves one stream to its end, with the limits that its route has of its own. Raises `ProtocolError`, or
        `IdleError`; whatever happens, a reservation is closed.
        """
        return Stream(Exchange(self._rules, route), channel, self._surroundings).serve()
