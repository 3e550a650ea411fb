"""The processor's life: bind, become ready, serve, drain."""

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import ProcessCollector, start_http_server

from extproc import app
from extproc.alerts.alerts import Alerts
from extproc.envoy.patience import Waits
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.server import BindError, Server, ServerOptions
from extproc.envoy.servicer import GrpcServicer, Servicer
from extproc.metering.limits_cache import LimitsCache
from extproc.metering.settler import Settler
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.settings.model import Settings
from extproc.stores.spool import LeftBehind, NoSpool, left_behind

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
_UNREADY_S = 0.05
_REPLAY_EVERY_S = 30.0
_RECORDED_S = 0.2
# What is queued gets this long after the last stream ended, on top of server.drain_s.
_FLUSH_S = 5.0
# One more attempt at the webhook.
_ALERTS_S = 3.0


@dataclass(frozen=True, slots=True)
class _Parts:
    stores: app.Stores
    follower: LimitsCache
    alerts: Alerts
    metering: app.Metering


async def serve(settings: Settings) -> int:
    """Runs the processor until SIGTERM or SIGINT. Returns the exit code: 0 where nothing was left behind.

    Raises `BindError` where an address can't be listened on, `SettingsError` where a tokenizer can't be loaded.
    """
    stopping, started = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    async with AsyncExitStack() as at_the_end:
        metrics = Metrics(settings.metrics.usage_series)
        ProcessCollector(registry=metrics.registry)
        parts = _parts(settings, metrics, at_the_end)
        metering = parts.metering
        server = _server(settings, metering, metrics)
        address = server.bind()
        at_the_end.callback(_serve_metrics(settings.metrics.address, metrics))
        at_the_end.push_async_callback(_leave, metering)  # when nothing can beat for it any more
        background: asyncio.Future[Any] = asyncio.gather(
            parts.follower.run(), parts.alerts.run(), _follow(settings, metering, started)
        )
        stopped: asyncio.Future[Any] = asyncio.create_task(stopping.wait())
        at_the_end.push_async_callback(_cancel, background, stopped)
        if await _ready(parts, stopping):
            started.set()
            await server.start()
            metrics.ready(serving=True)
            _log.info("serving", extra={"address": address, "metrics": settings.metrics.address})
            await asyncio.wait({stopped, background}, return_when=asyncio.FIRST_COMPLETED)
            _log.info("draining", extra={"seconds": settings.server.drain_s})
            metrics.ready(serving=False)
            await server.stop(settings.server.drain_s)
        clean = await metering.accounting.drain(_FLUSH_S)
        await parts.alerts.drain(_ALERTS_S)  # after the closings, which make some
        if background.done():  # it never ends by itself: say what ended it
            await background
    _log.info("stopped", extra={"everything_recorded": clean})
    return 0 if clean else 1


def _parts(settings: Settings, metrics: Metrics, at_the_end: AsyncExitStack) -> _Parts:
    """Builds what serves; what has to be closed is, at the end."""
    replica = f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
    stores = app.build_stores(settings)
    at_the_end.push_async_callback(stores.aclose)
    spool = app.build_spool(settings, replica)
    if spool is not None:
        at_the_end.push_async_callback(spool.aclose)
        metrics.watch_spool(lambda: spool.size)
    follower = app.build_follower(settings, stores, metrics)
    alerts = app.build_alerts(settings, metrics)
    counter = app.build_counter(settings, metrics)
    at_the_end.callback(counter.close)
    metering = app.build_metering(
        settings,
        stores,
        follower,
        metrics,
        counter=counter,
        alerts=alerts,
        spool=spool or NoSpool(),
        replica=replica,
    )
    return _Parts(stores, follower, alerts, metering)


async def _follow(settings: Settings, metering: app.Metering, started: asyncio.Event) -> None:
    """What goes on beside the streams, once the stores were there for the first time.

    Not before: nothing may expire by a clock that is not the counters'.
    """
    await started.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(metering.accounting.run())
        group.create_task(metering.recovery.run())
        group.create_task(metering.clock.run())
        if settings.spool.directory is not None:
            group.create_task(_replay(settings.spool.directory, metering.books))


