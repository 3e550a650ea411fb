"""Log which tenant is refused because it has too many requests in flight: a few lines, however many requests."""

import logging
import time
from collections.abc import Callable
from typing import Final

# Refusals come by the thousand. A line names one tenant; another one that is refused too has a later line.
_EVERY_S: Final = 10.0

_log = logging.getLogger(__name__)


class CapLog:
    """Log at most one line in ten seconds."""

    def __init__(self, cap: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._cap = cap
        self._clock = clock
        self._next = clock()
        self._refused = 0

    def refused(self, tenant: str) -> None:
        """Note that a request of a tenant was refused."""
        self._refused += 1
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _EVERY_S
        more = {"tenant": tenant, "in_flight": self._cap, "refused": self._refused}
        _log.warning("tenant at its cap of requests in flight: further ones get 429", extra=more)
        self._refused = 0
