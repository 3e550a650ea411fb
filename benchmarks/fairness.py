"""Measure how much longer one tenant waits while another has ten times as many clients as its cap allows requests.

    .venv/bin/python -m benchmarks.fairness [--cap 100] [--rate 30] [--wait 1] [--rounds 5] [--seconds 10]

A real `tokenweir serve` with its own transport, and Valkey, on one core. The two tenants are processes on another
core, and each plays an Envoy. The quiet tenant makes a request every 10 ms and is timed: from its request to its
admission, and from its answer to the reply. The time that the processor worked until the admission, for whomever,
is told apart: other programs do not count in it. The noisy tenant has ten clients for each place of its cap.
A client that is admitted gets a stream of 5 s; a client that is refused waits as long as `retry-after` says, or
`--wait` seconds, and asks again. Each round measures the quiet tenant alone, beside the noisy one, and beside the
noisy one at a processor without a cap. The table has the median of each figure over all rounds.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop

from benchmarks import peer
from benchmarks.machine import Cores, pinned, two_cores
from benchmarks.peer import Peer
from benchmarks.processes import child
from benchmarks.starting import Processor, start_tokenweir
from extproc.local.parts import start_valkey
from extproc.local.ports import free_ports

Clock = Callable[[], float]

_TIMES: Final = 10
_NO_CAP: Final = 1_000_000
_EVERY_S: Final = 0.01
_ANSWER_S: Final = 5.0
# Which of the clocks of a process: linux/posix-timers.h.
_SCHEDULED: Final = 2
_PLAIN: Final = peer.answer_piece(
    json.dumps(
        {
            "choices": [{"message": {"content": "Fine."}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        }
    ).encode(),
    end=True,
)
_JSON_HEAD: Final = peer.answer_head("application/json")
_SETTINGS: Final = {"TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "1000000000000", "TOKENWEIR_COST__LEARN": "false"}
_SETTINGS_OF_IP: Final = {"TOKENWEIR_LIMITS__DEFAULT__IP_LIMIT": "1000000000000"}


@dataclass
class Quiet:
    """Hold what the quiet tenant saw, in milliseconds. `work`: what the processor did until the admission."""

    admission: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    piece: list[float] = field(default_factory=list)
    failed: int = 0


@dataclass
class Noisy:
    """Hold what became of the noisy tenant's requests and chunks."""

    admitted: int = 0
    refused: int = 0
    chunks: int = 0
    most: int = 0
    open: int = 0


@dataclass(frozen=True)
class Noise:
    """Describe the noisy tenant.

    `rate`: chunks a second of a stream; `wait_s`: between a refusal and the next try.
    """

    clients: int
    rate: float
    wait_s: float


# ---------------------------------------------------------------- the quiet tenant


async def quiet_tenant(connection: Peer, seconds: float, clock: Clock, work: Clock) -> Quiet:
    """Make a request every 10 ms. `clock` times them; `work` is the processor's time that it has worked."""
    seen = Quiet()
    request = peer.request("quiet", json.dumps(peer.BODY).encode())
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds / _EVERY_S)):
            await asyncio.sleep(began + number * _EVERY_S - loop.time())
            group.create_task(_plain(connection, request, (clock, work), seen))
    return seen


async def _plain(connection: Peer, request: tuple[bytes, bytes], clocks: tuple[Clock, Clock], seen: Quiet) -> None:
    clock, work = clocks
    began, worked = clock(), work()
    stream, replies = connection.open()
    await connection.send(stream, *request)
    while (kind := await replies.get()) not in {peer.REQUEST_BODY, peer.REFUSED, peer.ENDED}:
        pass
    if kind != peer.REQUEST_BODY:
        seen.failed += 1
        return
    admitted, worked = clock(), work() - worked
    await connection.send(stream, _JSON_HEAD, _PLAIN)
    while await replies.get() not in {peer.RESPONSE_BODY, peer.ENDED}:
        pass
    answered = clock()
    connection.end(stream)
    seen.admission.append(1000 * (admitted - began))
    seen.work.append(1000 * worked)
    seen.piece.append(1000 * (answered - admitted))


# ---------------------------------------------------------------- the noisy tenant


