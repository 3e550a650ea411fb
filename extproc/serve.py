"""Run the processor: bind, become ready, serve, drain."""

import asyncio
import gc
import logging
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import ProcessCollector

from extproc import app
from extproc.alerts.alerts import Alerts
from extproc.envoy.patience import Waits
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.reading import BodyReader
from extproc.envoy.servicer import Servicer
from extproc.envoy.serving import BindError, Server, ServerOptions
from extproc.envoy.streams import Streams
from extproc.envoy.tls import TLSOptions
from extproc.envoy.transports import Transport, build_server
from extproc.metering.build import Metering
from extproc.metering.limits_cache import LimitsCache
from extproc.observe.certificates import CertificateFile
from extproc.observe.exposing import expose
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.settings.model import Settings
from extproc.settings.server import TLSSettings
from extproc.stores.spool import NoSpool, left_behind
from extproc.timing.events import happens_within

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
_UNREADY_S = 0.05
# After the last stream ended, on top of server.drain_s, queues get this long to deliver.
_FLUSH_S = 5.0
# Alerts get this long after that: one more attempt at the webhook.
_ALERTS_S = 3.0
# So many looks of the garbage collector at what is new come before one at everything.
_LOOKS_AT_NEW = 1000


@dataclass(frozen=True, slots=True)
class _Parts:
    stores: app.Stores
    limits: LimitsCache
    alerts: Alerts
    metering: Metering


async def serve(settings: Settings) -> int:
    """Run the processor until SIGTERM or SIGINT. Return the exit code: 0 if everything was recorded.

    Raise `BindError` if an address can't be listened on, `SettingsError` if a tokenizer can't be loaded.
    """
    stopping, started = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    async with AsyncExitStack() as at_the_end:
        metrics = Metrics(settings.metrics.usage_series, settings.metrics.tenant_series)
        ProcessCollector(registry=metrics.registry)
        parts = _parts(settings, metrics, at_the_end)
        metering = parts.metering
        reader, readers = app.build_body_reader(settings, metering.service)
        if readers is not None:
            at_the_end.push_async_callback(readers.aclose)
        server = _server(settings, metering, metrics, reader)
        address = server.bind()
        at_the_end.callback(_serve_metrics(settings.metrics.address, metrics))
        at_the_end.push_async_callback(_deregister, metering)  # when no more heartbeats can follow
        background: asyncio.Future[Any] = asyncio.gather(
            parts.limits.run(), parts.alerts.run(), _run(settings, parts.stores, metering, started)
        )
        stopped: asyncio.Future[Any] = asyncio.create_task(stopping.wait())
        at_the_end.push_async_callback(_cancel, background, stopped)
        if await _ready(parts, stopping):
            started.set()
            if readers is not None:
                readers.start()
            await server.start()
            metrics.ready(serving=True)
            _settle_garbage()
            _log.info("serving", extra={"address": address, "metrics": settings.metrics.address})
            await asyncio.wait({stopped, background}, return_when=asyncio.FIRST_COMPLETED)
            _log.info("draining", extra={"seconds": settings.server.drain_s})
            metrics.ready(serving=False)
            await server.stop(settings.server.drain_s)
        clean = await metering.drain(_FLUSH_S)
        await parts.alerts.drain(_ALERTS_S)  # after the settler, which raises alerts
        if background.done():  # it never ends by itself: raise what ended it
            await background
    _log.info("stopped", extra={"everything_recorded": clean})
    return 0 if clean else 1


def _parts(settings: Settings, metrics: Metrics, at_the_end: AsyncExitStack) -> _Parts:
    """Build what serves. Close it at the end."""
    replica = f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
    stores = app.build_stores(settings)
    at_the_end.push_async_callback(stores.aclose)
    spool = app.build_spool(settings, replica)
    if spool is not None:
        at_the_end.push_async_callback(spool.aclose)
        metrics.watch_spool(lambda: spool.size)
    limits = app.build_limits_cache(settings, stores, metrics)
    alerts = app.build_alerts(settings, metrics)
    counter = app.build_counter(settings, metrics)
    at_the_end.push_async_callback(counter.aclose)
    counter.start()
    metering = app.build_metering(
        settings,
        stores,
        limits,
        metrics,
        counter=counter,
        alerts=alerts,
        spool=spool or NoSpool(),
        replica=replica,
    )
    return _Parts(stores, limits, alerts, metering)


