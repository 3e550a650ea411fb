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


def busy_turns(clock):
    """Return turns of a loop on which somebody without long work has just said something."""
    turns = Turns(clock)
    turns.heard()
    return turns


async def test_after_a_slice_all_long_work_rests_for_twice_as_long():
    clock = Clock()
    turns = busy_turns(clock)
    turns.worked(1.0)
    waiting = asyncio.create_task(turns.wait(0.0))
    clock.now += 1.99
    turns.heard()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    clock.now += 0.01
    turns._next()
    await waiting


async def test_one_slice_is_done_at_a_time_and_who_has_worked_least_is_next():
    clock, order = Clock(), []
    turns = busy_turns(clock)
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
        turns.heard()
        await until(lambda count=count: len(order) >= count, "the next has worked")
        await asyncio.sleep(0.01)
        assert len(order) == count
    await asyncio.gather(*tasks)
    assert order == ["new", "mid", "old"]


async def test_those_that_come_later_do_not_keep_the_oldest_waiting_for_ever():
    clock = Clock()
    turns = busy_turns(clock)
    turns.worked(1.0)
    oldest = asyncio.create_task(turns.wait(3.0))
    newer = []
    for _ in range(20):
        newer.append(asyncio.create_task(turns.wait(0.0)))
        await asyncio.sleep(0)
        clock.now += 2.0
        turns._next()  # one of them has its turn
        await asyncio.sleep(0)
        if oldest.done():
            break
        turns.worked(1.0)
    assert oldest.done()
    assert 2 <= len(newer) < 20
    for each in newer:
        each.cancel()


async def test_who_comes_later_counts_as_having_worked_as_much_as_those_that_are_served():
    clock = Clock()
    turns = busy_turns(clock)
    turns.worked(1.0)
    waiting = asyncio.create_task(turns.wait(5.0))
    await asyncio.sleep(0)
    clock.now += 2.0
    turns._next()
    assert await waiting == 5.0
    assert await turns.wait(0.0) == 5.0


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
    monkeypatch.setattr(module, "perf_counter", lambda: next(times))
    clock = Clock()
    turn = Turn(Turns(clock))
    turn.begin()
    turn.end()
    assert not turn.owes
    turn.begin()
    assert turn.over
    turn.end()
    waiting = asyncio.create_task(turn.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.now += 0.0202
    await waiting


async def test_nobody_rests_while_only_long_work_goes_on_but_each_turn_of_the_loop_does_one_slice():
    clock, order = Clock(), []
    turns = Turns(clock)

    async def work(name):
        for _ in range(3):
            await turns.wait(0.0)
            order.append(name)
            turns.worked(1.0)

    turns.worked(1.0)
    clock.now += 0.021
    tasks = [asyncio.create_task(work(name)) for name in "ab"]
    done = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        assert len(order) - done <= 1
        done = len(order)
    assert sorted(order) == ["a"] * 3 + ["b"] * 3


async def test_the_rest_after_a_quiet_time_is_that_of_the_last_slice_alone():
    clock = Clock()
    turns = Turns(clock)
    clock.now += 0.021
    for _ in range(100):
        turns.worked(1.0)
    turns.heard()
    waiting = asyncio.create_task(turns.wait(0.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.now += 2.0
    turns.heard()
    await waiting


async def test_messages_of_an_exchange_with_much_long_work_make_nobody_rest(monkeypatch):
    times = iter([0.0, 0.004, 1.0, 1.002])
    monkeypatch.setattr(module, "perf_counter", lambda: next(times))
    clock = Clock()
    turns = Turns(clock)
    turn = Turn(turns)
    for rests in (True, False):
        turn.begin()
        turn.end()
        clock.now += 0.021
        turn.heard()
        assert turns.rests is rests
