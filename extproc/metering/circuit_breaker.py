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
    """Decide whether the counters are asked at all."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        options: CircuitBreakerOptions,
        on_change: Callable[[bool], None],
    ) -> None:
        """Call `on_change` at each change: with True when it opens, with False when it closes."""
        self._probe = probe
        self._options = options
        self._on_change = on_change
        self._in_a_row = 0
        self._opened = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def failed(self) -> None:
        """Count a call that failed or took too long."""
        self._in_a_row += 1
        if self._in_a_row >= self._options.failures and not self.is_open:
            self._opened.set()
            self._on_change(True)

    def worked(self) -> None:
        """Count a call that was answered."""
        self._in_a_row = 0

    async def run(self) -> None:
        """Probe while it is open, until cancelled."""
        while True:
            await self._opened.wait()
            await asyncio.sleep(self._options.probe_s)
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    await self._probe()
            except (StoreError, TimeoutError):
                continue
            self._in_a_row = 0
            self._opened.clear()
            self._on_change(False)
