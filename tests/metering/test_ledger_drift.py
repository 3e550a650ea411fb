"""The difference of ledger and counters: 0 while they agree, whatever is under way, and else what it is."""

import pytest

from extproc.metering.limit_gauges import LimitGaugesOptions

from .waiting import until
from .world import World, away, usage

LIMITS = [
    {"scope": "tenant", "window": "day", "amount": 10_000},
    {"scope": "tenant", "window": "day", "unit": "requests", "amount": 100},
]


@pytest.fixture
def world():
    world = World(limit=10_000, limit_gauges=LimitGaugesOptions(tenants=10))
    world.limits.documents["acme"] = {"limits": LIMITS}
    return world


async def spend(world, amount=100):
    world.service.close(await world.admitted(amount), usage(amount))
    await world.drained()


async def look(world):
    await world.metering.limit_gauges.show()
    await world.metering.drift.look()
    return world.counted("ledger_drift")


async def test_a_ledger_that_has_all_that_was_charged_differs_by_nothing(world):
    for _ in range(3):
        await spend(world)
        assert await look(world) == 0


async def test_entries_that_are_not_written_yet_are_no_difference_unless_they_stay_so(world):
    await spend(world)
    await look(world)
    world.ledger.open.clear()
    async with world.running():
        world.service.close(await world.admitted(50), usage(50))
        await until(lambda: len(world.counters.closed) == 2)
        assert await look(world) == 0, "at the look before, they were not charged"
        assert await look(world) == 50
        world.ledger.open.set()
        await world.metering.drain(5.0)
    assert await look(world) == 0


async def test_what_the_ledger_lost_is_the_difference(world):
    await spend(world)
    await look(world)
    world.ledger._entries.clear()
    assert await look(world) == 100


async def test_what_the_counters_lost_is_the_difference(world):
    await spend(world)
    await look(world)

    async def read(tenant, buckets):
        return [type(count)(0, 0) for count in await type(world.counters).read(world.counters, tenant, buckets)]

    world.counters.read = read
    await world.metering.drift.look()
    assert world.counted("ledger_drift") == 100


async def test_a_window_that_has_ended_is_not_compared(world):
    await spend(world)
    await look(world)
    world.ledger._entries.clear()
    world.clock.passes(86_400)
    assert await look(world) == 0


async def test_while_a_store_is_away_the_last_difference_stays(world):
    await spend(world)
    await look(world)
    world.ledger._entries.clear()
    assert await look(world) == 100

    async def fails(*_):
        raise away()

    world.ledger.used_of = fails
    with pytest.raises(type(away())):
        await look(world)
    assert world.counted("ledger_drift") == 100


async def test_a_standalone_server_which_has_no_sums_is_not_compared(world):
    await spend(world)
    await look(world)

    async def unknown(*_):
        return None

    world.ledger.used_of = unknown
    assert await look(world) == 0
