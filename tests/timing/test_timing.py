"""Backoff, periodic steps and bounded waits, in virtual time."""

import asyncio

import pytest

from extproc.timing.backoff import Backoff
from extproc.timing.events import happens_within
from extproc.timing.periodic import periodically
from tests.virtual_loop import run


class ExpectedError(Exception):
    pass


async def until_cancelled(loop, coro, after_s):
    task = loop.create_task(coro)
    await asyncio.sleep(after_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_bound_of_a_wait_doubles_up_to_its_cap():
    backoff = Backoff(first_s=1.0, max_s=5.0)
    assert [backoff.bound_s(failures) for failures in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]


def test_any_number_of_failures_has_a_bound():
    assert Backoff(first_s=0.05, max_s=300.0).bound_s(10**9) == 300


@pytest.mark.parametrize(("draw", "wait_s"), [(0.0, 0.0), (0.25, 1.0), (0.75, 3.0)])
def test_a_wait_is_any_part_of_its_bound(draw, wait_s):
    assert Backoff(first_s=1.0, max_s=60.0, draw=lambda: draw).wait_s(3) == wait_s


def test_a_step_is_repeated_after_each_sleep():
    at = []

    async def main(loop):
        async def step():
            at.append(loop.time())

        repeated = periodically(step, 10, expected=ExpectedError, on_failure=at.append)
        await until_cancelled(loop, repeated, 35)

    run(main)
    assert at == [10, 20, 30]


def test_the_first_step_can_come_before_the_first_sleep():
    at = []

    async def main(loop):
        async def step():
            at.append(loop.time())

        repeated = periodically(step, 10, expected=ExpectedError, on_failure=at.append, at_once=True)
        await until_cancelled(loop, repeated, 15)

    run(main)
    assert at == [0, 10]


def test_an_expected_failure_is_reported_and_the_step_is_repeated():
    failures = [ExpectedError("first"), None, ExpectedError("third")]
    reported = []

    async def main(loop):
        async def step():
            failure = failures.pop(0)
            if failure is not None:
                raise failure

        repeated = periodically(step, 1, expected=ExpectedError, on_failure=reported.append)
        await until_cancelled(loop, repeated, 3.5)

    run(main)
    assert [str(failure) for failure in reported] == ["first", "third"]


def test_an_unexpected_failure_ends_the_repetition():
    async def main(loop):
        async def step():
            raise KeyError("bug")

        with pytest.raises(KeyError):
            await periodically(step, 1, expected=ExpectedError, on_failure=lambda _: None)

    run(main)


def test_jitter_spreads_the_sleeps_on_both_sides():
    at = []
    draws = [0.0, 0.5, 0.75, 0.5]

    async def main(loop):
        async def step():
            at.append(loop.time())

        repeated = periodically(
            step, 10, expected=ExpectedError, on_failure=at.append, jitter=0.5, draw=lambda: draws.pop(0)
        )
        await until_cancelled(loop, repeated, 30)

    run(main)
    assert at == [5, 15, 27.5]


def test_an_event_that_happens_ends_the_wait():
    async def main(loop):
        event = asyncio.Event()
        loop.call_later(3, event.set)
        assert await happens_within(event, 10)
        assert loop.time() == 3
        assert await happens_within(event, None)

    run(main)


def test_an_event_that_does_not_happen_is_waited_for_until_the_timeout():
    async def main(loop):
        assert not await happens_within(asyncio.Event(), 10)
        assert loop.time() == 10

    run(main)


def test_a_cancellation_is_not_taken_for_the_timeout():
    async def main(loop):
        await until_cancelled(loop, happens_within(asyncio.Event(), 10), 1)

    run(main)
