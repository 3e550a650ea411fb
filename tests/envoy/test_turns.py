"""Long work takes turns: one slice after the other, with rest between them, and the newest work first."""

import asyncio

from extproc.envoy import turns as module
from extproc.envoy.turns import Turn, Turns
from tests.system.waiting import until


class Clock:
    """Go on only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


async def test_who_comes_first_does_not_wait():
    turns = Turns(Clock())
    await turns.wait(0.0)


async def test_after_a_slice_all_long_work_rests_for_twice_as_long():
    clock = Clock()
    turns = Turns(clock)
    turns.worked(1.0)
    waiting = asyncio.create_task(turns.wait(0.0))
    clock.now += 1.99
    await asyncio.sleep(0.01)
    assert not waiting.done()
    clock.now += 0.01
    turns._next()
    await waiting


async def test_one_slice_is_done_at_a_time_and_who_has_worked_least_is_next():
    clock, order = Clock(), []
    turns = Turns(clock)
    turns.worked(1.0)

    async def work(name, worked_s):
        await turns.wait(worked_s)
        order.append(name)
        turns.worked(1.0)

    tasks = [
        asyncio.create_task(work(name, worked)) for name, worked in (("old", 5.0), ("new", 0.0), ("mid", 1.0))
    ]
    await asyncio.sleep(0)
    for count in range(1, 4):
        clock.now += 2.0
        await until(lambda count=count: len(order) >= count, "the next has worked")
        await asyncio.sleep(0.01)
        assert len(order) == count
    await asyncio.gather(*tasks)
    assert order == ["new", "mid", "old"]


async def test_who_is_cancelled_while_it_waits_takes_nobodys_turn():
    clock = Clock()
    turns = Turns(clock)
    turns.worked(1.0)
    first, second = (asyncio.create_task(turns.wait(worked)) for worked in (0.0, 1.0))
    await asyncio.sleep(0)
    first.cancel()
    clock.now += 2.0
    await second
    assert first.cancelled()


async def test_only_long_work_is_rested_from(monkeypatch):
    times = iter([0.0, 0.00009, 1.0, 1.0101, 1.0101])
    monkeypatch.setattr(module.time, "thread_time", lambda: next(times))
    clock = Clock()
    turn = Turn(Turns(clock))
    turn.begin()
    turn.end()
    await turn.rest()
    turn.begin()
    assert turn.over
    turn.end()
    waiting = asyncio.create_task(turn.rest())
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.now += 0.0202
    await waiting
