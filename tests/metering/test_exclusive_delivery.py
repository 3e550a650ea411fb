"""Deliveries, and rest from them."""

import asyncio

import pytest

from extproc.metering.exclusive_delivery import ExclusiveDelivery
from extproc.ports.base import StoreError

from .waiting import all_done


async def deliver(turns, step, seen):
    try:
        await turns.deliver(step)
    except StoreError as error:
        seen.append("given up" if error.transient else "refused")
    else:
        seen.append("delivered")


async def test_there_is_no_delivery_during_rest_and_one_at_a_time_after_it():
    turns, seen = ExclusiveDelivery(), []

    async def step():
        seen.append("begun")
        await asyncio.sleep(0)

    async with turns.pause():
        waiting = [asyncio.create_task(deliver(turns, step, seen)) for _ in range(2)]
        await all_done()
        assert not seen
    await asyncio.gather(*waiting)
    assert seen == ["begun", "delivered"] * 2


async def test_rest_waits_for_a_delivery_that_comes_to_its_end():
    turns, seen = ExclusiveDelivery(), []
    busy = asyncio.create_task(deliver(turns, lambda: asyncio.sleep(0.01), seen))
    await all_done()
    async with turns.pause():
        assert seen == ["delivered"]
    await busy


async def test_what_hangs_or_waits_for_its_turn_is_given_up_for_rest_and_only_for_it():
    turns, seen, gone = ExclusiveDelivery(), [], asyncio.Event()

    async def hangs():
        await gone.wait()
        seen.append("done all the same")

    hanging = [asyncio.create_task(deliver(turns, hangs, seen)) for _ in range(2)]
    await asyncio.sleep(60)
    assert not seen
    async with asyncio.timeout(5), turns.pause():
        await asyncio.gather(*hanging)
        assert seen == ["given up"] * 2
    await deliver(turns, lambda: asyncio.sleep(60), seen)
    assert seen[2:] == ["delivered"]
    gone.set()
    await all_done()
    assert seen[3:] == ["done all the same"], "it was not broken off"


async def test_a_delivery_returns_and_raises_what_it_does():
    turns = ExclusiveDelivery()

    async def right():
        return 5

    async def wrong():
        raise ValueError("its own")

    assert await turns.deliver(right) == 5
    with pytest.raises(ValueError, match="its own"):
        await turns.deliver(wrong)
    async with asyncio.timeout(5), turns.pause():
        pass


async def test_who_is_cancelled_has_delivered_or_stops_delivering():
    turns, ended = ExclusiveDelivery(), []

    async def step():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(turns.deliver(step))
    await all_done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    async with asyncio.timeout(5), turns.pause():
        pass
