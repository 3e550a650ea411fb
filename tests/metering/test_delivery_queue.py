"""A queue whose items are delivered at least once and in order, as long as the process lives."""

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from extproc.metering.delivery_queue import DeliveryOptions, DeliveryQueue
from extproc.ports.base import StoreError
from extproc.timing.backoff import Backoff

from .waiting import all_done


class Receiver:
    """Takes batches; fails where it is told to."""

    def __init__(self, **options):
        self.batches = []
        self.faults = []
        self.bad = set()
        self.lost = []
        self.open = asyncio.Event()
        self.open.set()
        options = {"backoff": Backoff(first_s=0.001, max_s=0.002)} | options
        self.outbox = DeliveryQueue(
            DeliveryOptions("q", **options), self.deliver, lambda name, n: self.lost.append((name, n))
        )

    async def deliver(self, batch):
        await self.open.wait()
        if self.faults:
            raise self.faults.pop(0)
        if self.bad & set(batch):
            raise StoreError("bad", transient=False)
        self.batches.append(list(batch))

    @property
    def items(self):
        return [item for batch in self.batches for item in batch]

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.outbox.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def drained(self):
        async with self.running(), asyncio.timeout(5):
            await self.outbox.drained()


def away():
    return StoreError("away", transient=True)


async def test_items_are_delivered_in_order_and_in_batches_of_bounded_size():
    receiver = Receiver(max_batch=4)
    for item in range(10):
        assert receiver.outbox.put(item)
    await receiver.drained()
    assert receiver.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(receiver.outbox) == 0


async def test_an_empty_queue_is_drained_at_once():
    receiver = Receiver()
    await receiver.outbox.drained()


async def test_a_batch_is_repeated_until_it_is_taken():
    receiver = Receiver()
    receiver.faults = [away() for _ in range(5)]
    for item in range(3):
        receiver.outbox.put(item)
    await receiver.drained()
    assert receiver.batches == [[0, 1, 2]]
    assert receiver.lost == []


async def test_only_the_item_that_is_refused_is_set_aside_and_counted(caplog):
    receiver = Receiver()
    receiver.bad = {1, 3}
    for item in range(5):
        receiver.outbox.put(item)
    await receiver.drained()
    assert receiver.items == [0, 2, 4]
    assert receiver.lost == [("q", 1), ("q", 1)]
    assert caplog.text.count("delivery refused permanently: the item is lost") == 2


async def test_a_fault_while_items_are_tried_one_by_one_loses_none():
    receiver = Receiver()
    receiver.bad = {1}
    receiver.faults = [StoreError("bad", transient=False), away(), away()]
    for item in range(3):
        receiver.outbox.put(item)
    await receiver.drained()
    assert receiver.items == [0, 2]


async def test_a_full_queue_refuses_and_counts_what_comes(caplog):
    receiver = Receiver(max_queued=3)
    assert [receiver.outbox.put(item) for item in range(5)] == [True, True, True, False, False]
    assert receiver.lost == [("q", 1), ("q", 1)]
    assert "queue full" in caplog.text
    await receiver.drained()
    assert receiver.items == [0, 1, 2]
    assert receiver.outbox.put(9)


async def test_what_is_in_hand_counts_as_queued():
    receiver = Receiver(max_queued=3)
    receiver.open.clear()
    async with receiver.running():
        for item in range(3):
            receiver.outbox.put(item)
        await all_done()
        assert len(receiver.outbox) == 3
        assert not receiver.outbox.put(3)


async def test_drained_waits_for_what_is_in_hand_too():
    receiver = Receiver()
    receiver.open.clear()
    receiver.outbox.put(1)
    async with receiver.running():
        waiting = asyncio.ensure_future(receiver.outbox.drained())
        await all_done()
        assert not waiting.done()
        receiver.open.set()
        await waiting
    assert receiver.items == [1]


async def test_items_that_come_while_others_are_delivered_follow_them():
    receiver = Receiver()
    receiver.open.clear()
    async with receiver.running():
        receiver.outbox.put(1)
        await all_done()
        receiver.outbox.put(2)
        receiver.outbox.put(3)
        receiver.open.set()
        async with asyncio.timeout(5):
            await receiver.outbox.drained()
    assert receiver.batches == [[1], [2, 3]]


async def test_a_full_batch_waits_for_no_more_items():
    """Else a queue could never deliver more than a batch per time that it lingers."""
    receiver = Receiver(linger_s=60.0, max_batch=4)
    async with receiver.running():
        for item in range(11):
            receiver.outbox.put(item)
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            while len(receiver.batches) < 2:  # noqa: ASYNC110 - the batches that are full
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert receiver.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert len(receiver.outbox) == 3
        receiver.outbox.put(11)
        async with asyncio.timeout(5):
            while len(receiver.batches) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert receiver.batches[2] == [8, 9, 10, 11]


@pytest.mark.parametrize(("batch_s", "keeps_up"), [(0.05, True), (0.45, True), (0.6, False)])
async def test_a_queue_keeps_up_as_long_as_a_full_batch_is_delivered_faster_than_it_comes(batch_s, keeps_up):
    """1,000 items a second, batches of 500: a batch may take half a second. docs/scaling.md says so."""
    delivered = 0

    async def deliver(batch):
        nonlocal delivered
        await asyncio.sleep(batch_s)
        delivered += len(batch)

    queue = DeliveryQueue(DeliveryOptions("q", max_batch=500, linger_s=0.1), deliver, lambda *_: None)
    running = asyncio.create_task(queue.run())
    for item in range(20_000):
        queue.put(item)
        if not item % 10:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait({running})
    assert (len(queue) <= 1_000) is keeps_up
    assert delivered + len(queue) == 20_000


async def test_a_lingering_queue_hurries_when_it_is_drained():
    receiver = Receiver(linger_s=60.0)
    async with receiver.running():
        receiver.outbox.put(1)
        await asyncio.sleep(59)
        assert receiver.batches == []
        async with asyncio.timeout(0.1):
            await receiver.outbox.drained()
    assert receiver.items == [1]


async def test_whenever_it_is_stopped_and_started_again_every_item_arrives_in_order():
    dice = random.Random(3)
    receiver = Receiver(max_batch=3)
    put = 0
    for _ in range(60):
        async with receiver.running():
            for _ in range(dice.randint(0, 4)):
                receiver.outbox.put(put)
                put += 1
            receiver.faults = [away()] * dice.randint(0, 1)
            receiver.open.set() if dice.random() < 0.7 else receiver.open.clear()
            for _ in range(dice.randint(0, 6)):
                await asyncio.sleep(0)
    receiver.faults = []
    receiver.open.set()
    await receiver.drained()
    assert list(dict.fromkeys(receiver.items)) == list(range(put))  # once or more, in order
