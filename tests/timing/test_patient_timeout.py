"""A peer is not blamed for what the event loop itself is late."""

import asyncio
import time

import pytest

from extproc.timing.patient_timeout import PatientTimeouts


async def answered_through(hops, answer):
    for _ in range(hops):
        await asyncio.sleep(0)
    answer.set_result("here")


async def test_an_answer_that_is_there_when_a_busy_loop_looks_is_taken():
    answer = asyncio.get_running_loop().create_future()
    with PatientTimeouts(0.02).wait():
        hops = asyncio.create_task(answered_through(8, answer))
        await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251  the loop is busy beyond the time
        assert await answer == "here"
    await hops


async def test_a_peer_that_says_nothing_is_given_up_in_time():
    begun = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError), PatientTimeouts(0.02).wait():
        await asyncio.get_running_loop().create_future()
    assert asyncio.get_running_loop().time() - begun >= 0.02


async def test_nothing_is_left_behind_by_what_ended_in_time():
    with PatientTimeouts(0.01).wait():
        pass
    await asyncio.sleep(0.03)


async def test_who_is_cancelled_is_cancelled():
    async def waits():
        with PatientTimeouts(10).wait():
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_waits_share_one_timer_and_each_ends_in_its_own_time():
    timeouts = PatientTimeouts(0.05)
    loop = asyncio.get_running_loop()

    async def waits(later_s):
        await asyncio.sleep(later_s)
        begun = loop.time()
        with pytest.raises(TimeoutError), timeouts.wait():
            await loop.create_future()
        return loop.time() - begun

    async def ends():
        with timeouts.wait():
            await asyncio.sleep(0)

    took = await asyncio.gather(*(waits(0.01 * i) for i in range(5)), *(ends() for _ in range(5)))
    assert all(each >= 0.05 for each in took[:5])
    assert await waits(0) >= 0.05, "after a while without any"


async def test_one_that_is_cancelled_while_its_time_is_over_is_cancelled():
    async def waits():
        with PatientTimeouts(0).wait():
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                asyncio.current_task().cancel()

    task = asyncio.create_task(waits())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_peer_stays_that_error():
    async def fails():
        with PatientTimeouts(0).wait():
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                raise KeyError from None

    with pytest.raises(KeyError):
        await fails()
    assert not asyncio.current_task().cancelling()
