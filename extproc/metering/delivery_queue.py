"""A bounded queue that hands its items over in batches and does not give up while the other side is away."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from extproc.ports.base import StoreError

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """`linger_s` is how long a batch may wait for company; retries back off up to `max_backoff_s`."""

    name: str
    max_batch: int = 500
    max_queued: int = 100_000
    linger_s: float = 0.0
    first_backoff_s: float = 0.05
    max_backoff_s: float = 2.0


class DeliveryQueue(Generic[T]):
    """Items put in are delivered at least once and in order, as long as the process lives.

    `deliver` must be safe to repeat. What it refuses for good (a `StoreError` that is not transient) is tried
    once more on its own, then given to `refused` if there is one (repeatedly, while that fails in passing); else
    it is lost, with a loud line in the log, and counted by `on_lost`.
    """

    def __init__(
        self,
        options: DeliveryOptions,
        deliver: Callable[[Sequence[T]], Awaitable[None]],
        on_lost: Callable[[str, int], None],
        refused: Callable[[T, StoreError], Awaitable[None]] | None = None,
    ) -> None:
        self._options = options
        self._deliver = deliver
        self._on_lost = on_lost
        self._refused = refused
        self._items: deque[T] = deque()
        self._batch: Sequence[T] = ()
        self._again = asyncio.Event()
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items) + len(self._batch)

    def __iter__(self) -> Iterator[T]:
        """What is not known to be delivered, oldest first."""
        yield from self._batch
        yield from self._items

    @property
    def full(self) -> bool:
        return len(self) >= self._options.max_queued

    def put(self, item: T, *, beyond: bool = False) -> bool:
        """Queues an item without waiting. False, and the item is lost, where the queue is full.

        `beyond`: its bound does not matter; for what was in another queue of this process before.
        """
        if self.full and not beyond:
            self._on_lost(self._options.name, 1)
            _log.error("queue full, item lost", extra={"queue": self._options.name})
            return False
        self._items.append(item)
        self._filled.set()
        self._empty.clear()
        return True

    async def run(self) -> None:
        """Delivers until cancelled."""
        while True:
            await self._filled.wait()
            if self._options.linger_s and not self._hurry.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._options.linger_s)
            batch = [self._items.popleft() for _ in range(min(len(self._items), self._options.max_batch))]
            self._batch = batch
            try:
                await self._hand_over(batch)
            except BaseException:  # cancelled, or a fault of ours: who gathers what is left finds it
                self._items.extendleft(reversed(self._batch))
                raise
            finally:
                self._batch = ()
            if not self._items:
                self._filled.clear()
                self._empty.set()

    async def drained(self) -> None:
        """Returns when all that was put is delivered; stops lingering from now on."""
        self._hurry.set()
        self.retry()
        await self._empty.wait()

    def retry(self) -> None:
        """Tries at once what failed and waits for its next turn: the other side may be back."""
        self._again.set()

    async def _hand_over(self, batch: Sequence[T]) -> None:
        backoff_s = self._options.first_backoff_s
        while True:
            try:
                await self._deliver(batch)
            except StoreError as error:
                if not error.transient:
                    await self._set_aside(batch, error)
                    return
                _log.warning(
                    "delivery failed, will be repeated",
                    extra={"queue": self._options.name, "items": len(batch), "error": str(error)},
                )
                await self._pause(backoff_s)
                backoff_s = min(backoff_s * 2, self._options.max_backoff_s)
            else:
                return

    async def _pause(self, seconds: float) -> None:
        self._again.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()

    async def _set_aside(self, batch: Sequence[T], error: StoreError) -> None:
        if len(batch) > 1:  # one bad item must not take the others with it
            for number, item in enumerate(batch):
                self._batch = batch[number:]  # the ones before are delivered, or lost
                await self._hand_over([item])
            return
        if self._refused is not None:
            _log.error("refused for good", extra={"queue": self._options.name, "error": str(error)})
            await self._repeated(self._refused, batch[0], error)
            return
        self._on_lost(self._options.name, 1)
        _log.error("item refused for good", extra={"queue": self._options.name, "error": str(error)})

    async def _repeated(
        self, refused: Callable[[T, StoreError], Awaitable[None]], item: T, error: StoreError
    ) -> None:
        while True:
            try:
                await refused(item, error)
            except StoreError as failed:
                _log.warning("not set aside yet", extra={"queue": self._options.name, "error": str(failed)})
                await self._pause(self._options.max_backoff_s)
            else:
                return
