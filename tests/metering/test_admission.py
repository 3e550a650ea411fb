"""A decision in time, whatever the counters do."""

import asyncio

import pytest

from extproc.core.quota.reservation import Admitted, Denied, Unavailable
from extproc.core.quota.settlement import Outcome
from extproc.ports.base import UnreadyError

from .shared import HERE
from .waiting import all_done
from .world import DECISION_TIMEOUT_S, WHO, World, away, refused


def released(world):
    return [(c.reservation.id, c.outcome) for c in world.counters.closed if c.outcome is Outcome.RELEASED]


async def test_the_time_is_for_asking_and_for_deciding_without():
    """Two waits that both take as long as they may are within the time of one decision."""

    class Slow:
        async def opened(self, reservation):
            await asyncio.Event().wait()

        def done(self, ids):
            pass

    world = World(spool=Slow(), decision_timeout_s=0.1)
    world.limits.documents[WHO.tenant] = {"on_store_failure": "allow"}
    world.counters.hang = True
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert isinstance(await world.reserve(), Unavailable)
    assert loop.time() - start == pytest.approx(0.1)


@pytest.mark.parametrize(("fault", "undone"), [(away(), 1), (refused(), 1), (UnreadyError("rebuilding"), 0)])
async def test_what_may_be_held_is_undone_and_what_is_surely_not_is_left(fault, undone):
    world = World()
    world.counters.before = [fault]
    assert isinstance(await world.reserve(), Unavailable)
    await world.drained()
    assert len(released(world)) == undone
    assert await world.counts() == (0, 0)
    assert await world.entries() == []


@pytest.mark.parametrize(("limit", "undone"), [(5, 0), (1000, 1)])
async def test_an_answer_of_an_epoch_that_is_over_admits_nobody_and_a_denial_stays_one(limit, undone):
    """What a replica asks for is held in no new epoch: if this process dies now, nothing is charged."""
    world = World(limit=limit)
    reserve = world.counters.reserve

    async def begins_meanwhile(reservation):
        decision = await reserve(reservation)
        (epoch,) = [each for each in await world.counters.epochs() if each.partition == HERE]
        assert world.shard._answers_for(epoch) == []
        world.admission.epoch_begins()
        return decision

    world.counters.reserve = begins_meanwhile
    assert isinstance(await world.reserve(), Unavailable if undone else Denied)
    assert list(world.leases) == []
    await world.drained()
    assert len(released(world)) == undone
    assert await world.counts() == (0, 0)
    assert not world.counted("breaker_open")


async def test_what_is_asked_for_is_known_only_as_long_as_it_is_asked_for():
    world = World(decision_timeout_s=DECISION_TIMEOUT_S)
    world.counters.hang = True
    asking = asyncio.create_task(world.reserve())
    await all_done()
    assert world.admission.undecided_since() == world.clock.now()
    await asking
    assert world.admission.undecided_since() is None


async def test_a_line_an_outage_is_logged_and_not_one_a_request(caplog):
    world = World()
    world.counters.before = [away()] * 4
    for _ in range(4):
        await world.reserve()
    assert isinstance(await world.reserve(), Admitted)
    told = [message for message in caplog.messages if message.startswith("redis ")]
    assert told == ["redis unavailable: on_store_failure applies", "redis available again: decisions resume"]


async def test_undoing_leaves_room_for_what_really_was(monkeypatch):
    monkeypatch.setattr("extproc.metering.settler._UNDONE_AT_MOST", 3)
    world = World()
    world.counters.before = [away()] * 4
    for _ in range(4):
        await world.reserve()
    assert len(world.settler) == 3
    assert world.settler.unended() == [], "not known as held"
