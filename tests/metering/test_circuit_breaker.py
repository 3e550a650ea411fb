"""The circuit breaker: when it opens, when it closes, and who waits meanwhile."""

import asyncio
from contextlib import asynccontextmanager

from extproc.core.quota.reservation import Admitted, Unavailable
from extproc.metering.circuit_breaker import CircuitBreaker, CircuitBreakerOptions
from extproc.ports.base import UnreadyError

from .waiting import until
from .world import World, away, refused, usage

QUICK = CircuitBreakerOptions(probe_s=0.005, timeout_s=0.01)


@asynccontextmanager
async def probing(probe):
    breaker = CircuitBreaker(probe, QUICK)

    async def recover():
        while True:
            await breaker.recover()

    task = asyncio.create_task(recover())
    yield breaker
    task.cancel()
    await asyncio.wait({task})


async def test_it_opens_after_so_many_failures_in_a_row():
    breaker = CircuitBreaker(asyncio.Event().wait, CircuitBreakerOptions())
    for _ in range(4):
        breaker.failed()
    breaker.worked()
    for _ in range(4):
        breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open


async def test_it_closes_when_a_probe_gets_through_and_not_before():
    faults, probes = [away(), None, away(), TimeoutError()], []

    async def probe():
        probes.append(breaker.is_open)
        fault = faults.pop() if faults else None
        if isinstance(fault, TimeoutError):
            await asyncio.Event().wait()
        if fault is not None:
            raise fault

    async with probing(probe) as breaker, asyncio.timeout(5):
        await asyncio.sleep(100 * QUICK.probe_s)
        assert probes == [], "nothing is probed while it is closed"
        for _ in range(5):
            breaker.failed()
        await until(lambda: not breaker.is_open)
        assert probes == [True] * 3
        assert breaker.closed_at == asyncio.get_running_loop().time()
        for _ in range(4):
            breaker.failed()
        assert not breaker.is_open, "it counts from none again"


async def test_an_answer_that_comes_late_does_not_close_it():
    async with probing(asyncio.Event().wait) as breaker:
        for _ in range(5):
            breaker.failed()
        breaker.worked()
        assert breaker.is_open


# In accounting.


async def test_while_it_is_open_the_counters_are_not_asked():
    world = World(breaker=CircuitBreakerOptions(probe_s=60))
    world.counters.hang = True
    for _ in range(5):
        assert isinstance(await world.reserve(), Unavailable)
    assert world.counted("breaker_open") == 1
    assert world.counted("reserve_seconds_count") == 5
    assert isinstance(await world.reserve(), Unavailable)
    assert world.counted("reserve_seconds_count") == 5
    assert world.counted("decisions_total", outcome="unavailable", reason="store") == 6


async def test_when_the_counters_are_back_decisions_are_made_and_ends_delivered():
    world = World(breaker=QUICK)
    reservation = await world.admitted()
    world.counters.before = [away()] * 5
    for _ in range(5):
        await world.reserve()
    world.counters.before = [away()] * 20
    world.service.close(reservation, usage(7))
    async with world.running(), asyncio.timeout(5):
        world.counters.before = []
        await until(lambda: not world.counted("breaker_open"))
        assert isinstance(await world.reserve(), Admitted)
        await world.settler._ends.drained()
    assert (await world.counts())[0] == 7


async def test_counters_that_answer_but_are_not_ready_do_not_open_it():
    world = World()
    for fault in (UnreadyError("rebuilding"), refused()):
        world.counters.before = [fault] * 10
        for _ in range(10):
            assert isinstance(await world.reserve(), Unavailable)
    assert world.counted("breaker_open") == 0


async def test_nothing_expires_while_it_is_open_nor_soon_after():
    """Replicas that were cut off need the time to renew what they hold."""
    world = World(breaker=QUICK, expiry_interval_s=0.005, renewed_within_s=0.1)
    reservation = await world.admitted()
    world.leases._open.clear()  # as if its replica were gone
    world.clock.passes(1000)
    world.counters.before = [away()] * 5
    for _ in range(5):
        await world.reserve()
    world.counters.no_ping = True
    async with world.running():
        await asyncio.sleep(1)
        assert reservation.id not in {closing.reservation.id for closing in world.counters.closed}
        world.counters.no_ping = False
        await until(lambda: not world.counted("breaker_open"))
        await asyncio.sleep(0.09)
        assert reservation.id not in {closing.reservation.id for closing in world.counters.closed}
        await until(world.entries)
    assert [entry.id for entry in await world.entries()] == [reservation.id]
