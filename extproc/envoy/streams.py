"""Count the ext_proc streams of a process, and say how each of them ends, whatever carries it."""

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from extproc.core.phase import ProtocolError
from extproc.core.quota.routes import LIMITS_KEY, NO_ROUTE, ROUTE_KEY, BadRoute, Route, read_route
from extproc.envoy.servicer import Servicer
from extproc.envoy.stream import Channel, IdleError
from extproc.http2.status import RefusedError, Status
from extproc.observe.metrics import Metrics

_MAX_STREAMS: Final = 20_000
_ROUTES_KNOWN: Final = 256

_log = logging.getLogger(__name__)


class PeerGoneError(Exception):
    """Report that the peer has reset a stream while it was answered."""


class Streams:
    """Serve streams, up to a number at once."""

    def __init__(self, servicer: Servicer, metrics: Metrics, max_streams: int = _MAX_STREAMS) -> None:
        """Create the door to a servicer. `max_streams`: at once, on all connections; more are refused."""
        self._servicer = servicer
        self._metrics = metrics
        self._max_streams = max_streams
        self._streams = 0
        metrics.watch_streams(lambda: self._streams)

    async def serve(self, channel: Channel, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Serve a stream to its end. Raise `RefusedError` if it does not end well."""
        if self._streams >= self._max_streams:
            self._metrics.stream_fault("too_many")
            raise RefusedError(Status.UNAVAILABLE, "Too many streams at once.")
        self._streams += 1
        try:
            await self._servicer.serve(channel, _route(metadata))
        except ProtocolError as error:
            self._metrics.stream_fault("protocol")
            _log.error("the filter is set up wrongly", extra={"error": str(error)})
            raise RefusedError(Status.FAILED_PRECONDITION, str(error)) from None
        except PeerGoneError:
            _log.debug("a stream was reset while it was answered")
        except IdleError:
            self._metrics.stream_fault("idle")
            raise RefusedError(Status.DEADLINE_EXCEEDED, "No message came for too long.") from None
        except Exception:  # noqa: BLE001  counted and logged; the stream ends, nothing else
            self._metrics.stream_fault("unexpected")
            _log.exception("stream failed")
            raise RefusedError(Status.UNKNOWN, "The stream failed.") from None
        finally:
            self._streams -= 1


def _route(metadata: Iterable[tuple[str, str | bytes]]) -> Route:
    """Read what the metadata of a stream says of the route. Raise `ProtocolError`: a limit is never left out."""
    name = limits = ""
    for key, value in metadata:
        if key == ROUTE_KEY:
            name = str(value)
        elif key == LIMITS_KEY:
            limits = f"{limits},{value!s}"
    if not name and not limits:
        return NO_ROUTE
    route = _read_route(name, limits)
    if isinstance(route, BadRoute):
        raise ProtocolError(route.message)
    return route


_read_route = lru_cache(_ROUTES_KNOWN)(read_route)
