"""A circuit breaker: after some failures in a row nobody waits for the counters, until a probe gets through."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from extproc.metering.shards import Part
from extproc.ports.base import StoreError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CircuitBreakerOptions:
    """It opens after so many failures in a row; a probe, of at most `timeout_s`, then goes out every `probe_s`."""

    failures: int = 5
    probe_s: float = 0.25
    timeout_s: float = 0.1


class CircuitBreaker:
    """Says whether to ask at all."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        options: CircuitBreakerOptions,
        on_change: Callable[[bool], None],
    ) -> None:
        """`on_change` hears of each change: whether it is open now."""
        self._probe = probe
        self._options = options
        self._on_change = on_change
        self._in_a_row = 0
        self._opened = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def failed(self) -> None:
        """A call failed, or took too long."""
        self._in_a_row += 1
        if self._in_a_row >= self._options.failures and not self.is_open:
            self._opened.set()
            self._on_change(True)

    def worked(self) -> None:
        self._in_a_row = 0

    async def run(self) -> None:
        """Probes while it is open, until cancelled."""
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


class Breakers:
    """One for each part of the counters that fails by itself."""

    def __init__(
        self,
        parts: Sequence[Part],
        probe: Callable[[Part], Awaitable[None]],
        options: CircuitBreakerOptions,
        on_change: Callable[[Part, bool], None],
    ) -> None:
        """`on_change` hears whose it is, and whether it is open now."""
        self._of = {
            part: CircuitBreaker(partial(probe, part), options, partial(on_change, part)) for part in parts
        }

    @property
    def open(self) -> int:
        """How many are."""
        return sum(breaker.is_open for breaker in self._of.values())

    def of(self, part: Part) -> CircuitBreaker:
        return self._of[part]

    async def run(self) -> None:
        """Probes what is open, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for breaker in self._of.values():
                group.create_task(breaker.run())
