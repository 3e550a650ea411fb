"""Run the admin API: listen, serve, and end when it is told to."""

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from extproc.admin.api.app import AdminAPI
from extproc.web.listening import ListenError, listen
from extproc.web.server import Certificate, Server, ServerOptions

_KEEP_ALIVE_S: Final = 75
_LOOK_S: Final = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """Say where to listen, and set bounds. After SIGTERM, open requests have `drain_s` seconds left."""

    listen: str
    max_connections: int
    drain_s: float
    certificate: Certificate | None = None


async def serve(options: ServingOptions, api: AdminAPI, on_ready: Callable[[str], None] = lambda _: None) -> int:
    """Run until SIGTERM or SIGINT. Return the exit code. Raise `ListenError`. `on_ready` gets the URL."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with listen(options.listen) as bound:
        scheme = "https" if options.certificate is not None else "http"
        host, port = bound.getsockname()[:2]
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        server = Server(
            api,
            ServerOptions(
                keep_alive_s=_KEEP_ALIVE_S,
                finish_s=max(1, int(options.drain_s)),
                max_connections=options.max_connections,
                certificate=options.certificate,
            ),
            on_ready=lambda: on_ready(url),
            takes_signals=False,
        )
        _log.info("listening", extra={"url": url})
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        looking = asyncio.create_task(_follow_certificate(server))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("draining", extra={"seconds": options.drain_s})
        server.should_exit = True
        looking.cancel()
        stopped.cancel()
        await serving
    return 0


async def _follow_certificate(server: Server) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            if server.refresh_certificate():
                _log.info("certificate replaced")
        except ListenError as error:
            _log.error("the certificate can't be used, the former one stays", extra={"error": str(error)})