async def _run(settings: Settings, stores: app.Stores, metering: Metering, started: asyncio.Event) -> None:
    """Run what goes on beside the streams, once the stores were there for the first time.

    Not before: nothing may expire by a clock that is not the counters'.
    """
    await started.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(metering.run())
        group.create_task(stores.migrate(metering.membership.replica))
        directory = settings.spool.directory
        if directory is not None:
            group.create_task(metering.replay.run(lambda: left_behind(directory)))


def _settle_garbage() -> None:
    """Have the garbage collector look at what requests leave, and not at all that was loaded at the start.

    A look at everything took 50 to 105 ms, every 20 s under load, in which no request went on. Without what was
    loaded it took 6 to 30 ms; but 245 ms while 10,000 streams were opened. Requests leave no cycles, which only
    such a look could find, and what else makes any is rare: so are the looks. Those at what is new stay.
    """
    gc.collect()
    gc.freeze()
    new, newer, _ = gc.get_threshold()
    gc.set_threshold(new, newer, _LOOKS_AT_NEW)


async def _deregister(metering: Metering) -> None:
    try:
        async with asyncio.timeout(_RETRY_S):
            await metering.membership.deregister()
    except (StoreError, TimeoutError) as error:
        _log.debug("shutdown: not deregistered: others will notice", extra={"error": str(error)})


def _server(settings: Settings, metering: Metering, metrics: Metrics, reader: BodyReader) -> Server:
    rules, codec = app.exchange_rules(settings), app.build_codec(settings)
    options = settings.server
    waits = Waits(options.request_timeout_s, options.idle_timeout_s)
    metrics.watch_buffers(lambda: rules.buffers.all_bytes)
    metrics.watch_in_flight(rules.in_flight.most)
    tls = _tls_options(options.tls)
    if tls is not None:
        metrics.watch_certificate("server.tls.certificate_file", CertificateFile(tls.certificate).expires_at)
        # A new CA stands beside the old one for a while, which may end meanwhile.
        metrics.watch_certificate("server.tls.client_ca_file", CertificateFile(tls.client_ca, max).expires_at)
    servicer = Servicer(rules, codec, metering.service, metrics, metering.clock.now, waits=waits, reader=reader)
    rate_limits = RateLimitServicer(
        metering.service.hit,
        metrics,
        metering.clock.now,
        tenant_pattern=rules.identity.tenant_pattern,
        ipv6_prefix=rules.identity.ipv6_prefix,
        style=settings.denied.style,
        in_flight=app.in_flight(settings),
    )
    return build_server(
        Transport(options.transport),
        Streams(servicer, metrics, options.max_streams),
        rate_limits,
        ServerOptions(options.address, options.max_body_bytes, options.max_streams, tls),
        metrics,
    )


async def _cancel(*futures: "asyncio.Future[Any]") -> None:
    """Cancel until all have ended.

    Drivers use `asyncio.wait_for`, which may swallow a cancellation on Python 3.11: so cancel again.
    """
    pending = set(futures)
    while pending:
        for future in pending:
            future.cancel()
        _, pending = await asyncio.wait(pending, timeout=_RETRY_S)
    await asyncio.gather(*futures, return_exceptions=True)


async def _ready(parts: _Parts, stopping: asyncio.Event) -> bool:
    """Wait for both stores, and for counters that are rebuilt. Return False if told to stop before.

    Serving before the limits are known would admit everybody on the defaults.
    """
    while not stopping.is_set():
        try:
            await parts.metering.clock.sync()
            await parts.stores.prepare()
            await parts.limits.load()
            while not await parts.metering.epochs.start():
                if await happens_within(stopping, _UNREADY_S):
                    return False
            for warning in await parts.stores.counters.warnings():
                _log.warning(warning)
        except StoreError as error:
            _log.warning("not ready: no requests are served yet", extra={"error": str(error)})
            await happens_within(stopping, _RETRY_S)
        else:
            return True
    return False


def _serve_metrics(address: str, metrics: Metrics) -> Callable[[], None]:
    try:
        return expose(address, metrics.registry)
    except OSError as error:
        raise BindError(f"metrics.address: can't listen on {address}: {error.strerror}") from error


def _tls_options(tls: TLSSettings) -> TLSOptions | None:
    """Return the TLS options; None for plaintext. The settings have all of them or none."""
    if tls.certificate_file is None or tls.key_file is None or tls.client_ca_file is None:
        return None
    return TLSOptions(
        Path(tls.certificate_file), Path(tls.key_file), Path(tls.client_ca_file), frozenset(tls.allowed_sans)
    )
