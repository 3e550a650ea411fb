"""Serve HTTP with connections that a fault can cut, and announce the port."""

import asyncio
import json
import os
import socket
import struct
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from extproc.local.model.sending import ABORT_EXTENSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

# Seconds. Far above the 5 of vLLM: if a pooled connection is closed just when a proxy reuses it, that is a fault
# that no test asked for.
_KEEP_ALIVE_S = 75
_SHUTDOWN_S = 1


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


class ReadyServer(uvicorn.Server):
    """Call back once it accepts connections."""

    def __init__(self, config: uvicorn.Config, on_ready: "Callable[[], None]") -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket bound to an IPv4 or IPv6 address; port 0 takes a free one.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


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
        OSError: the address cannot be bound, or the port file not be written.
    """
    bound = bind(host, port)
    bound_port: int = bound.getsockname()[1]
    ReadyServer(_config(app), lambda: announce(bound_port, port_file)).run(sockets=[bound])


@asynccontextmanager
async def running(app: "ASGIApp", *, host: str = "127.0.0.1", port: int = 0) -> "AsyncIterator[int]":
    """Serve in the running loop until the context ends. Yields the port once it accepts connections.

    Raises:
        OSError: the address cannot be bound.
    """
    bound = bind(host, port)
    ready = asyncio.Event()
    server = ReadyServer(_config(app), ready.set)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        await ready.wait()
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def _config(app: "ASGIApp") -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=CuttableProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


def _write_port(path: "Path", port: int) -> None:
    # Write the file atomically: a reader may be polling for it.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(f"{port}\n", encoding="ascii")
    unfinished.replace(path)
