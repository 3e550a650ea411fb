"""Measure what reports cost the requests beside them: latency at a fixed rate, alone and while reports are asked.

    python -m benchmarks.reports_beside [--rate 50] [--rounds 8] [--seconds 8] [--tenants 200] [--accounts 20]

A real Envoy, `tokenweir serve`, Valkey and the embedded store, which has rollups and daily usage of many tenants.
A process of its own asks the queries of `benchmarks.reports` one after the other, as the admin API does. Each
round measures both, in changing order; the ratio is that of one round, so that other programs disturb both alike.

The embedded store is a Python program on one core. `--store front` puts it and the asking process on the core of
Envoy and load, `--store back` on that of the processor: one of them shares its core in any case on a machine with
two. In production the store has a machine of its own.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.errors import CannotRunError
from benchmarks.fleet import Fleet, running
from benchmarks.forms import Phase, Step
from benchmarks.histogram import percentile
from benchmarks.machine import two_cores
from benchmarks.measuring import Meter, Sample
from benchmarks.processes import child
from benchmarks.programs import compiled
from benchmarks.report_filling import fill, make_indexes
from benchmarks.report_rows import Size
from benchmarks.reports import Watched, queries
from benchmarks.variants import STORE, Variant, all_variants
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger

_DATABASE: Final = "modelToken"
_PERCENTS: Final = (50, 95, 99)
_ENOUGH_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Round:
    """Hold a round: latencies in microseconds by percentile, and what was asked beside."""

    alone: dict[int, float]
    beside: dict[int, float]
    asked: int
    slowest_s: float
    foreign: float


def ask(pipe: Connection, url: str, size: Size) -> None:
    """Ask queries one after the other while the other end says so. For a process of its own."""
    asyncio.run(_ask(pipe, url, size))


async def _ask(pipe: Connection, url: str, size: Size) -> None:
    mongo = Mongo(MongoOptions(url, _DATABASE, _ENOUGH_S))
    asked = queries(Watched(mongo, _ENOUGH_S), MongoLedger(mongo), size)
    next_one = 0
    while await asyncio.to_thread(pipe.recv):
        count, slowest = 0, 0.0
        while not pipe.poll():
            began = time.monotonic()
            await asked[next_one % len(asked)][1]()
            slowest = max(slowest, time.monotonic() - began)
            next_one, count = next_one + 1, count + 1
        pipe.recv()
        pipe.send((count, slowest))
    await mongo.aclose()


async def measure(
    fleet: Fleet, variant: Variant, url: str, size: Size, arguments: argparse.Namespace
) -> list[Round]:
    """Take all rounds."""
    meter, rounds = Meter(fleet), []
    step = Step(Phase.RATE, 32, arguments.seconds, rate=arguments.rate)
    core = fleet.cores.front if arguments.store == "front" else fleet.cores.back
    os.sched_setaffinity(fleet.stacks[variant.stack].roles["store"].pid, {core})
    os.sched_setaffinity(0, {core})  # the asking process inherits it
    with child(ask, url, size) as pipe:
        for number in range(arguments.rounds):
            found: dict[bool, Sample] = {}
            asked, slowest = 0, 0.0
            for reports in (False, True) if number % 2 else (True, False):
                if reports:
                    pipe.send(True)
                (found[reports],) = await meter.turn(variant, (step,), number)
                if reports:
                    pipe.send(True)
                    asked, slowest = await asyncio.to_thread(pipe.recv)
            problems = [f"{sample.problems}" for sample in found.values() if sample.problems]
            if problems:
                print(f"round {number} does not count: {'; '.join(problems)}", file=sys.stderr, flush=True)
                continue
            foreign = max(sample.foreign_cores for sample in found.values())
            rounds.append(Round(_latencies(found[False]), _latencies(found[True]), asked, slowest, foreign))
            print(f"round {number}: {rounds[-1]}", file=sys.stderr, flush=True)
        pipe.send(False)
    return rounds


def _latencies(sample: Sample) -> dict[int, float]:
    return {each: percentile(sample.load["latency"], each) for each in _PERCENTS}


def print_table(rounds: list[Round]) -> None:
    """Print the medians, and the ratios within rounds."""
    print(
        "| latency | alone ms | beside reports ms | ratio within a round: least, median, most |\n|---|---|---|---|"
    )
    for each in _PERCENTS:
        ratios = sorted(one.beside[each] / one.alone[each] for one in rounds)
        alone, beside = (median(getattr(one, side)[each] for one in rounds) / 1000 for side in ("alone", "beside"))
        spread = ", ".join(f"{ratio:.2f}" for ratio in (ratios[0], median(ratios), ratios[-1]))
        print(f"| p{each} | {alone:.1f} | {beside:.1f} | {spread} |")
    print(
        f"\n{len(rounds)} rounds; {sum(one.asked for one in rounds)} queries beside, the slowest "
        f"{max(one.slowest_s for one in rounds):.1f} s; other programs took "
        f"{median(one.foreign for one in rounds):.1f} cores"
    )


async def run(arguments: argparse.Namespace) -> None:
    """Start all, fill the store, and measure."""
    size = Size(arguments.tenants, arguments.accounts, arguments.days, 0)
    (variant,) = (each for each in all_variants() if each.name == STORE)
    with tempfile.TemporaryDirectory() as folder:
        async with running([variant], compiled(), two_cores(), Path(folder)) as fleet:
            counts = fleet.stacks[variant.stack].counts
            host, port = counts._client.address  # type: ignore[union-attr]  # noqa: SLF001
            url = f"mongodb://{host}:{port}/?directConnection=true"
            await asyncio.to_thread(fill, url, _DATABASE, size, 1)
            mongo = Mongo(MongoOptions(url, _DATABASE, _ENOUGH_S))
            await make_indexes(mongo)
            await mongo.aclose()
            rounds = await measure(fleet, variant, url, size, arguments)
    if not rounds:
        raise CannotRunError("no round counts")
    print_table(rounds)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"rate": 50, "rounds": 8, "seconds": 8, "tenants": 200, "accounts": 20, "days": 90}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--store", choices=["front", "back"], default="front", help="core of store and reports")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
