"""Wait between failed attempts."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# Doubling further would overflow a float; every cap is reached long before.
_MAX_DOUBLINGS: Final = 64


@dataclass(frozen=True, slots=True)
class Backoff:
    """Compute the waits of exponential backoff with a cap and full jitter.

    The upper bound of a wait is `first_s` after the first failure, doubles with each further failure, and never
    exceeds `max_s`. The wait itself is drawn between 0 and that bound, so replicas that failed together do not
    retry together. `draw` returns a random number, 0 <= number < 1.
    """

    first_s: float
    max_s: float
    draw: Callable[[], float] = random.random

    def bound_s(self, failures: int) -> float:
        """Return the longest wait in seconds after so many failures in a row (1 or more)."""
        return min(self.first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS), self.max_s)

    def wait_s(self, failures: int) -> float:
        """Draw the wait in seconds after so many failures in a row (1 or more)."""
        return self.bound_s(failures) * self.draw()
