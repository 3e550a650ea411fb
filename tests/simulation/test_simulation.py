"""Hundreds of small worlds: whatever the network, the stores and the processes do, the books are right in the end.

The thorough form has thousands. A seed that fails is played again, step by step, by `python -m tests.simulation SEED`.
"""

import os
import subprocess
import sys

import pytest

from tests.sizes import sampled, sized

from .bursts import Bursts
from .mutations import FOUND_BY, IN, MUTATIONS, mutated
from .pairs import Pairs
from .playing import ROOT, in_another_process, number, part_of, played, steps
from .world import World, simulate

SEEDS = number(sized(120, 5000))
PARTS = 8 if SEEDS <= 800 else 40
BURSTS = number(sized(24, 1000))
BURST_PARTS = 2 if BURSTS <= 100 else 10
PAIRS = number(sized(40, 3000))
PAIR_PARTS = 2 if PAIRS <= 400 else 20
# So many seeds at the most until a deliberate break is found, after those that are known to find it.
PATIENCE = sized(1000, 3000)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_loses_or_doubles_anything_or_lets_anybody_past_a_limit(part):
    seeds = part_of(SEEDS, part, PARTS)
    seen, _ = played(seeds)
    assert seen["Admitted"] > len(seeds)
    assert seen["Denied"] > len(seeds)
    assert seen["Unavailable"] > len(seeds)


@pytest.mark.parametrize("part", range(BURST_PARTS))
def test_a_burst_without_output_bounds_uses_no_more_than_the_stated_bound(part):
    """Whatever small answers a tenant had before, and whatever goes wrong meanwhile. It comes close to the bound."""
    seeds = part_of(BURSTS, part, BURST_PARTS)
    seen, overshoot = played(seeds, Bursts)
    assert seen["Admitted"] > 10 * len(seeds)
    assert seen["Denied"] > 10 * len(seeds)
    assert overshoot > 0.5


@pytest.mark.parametrize("part", range(PAIR_PARTS))
def test_no_two_or_three_faults_one_after_the_other_lose_or_double_anything(part):
    seeds = part_of(PAIRS, part, PAIR_PARTS)
    seen, _ = played(seeds, Pairs)
    assert seen["Admitted"] > len(seeds)
    assert seen["Denied"] > len(seeds)
    assert seen["Unavailable"] > len(seeds)


@pytest.mark.timeout(900)  # a search takes long where the seeds that are known find it no more
@pytest.mark.parametrize("name", sampled(MUTATIONS, quick=14))
def test_the_simulation_finds_out_when(name):
    with mutated(name):
        for seed in (*FOUND_BY.get(name, ()), *range(PATIENCE)):
            try:
                simulate(seed, world=IN.get(name, World))
            except AssertionError as error:
                print(f"found by seed {seed}: {error}")
                return
    pytest.fail(f"{PATIENCE} seeds have not found out that {name}")


def test_a_seed_is_played_the_same_way_again_in_any_process():
    seeds = range(6)
    here = [steps(seed) for seed in seeds]
    assert here == [steps(seed) for seed in seeds]
    assert len(set(here)) == len(here)
    assert in_another_process("map(playing.steps, range(6))") == here


def test_a_seed_is_replayed_with_one_command():
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.simulation", "3"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    assert b"a1 starts" in done.stdout
    assert b"seed 3" in done.stdout.splitlines()[-1]