async def _replay(directory: Path, books: Settler) -> None:
    """Ends what processes left in the spool that are gone, now and as long as this one lives."""
    while True:
        files = left_behind(directory)
        try:
            # In a thread: a large one takes a while to read.
            while (left := await asyncio.to_thread(next, files, None)) is not None:
                await _replay_file(left, books)
                left.remove()
        except OSError as error:
            _log.error("the spool can't be read", extra={"error": str(error)})
        await asyncio.sleep(_REPLAY_EVERY_S)


async def _replay_file(left: LeftBehind, books: Settler) -> None:
    while True:
        try:
            ended = await books.replay(left.ended, left.unended)
            # Only what is in the ledger is safe from all that may happen to the counters.
            while await books.unrecorded(left.ids):  # noqa: ASYNC110 - another replica may write it
                await asyncio.sleep(_RECORDED_S)
        except StoreError as error:
            _log.warning("the spool can't be replayed yet", extra={"error": str(error)})
            await asyncio.sleep(_RETRY_S)
        else:
            break
    if left.unreadable:
        _log.error("lines of the spool can't be read", extra={"file": left.path.name, "lines": left.unreadable})
    _log.warning("replayed the spool of a process that is gone", extra={"reservations": ended})


async def _leave(metering: app.Metering) -> None:
    try:
        async with asyncio.timeout(_RETRY_S):
            await metering.recovery.leave()
    except (StoreError, TimeoutError) as error:
        _log.debug("not signed off: others will notice", extra={"error": str(error)})


def _server(settings: Settings, metering: app.Metering, metrics: Metrics) -> Server:
    rules, codec = app.exchange_rules(settings), app.build_codec(settings)
    options = settings.server
    waits = Waits(options.request_timeout_s, options.idle_timeout_s)
    metrics.watch_buffers(lambda: rules.buffers.kept_bytes)
    servicer = Servicer(rules, codec, metering.accounting, metrics, metering.clock.now, waits=waits)
    rate_limits = RateLimitServicer(
        metering.accounting.hit,
        metrics,
        metering.clock.now,
        tenant_pattern=rules.identity.tenant_pattern,
        ipv6_prefix=rules.identity.ipv6_prefix,
        style=settings.denied.style,
    )
    return Server(
        GrpcServicer(servicer, metrics, options.max_streams),
        rate_limits,
        ServerOptions(options.address, options.max_body_bytes, options.max_streams, app.tls_options(options.tls)),
        metrics,
    )


async def _cancel(*futures: "asyncio.Future[Any]") -> None:
    """Ends them. `asyncio.wait_for` of Python 3.11, which drivers use, may swallow a cancellation: so again."""
    pending = set(futures)
    while pending:
        for future in pending:
            future.cancel()
        _, pending = await asyncio.wait(pending, timeout=_RETRY_S)
    await asyncio.gather(*futures, return_exceptions=True)


async def _ready(parts: _Parts, stopping: asyncio.Event) -> bool:
    """Waits for both stores, and for counters that have all they should; False where it was told to stop before.

    Serving before the limits are known would admit everybody on the defaults.
    """
    while not stopping.is_set():
        try:
            await parts.metering.clock.sync()
            await parts.stores.prepare()
            await parts.follower.load()
            while not await parts.metering.recovery.start():
                if await _told_to_stop(stopping, _UNREADY_S):
                    return False
            for warning in await parts.stores.counters.warnings():
                _log.warning(warning)
        except StoreError as error:
            _log.warning("not ready", extra={"error": str(error)})
            await _told_to_stop(stopping, _RETRY_S)
        else:
            return True
    return False


async def _told_to_stop(stopping: asyncio.Event, within_s: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await stopping.wait()
    return stopping.is_set()


def _serve_metrics(address: str, metrics: Metrics) -> Callable[[], None]:
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry=metrics.registry)
    except OSError as error:
        raise BindError(f"metrics.address: can't listen on {address}: {error.strerror}") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
