"""Break the circuit to the counters: after some failures nobody waits for them, until a probe succeeds."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from extproc.ports.base import StoreError


@dataclass(frozen=True, slots=True)
class CircuitBreakerOptions:
    """Bound a circuit breaker.

    It opens after `failures` failures in a row. While it is open, it sends a probe every `probe_s` seconds, and
    waits `timeout_s` seconds for its answer.
    """

    failures: int = 5
    probe_s: float = 0.25
    timeout_s: float = 0.1


class CircuitBreaker:
    """Decide whether the counters of one shard are asked at all. `closed_at`: when it closed last, loop time."""

    def __init__(self, probe: Callable[[], Awaitable[None]], options: CircuitBreakerOptions) -> None:
        self._probe = probe
        self._options = options
        self._in_a_row = 0
        self._opened = asyncio.Event()
        self.closed_at = float("-inf")

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def failed(self) -> None:
        """Count a call that failed or took too long."""
        self._in_a_row += 1
        if self._in_a_row >= self._options.failures:
            self._opened.set()

    def worked(self) -> None:
        """Count a call that was answered."""
        self._in_a_row = 0

    async def recover(self) -> None:
        """Wait until the breaker opens, and probe until the counters answer. Return when it has closed again."""
        await self._opened.wait()
        while True:
            await asyncio.sleep(self._options.probe_s)
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    await self._probe()
            except (StoreError, TimeoutError):
                continue
            self._in_a_row = 0
            self.closed_at = asyncio.get_running_loop().time()
            self._opened.clear()
            return