async def noisy_tenant(connection: Peer, noise: Noise, stopped: "asyncio.Event", seen: Noisy) -> None:
    """Let all clients ask until `stopped`, and count in `seen`."""
    request = peer.request("noisy", json.dumps(peer.BODY | {"stream": True}).encode())
    async with asyncio.TaskGroup() as group:
        for _ in range(noise.clients):
            group.create_task(_client(connection, request, noise, stopped, seen))


async def _client(
    connection: Peer, request: tuple[bytes, bytes], noise: Noise, stopped: "asyncio.Event", seen: Noisy
) -> None:
    await asyncio.sleep(random.uniform(0, max(noise.wait_s, 0.5)))  # clients do not begin together
    while not stopped.is_set():
        stream, replies = connection.open()
        await connection.send(stream, *request)
        while (kind := await replies.get()) not in {peer.REQUEST_BODY, peer.REFUSED, peer.ENDED}:
            pass
        if kind == peer.REQUEST_BODY:
            seen.admitted += 1
            seen.open += 1
            seen.most = max(seen.most, seen.open)
            async for _ in _chunks(connection, stream, replies, noise.rate, stopped):
                seen.chunks += 1
            seen.open -= 1
        else:
            seen.refused += 1
            connection.end(stream)
            await asyncio.sleep(noise.wait_s * random.uniform(0.9, 1.1))


async def _chunks(
    connection: Peer,
    stream: int,
    replies: "asyncio.Queue[int]",
    rate: float,
    stopped: "asyncio.Event",
) -> AsyncIterator[None]:
    """Play the upstream of one answer. Yield after the reply to each chunk."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await connection.send(stream, peer.SSE_HEAD)
    await replies.get()
    for number in range(int(_ANSWER_S * rate)):
        await asyncio.sleep(began + number / rate - loop.time())
        if stopped.is_set():
            break
        await connection.send(stream, peer.CHUNK)
        await replies.get()
        yield
    await connection.send(stream, peer.LAST)
    while await replies.get() not in {peer.RESPONSE_BODY, peer.ENDED}:
        pass
    connection.end(stream)


def _noise_process(pipe: Connection, address: str, noise: Noise) -> None:
    os.nice(5)  # the quiet tenant shares the core, and should not wait for it
    uvloop.run(_noise_until_told(pipe, address, noise))


async def _noise_until_told(pipe: Connection, address: str, noise: Noise) -> None:
    """Tell the counts each time that somebody asks; stop at the second time."""
    stopped, seen = asyncio.Event(), Noisy()
    async with peer.connected(address) as connection:
        running = asyncio.create_task(noisy_tenant(connection, noise, stopped, seen))
        for _ in range(2):
            await asyncio.to_thread(pipe.recv)
            pipe.send(seen)
        stopped.set()
        await running
        pipe.send(seen)


# ---------------------------------------------------------------- one measurement


@dataclass(frozen=True)
class Row:
    """Hold one measurement. Times are in milliseconds, processor time in shares of a core."""

    quiet: Quiet
    noisy: Noisy
    seconds: float
    cores: float


async def _measured(processor: Processor, noise: Noise | None, options: argparse.Namespace) -> Row:
    async with contextlib.AsyncExitStack() as at_the_end:
        pipe = (
            at_the_end.enter_context(child(_noise_process, processor.address, noise))
            if noise is not None
            else None
        )
        connection = await at_the_end.enter_async_context(peer.connected(processor.address))
        work = partial(cpu_s, processor.child.pid)
        await quiet_tenant(connection, options.settle, time.perf_counter, work)
        before = await _counts(pipe)
        began, cpu = time.perf_counter(), work()
        quiet = await quiet_tenant(connection, options.seconds, time.perf_counter, work)
        took, cpu = time.perf_counter() - began, work() - cpu
        after = await _counts(pipe)
        if pipe is not None:
            await asyncio.to_thread(pipe.recv)
        noisy = Noisy(
            after.admitted - before.admitted,
            after.refused - before.refused,
            after.chunks - before.chunks,
            after.most,
        )
        return Row(quiet, noisy, took, cpu / took)


async def _counts(pipe: Connection | None) -> Noisy:
    if pipe is None:
        return Noisy()
    pipe.send(None)
    counts: Noisy = await asyncio.to_thread(pipe.recv)
    return counts


def cpu_s(pid: int) -> float:
    """Return the processor time of a process in seconds, to the microsecond: its clock in the kernel."""
    return time.clock_gettime(~pid << 3 | _SCHEDULED)


# ---------------------------------------------------------------- all of them


@contextlib.asynccontextmanager
async def _processors(caps: list[int], cores: Cores, folder: Path) -> AsyncIterator[list[Processor]]:
    """Start a processor for each cap, with a Valkey of its own."""
    async with contextlib.AsyncExitStack() as at_the_end:
        started = []
        for most in caps:
            name = f"cap-{most}"
            with pinned(cores.back):
                valkey = await start_valkey(folder / name, free_ports(1)[0])
                at_the_end.push_async_callback(valkey.process.stop)
                os.environ.update(_SETTINGS | _SETTINGS_OF_IP)
                os.environ["TOKENWEIR_SERVER__MAX_IN_FLIGHT_PER_TENANT"] = str(most)
                processor = await start_tokenweir(folder / name, valkey.url, "memory://", "native")
                at_the_end.push_async_callback(processor.child.stop)
            started.append(processor)
        yield started


async def _run(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Return the rows by name, in turn. Raise `CannotRunError`, `LocalError`."""
    cores = two_cores()
    os.sched_setaffinity(0, {cores.front})
    noise = Noise(_TIMES * options.cap, options.rate, options.wait)
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="tokenweir-fairness-") as folder:
        caps = [options.cap, *([_NO_CAP] if options.uncapped else [])]
        async with _processors(caps, cores, Path(folder)) as (capped, *others):
            for _ in range(options.rounds):
                rows.setdefault("alone", []).append(await _measured(capped, None, options))
                name = f"beside {noise.clients} clients, cap {options.cap}"
                rows.setdefault(name, []).append(await _measured(capped, noise, options))
                for uncapped in others:
                    name = f"beside {noise.clients} clients, no cap"
                    rows.setdefault(name, []).append(await _measured(uncapped, noise, options))
    return rows


