"""Show where a processor's time goes under load, by samples of the whole: python -m benchmarks.profiling

Real Envoy, Valkey, and the sink of the ledger, as in `make bench`: first a closed loop of 64 connections, then
streams, then a flood. A sample counts for the innermost function of Tokenweir that was at work, and so does what a
library or C does for it; "(event loop)" is what no function of Tokenweir asked for. The kernel samples every few
milliseconds, so a row of less than 1 % is chance.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.errors import CannotRunError
from benchmarks.fleet import running
from benchmarks.forms import Phase, Step
from benchmarks.machine import two_cores
from benchmarks.measuring import Meter, Sample
from benchmarks.programs import compiled
from benchmarks.variants import all_variants
from extproc.local.errors import LocalError

_VARIANT: Final = "tokenweir-native-reserve-2"
_OWN: Final = "/extproc/"
_WRITTEN_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.05
# The first part of a module's path that fits names the row.
_ROOMS: Final = {
    "http2/": "HTTP/2 (extproc/http2)",
    "envoy/codec": "Envoy's messages to values and back (extproc/envoy/codec.py, pb)",
    "envoy/": "streams: what comes, what is to be done, what is sent (extproc/envoy)",
    "core/answer": "the answer (core/answer)",
    "core/request": "the request: head, identity, body (core/request)",
    "core/quota": "limits, holds, charges (core/quota)",
    "core/": "the exchange's phases (core)",
    "stores/redis": "Redis: keys, scripts, replies (stores/redis)",
    "stores/mongo": "the ledger: documents, transactions, pymongo (stores/mongo)",
    "metering/": "metering: decision, settling, queues, what runs in the background (metering)",
    "observe/": "metrics and logs (observe)",
    "timing/": "timers (timing)",
}
_LOOP: Final = "(event loop)"
Stacks = dict[str, int]


@dataclass(frozen=True, slots=True)
class Profile:
    """Hold the samples of one measurement, and what it measured."""

    sample: Sample
    stacks: Stacks

    @property
    def items(self) -> int:
        """Return how many requests, or chunks of streams, were served."""
        return int(self.sample.load["chunks"] or self.sample.load["ok"])

    @property
    def us(self) -> float:
        """Return the processor's microseconds for each of them, everything included."""
        return 1e6 * self.sample.used["processor"].cpu_s / self.items


def steps(seconds: float) -> tuple[Step, ...]:
    """Return what is measured, for so many seconds each."""
    return (
        Step(Phase.PEAK, 64, seconds),
        Step(Phase.STREAM, 400, seconds, rate=20, chunks=75, chunk_rate=25),
        Step(Phase.FLOOD, 32, 0.01, chunks=round(100 * seconds), chunk_rate=400),
    )


def by_room(stacks: Stacks) -> Counter[str]:
    """Return the samples by the part of Tokenweir that was at work."""
    rooms: Counter[str] = Counter()
    for stack, times in stacks.items():
        rooms[_room(_innermost(stack))] += times
    return rooms


def by_function(stacks: Stacks) -> Counter[str]:
    """Return the samples by the function of Tokenweir that was at work: "core/exchange.py Exchange.receive"."""
    functions: Counter[str] = Counter()
    for stack, times in stacks.items():
        functions[_innermost(stack).replace(":", " ") or _LOOP] += times
    return functions


def _innermost(stack: str) -> str:
    """Return the innermost frame of Tokenweir's, without the package's name; empty if there is none at work."""
    own = [frame.rpartition(_OWN)[2] for frame in stack.split(";") if _OWN in frame]
    return "" if not own or own[-1].startswith(("cli/", "serve.py", "app.py")) else own[-1]


def _room(frame: str) -> str:
    return next((name for start, name in _ROOMS.items() if frame.startswith(start)), "other" if frame else _LOOP)


def table(profile: Profile, top: int) -> str:
    """Return the rooms and the first functions of a measurement as Markdown."""
    whole = sum(profile.stacks.values()) or 1
    what = "chunk" if profile.sample.load["chunks"] else "request"
    lines = [
        f"### {profile.sample.step}: {profile.items:,} {what}s, {profile.us:.0f} us each, {whole} samples",
        "",
        f"| where | share | us a {what} |",
        "|---|---|---|",
    ]
    rows = [
        (name, count, f"{profile.us * count / whole:.0f}") for name, count in by_room(profile.stacks).most_common()
    ]
    rows += [(f"`{name}`", count, "") for name, count in by_function(profile.stacks).most_common(top)]
    lines += [f"| {name} | {100 * count / whole:.1f} % | {each} |" for name, count, each in rows]
    return "\n".join(lines)


async def profiles(seconds: float) -> list[Profile]:
    """Measure. Raise `CannotRunError` or `LocalError` if that is not possible here."""
    cores, programs = two_cores(), compiled()
    variant = next(each for each in all_variants() if each.name == _VARIANT)
    found = []
    with tempfile.TemporaryDirectory(prefix="tokenweir-profile-") as folder:
        written = Path(folder) / "stacks.json"
        program = ("benchmarks.sampled", str(written))
        async with running([variant], programs, cores, Path(folder), program=program) as fleet:
            meter, pid = Meter(fleet), fleet.stacks[variant.stack].roles["processor"].pid
            await meter.turn(variant, (), 0)
            for step in steps(seconds):
                os.kill(pid, signal.SIGUSR1)
                (sample,) = await meter.turn(variant, (step,), 0)
                os.kill(pid, signal.SIGUSR2)
                found.append(Profile(sample, await _read(written)))
    return found


async def _read(written: Path) -> Stacks:
    """Return the samples once they are written, and remove the file. Raise `CannotRunError`."""
    deadline = time.monotonic() + _WRITTEN_WITHIN_S
    while (stacks := await asyncio.to_thread(_taken, written)) is None:
        if time.monotonic() > deadline:
            raise CannotRunError("the processor did not write its samples")
        await asyncio.sleep(_POLL_S)
    return stacks


def _taken(written: Path) -> Stacks | None:
    """Return what a file says, and remove it; None if it is not there."""
    try:
        stacks: Stacks = json.loads(written.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    written.unlink()
    return stacks


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables. Return 0, or 3 if the profile can't be made here."""
    parser = argparse.ArgumentParser("benchmarks.profiling", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: 8)")
    parser.add_argument("--top", type=int, default=10, help="how many functions are shown (default: 10)")
    arguments = parser.parse_args(argv)
    try:
        found = asyncio.run(profiles(arguments.seconds))
    except (CannotRunError, LocalError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 3
    print("\n\n".join(table(each, arguments.top) for each in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
