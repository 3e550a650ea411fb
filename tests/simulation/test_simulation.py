"""Hundreds of small worlds: whatever the network, the stores and the processes do, the books are right in the end.

The thorough form has thousands. A seed that fails is played again, step by step, by `python -m tests.simulation SEED`.
"""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sizes import sized

from .bursts import Bursts
from .mutations import FOUND_BY, IN, MUTATIONS, mutated
from .world import World, simulate

# In parts, so that they run beside each other. SIMULATION_SEED moves all of them elsewhere.
FIRST = int(os.environ.get("SIMULATION_SEED", "0"))
SEEDS = int(os.environ.get("SIMULATION_SEEDS", sized("320", "5000")))
PARTS = 8 if SEEDS <= 800 else 40
BURSTS = int(os.environ.get("SIMULATION_SEEDS", sized("24", "1000")))
BURST_PARTS = 2 if BURSTS <= 100 else 10
# So many seeds at the most until a deliberate break is found, after those that are known to find it.
PATIENCE = sized(1000, 3000)
ROOT = Path(__file__).parents[2]


def _replay(seed, error, world):
    if world is Bursts:
        return f"seed {seed}: {error}\nreplay: python -m tests.simulation {seed} --bursts"
    return f"seed {seed}: {error}\nreplay: python -m tests.simulation {seed}   (or: make simulate SEED={seed})"


def _played(seeds, world=World):
    """Plays all seeds; returns what happened in them, and the largest overshoot."""
    seen, exceptions, failures, overshoot = Counter(), Counter(), [], 0.0
    for seed in seeds:
        try:
            report = simulate(seed, world=world)
        except Exception as error:  # noqa: BLE001 - whatever it is, its seed is what counts
            failures.append(_replay(seed, error, world))
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


@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_loses_or_doubles_anything_or_lets_anybody_past_a_limit(part):
    seeds = range(FIRST + SEEDS * part // PARTS, FIRST + SEEDS * (part + 1) // PARTS)
    seen, _ = _played(seeds)
    assert seen["Admitted"] > len(seeds)
    assert seen["Denied"] > len(seeds)
    assert seen["Unavailable"] > len(seeds)


@pytest.mark.parametrize("part", range(BURST_PARTS))
def test_a_burst_without_output_bounds_uses_no_more_than_the_stated_bound(part):
    """Whatever small answers a tenant had before, and whatever goes wrong meanwhile. It comes close to the bound."""
    seeds = range(FIRST + BURSTS * part // BURST_PARTS, FIRST + BURSTS * (part + 1) // BURST_PARTS)
    seen, overshoot = _played(seeds, Bursts)
    assert seen["Admitted"] > 10 * len(seeds)
    assert seen["Denied"] > 10 * len(seeds)
    assert overshoot > 0.5


@pytest.mark.timeout(900)  # a search takes long where the seeds that are known find it no more
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_simulation_finds_out_when(name):
    with mutated(name):
        for seed in (*FOUND_BY.get(name, ()), *range(PATIENCE)):
            try:
                simulate(seed, world=IN.get(name, World))
            except AssertionError as error:
                print(f"found by seed {seed}: {error}")
                return
    pytest.fail(f"{PATIENCE} seeds have not found out that {name}")


def _steps(seed):
    digest = hashlib.sha256()
    simulate(seed, lambda text: digest.update(text.encode()))
    return digest.hexdigest()


def test_a_seed_is_played_the_same_way_again_in_any_process():
    seeds = range(6)
    here = [_steps(seed) for seed in seeds]
    assert here == [_steps(seed) for seed in seeds]
    assert len(set(here)) == len(here)
    command = "import sys, tests.simulation.test_simulation as t; print(*map(t._steps, range(6)))"
    env = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    there = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=env, capture_output=True, check=True)
    assert there.stdout.decode().split() == here


def test_a_seed_is_replayed_with_one_command():
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.simulation", "3"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    assert b"a1 starts" in done.stdout
    assert b"seed 3" in done.stdout.splitlines()[-1]
