"""Serve an ASGI application on a socket that listens."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Set the bounds of a server.

    An idle connection is closed after `keep_alive_s` seconds. At the end, answers in progress have `finish_s`
    seconds left. With more than `max_connections` connections, requests get 503; None: no bound. `protocol` is the
    class of a connection; None: h11's. If `names_itself` is set, answers have a `server` header.
    """

    keep_alive_s: int
    finish_s: int
    max_connections: int | None = None
    protocol: type[asyncio.Protocol] | None = None
    names_itself: bool = False


class Server(uvicorn.Server):
    """Serve one application, without WebSockets, lifespan events, access log and trust in proxy headers."""

    def __init__(
        self,
        app: Any,
        options: ServerOptions,
        *,
        on_ready: Callable[[], None] = lambda: None,
        takes_signals: bool = True,
    ) -> None:
        """Call `on_ready` once connections are accepted. `takes_signals`: SIGINT and SIGTERM end the server."""
        super().__init__(
            uvicorn.Config(
                app,
                http=options.protocol or "h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=options.names_itself,
                timeout_keep_alive=options.keep_alive_s,
                timeout_graceful_shutdown=options.finish_s,
                limit_concurrency=options.max_connections,
            )
        )
        self._on_ready = on_ready
        self._takes_signals = takes_signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals() if self._takes_signals else contextlib.nullcontext():
            yield


@contextlib.asynccontextmanager
async def running(app: Any, options: ServerOptions, listening: socket.socket) -> AsyncIterator[None]:
    """Serve in the running loop until the context ends. The server accepts connections when the context begins."""
    ready = asyncio.Event()
    server = Server(app, options, on_ready=ready.set)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await ready.wait()
        yield
    finally:
        server.should_exit = True
        await serving
