"""Serve HTTP with connections that a fault can cut, and announce the port."""

import json
import os
import socket
import struct
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from extproc.local.model.sending import ABORT_EXTENSION
from extproc.web import server
from extproc.web.listening import listen, port_of
from extproc.web.server import Server, ServerOptions

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send


class CuttableProtocol(H11Protocol):
    """Give every request a function that resets its own connection."""

    def connection_made(self, transport: "asyncio.Transport") -> None:  # type: ignore[override]
        super().connection_made(transport)
        # One protocol object serves one connection, so its application may hold the transport.
        self.app = cast("Any", _Cuttable(self.app, transport))


class _Cuttable:
    def __init__(self, app: "Any", transport: "asyncio.Transport") -> None:
        self._app: ASGIApp = app
        self._transport = transport

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        scope["extensions"] = {**scope.get("extensions", {}), ABORT_EXTENSION: self._reset}
        await self._app(scope, receive, send)

    def _reset(self) -> None:
        connection = self._transport.get_extra_info("socket")
        # A linger time of zero turns the close into a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


# Connections live far longer than the 5 s of vLLM: if a pooled connection is closed just when a proxy reuses it,
# that is a fault that no test asked for.
_SERVER = ServerOptions(keep_alive_s=75, finish_s=1, protocol=CuttableProtocol, names_itself=True)


def announce(port: int, port_file: "Path | None") -> None:
    """Print the port as one JSON line on stdout, and write it to a file if wanted.

    Raises:
        OSError: the file cannot be written.
    """
    if port_file is not None:
        _write_port(port_file, port)
    sys.stdout.write(json.dumps({"event": "listening", "port": port}, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def serve(app: "ASGIApp", *, host: str = "127.0.0.1", port: int = 0, port_file: "Path | None" = None) -> None:
    """Serve until SIGINT or SIGTERM; blocks. Uses uvloop if it is installed.

    Args:
        app: The application.
        host: Address to bind, IPv4 or IPv6.
        port: TCP port; 0 takes a free one. Announced on stdout once connections are accepted.
        port_file: File to write the port into, at the same time.

    Raises:
        ListenError: the address cannot be listened on.
        OSError: the port file cannot be written.
    """
    listening = listen(f"{host}:{port}")
    Server(app, _SERVER, on_ready=lambda: announce(port_of(listening), port_file)).run(sockets=[listening])


@asynccontextmanager
async def running(app: "ASGIApp", *, host: str = "127.0.0.1", port: int = 0) -> "AsyncIterator[int]":
    """Serve in the running loop until the context ends. Yields the port once it accepts connections.

    Raises:
        ListenError: the address cannot be listened on.
    """
    listening = listen(f"{host}:{port}")
    async with server.running(app, _SERVER, listening):
        yield port_of(listening)


def _write_port(path: "Path", port: int) -> None:
    # Write the file atomically: a reader may be polling for it.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(f"{port}\n", encoding="ascii")
    unfinished.replace(path)
