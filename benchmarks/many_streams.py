"""Measure what thousands of open streams take of one processor: memory, and the time of their chunks.

    .venv/bin/python -m benchmarks.many_streams [--streams 10000] [--chunks 1000] [--seconds 10]

A real `tokenweir serve` with its own transport, and Valkey, on one core; on another core a process that plays an
Envoy for each of four tenants. Streams are opened one after the other, each with the beginning of its answer; then
each gets a chunk in turn, `--chunks` a second of all of them together; then each ends with its usage. Memory is
what the process has more than before the first stream, once all are open and have had a chunk, for each stream.
"""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import peer
from benchmarks.accounting import used
from benchmarks.fairness import at, cpu_s
from benchmarks.machine import pinned, two_cores
from benchmarks.peer import Peer
from benchmarks.starting import Processor, start_tokenweir
from extproc.local.parts import start_valkey
from extproc.local.ports import free_ports

_TENANTS: Final = 4
_SETTINGS: Final = {
    "TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "1000000000000",
    "TOKENWEIR_LIMITS__DEFAULT__IP_LIMIT": "1000000000000",
    "TOKENWEIR_COST__LEARN": "false",
}
_WARMING: Final = 200
_REPLIES_WITHIN_S: Final = 30.0


@dataclass
class Phase:
    """Hold what one phase took: for each of its items, milliseconds until the last reply; the processor's time."""

    name: str
    took_ms: list[float] = field(default_factory=list)
    failed: int = 0
    cpu_s: float = 0.0
    seconds: float = 0.0


@dataclass
class Result:
    """Hold the phases, and the memory of a stream in bytes."""

    streams: int
    phases: list[Phase]
    stream_bytes: float


class _Stream:
    """One stream, at the side of Envoy."""

    def __init__(self, connection: Peer, request: tuple[bytes, bytes]) -> None:
        self._connection = connection
        self._request = request
        self._number = 0
        self._replies: asyncio.Queue[int] = asyncio.Queue()

    async def begin(self) -> bool:
        """Ask, and begin the answer. Return whether the request was admitted."""
        self._number, self._replies = self._connection.open()
        await self._connection.send(self._number, *self._request)
        if not await self._comes(peer.REQUEST_BODY):
            return False
        await self._connection.send(self._number, peer.SSE_HEAD)
        return await self._comes(peer.RESPONSE_HEADERS)

    async def chunk(self) -> bool:
        """Send a chunk. Return whether it was passed on."""
        await self._connection.send(self._number, peer.CHUNK)
        return await self._comes(peer.RESPONSE_BODY)

    async def end(self) -> bool:
        """Send the end with the usage. Return whether it was passed on."""
        await self._connection.send(self._number, peer.LAST)
        passed = await self._comes(peer.RESPONSE_BODY)
        self._connection.end(self._number)
        return passed

    async def _comes(self, wanted: int) -> bool:
        """Return whether a reply of this kind comes before the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPLIES_WITHIN_S):
                while (kind := await self._replies.get()) not in {wanted, peer.REFUSED, peer.ENDED}:
                    pass
                return kind == wanted
        return False


async def _phase(
    name: str, actions: Sequence[Callable[[], Awaitable[bool]]], rate: float, processor: Processor
) -> Phase:
    """Carry out actions at a rate, whether or not the ones before are done."""
    phase, loop = Phase(name), asyncio.get_running_loop()
    began, worked = loop.time(), cpu_s(processor.child.pid)

    async def timed(action: Callable[[], Awaitable[bool]]) -> None:
        started = time.perf_counter()
        if await action():
            phase.took_ms.append(1000 * (time.perf_counter() - started))
        else:
            phase.failed += 1

    async with asyncio.TaskGroup() as group:
        for number, action in enumerate(actions):
            await asyncio.sleep(began + number / rate - loop.time())
            group.create_task(timed(action))
    phase.seconds, phase.cpu_s = loop.time() - began, cpu_s(processor.child.pid) - worked
    return phase


async def _measured(processor: Processor, options: argparse.Namespace) -> Result:
    body = json.dumps(peer.BODY | {"stream": True}).encode()
    requests = [peer.request(f"tenant-{number}", body) for number in range(_TENANTS)]
    async with contextlib.AsyncExitStack() as at_the_end:
        connections = [
            await at_the_end.enter_async_context(peer.connected(processor.address)) for _ in range(_TENANTS)
        ]

        def streams(count: int) -> list[_Stream]:
            return [_Stream(connections[n % _TENANTS], requests[n % _TENANTS]) for n in range(count)]

        for each in streams(_WARMING):
            await each.begin()
            await each.end()
        before, opened = used(processor.child.pid).rss_bytes, streams(options.streams)
        phases = [await _phase("open", [each.begin for each in opened], options.opened, processor)]
        phases.append(await _phase("first chunk", [each.chunk for each in opened], options.chunks, processor))
        stream_bytes = (used(processor.child.pid).rss_bytes - before) / options.streams
        turns = [opened[n % len(opened)].chunk for n in range(int(options.chunks * options.seconds))]
        phases.append(await _phase("chunk", turns, options.chunks, processor))
        phases.append(await _phase("end", [each.end for each in opened], options.opened, processor))
        return Result(options.streams, phases, stream_bytes)


async def run(options: argparse.Namespace) -> Result:
    """Return what was measured. Raise `CannotRunError`, `LocalError`."""
    cores = two_cores()
    os.sched_setaffinity(0, {cores.front})
    with tempfile.TemporaryDirectory(prefix="tokenweir-streams-") as folder:
        async with contextlib.AsyncExitStack() as at_the_end:
            with pinned(cores.back):
                valkey = await start_valkey(Path(folder), free_ports(1)[0])
                at_the_end.push_async_callback(valkey.process.stop)
                os.environ.update(_SETTINGS)
                processor = await start_tokenweir(Path(folder), valkey.url, "memory://", "native")
                at_the_end.push_async_callback(processor.child.stop)
            return await _measured(processor, options)


def main() -> None:
    """Print a table."""
    result = uvloop.run(run(parser().parse_args()))
    print(f"{result.streams:,} streams, {result.stream_bytes / 1024:.1f} KB of the processor each\n")
    print("| | done | failed | a second | p50, ms | p99 | processor, us each | of a core |")
    print("|---" * 8 + "|")
    for phase in result.phases:
        done = len(phase.took_ms)
        each_us = 1e6 * phase.cpu_s / max(1, done)
        print(
            f"| {phase.name} | {done:,} | {phase.failed} | {done / phase.seconds:,.0f} "
            f"| {at(0.5, phase.took_ms):.1f} | {at(0.99, phase.took_ms):.1f} "
            f"| {each_us:.0f} | {phase.cpu_s / phase.seconds:.2f} |"
        )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.many_streams", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--streams", type=int, default=10_000, help="that are open at once")
    made.add_argument("--opened", type=float, default=500, help="streams that are opened, or ended, a second")
    made.add_argument("--chunks", type=float, default=1000, help="a second, of all streams together")
    made.add_argument("--seconds", type=float, default=10, help="of chunks, once each stream has had one")
    return made


if __name__ == "__main__":
    main()
