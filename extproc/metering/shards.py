"""Outboxes side by side, one for each part of the counters that fails by itself: none waits for another one's."""

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

# A partition, where partitions fail by themselves; None: all of them, which fail together.
Part = int | None


def parts_of(counters: Counters) -> tuple[Part, ...]:
    """The parts that fail by themselves."""
    return tuple(range(PARTITIONS)) if counters.apart else (None,)


def part_of(counters: Counters, tenant: TenantId) -> Part:
    """The part that a tenant is counted in."""
    return partition_of(tenant) if counters.apart else None


class ShardQueues(Generic[T]):
    """What an `DeliveryQueue` is, for items of several parts; each part's in their order.

    All together have room for `max_queued`. When that is used up, a part that has less than its share still has
    that: what waits for a server that is away does not take the room of what can be delivered.
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
        mine = replace(options, max_queued=max(1, options.max_queued // len(parts)))
        self._lanes = {each: DeliveryQueue(mine, deliver, on_lost, refused) for each in parts}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[T]:
        """What is not known to be delivered; each part's oldest first."""
        for lane in self._lanes.values():
            yield from lane

    def waiting(self, part: Part) -> int:
        """How many of one part wait."""
        return len(self._lanes[part])

    def beside(self, tenant: TenantId) -> int:
        """How many of a tenant's part wait."""
        return self.waiting(part_of(self._counters, tenant))

    def full(self, part: Part) -> bool:
        """Whether nothing more of a part is taken."""
        return len(self) >= self._max_queued and self._lanes[part].full

    def put(self, item: T, *, beyond: bool = False) -> bool:
        """As an `DeliveryQueue` does."""
        part = part_of(self._counters, self._tenant(item))
        return self._lanes[part].put(item, beyond=beyond or not self.full(part))

    async def run(self) -> None:
        """Delivers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes.values():
                group.create_task(lane.run())

    async def drained(self) -> None:
        """Returns when all that was put is delivered; stops lingering from now on."""
        await asyncio.gather(*(lane.drained() for lane in self._lanes.values()))

    def retry(self) -> None:
        """Tries at once what failed and waits for its next turn."""
        for lane in self._lanes.values():
            lane.retry()
