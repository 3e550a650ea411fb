"""Listen, accept connections with or without TLS, and stop without losing a call."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from extproc.http2.connection import Connection
from extproc.http2.head import Routes
from extproc.http2.host import Host
from extproc.http2.limits import Limits

_LOOK_S: Final = 1.0
# While a server stops, it looks more often: nobody waits for the second to be over.
_STOPPING_LOOK_S: Final = 0.05
_CLOSE_S: Final = 2.0
_BACKLOG: Final = 512
_ALPN: Final = "h2"
# A process without a free descriptor can't accept; it tries again after so long.
_ACCEPT_AGAIN_S: Final = 0.1

_log = logging.getLogger(__name__)


def _ignore(_kind: str) -> None:
    """Count no fault."""


class GrpcServer:
    """Serve gRPC on sockets, from `start` until `stop`."""

    def __init__(
        self,
        routes: Routes,
        limits: Limits,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        on_fault: Callable[[str], None] = _ignore,
    ) -> None:
        """Create a server. `tls` returns the context for the next connection; None is plaintext.

        `on_fault` gets the name of an error code whenever a peer is sent away.
        """
        self._routes = routes
        self._limits = limits
        self._tls = tls
        self._on_fault = on_fault
        self._host: Host | None = None
        self._servers: list[asyncio.Server] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = _LOOK_S

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on sockets that listen already."""
        loop = asyncio.get_running_loop()
        host = self._host = Host(loop, self._routes, self._limits, self._on_fault)
        for each in sockets:
            if self._tls is None:
                self._servers.append(await self._listen(loop, host, each))
            else:
                self._accepting.append(loop.create_task(self._accept(host, self._tls, each)))
        self._timer = loop.call_later(self._look_s, self._look)

    async def _listen(
        self, loop: asyncio.AbstractEventLoop, host: Host, listening: socket.socket
    ) -> asyncio.Server:
        def accept() -> asyncio.Protocol:
            return Connection(host)

        if listening.family == socket.AF_UNIX:
            return await loop.create_unix_server(accept, sock=listening, backlog=_BACKLOG)
        return await loop.create_server(accept, sock=listening, backlog=_BACKLOG)

    @property
    def held_bytes(self) -> int:
        """Return the bytes of messages that no handler has taken."""
        return self._host.holdings.total if self._host is not None else 0

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let those in flight finish, end what is left after `grace_s`, and close."""
        host = self._host
        if host is None:
            return
        for server in self._servers:
            server.close()
        for task in (*self._accepting, *self._handshakes):
            task.cancel()
        self._look_s = _STOPPING_LOOK_S
        self._look()
        for connection in list(host.connections):
            connection.drain()
        if not await _within(grace_s, host, connections=True):
            for connection in list(host.connections):
                connection.cut_off()
            await host.settled(connections=False)
            if not await _within(_CLOSE_S, host, connections=True):
                for connection in list(host.connections):
                    connection.abort()
                await host.settled(connections=True)
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        host = self._host
        if host is None:
            return
        now = host.loop.time()
        for connection in list(host.connections):
            connection.look(now)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = host.loop.call_later(self._look_s, self._look)

    # ------------------------------------------------------------ TLS

    async def _accept(self, host: Host, tls: Callable[[], ssl.SSLContext], listening: socket.socket) -> None:
        """Accept connections, and begin a handshake on each.

        A server of asyncio has one context for all. On uvloop, a connection that is secured later (`start_tls`)
        loses what its peer sent before.
        """
        while True:
            try:
                accepted, _ = await host.loop.sock_accept(listening)
            except OSError as error:
                _log.debug("http2 connection not accepted: the next try follows", extra={"error": str(error)})
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            if len(self._handshakes) >= self._limits.connections:
                accepted.close()
                continue
            task = host.loop.create_task(self._shake(host, tls, accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake(self, host: Host, tls: Callable[[], ssl.SSLContext], accepted: socket.socket) -> None:
        """Secure a connection, and serve it."""
        try:
            secured, _ = await host.loop.connect_accepted_socket(
                lambda: Connection(host), accepted, ssl=tls(), ssl_handshake_timeout=self._limits.handshake_s
            )
        except (OSError, EOFError) as error:  # ssl.SSLError is an OSError
            _log.debug("http2 connection not secured: it is closed", extra={"error": str(error)})
            accepted.close()
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        secured_by = secured.get_extra_info("ssl_object")
        if secured_by is None or secured_by.selected_alpn_protocol() != _ALPN:
            secured.abort()


async def _within(seconds: float, host: Host, *, connections: bool) -> bool:
    """Tell whether all handlers have ended in time, and all connections if these are asked for."""
    try:
        async with asyncio.timeout(seconds):
            await host.settled(connections=connections)
    except TimeoutError:
        return False
    return True
