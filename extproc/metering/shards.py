"""Run queues side by side, one for each part of the counters that fails by itself: none waits for another."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.request.identity import TenantId
from extproc.metering.delivery_queue import DeliveryOptions, DeliveryQueue
from extproc.ports.base import StoreError
from extproc.ports.counters import Counters

T = TypeVar("T")

# A partition, where partitions fail by themselves (a Redis Cluster); None: all partitions, which fail together.
Part = int | None


def parts_of(counters: Counters) -> tuple[Part, ...]:
    """Return the parts of the counters that fail by themselves."""
    return tuple(range(PARTITIONS)) if counters.apart else (None,)


def part_of(counters: Counters, tenant: TenantId) -> Part:
    """Return the part that counts a tenant."""
    return partition_of(tenant) if counters.apart else None


class ShardQueues(Generic[T]):
    """Deliver items as a `DeliveryQueue` does, with a queue for each part of the counters.

    All queues share room for `max_queued` items. When it is used up, a part still has its own share: what waits
    for a server that is away does not take the room of what can be delivered.
    """

    def __init__(
        self,
        options: DeliveryOptions,
        counters: Counters,
        tenant: Callable[[T], TenantId],
        deliver: Callable[[Sequence[T]], Awaitable[None]],
        *,
        on_lost: Callable[[str, int], None],
        refused: Callable[[T, StoreError], Awaitable[None]] | None = None,
    ) -> None:
        self._max_queued = options.max_queued
        self._counters, self._tenant = counters, tenant
        parts = parts_of(counters)
        share = replace(options, max_queued=max(1, options.max_queued // len(parts)))
        self._queues = {part: DeliveryQueue(share, deliver, on_lost, refused) for part in parts}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items that are not known to be delivered, each part's oldest first."""
        for queue in self._queues.values():
            yield from queue

    def waiting(self, part: Part) -> int:
        """Return how many items of a part wait."""
        return len(self._queues[part])

    def beside(self, tenant: TenantId) -> int:
        """Return how many items wait in the part that counts a tenant."""
        return self.waiting(part_of(self._counters, tenant))

    def full(self, part: Part) -> bool:
        """Tell whether no more items of a part are taken."""
        return len(self) >= self._max_queued and self._queues[part].full

    def put(self, item: T, *, beyond: bool = False) -> bool:
        """Queue an item, as `DeliveryQueue.put` does."""
        part = part_of(self._counters, self._tenant(item))
        return self._queues[part].put(item, beyond=beyond or not self.full(part))

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as group:
            for queue in self._queues.values():
                group.create_task(queue.run())

    async def drained(self) -> None:
        """Return when all that was put is delivered. From now on no batch waits for more items."""
        await asyncio.gather(*(queue.drained() for queue in self._queues.values()))

    def retry(self) -> None:
        """Try at once what failed and waits for its next attempt."""
        for queue in self._queues.values():
            queue.retry()
