"""Plays many seeds for a test, and tells how each that fails is played again."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from .servers import MemoryMachine
from .world import World, simulate

# SIMULATION_SEED moves all seeds elsewhere; SIMULATION_SEEDS is their number.
FIRST = int(os.environ.get("SIMULATION_SEED", "0"))
ROOT = Path(__file__).parents[2]


def number(usual):
    """How many seeds a test plays."""
    return int(os.environ.get("SIMULATION_SEEDS", usual))


def part_of(seeds, part, parts):
    """The seeds of one part, so that parts run beside each other."""
    return range(FIRST + seeds * part // parts, FIRST + seeds * (part + 1) // parts)


def played(seeds, world=World, machine=MemoryMachine):
    """Plays all seeds; returns what happened in them, and the largest overshoot."""
    seen, exceptions, failures, overshoot = Counter(), Counter(), [], 0.0
    for seed in seeds:
        try:
            report = simulate(seed, world=world, machine=machine)
        except Exception as error:  # noqa: BLE001 - whatever it is, its seed is what counts
            failures.append(_replay(seed, error, world.replay + machine.replay))
        else:
            seen.update(report.seen)
            exceptions.update(report.exceptions)
            overshoot = max(overshoot, report.overshoot)
    print(
        f"seeds {seeds.start} to {seeds.stop - 1}: {dict(seen)}; largest overshoot {overshoot:.2f} of what it can be"
    )
    for what, times in exceptions.most_common():
        print(f"{times:6}  {what}")
    assert not failures, "\n".join(failures)
    return seen, overshoot


def _replay(seed, error, options):
    make = f"   (or: make simulate SEED={seed})" if not options else ""
    return f"seed {seed}: {error}\nreplay: python -m tests.simulation {seed}{options}{make}"


def steps(seed, machine=MemoryMachine):
    """A digest of all that happens in a seed."""
    digest = hashlib.sha256()
    simulate(seed, lambda text: digest.update(text.encode()), machine=machine)
    return digest.hexdigest()


def in_another_process(expression):
    """What an expression prints there, in which strings have other hashes."""
    env = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", f"from tests.simulation import playing, redis_machine\nprint(*{expression})"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    return done.stdout.decode().split()