def at(share: float, times: list[float]) -> float:
    """Return a percentile."""
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * share))] if times else float("nan")


def _median(share: float, of_rounds: list[list[float]]) -> str:
    """Return the median over rounds: what disturbs one of them does not count."""
    return f"{median(at(share, times) for times in of_rounds):.1f}"


def _line(name: str, rows: list[Row]) -> str:
    admission = [row.quiet.admission for row in rows]
    of_quiet = (admission, [row.quiet.work for row in rows], [row.quiet.piece for row in rows])
    seconds = sum(row.seconds for row in rows)
    rates = [sum(getattr(row.noisy, name) for row in rows) / seconds for name in ("refused", "admitted", "chunks")]
    cells: list[Any] = [name, sum(map(len, admission)), sum(row.quiet.failed for row in rows)]
    cells += [_median(share, of_rounds) for of_rounds in of_quiet for share in (0.5, 0.99)]
    cells += [max(row.noisy.most for row in rows), *(f"{rate:,.0f}" for rate in rates)]
    cells += [f"{sum(row.cores for row in rows) / len(rows):.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print a table."""
    rows = uvloop.run(_run(_parser().parse_args()))
    print("| quiet tenant | requests | failed | admission, p50, ms | p99 ", end="")
    print("| of it the processor's work, p50, ms | p99 | an answer, p50, ms | p99 ", end="")
    print("| noisy: streams at most | refused/s | admitted/s | chunks/s | processor, cores |")
    print("|---" * 14 + "|")
    for name, of_name in rows.items():
        print(_line(name, of_name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cap", type=int, default=100, help="requests of a tenant at once")
    parser.add_argument("--rate", type=float, default=30, help="chunks a second of a stream")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds between a refusal and the next try")
    parser.add_argument("--rounds", type=int, default=5, help="the table has medians over them")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--settle", type=float, default=3, help="seconds before each measurement")
    parser.add_argument("--uncapped", action=argparse.BooleanOptionalAction, default=True)
    return parser


if __name__ == "__main__":
    main()
