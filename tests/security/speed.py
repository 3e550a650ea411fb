"""Tell how slow this machine is, for bounds in milliseconds of processor time."""

import time
from statistics import median

# What the loop below took on the machine that the bounds were made for.
_USUAL_S = 0.007
_TIMES = 5


def slowness() -> float:
    """Return how many times as long a fixed piece of work takes now as where the bounds were made; at least 1."""
    return max(1.0, median(_took() for _ in range(_TIMES)) / _USUAL_S)


def _took() -> float:
    began, total = time.process_time(), 0
    for number in range(200_000):
        total += number
    return time.process_time() - began
