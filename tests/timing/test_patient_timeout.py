"""A peer is not blamed for what the event loop itself is late."""

import asyncio
import time

import pytest

from extproc.timing.patient_timeout import patient_timeout


async def answered_through(hops, answer):
    for _ in range(hops):
        await asyncio.sleep(0)
    answer.set_result("here")


async def test_an_answer_that_is_there_when_a_busy_loop_looks_is_taken():
    answer = asyncio.get_running_loop().create_future()
    async with patient_timeout(0.02):
        hops = asyncio.create_task(answered_through(8, answer))
        await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251  the loop is busy beyond the time
        assert await answer == "here"
    await hops


async def test_a_peer_that_says_nothing_is_given_up_in_time():
    begun = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        async with patient_timeout(0.02):
            await asyncio.get_running_loop().create_future()
    assert asyncio.get_running_loop().time() - begun >= 0.02


async def test_nothing_is_left_behind_by_what_ended_in_time():
    async with patient_timeout(0.01):
        pass
    await asyncio.sleep(0.03)


async def test_who_is_cancelled_is_cancelled():
    async def waits():
        async with patient_timeout(10):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
