"""Measure Tokenweir on a Redis Cluster of three nodes, beside one Redis, under load of many tenants.

    .venv/bin/python -m benchmarks.redis_cluster [--tenants 48] [--clients 64] [--seconds 6] [--rounds 3]

A real `tokenweir serve` with its own transport, and the nodes (Valkey), on one core; on another core this process
plays the Envoy. Each client makes a request, gets a plain answer with usage, and makes the next one at once; the
clients belong to the tenants in turn. The two set-ups take turns, `--rounds` times; the table has the median of
each figure, for a request. A figure counts only if all requests were admitted, and the counters of all nodes say
the tokens of all answers.
"""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import redis
import uvloop

from benchmarks import peer
from benchmarks.counts import Wire, redis_wire
from benchmarks.errors import CannotRunError
from benchmarks.fairness import at, cpu_s
from benchmarks.machine import Cores, pinned, two_cores
from benchmarks.peer import Peer
from benchmarks.starting import Processor, start_listener, start_tokenweir
from extproc.local.parts import start_valkey, valkey_binary
from extproc.local.ports import HOST, free_ports
from extproc.local.process import Child

_NODES: Final = 3
_SLOTS: Final = 16_384
_TOKENS: Final = 12
_PLAIN: Final = peer.answer_piece(
    json.dumps(
        {
            "choices": [{"message": {"content": "Fine."}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": _TOKENS},
        }
    ).encode(),
    end=True,
)
_JSON_HEAD: Final = peer.answer_head("application/json")
_SETTINGS: Final = {
    "TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "1000000000000",
    "TOKENWEIR_LIMITS__DEFAULT__IP_LIMIT": "1000000000000",
    "TOKENWEIR_COST__LEARN": "false",
}
_READY_WITHIN_S: Final = 20.0
_SETTLED_WITHIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Node:
    """Hold one Redis."""

    child: Child
    port: int


@dataclass(frozen=True, slots=True)
class SetUp:
    """Hold a processor and the nodes that it counts on."""

    processor: Processor
    nodes: list[Node]


@dataclass
class Seen:
    """Hold what the clients saw: milliseconds from a request to its admission, and what was not admitted."""

    admission: list[float] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one measurement; all but `requests_per_s` and `p99_ms` are figures for a request."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    processor_us: float
    redis_us: float
    busiest: float
    """Tell the part of Redis' processor time that the busiest node took."""
    scripts: float
    bytes_in: float
    reads: float


# ---------------------------------------------------------------- load


async def _load(connection: Peer, options: argparse.Namespace, seconds: float) -> Seen:
    """Let all clients ask until the time is over."""
    seen = Seen()
    body = json.dumps(peer.BODY).encode()
    until = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(options.clients):
            request = peer.request(f"tenant-{number % options.tenants}", body)
            group.create_task(_client(connection, request, until, seen))
    return seen


async def _client(connection: Peer, request: tuple[bytes, bytes], until: float, seen: Seen) -> None:
    while (began := time.perf_counter()) < until:
        stream, replies = connection.open()
        await connection.send(stream, *request)
        while (kind := await replies.get()) not in {peer.REQUEST_BODY, peer.REFUSED, peer.ENDED}:
            pass
        if kind != peer.REQUEST_BODY:
            seen.refused += 1
            connection.end(stream)
            continue
        seen.admission.append(1000 * (time.perf_counter() - began))
        await connection.send(stream, _JSON_HEAD, _PLAIN)
        while await replies.get() not in {peer.RESPONSE_BODY, peer.ENDED}:
            pass
        connection.end(stream)


# ---------------------------------------------------------------- one measurement


async def _measured(setup: SetUp, connection: Peer, options: argparse.Namespace) -> Row:
    """Return the figures of one measurement. Raise `CannotRunError` if one would not count."""
    warmed = await _load(connection, options, options.settle)
    before = await _counted(setup.nodes, None)
    wires, cpu = [redis_wire(node.port) for node in setup.nodes], _cpu(setup)
    began = time.perf_counter()
    seen = await _load(connection, options, options.seconds)
    took = time.perf_counter() - began
    spent = [now - then for now, then in zip(_cpu(setup), cpu, strict=True)]
    wire = [redis_wire(node.port).since(then) for node, then in zip(setup.nodes, wires, strict=True)]
    done = len(seen.admission)
    if warmed.refused or seen.refused:
        raise CannotRunError(f"{warmed.refused + seen.refused} requests were refused")
    await _counted(setup.nodes, before + done * _TOKENS)
    return _row(seen, took, spent, wire)


def _row(seen: Seen, took: float, spent: list[float], wire: list[Wire]) -> Row:
    done, of_redis = len(seen.admission), spent[1:]

    def each(value: Callable[[Wire], float]) -> float:
        return sum(map(value, wire)) / done

    return Row(
        done / took,
        at(0.5, seen.admission),
        at(0.99, seen.admission),
        1e6 * spent[0] / done,
        1e6 * sum(of_redis) / done,
        max(of_redis) / sum(of_redis),
        each(lambda one: one.scripts),
        each(lambda one: one.bytes_in),
        each(lambda one: one.reads),
    )


def _cpu(setup: SetUp) -> list[float]:
    """Return the processor time of the processor, then that of each node, in seconds."""
    return [cpu_s(setup.processor.child.pid), *(cpu_s(node.child.pid) for node in setup.nodes)]


async def _counted(nodes: list[Node], wanted: int | None) -> int:
    """Return the tokens that the buckets of service accounts count on all nodes, once nothing is held.

    Raise `CannotRunError` if they do not become what is `wanted` (None: any sum) within ten seconds.
    """
    until = time.perf_counter() + _SETTLED_WITHIN_S
    last = None
    while time.perf_counter() < until:
        used, held = map(sum, zip(*[_sums(node.port) for node in nodes], strict=True))
        if not held and (used == wanted or (wanted is None and used == last)):
            return used
        last = used
        await asyncio.sleep(0.2)
    raise CannotRunError(f"the counters say {last}, and not {wanted}: no figure counts")


def _sums(port: int) -> tuple[int, int]:
    """Return what the buckets of service accounts on one node have used and hold."""
    used = held = 0
    with redis.Redis(host=HOST, port=port) as client:
        for key in client.scan_iter("*:service_account:*", count=1000):
            if client.type(key) == b"hash":
                count: dict[bytes, bytes] = client.hgetall(key)
                used += int(count.get(b"used", 0))
                held += int(count.get(b"held", 0))
    return used, held


# ---------------------------------------------------------------- the two set-ups


@contextlib.asynccontextmanager
async def _set_ups(cores: Cores, folder: Path) -> AsyncIterator[dict[str, SetUp]]:
    async with contextlib.AsyncExitStack() as at_the_end:
        os.environ.update(_SETTINGS)
        made: dict[str, SetUp] = {}
        for name in ("one Redis", "a Cluster of three"):
            run_dir = folder / name.replace(" ", "-")
            with pinned(cores.back):
                if name == "one Redis":
                    port = free_ports(1)[0]
                    part = await start_valkey(run_dir, port)
                    nodes, url = [Node(part.process, port)], part.url
                else:
                    nodes = await _cluster(run_dir)
                    url = "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in nodes)
                for node in nodes:
                    at_the_end.push_async_callback(node.child.stop)
                processor = await start_tokenweir(run_dir, url, "memory://", "native")
                at_the_end.push_async_callback(processor.child.stop)
            made[name] = SetUp(processor, nodes)
        yield made


async def _cluster(run_dir: Path) -> list[Node]:
    """Start three nodes, and give each a third of the slots."""
    ports, buses = (free := free_ports(2 * _NODES))[:_NODES], free[_NODES:]
    nodes = []
    for port, bus in zip(ports, buses, strict=True):
        folder = run_dir / f"node-{port}"
        await asyncio.to_thread(folder.mkdir, parents=True)
        argv = (str(valkey_binary()), "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no")
        argv += ("--cluster-enabled", "yes", "--cluster-port", str(bus))
        nodes.append(Node(await start_listener("valkey", argv, folder, port), port))
    bounds = [_SLOTS * number // _NODES for number in range(_NODES + 1)]
    for node, first, last in zip(nodes, bounds, bounds[1:], strict=False):
        _ask(node.port, "CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        if node is not nodes[0]:
            _ask(node.port, "CLUSTER", "MEET", HOST, ports[0], buses[0])
    until = time.perf_counter() + _READY_WITHIN_S
    while not all(_is_whole(node.port) for node in nodes):
        if time.perf_counter() > until:
            raise CannotRunError("the nodes did not become a cluster")
        await asyncio.sleep(0.1)
    return nodes


def _ask(port: int, *command: str | int) -> Any:
    with redis.Redis(host=HOST, port=port) as client:
        return client.execute_command(*command)


def _is_whole(port: int) -> bool:
    info: bytes = _ask(port, "CLUSTER", "INFO")
    return b"cluster_state:ok" in info and f"cluster_known_nodes:{_NODES}".encode() in info


# ---------------------------------------------------------------- all of them


async def _run(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Return the rows by name, in turn. Raise `CannotRunError`, `LocalError`."""
    cores = two_cores()
    os.sched_setaffinity(0, {cores.front})
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="tokenweir-cluster-") as folder:
        async with _set_ups(cores, Path(folder)) as made, contextlib.AsyncExitStack() as at_the_end:
            open_to = {
                name: await at_the_end.enter_async_context(peer.connected(setup.processor.address))
                for name, setup in made.items()
            }
            for _ in range(options.rounds):
                for name, setup in made.items():
                    rows.setdefault(name, []).append(await _measured(setup, open_to[name], options))
    return rows


def _line(name: str, rows: list[Row]) -> str:
    def mid(value: Callable[[Row], float]) -> float:
        return median(map(value, rows))

    cells = (
        name,
        f"{mid(lambda row: row.requests_per_s):,.0f}",
        f"{mid(lambda row: row.p50_ms):.1f}",
        f"{mid(lambda row: row.p99_ms):.1f}",
        f"{mid(lambda row: row.processor_us):.0f}",
        f"{mid(lambda row: row.redis_us):.0f}",
        f"{mid(lambda row: row.busiest):.0%}",
        f"{mid(lambda row: row.scripts):.2f}",
        f"{mid(lambda row: row.bytes_in):,.0f}",
        f"{mid(lambda row: row.reads):.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table."""
    options = _parser().parse_args()
    try:
        rows = uvloop.run(_run(options))
    except CannotRunError as error:
        raise SystemExit(f"nothing was measured: {error}") from None
    print("| counters on | requests/s | admission, p50, ms | p99 | processor, us | all nodes, us ", end="")
    print("| the busiest node's part | scripts | bytes to Redis | reads of a socket |")
    print("|---" * 10 + "|")
    for name, of_name in rows.items():
        print(_line(name, of_name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redis_cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tenants", type=int, default=48, help="their partitions are spread over the nodes")
    parser.add_argument("--clients", type=int, default=64, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, help="the table has medians over them")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--settle", type=float, default=1, help="seconds before each measurement")
    return parser


if __name__ == "__main__":
    main()
