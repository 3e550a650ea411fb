"""The processor's life: bind, become ready, serve, drain."""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

from prometheus_client import ProcessCollector, start_http_server

from extproc import app
from extproc.accounting import Accounting
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.server import BindError, Server, ServerOptions
from extproc.envoy.servicer import GrpcServicer, Servicer
from extproc.limits_follower import LimitsFollower
from extproc.observe.metrics import Metrics
from extproc.ports import StoreError
from extproc.settings import Settings

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
# What is queued gets this long after the last stream ended, on top of server.drain_s.
_FLUSH_S = 5.0
# One more attempt at the webhook.
_ALERTS_S = 3.0


async def serve(settings: Settings) -> int:
    """Runs the processor until SIGTERM or SIGINT. Returns the exit code: 0 where nothing was left behind.

    Raises `BindError` where an address can't be listened on, `SettingsError` where a tokenizer can't be loaded.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    async with AsyncExitStack() as at_the_end:
        metrics = Metrics(settings.metrics.usage_series)
        ProcessCollector(registry=metrics.registry)
        stores = app.build_stores(settings)
        at_the_end.push_async_callback(stores.aclose)
        follower = app.build_follower(settings, stores, metrics)
        alerts = app.build_alerts(settings, metrics)
        counter = app.build_counter(settings, metrics)
        at_the_end.callback(counter.close)
        accounting = app.build_accounting(settings, stores, follower, metrics, counter=counter, alerts=alerts)
        server = _server(settings, accounting, metrics)
        address = server.bind()
        at_the_end.callback(_serve_metrics(settings.metrics.address, metrics))
        background: asyncio.Future[Any] = asyncio.gather(accounting.run(), follower.run(), alerts.run())
        stopped: asyncio.Future[Any] = asyncio.create_task(stopping.wait())
        at_the_end.push_async_callback(_cancel, background, stopped)
        if await _ready(stores, follower, stopping):
            await server.start()
            metrics.ready(serving=True)
            _log.info("serving", extra={"address": address, "metrics": settings.metrics.address})
            await asyncio.wait({stopped, background}, return_when=asyncio.FIRST_COMPLETED)
            _log.info("draining", extra={"seconds": settings.server.drain_s})
            metrics.ready(serving=False)
            await server.stop(settings.server.drain_s)
        clean = await accounting.drain(_FLUSH_S)
        await alerts.drain(_ALERTS_S)  # after the closings, which make some
        if background.done():  # it never ends by itself: say what ended it
            await background
    _log.info("stopped", extra={"everything_recorded": clean})
    return 0 if clean else 1


def _server(settings: Settings, accounting: Accounting, metrics: Metrics) -> Server:
    rules, codec = app.exchange_rules(settings), app.build_codec(settings)
    servicer = Servicer(rules, codec, accounting, metrics, app.SystemClock().now)
    rate_limits = RateLimitServicer(
        accounting.hit,
        metrics,
        app.SystemClock().now,
        tenant_pattern=rules.identity.tenant_pattern,
        style=settings.denied.style,
    )
    options = settings.server
    return Server(
        GrpcServicer(servicer, metrics),
        rate_limits,
        ServerOptions(options.address, options.max_body_bytes, options.max_streams),
    )


async def _cancel(*futures: "asyncio.Future[Any]") -> None:
    """Ends them. `asyncio.wait_for` of Python 3.11, which drivers use, may swallow a cancellation: so again."""
    pending = set(futures)
    while pending:
        for future in pending:
            future.cancel()
        _, pending = await asyncio.wait(pending, timeout=_RETRY_S)
    await asyncio.gather(*futures, return_exceptions=True)


async def _ready(stores: app.Stores, follower: LimitsFollower, stopping: asyncio.Event) -> bool:
    """Waits for both stores; False where it was told to stop before. Serving before the limits are known would
    admit everybody on the defaults.
    """
    while not stopping.is_set():
        try:
            await stores.counters.ping()
            await stores.prepare()
            await follower.load()
        except StoreError as error:
            _log.warning("not ready", extra={"error": str(error)})
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _RETRY_S)
        else:
            return True
    return False


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
