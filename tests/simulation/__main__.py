"""Plays seeds: `python -m tests.simulation 1234` one, with every step; `--seeds 2000` many, from a seed on."""

import argparse
import sys
import time
import traceback
from collections import Counter

from .bursts import Bursts
from .pairs import Pairs
from .servers import MemoryMachine
from .world import World, simulate


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from `seed` on")
    parser.add_argument("--quiet", action="store_true", help="without the steps")
    parser.add_argument("--bursts", action="store_true", help="with a tenant that asks for much at once")
    parser.add_argument("--pairs", action="store_true", help="with two or three faults, one after the other")
    parser.add_argument("--redis", action="store_true", help="with the Redis adapter and its Lua scripts")
    options = parser.parse_args()
    world = Bursts if options.bursts else Pairs if options.pairs else World
    machine = _redis() if options.redis else MemoryMachine
    if options.seeds == 1:
        return _one(options.seed, None if options.quiet else print, world, machine)
    return _many(range(options.seed, options.seed + options.seeds), world, machine)


def _redis():
    from .redis_machine import RedisMachine

    return RedisMachine


def _one(seed, trace, world, machine):
    try:
        report = simulate(seed, trace, world, machine)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the seed shows
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        print(f"seed {seed}: {error}")
        return 1
    print(report.told())
    return 0


def _many(seeds, world, machine):
    overshoot = 0.0
    began, seen, exceptions, failed = time.perf_counter(), Counter(), Counter(), []
    for seed in seeds:
        try:
            report = simulate(seed, world=world, machine=machine)
        except Exception as error:  # noqa: BLE001 - as above
            failed.append(seed)
            print(
                f"seed {seed}: {error}\n    replay: python -m tests.simulation {seed}{world.replay}{machine.replay}"
            )
        else:
            seen.update(report.seen)
            exceptions.update(report.exceptions)
            overshoot = max(overshoot, report.overshoot)
    took = time.perf_counter() - began
    print(f"{len(seeds)} seeds in {took:.1f} s, {len(failed)} failed; {dict(seen)}")
    print(f"largest overshoot: {overshoot:.2f} of what it can be")
    for what, times in exceptions.most_common():
        print(f"{times:6}  {what}")
    return 1 if failed else 0


sys.exit(main())
