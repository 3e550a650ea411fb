"""The time of day on which all replicas agree."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from extproc.core.quota.binding import bind
from extproc.core.quota.limits import Subject
from extproc.core.request.endpoints import Endpoint
from extproc.metering.shared_clock import SharedClock, SyncOptions
from extproc.stores.memory.counters import MemoryCounters, MemoryServer

from .shared import Cluster
from .waiting import until
from .world import WHO, Clock, World, away, usage


class Skewed(Clock):
    """A host's clock that is so many seconds ahead of the true time."""

    def __init__(self, true, ahead_s):
        super().__init__()
        self.true, self.ahead_s = true, ahead_s

    def now(self):
        return self.true.now() + timedelta(seconds=self.ahead_s)


class Skew:
    def __init__(self, *ahead_s):
        self.true = Clock()
        self.counters = MemoryCounters(MemoryServer(lambda: self.true.now().timestamp()))
        # Each host's monotonic clock began at another time.
        self.clocks = [
            SharedClock(
                self.counters,
                Skewed(self.true, s),
                monotonic=lambda s=s: self.true.now().timestamp() - 1_000_000 * s,
            )
            for s in ahead_s
        ]


async def test_replicas_whose_clocks_are_a_minute_apart_agree_on_the_time_windows_and_deadlines(caplog):
    skew = Skew(-30, 30)
    a, b = skew.clocks
    assert b.now() - a.now() == timedelta(seconds=60)
    for each in (a, b):
        await each.sync()
    policy = World().limits.policy(WHO.tenant)
    for _ in range(50):
        skew.true.passes(3601)
        assert abs((a.now() - b.now()).total_seconds()) < 1e-3
        assert abs((a.now() - skew.true.now()).total_seconds()) < 1e-3
        subject = Subject("m", Endpoint.CHAT_COMPLETIONS)
        assert bind(policy, WHO, a.now(), subject) == bind(policy, WHO, b.now(), subject)
    assert caplog.messages.count("this host's clock differs from redis': windows and deadlines follow redis") == 2


async def test_until_the_counters_told_theirs_the_hosts_counts():
    skew = Skew(30)
    (clock,) = skew.clocks
    skew.counters.time = failing
    with pytest.raises(Exception, match="away"):
        await clock.sync()
    assert clock.now() == skew.true.now() + timedelta(seconds=30)


async def failing():
    raise away()


async def test_while_the_counters_are_away_time_goes_on_whatever_the_host_is_set_to():
    skew = Skew(0)
    (clock,) = skew.clocks
    await clock.sync()
    skew.counters.time = failing
    clock._own.ahead_s = 3600
    skew.true.passes(10)
    assert abs((clock.now() - skew.true.now()).total_seconds()) < 1e-3


async def test_an_answer_that_took_too_long_says_nothing_but_at_first():
    ticks = [0.0]
    counters = MemoryCounters(MemoryServer(lambda: 1000.0))
    clock = SharedClock(counters, Clock(), SyncOptions(exact_s=0.25), monotonic=lambda: ticks[0])
    time = counters.time

    async def slow():
        ticks[0] += 0.5
        return await time()

    counters.time = slow
    await clock.sync()
    assert clock.now() == datetime.fromtimestamp(1000.25, UTC)  # better than nothing
    ticks[0] += 100
    await clock.sync()
    assert clock.now() == datetime.fromtimestamp(1100.75, UTC)
    counters.time = time
    await clock.sync()
    assert clock.now() == datetime.fromtimestamp(1000, UTC)


async def test_counters_that_hang_are_not_waited_for():
    counters = MemoryCounters()
    counters.time = asyncio.Event().wait
    clock = SharedClock(counters, Clock(), SyncOptions(timeout_s=0.01))
    with pytest.raises(Exception, match="did not tell the time"):
        await clock.sync()


async def test_it_keeps_in_step_in_the_background_whatever_fails():
    skew = Skew(0)
    clock, answers = skew.clocks[0], []
    clock._options = SyncOptions(every_s=0.001)

    async def sometimes():
        answers.append(len(answers))
        if len(answers) % 2:
            raise away()
        return skew.true.now().timestamp() + 60

    skew.counters.time = sometimes
    task = asyncio.create_task(clock.run())
    await until(lambda: len(answers) >= 4)
    task.cancel()
    await asyncio.wait({task})
    assert abs((clock.now() - skew.true.now()).total_seconds() - 60) < 1e-3


async def test_a_step_back_of_the_counters_clock_undoes_no_renewal():
    world = World(reservation_ttl_s=900.0)
    reservation = await world.admitted()
    world.clock.passes(600)
    assert world.leases.renew_due() == 1
    (renewed,) = world.leases
    assert renewed.deadline == reservation.deadline + 600
    world.clock.passes(-3600)
    world.service.grow(reservation)
    (grown,) = world.leases
    assert grown.deadline == renewed.deadline
    async with world.running():
        await until(lambda: not world.leases.waiting)
    (known,) = await world.counters.overdue(world.clock.now() + timedelta(days=1), 10)
    assert known.deadline == renewed.deadline


async def test_a_step_of_the_counters_clock_is_told_and_the_first_answer_is_none():
    skew = Skew(-60)
    (clock,) = skew.clocks
    first = clock.next_step()
    await clock.sync()
    skew.true.passes(10)
    await clock.sync()
    assert not first.is_set()
    assert clock.stepped_at == float("-inf")
    steps = {id(first): first}
    for step_s in (3600, -7200):
        server, skew.counters.time = skew.counters.time, stepped(skew, step_s)
        for _ in range(2):
            await clock.sync()
            steps[id(clock.next_step())] = clock.next_step()
        skew.counters.time = server
        await clock.sync()
        steps[id(clock.next_step())] = clock.next_step()
    assert [step.is_set() for step in steps.values()] == [True] * 4 + [False], "there and back, twice"
    assert clock.stepped_at == asyncio.get_running_loop().time()


def stepped(skew, step_s):
    async def time():
        return skew.true.now().timestamp() + step_s

    return time


async def test_a_step_forward_of_the_counters_clock_expires_nothing_that_is_alive():
    """Each replica has the time to notice, and to renew what it holds."""
    cluster = Cluster(replicas=2, expiry_interval_s=0.002, stepped_within_s=0.3, renewed_within_s=0.0)
    a, b = await cluster.started()
    stream, dead = await b.admitted(30), await b.admitted(20)
    del b.leases._open[dead.id]  # as if of a replica that is gone
    cluster.clock.passes(3600)
    a.clock_stepped()
    async with a.running():
        await asyncio.sleep(0.25)
        assert a.counters.closed == []
        b.clock_stepped()
        async with b.running():
            await until(a.entries)
    assert [entry.id for entry in await a.entries()] == [dead.id]
    b.service.close(stream, usage(7))
    await b.delivered()
    assert await a.counts() == (27, 0)
