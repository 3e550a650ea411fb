"""Run the dumper: listen, receive events, drain."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

try:
    from extproc.web.server import Server, ServerOptions
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("the message dumper needs: pip install 'tokenweir[dumper]'") from error

from extproc.dumper.holding import Holding
from extproc.dumper.metrics import DumperMetrics
from extproc.dumper.receiver import Receiver
from extproc.dumper.sinks import Sink
from extproc.dumper.writer import Writer
from extproc.web.listening import listen

_log = logging.getLogger(__name__)
_SERVER: Final = ServerOptions(keep_alive_s=75, finish_s=3)


@dataclass(frozen=True, slots=True)
class DumperOptions:
    """Say where to listen, and set bounds. After SIGTERM, `drain_s` seconds are left to write what waits."""

    listen: str
    max_body_bytes: int
    queue_bytes: int
    keep_bodies: bool
    drain_s: float


async def serve(options: DumperOptions, make_sink: Callable[[], Sink]) -> int:
    """Run until SIGTERM or SIGINT. Return the exit code: 0 if all accepted messages were written.

    Raise `ListenError`, and `StoreError` if the sink can't be used at all.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    bound = listen(options.listen)
    sink = make_sink()
    try:
        holding = Holding(options.queue_bytes)
        metrics = DumperMetrics(holding)
        writer = Writer(holding, sink, metrics)
        receiver = Receiver(
            holding,
            metrics,
            options.max_body_bytes,
            keep_bodies=options.keep_bodies,
            now=_now,
            ready=lambda: writer.ready and not stopping.is_set(),
        )
        return await _run(options, receiver, writer, bound, stopping)
    finally:
        await sink.aclose()


async def _run(
    options: DumperOptions, receiver: Receiver, writer: Writer, bound: socket.socket, stopping: asyncio.Event
) -> int:
    server = Server(receiver.app(), _SERVER, takes_signals=False)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    writing = asyncio.create_task(writer.run())
    stopped = asyncio.create_task(stopping.wait())
    host, port = bound.getsockname()[:2]
    _log.info("listening", extra={"address": f"{host}:{port}", "keep_bodies": options.keep_bodies})
    await asyncio.wait({serving, writing, stopped}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("draining", extra={"seconds": options.drain_s, "messages": len(receiver.holding)})
    stopping.set()
    server.should_exit = True
    await serving
    receiver.holding.close()
    await asyncio.wait({writing}, timeout=options.drain_s)
    finished = writing.done()
    writing.cancel()
    lost = writer.give_up()
    _log.log(logging.ERROR if lost else logging.INFO, "stopped", extra={"messages_lost": lost})
    if finished:  # if it ended by an error, raise the error
        await writing
    else:
        await asyncio.gather(writing, return_exceptions=True)
    return 1 if lost else 0


def _now() -> datetime:
    """Return the current instant, cut to the milliseconds that MongoDB stores."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
