"""The processor's life: ready, serving, told to stop, drained."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc import app
from extproc.core.quota.settlement import Outcome
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.serving import SERVICE, BindError
from extproc.local.ports import HOST, free_ports
from extproc.ports.base import StoreError
from extproc.ports.ledger import UsageFilter
from extproc.serve import _cancel, serve
from extproc.settings.load import load
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.requests import MemoryRequests
from extproc.stores.memory.sums import MemoryClosedMonths, MemorySums
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.memory.tokens import MemoryTokens
from tests.security.certificates import Authority, dns

from .messages import EXCHANGE, REPLIES, kinds, request_body, request_head


class Life:
    """`serve`, in this process, on memory stores that can be looked into."""

    def __init__(self, monkeypatch, counters=None, ledger=None, **settings):
        port, metrics_port = free_ports(2)
        self.address, self.metrics_url = f"{HOST}:{port}", f"http://{HOST}:{metrics_port}/metrics"
        self.counters, self.ledger, self.tenants = (
            counters or MemoryCounters(),
            ledger or Ledger(),
            MemoryTenants(),
        )
        self.stores = app.Stores(
            counters=self.counters,
            ledger=self.ledger,
            reports=self.ledger,
            records=self.ledger,
            tenants=self.tenants,
            audit=self.tenants.audit,
            tokens=MemoryTokens(self.tenants.audit),
            sums=MemorySums(self.ledger.all_entries),
            months=MemoryClosedMonths(),
            requests=MemoryRequests(self.ledger),
        )
        monkeypatch.setattr(app, "build_stores", lambda _: self.stores)
        values = {"SERVER__ADDRESS": self.address, "METRICS__ADDRESS": f"{HOST}:{metrics_port}"} | settings
        self.settings = load(None, {f"TOKENWEIR_{name}": value for name, value in values.items()})
        self.channel = None
        self.task = None

    @asynccontextmanager
    async def running(self):
        self.task = asyncio.create_task(serve(self.settings))
        try:
            async with grpc.aio.insecure_channel(self.address) as self.channel:
                yield self
        finally:
            if not self.task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait({self.task})

    async def metric(self, name):
        return await asyncio.to_thread(_metric, self.metrics_url, name)

    async def is_ready(self, value="1.0"):
        async with asyncio.timeout(10):
            while await self.metric("tokenweir_ready") != value:  # noqa: ASYNC110  as a scraper sees it
                await asyncio.sleep(0.01)

    async def admitted(self):
        call = self.channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )()
        await call.write(request_head())
        await call.write(request_body())
        assert kinds([await call.read(), await call.read()]) == REPLIES[:2]
        return call

    async def code(self):
        async with asyncio.timeout(10):
            return await self.task


class Ledger(MemoryLedger):
    def __init__(self):
        super().__init__()
        self.closed = False
        self.fault = None

    async def append(self, entries, still=None):
        if self.fault is not None:
            raise self.fault
        await super().append(entries, still)

    async def aclose(self):
        self.closed = True


def _metric(url, name):
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return None
    return next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")), None)


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


async def finished(call):
    replies = []
    for message in EXCHANGE[2:]:
        await call.write(message)
        replies.append(await call.read())
    return kinds(replies)


async def entries(life):
    return await life.ledger.entries(UsageFilter(), 100)


_MANY = 100


async def test_sigterm_lets_a_stream_in_flight_finish_and_records_it(monkeypatch):
    life = Life(monkeypatch)
    async with life.running():
        await life.is_ready()
        calls = [await life.admitted()]
        sigterm()
        await life.is_ready("0.0")
        with contextlib.suppress(grpc.aio.AioRpcError):
            while len(calls) < _MANY:  # a stream that its peer begins before it is told is served too
                calls.append(await life.admitted())
        assert len(calls) < _MANY
        assert [await finished(call) for call in calls] == [REPLIES[2:]] * len(calls)
        assert await life.code() == 0
    assert [(entry.outcome, entry.charge) for entry in await entries(life)] == [(Outcome.SETTLED, 7)] * len(calls)
    assert life.ledger.closed


async def test_what_is_left_when_the_drain_ends_is_closed_and_recorded(monkeypatch):
    life = Life(monkeypatch, SERVER__DRAIN_S="0.1")
    async with life.running():
        await life.is_ready()
        calls = [await life.admitted() for _ in range(3)]
        sigterm()
        assert await life.code() == 0
        del calls
    assert [(entry.outcome, entry.reason) for entry in await entries(life)] == (
        [(Outcome.ESTIMATED, "left_before_answer")] * 3
    )


class Closeless(MemoryCounters):
    """Takes no ends."""

    async def close(self, closings, thresholds=()):
        raise StoreError("away", transient=True)


async def test_what_could_not_be_recorded_in_time_shows_in_the_exit_code(monkeypatch, caplog):
    monkeypatch.setattr("extproc.serve._FLUSH_S", 0.1)
    life = Life(monkeypatch, Closeless())
    async with life.running():
        await life.is_ready()
        call = await life.admitted()
        assert await finished(call) == REPLIES[2:]
        sigterm()
        assert await life.code() == 1
    assert "not everything was recorded in time" in caplog.text
    assert life.ledger.closed


async def test_what_waits_in_the_journal_is_not_lost(monkeypatch, caplog):
    monkeypatch.setattr("extproc.serve._FLUSH_S", 0.1)
    life = Life(monkeypatch)
    life.ledger.fault = StoreError("away", transient=True)
    async with life.running():
        await life.is_ready()
        call = await life.admitted()
        assert await finished(call) == REPLIES[2:]
        sigterm()
        assert await life.code() == 0
    assert (
        "shutdown: not everything was recorded in time: spool and journal keep it for another process"
        in caplog.messages
    )
    assert [waiting.entry.charge for waiting in await life.counters.waiting(0, 10)] == [7]


async def test_what_is_in_the_spool_at_the_end_is_replayed_by_the_next_process(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("extproc.serve._FLUSH_S", 0.1)
    counters = Closeless()
    life = Life(monkeypatch, counters, SPOOL__DIRECTORY=str(tmp_path / "spool"))
    async with life.running():
        await life.is_ready()
        call = await life.admitted()
        assert await finished(call) == REPLIES[2:]
        sigterm()
        assert await life.code() == 0
    assert await entries(life) == []
    counters.close = super(Closeless, counters).close
    after = Life(monkeypatch, counters, life.ledger, SPOOL__DIRECTORY=str(tmp_path / "spool"))
    async with after.running():
        await after.is_ready()
        async with asyncio.timeout(10):
            while len(list((tmp_path / "spool").iterdir())) != 1:  # noqa: ASYNC110  its own is left
                await asyncio.sleep(0.01)
        sigterm()
        assert await after.code() == 0
    assert [(entry.outcome, entry.charge) for entry in await entries(after)] == [(Outcome.SETTLED, 7)]
    assert "spool: replayed the reservations of a dead process" in caplog.messages
    assert list((tmp_path / "spool").iterdir()) == []


async def test_what_swallows_a_cancellation_is_cancelled_again(monkeypatch):
    """As `asyncio.wait_for` of Python 3.11 may do, where what it waits for comes at that moment."""
    monkeypatch.setattr("extproc.serve._RETRY_S", 0.01)
    swallowed = []

    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed.append(True)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await _cancel(task)
    assert task.cancelled()
    assert swallowed


async def test_limits_are_known_before_anything_is_served(monkeypatch):
    life = Life(monkeypatch)
    await life.tenants.update("acme", {"sa_limit": 1, "ip_limit": None})
    async with life.running():
        await life.is_ready()
        call = life.channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )()
        await call.write(request_head())
        await call.write(request_body())
        assert (await call.read()).immediate_response.status.code == 429


class Away(MemoryCounters):
    async def time(self):
        raise StoreError("away", transient=True)


async def test_it_is_not_ready_while_a_store_is_away_and_can_be_stopped_all_the_same(monkeypatch, caplog):
    life = Life(monkeypatch, Away())
    async with life.running():
        async with asyncio.timeout(5):
            while "not ready: no requests are served yet" not in caplog.messages:  # noqa: ASYNC110  a log has no event
                await asyncio.sleep(0.01)
        assert await life.metric("tokenweir_ready") == "0.0"
        stub = health_pb2_grpc.HealthStub(life.channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=0.2)
        sigterm()
        assert await life.code() == 0
    assert life.ledger.closed


async def test_a_fault_in_the_background_ends_it_and_closes_everything(monkeypatch, caplog):
    monkeypatch.setattr("extproc.serve._FLUSH_S", 0.1)
    life = Life(monkeypatch)
    life.ledger.fault = RuntimeError("a bug")
    async with life.running():
        await life.is_ready()
        call = await life.admitted()
        assert await finished(call) == REPLIES[2:]
        with pytest.raises(ExceptionGroup):
            await life.code()
    assert life.ledger.closed
    assert await life.metric("tokenweir_ready") is None


@pytest.mark.parametrize("which", ["SERVER__ADDRESS", "METRICS__ADDRESS"])
async def test_an_address_in_use_stops_it_with_its_name_and_leaves_nothing_open(monkeypatch, which):
    server = await asyncio.start_server(lambda *_: None, HOST, 0)
    address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
    life = Life(monkeypatch, **{which: address})
    with pytest.raises(BindError, match=address):
        await serve(life.settings)
    assert life.ledger.closed
    server.close()
    await server.wait_closed()


async def test_it_tells_when_its_certificates_expire(monkeypatch, tmp_path):
    ca = Authority()
    certificate, key = ca.sign(dns("processor")).written(tmp_path, "server")
    (tmp_path / "ca.crt").write_bytes(ca.pem)
    files = {"CERTIFICATE_FILE": certificate, "KEY_FILE": key, "CLIENT_CA_FILE": str(tmp_path / "ca.crt")}
    settings = {f"SERVER__TLS__{name}": value for name, value in files.items()}
    async with Life(monkeypatch, SERVER__TLS__ALLOWED_SANS='["envoy"]', **settings).running() as life:
        await life.is_ready()
        for name in ("certificate_file", "client_ca_file"):
            series = f'tokenweir_certificate_expiry_timestamp_seconds{{setting="server.tls.{name}"}}'
            assert abs(float(await life.metric(series)) - time.time() - 86400) < 3600


def test_as_a_program_it_serves_until_sigterm_and_exits_with_0():
    port, metrics_port = free_ports(2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWEIR_")} | {
        "TOKENWEIR_REDIS__URL": "memory://",
        "TOKENWEIR_MONGO__URL": "memory://",
        "TOKENWEIR_SERVER__ADDRESS": f"{HOST}:{port}",
        "TOKENWEIR_METRICS__ADDRESS": f"{HOST}:{metrics_port}",
    }
    command = [sys.executable, "-m", "extproc", "serve"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        asyncio.run(_ready_and_in_use(process, f"{HOST}:{port}", f"http://{HOST}:{metrics_port}/metrics"))
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [line["message"] for line in lines] == ["serving", "draining", "stopped"]
    assert lines[-1]["everything_recorded"] is True
    assert all(getattr(logging, line["level"]) == logging.INFO for line in lines)


async def _ready_and_in_use(process, address, metrics_url):
    """One exchange whose second half comes after SIGTERM."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(_metric, metrics_url, "tokenweir_ready") != "1.0":
            assert process.poll() is None
            await asyncio.sleep(0.02)
    async with grpc.aio.insecure_channel(address) as channel:
        life = Life.__new__(Life)
        life.channel = channel
        call = await life.admitted()
        process.send_signal(signal.SIGTERM)
        while await asyncio.to_thread(_metric, metrics_url, "tokenweir_ready") == "1.0":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await finished(call) == REPLIES[2:]
        assert await asyncio.to_thread(_metric, metrics_url, "tokenweir_ready") in ("0.0", None)
