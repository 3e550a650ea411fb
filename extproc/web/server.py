"""Serve an ASGI application on a socket that listens."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from extproc.web.listening import ListenError


@dataclass(frozen=True, slots=True)
class Certificate:
    """Name the PEM files of a server's certificate chain and its private key."""

    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return the context of a server with this certificate. Raise `ListenError` if the files can't be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have the next handshakes of a context use the files as they are now. Raise `ListenError`."""
        try:
            context.load_cert_chain(self.chain, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or error.strerror
            raise ListenError(f"{self.chain}, {self.key}: no certificate with its key ({reason})") from None

    def state(self) -> tuple[tuple[int, int, int], ...] | None:
        """Return what changes when a file is replaced; None while one is missing."""
        try:
            found = [path.stat() for path in (self.chain, self.key)]
        except OSError:
            return None
        return tuple((each.st_mtime_ns, each.st_ino, each.st_size) for each in found)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Set the bounds of a server.

    An idle connection is closed after `keep_alive_s` seconds. At the end, answers in progress have `finish_s`
    seconds left. With more than `max_connections` connections, requests get 503; None: no bound. `protocol` is the
    class of a connection; None: h11's. If `names_itself` is set, answers have a `server` header. Without
    `certificate` it speaks plaintext.
    """

    keep_alive_s: int
    finish_s: int
    max_connections: int | None = None
    protocol: type[asyncio.Protocol] | None = None
    names_itself: bool = False
    certificate: Certificate | None = None


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
        """Call `on_ready` once connections are accepted. `takes_signals`: SIGINT and SIGTERM end the server.

        Raise `ListenError` if the certificate can't be used.
        """
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
        self._certificate = options.certificate
        self._seen: tuple[tuple[int, int, int], ...] | None = None
        if self._certificate is not None:
            self._seen = self._certificate.state()
            self.config.load()
            self.config.ssl = self._certificate.context()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def refresh_certificate(self) -> bool:
        """Use the files of the certificate as they are now. Return whether they were replaced.

        Raise `ListenError` if they can't be used: the former ones stay.
        """
        state = self._certificate.state() if self._certificate is not None else None
        if self._certificate is None or self.config.ssl is None or state in {None, self._seen}:
            return False
        self._seen = state
        self._certificate.context()  # tried apart: a chain that does not fit its key must not be half taken
        self._certificate.load_into(self.config.ssl)
        return True

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
