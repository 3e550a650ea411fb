"""Plays seeds: `python -m tests.simulation 1234` one, with every step; `--seeds 2000` many, from a seed on."""

import argparse
import sys
import time
import traceback
from collections import Counter

from .world import simulate


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from `seed` on")
    parser.add_argument("--quiet", action="store_true", help="without the steps")
    options = parser.parse_args()
    if options.seeds == 1:
        return _one(options.seed, None if options.quiet else print)
    return _many(range(options.seed, options.seed + options.seeds))


def _one(seed, trace):
    try:
        report = simulate(seed, trace)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the seed shows
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        print(f"seed {seed}: {error}")
        return 1
    print(report.told())
    return 0


def _many(seeds):
    began, seen, exceptions, failed = time.perf_counter(), Counter(), Counter(), []
    for seed in seeds:
        try:
            report = simulate(seed)
        except Exception as error:  # noqa: BLE001 - as above
            failed.append(seed)
            print(f"seed {seed}: {error}\n    replay: python -m tests.simulation {seed}")
        else:
            seen.update(report.seen)
            exceptions.update(report.exceptions)
    took = time.perf_counter() - began
    print(f"{len(seeds)} seeds in {took:.1f} s, {len(failed)} failed; {dict(seen)}")
    for what, times in exceptions.most_common():
        print(f"{times:6}  {what}")
    return 1 if failed else 0


sys.exit(main())
