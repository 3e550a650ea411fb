"""Hold what all connections of a server share."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from extproc.http2.head import Head, Routes, read_head
from extproc.http2.hpack import Decoder
from extproc.http2.limits import Holder, Holdings, Limits

_CACHED_HEADS: Final = 512
_CACHED_BLOCK_BYTES: Final = 2048
_SIZE_UPDATE: Final = 0x20
_SIZE_UPDATE_MASK: Final = 0xE0
# A peer that is sent away is logged, but no more of them than these: who attacks chooses how often.
_FAULTS_TOLD: Final = 100

_log = logging.getLogger(__name__)


def _ignore(_kind: str) -> None:
    """Count no fault."""


class Heads:
    """Read the heads of requests. Equal blocks are decoded once, as long as no dynamic table is in use."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._known: dict[bytes, Head] = {}

    def known(self, block: bytes, decoder: Decoder) -> Head | None:
        """Return what an equal block said before, if that is all that it means; else None."""
        return self._known.get(block) if decoder.stateless else None

    def read(self, block: bytes, decoder: Decoder) -> Head:
        """Decode and read a block. Raise `HeaderBlockError`, `HeaderListError` or `MalformedError`."""
        stateless = decoder.stateless
        head = read_head(decoder.decode(block), self._routes)
        if stateless and len(block) <= _CACHED_BLOCK_BYTES and block[0] & _SIZE_UPDATE_MASK != _SIZE_UPDATE:
            if len(self._known) >= _CACHED_HEADS:
                self._known.clear()
            self._known[block] = head
        return head


class Member(Protocol):
    """Be a connection of a server."""

    begun: float

    @property
    def idle(self) -> bool:
        """Tell whether there is no call."""

    def close(self) -> None:
        """Close when what was said is written."""

    def drain(self) -> None:
        """Ask the peer to begin no more streams."""

    def cut_off(self) -> None:
        """End all calls, and close."""

    def abort(self) -> None:
        """Close at once."""

    def look(self, now: float) -> None:
        """See to what is due."""


class Host:
    """Hold the bounds, the methods and the connections of a server, and count its handlers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        routes: Routes,
        limits: Limits,
        on_fault: Callable[[str], None] = _ignore,
    ) -> None:
        """Create what connections share. `on_fault` gets the name of an error code when a peer is sent away."""
        self.loop = loop
        self.limits = limits
        self.heads = Heads(routes)
        self.holdings = Holdings(limits.held_bytes)
        self.connections: set[Member] = set()
        self.running = 0
        self._on_fault = on_fault
        self._told = 0
        self._waiting: list[asyncio.Future[None]] = []

    def fault(self, kind: str, reason: str) -> None:
        """Count a peer that is sent away, and log it."""
        self._on_fault(kind)
        if self._told < _FAULTS_TOLD:
            self._told += 1
            _log.warning(
                "http2 connection at fault: it is closed, its streams end", extra={"code": kind, "error": reason}
            )

    def add(self, connection: Member, holder: Holder) -> bool:
        """Take a connection; False if there are too many, and all are in use. One without streams makes room."""
        if len(self.connections) >= self.limits.connections:
            idle = min((each for each in self.connections if each.idle), key=lambda each: each.begun, default=None)
            if idle is None:
                return False
            idle.close()
            self.connections.discard(idle)
        self.connections.add(connection)
        self.holdings.add(holder)
        return True

    def remove(self, connection: Member, holder: Holder) -> None:
        """Forget a connection, and what it held."""
        self.connections.discard(connection)
        self.holdings.remove(holder)
        self._tell()

    def ended(self) -> None:
        """Note that a handler has ended."""
        self.running -= 1
        self._tell()

    async def settled(self, *, connections: bool) -> None:
        """Wait until no handler runs; with `connections`, until all of them are closed too."""
        while self.running or (connections and self.connections):
            waiting = self.loop.create_future()
            self._waiting.append(waiting)
            await waiting

    def _tell(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
