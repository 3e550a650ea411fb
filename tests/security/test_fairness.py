"""One tenant at ten times its cap, another one beside it, both on connections of the own transport.

Time passes as the loop's thread works, and where nothing is left to do it jumps to the next timer. The same work takes
a thread longer on a slow machine, or beside busy neighbours: beside the noisy tenant, time passes slower by as much as
the quiet tenant's own requests took longer than they usually do. So a busy machine changes little. The work of the
clients counts as well, as if the processor did it.
"""

import asyncio
import gc
import random
import time
from functools import partial
from unittest import mock

import pytest

from benchmarks.fairness import Noise, Noisy, at, noisy_tenant, quiet_tenant
from benchmarks.peer import Peer
from extproc.core.phase import ExchangeRules
from extproc.core.request.identity import IdentityRules
from extproc.core.request.in_flight import InFlight
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.native_server import NativeServer, _limits
from extproc.envoy.servicer import Servicer
from extproc.envoy.serving import ServerOptions
from extproc.envoy.streams import Streams
from extproc.envoy.turns import Turns
from extproc.http2.connection import Connection
from extproc.http2.host import Host
from extproc.observe.metrics import Metrics
from tests.envoy.messages import NOW, Books
from tests.sizes import sized

CAP = 100
MOST_RISE_MS = 20.0
SECONDS = sized(2.0, 10.0)
TRIES = 3
# What the loop's thread works for one request of the quiet tenant, its client included, if there is no other one.
USUAL_S = 0.0009


class _WorkLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is the processor time of its thread, by `slow`, and the idle time that it leaves out."""

    def __init__(self, slow):
        super().__init__()
        self._left_out, self._slow = 0.0, slow
        self._select, self._selector.select = self._selector.select, self._without_waiting

    def time(self):
        return time.thread_time() / self._slow + self._left_out

    def _without_waiting(self, timeout=None):
        events = self._select(0)
        if timeout and not events:
            self._left_out += timeout
        return events


class _End(asyncio.Transport):
    """One end of a connection in memory. What is written in one turn of the loop arrives in one piece."""

    def __init__(self):
        super().__init__()
        self.protocol = self.other = None
        self._data, self._paused, self._due = bytearray(), False, False

    def get_extra_info(self, name, default=None):
        return default

    def get_write_buffer_size(self):
        return len(self.other._data)

    def write(self, data):
        self.other.arrives(data)

    def arrives(self, data):
        self._data += data
        self._look()

    def _look(self):
        if self._data and not self._due and not self._paused:
            self._due = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self):
        self._due = False
        if not self._paused:
            # No more than a socket gives at once.
            data, self._data = bytes(self._data[: 256 << 10]), self._data[256 << 10 :]
            self.protocol.data_received(data)
            self._look()

    def pause_reading(self):
        self._paused = True

    def resume_reading(self):
        self._paused = False
        self._look()

    def abort(self):
        raise AssertionError("the processor gave the connection up")

    close = abort


class _Noted(Books):
    """Remember nothing: thousands of requests come."""

    def __init__(self):
        super().__init__()
        self.asked = self.admitted = self.closed = _Nothing()


class _Nothing(list):
    def append(self, item):
        pass


def _connected(host):
    peer, connection = Peer(), Connection(host)
    ours, theirs = _End(), _End()
    ours.other, theirs.other = theirs, ours
    ours.protocol, theirs.protocol = connection, peer
    connection.connection_made(ours)
    peer.connection_made(theirs)
    return peer


async def _measured(cap, noise, shared):
    """Return what both tenants saw, and for how long the thread worked for one request of the quiet one."""
    rules = ExchangeRules(IdentityRules(), in_flight=InFlight(cap))
    metrics = Metrics()
    codec, loop = Codec(rules.identity, MetadataKeys()), asyncio.get_running_loop()
    servicer = Servicer(rules, codec, _Noted(), metrics, lambda: NOW, turns=Turns(loop.time))
    options = ServerOptions("", rules.max_body_bytes, 10_000)
    server = NativeServer(Streams(servicer, metrics, options.max_streams), None, options, metrics)
    host = Host(loop, server._routes(), _limits(options))
    quiet, stopped, seen = _connected(host), asyncio.Event(), Noisy()
    noisy = quiet if shared else _connected(host)
    running = loop.create_task(noisy_tenant(noisy, noise, stopped, seen))
    await quiet_tenant(quiet, 2.0, loop.time, loop.time)  # until the noisy tenant is at its cap
    begun = time.thread_time()
    result = await quiet_tenant(quiet, SECONDS, loop.time, loop.time)
    each = (time.thread_time() - begun) / len(result.admission)
    stopped.set()
    await running
    await host.settled(connections=False)
    assert rules.in_flight.tenants == 0
    return result, seen, each


def measured(cap, clients, *, shared=False, slow=1.0):
    """Return what `_measured` does. No garbage is looked for: the clients leave more of it than the processor."""
    random.seed(1)
    gc.collect()
    gc.disable()
    try:
        with (
            asyncio.Runner(loop_factory=partial(_WorkLoop, slow)) as runner,
            mock.patch("extproc.envoy.turns.perf_counter", runner.get_loop().time),
        ):
            return runner.run(_measured(cap, Noise(clients, rate=15, wait_s=1.0), shared))
    finally:
        gc.enable()


def told(capsys, alone, beside):
    """Print the figures; return by how much the 99th percentile of an admission rose, in milliseconds."""
    figures = [at(0.99, times) for times in (alone.admission, beside.admission, alone.piece, beside.piece)]
    text = "p99, ms: admission {:.1f} alone, {:.1f} beside; answer {:.1f} alone, {:.1f} beside".format(*figures)
    with capsys.disabled():
        print(f"\n{text}")  # noqa: T201
    return figures[1] - figures[0]


def both(*, shared):
    alone, _, each = measured(CAP, 0)
    beside, noisy, _ = measured(CAP, 10 * CAP, shared=shared, slow=max(1.0, each / USUAL_S))
    for quiet in (alone, beside):
        assert (quiet.failed, len(quiet.admission)) == (0, round(SECONDS * 100))
    assert noisy.most == CAP
    assert noisy.refused > 5 * CAP * SECONDS
    assert noisy.chunks > 10 * CAP * SECONDS
    return alone, beside


@pytest.mark.parametrize("shared", [False, True], ids=["an Envoy each", "one Envoy"])
def test_a_tenant_at_ten_times_its_cap_hardly_delays_another(shared, capsys):
    rises = []
    while len(rises) < TRIES and min(rises, default=MOST_RISE_MS) >= MOST_RISE_MS:
        rises.append(told(capsys, *both(shared=shared)))
    assert min(rises) < MOST_RISE_MS


@pytest.mark.thorough
def test_without_a_cap_the_same_clients_delay_it_a_lot(capsys):
    alone, _, each = measured(CAP, 0)
    beside, noisy, _ = measured(1_000_000, 10 * CAP, slow=max(1.0, each / USUAL_S))
    assert (noisy.most, noisy.refused) == (10 * CAP, 0)
    assert told(capsys, alone, beside) > MOST_RISE_MS
