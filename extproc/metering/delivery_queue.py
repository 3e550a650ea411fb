"""Queue items within bounds, deliver them in batches, and keep trying while the other side is away."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from extproc.ports.base import StoreError
from extproc.timing.backoff import Backoff
from extproc.timing.events import happens_within

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """Name a queue (a metric label) and bound it. A batch that is not full waits `linger_s` seconds for more."""

    name: str
    max_batch: int = 500
    max_queued: int = 100_000
    linger_s: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.05, max_s=2.0))


class QueueRoom:
    """Share the room for `max_items` items among queues that deliver the same to different places.

    When the room is used up, each queue still has its own share: items for a place that is away do not take the
    room of items that can be delivered.
    """

    def __init__(self, max_items: int, queues: int = 1) -> None:
        self._max_items = max_items
        self.share = max(1, max_items // queues)
        """Tell how many items each queue takes in any case."""
        self._queues: list[Sized] = []

    def join(self, queue: Sized) -> None:
        """Add a queue."""
        self._queues.append(queue)

    def takes_more(self, queue: Sized) -> bool:
        """Tell whether one more item fits into this queue."""
        return len(queue) < self.share or len(self) < self._max_items

    def __len__(self) -> int:
        """Return how many items wait in all queues."""
        return sum(map(len, self._queues))


class DeliveryQueue(Generic[T]):
    """Deliver items at least once and in order, as long as the process lives.

    `deliver` must be safe to repeat. A batch that it refuses with a permanent `StoreError` is delivered item by
    item. An item that is refused permanently goes to `refused`, again and again while that fails with a transient
    error. Without `refused` the item is lost: an error is logged, and `on_lost` is called with the queue's name.
    """

    def __init__(
        self,
        options: DeliveryOptions,
        deliver: Callable[[Sequence[T]], Awaitable[None]],
        on_lost: Callable[[str, int], None],
        refused: Callable[[T, StoreError], Awaitable[None]] | None = None,
        room: QueueRoom | None = None,
    ) -> None:
        """Take items as long as there is room: `options.max_queued`, or the `room` shared with other queues."""
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
        self._enough = asyncio.Event()  # a full batch waits, or none waits for more items
        self._draining = False
        self._room = QueueRoom(options.max_queued) if room is None else room
        self._room.join(self)

    def __len__(self) -> int:
        return len(self._items) + len(self._batch)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items that are not known to be delivered, oldest first."""
        yield from self._batch
        yield from self._items

    @property
    def full(self) -> bool:
        return not self._room.takes_more(self)

    def put(self, item: T, *, beyond: bool = False) -> bool:
        """Queue an item without waiting. Return False if the queue is full: the item is lost then.

        With `beyond` the bound does not count; for items that were in another queue of this process before.
        """
        # Most often this queue has not even its own share: the other queues are not asked then.
        if len(self._items) + len(self._batch) >= self._room.share and self.full and not beyond:
            self._on_lost(self._options.name, 1)
            _log.error("delivery queue full: an item is lost", extra={"queue": self._options.name})
            return False
        if not self._items:  # else they say so already
            self._filled.set()
            self._empty.clear()
        self._items.append(item)
        if len(self._items) >= self._options.max_batch:
            self._enough.set()
        return True

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await self._filled.wait()
            if self._options.linger_s and not self._enough.is_set():
                await happens_within(self._enough, self._options.linger_s)
            batch = [self._items.popleft() for _ in range(min(len(self._items), self._options.max_batch))]
            if len(self._items) < self._options.max_batch and not self._draining:
                self._enough.clear()
            self._batch = batch
            try:
                await self._hand_over(batch)
            except BaseException:  # cancelled, or a bug: the items must still be found here
                self._items.extendleft(reversed(self._batch))
                raise
            finally:
                self._batch = ()
            if not self._items:
                self._filled.clear()
                self._empty.set()

    async def drained(self) -> None:
        """Return when all that was put is delivered. From now on no batch waits for more items."""
        self._draining = True
        self._enough.set()
        self.retry()
        await self._empty.wait()

    def retry(self) -> None:
        """Try at once what failed and waits for its next attempt: the other side may be back."""
        self._again.set()

    async def _hand_over(self, batch: Sequence[T]) -> None:
        failures = 0
        while True:
            try:
                await self._deliver(batch)
            except StoreError as error:
                if not error.transient:
                    await self._set_aside(batch, error)
                    return
                failures += 1
                _log.warning(
                    "delivery failed: it will be repeated",
                    extra={"queue": self._options.name, "items": len(batch), "error": str(error)},
                )
                await self._pause(failures)
            else:
                return

    async def _pause(self, failures: int) -> None:
        self._again.clear()
        await happens_within(self._again, self._options.backoff.wait_s(failures))

    async def _set_aside(self, batch: Sequence[T], error: StoreError) -> None:
        if len(batch) > 1:  # one bad item must not take the others with it
            for number, item in enumerate(batch):
                self._batch = batch[number:]  # the items before are delivered, or lost
                await self._hand_over([item])
            return
        fields = {"queue": self._options.name, "error": str(error)}
        if self._refused is None:
            self._on_lost(self._options.name, 1)
            _log.error("delivery refused permanently: the item is lost", extra=fields)
            return
        _log.error("delivery refused permanently: the item is set aside", extra=fields)
        await self._repeat(self._refused, batch[0], error)

    async def _repeat(
        self, refused: Callable[[T, StoreError], Awaitable[None]], item: T, error: StoreError
    ) -> None:
        failures = 0
        while True:
            try:
                await refused(item, error)
            except StoreError as failed:
                failures += 1
                _log.warning(
                    "setting aside failed: it will be repeated",
                    extra={"queue": self._options.name, "error": str(failed)},
                )
                await self._pause(failures)
            else:
                return
