"""The same worlds with the Redis adapter and its Lua scripts, on a server of the simulation's own.

A seed that fails is played again, step by step, by `python -m tests.simulation SEED --redis`.
"""

from importlib.util import find_spec

import pytest

from tests.missing import missing
from tests.sizes import sized

from .pairs import Pairs
from .playing import in_another_process, number, part_of, played, steps
from .redis_machine import RedisMachine

SEEDS = number(sized(60, 2000))
PAIRS = number(sized(40, 2000))
PARTS = sized(2, 20)


@pytest.fixture(autouse=True)
def _lua():
    if find_spec("lupa") is None:
        missing("the server of the simulation needs lupa")


@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_loses_or_doubles_anything_or_lets_anybody_past_a_limit(part):
    seeds = part_of(SEEDS, part, PARTS)
    seen, _ = played(seeds, machine=RedisMachine)
    assert seen["Admitted"] > len(seeds)
    assert seen["Denied"] > len(seeds)
    assert seen["Unavailable"] > len(seeds)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_two_or_three_faults_one_after_the_other_lose_or_double_anything(part):
    seeds = part_of(PAIRS, part, PARTS)
    seen, _ = played(seeds, Pairs, RedisMachine)
    assert seen["Admitted"] > len(seeds)
    assert seen["Denied"] > len(seeds)
    assert seen["Unavailable"] > len(seeds)


def test_a_seed_is_played_the_same_way_again_in_any_process():
    here = [steps(seed, RedisMachine) for seed in range(3)]
    assert here == [steps(seed, RedisMachine) for seed in range(3)]
    assert len(set(here)) == len(here)
    there = "[playing.steps(seed, redis_machine.RedisMachine) for seed in range(3)]"
    assert in_another_process(there) == here
