"""Queues side by side: what waits for a part of the counters that is away takes nothing from the others."""

import asyncio
from collections import Counter

import pytest

from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.reservation import Admitted, Unavailable
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import Identity
from extproc.metering.delivery_queue import DeliveryOptions, DeliveryQueue, QueueRoom
from extproc.ports.base import StoreError
from tests.changing import replace
from tests.memory_server import LosableServer

from .shared import ELSEWHERE, HERE
from .waiting import until
from .world import WHO, Clock, Counters, World, away, refused, usage

THERE = partition_of(ELSEWHERE.tenant)


class Apart(Counters):
    """Each partition is on a server of its own. Those in `gone` hang, whatever they are asked."""

    independent = True

    def __init__(self, server=None):
        super().__init__(server)
        self.gone = set()
        self.refusing = set()
        self.unreadable = set()

    async def _reached(self, partition):
        if partition in self.refusing:
            raise away()
        if partition in self.gone:
            await asyncio.Event().wait()

    async def reserve(self, reservation):
        await self._reached(partition_of(reservation.identity.tenant))
        return await super().reserve(reservation)

    async def close(self, closings, thresholds=()):
        for closing in closings:
            await self._reached(partition_of(closing.reservation.identity.tenant))
        return await super().close(closings, thresholds)

    async def renew(self, reservations):
        for reservation in reservations:
            await self._reached(partition_of(reservation.identity.tenant))
        await super().renew(reservations)

    async def ping(self, shard_id=None):
        await self._reached(shard_id)

    async def overdue(self, now, at_most, shard_id=None):
        await self._reached(shard_id)
        return await super().overdue(now, at_most, shard_id)

    async def epochs(self):
        return [epoch for epoch in await super().epochs() if epoch.partition not in self.gone]

    async def still_open(self, epoch):
        await self._reached(epoch.partition)
        if epoch.partition in self.unreadable:
            raise away()
        return await super().still_open(epoch)

    async def restore(self, epoch, reservations):
        await self._reached(epoch.partition)
        await super().restore(epoch, reservations)


def of_partition(partition):
    names = map("t{}".format, range(999))
    return next(Identity(name, "sa", "10.0.0.1") for name in names if partition_of(name) == partition)


def fence_of(world, identity):
    return world.shards.of(identity.tenant).write_fence


def independent(**options):
    world = World(counters=Apart(), **options)
    assert len(list(world.shards)) == PARTITIONS
    return world


async def test_ends_and_renewals_do_not_wait_for_a_server_of_others_that_hangs():
    world = independent()
    here, there = await world.admitted(), (await world.reserve(10, ELSEWHERE)).reservation
    streaming, streaming_there = await world.admitted(), (await world.reserve(10, ELSEWHERE)).reservation
    world.counters.gone = {THERE}
    world.clock.passes(600)
    async with world.running():
        world.service.close(there, usage(3))
        world.service.close(here, usage(4))
        assert [world.shards.of(who.tenant).leases.renew_due() for who in (WHO, ELSEWHERE)] == [1, 1]
        await until(lambda: world.counters.renewed)
        await until(lambda: len(world.ledger._entries) == 1)
        assert [r.id for r in world.counters.renewed] == [streaming.id]
        assert await world.recorded() == [(Outcome.SETTLED, 4)]
        assert len(world.shards.of(ELSEWHERE.tenant).settler) == 1
        for stream, charge in ((streaming, 5), (streaming_there, 6)):
            world.service.close(stream, usage(charge))
    world.counters.gone = set()
    await world.drained()
    assert (await world.counts(), await world.counts(ELSEWHERE)) == ((9, 0), (9, 0))


async def test_the_breaker_of_one_server_lets_the_others_be_asked():
    world = independent()
    world.counters.gone = {THERE}
    for _ in range(5):
        assert isinstance(await world.reserve(10, ELSEWHERE), Unavailable)
    assert world.counted("reserve_seconds_count") == world.counted("breaker_open") * 5 == 5
    assert isinstance(await world.reserve(10, ELSEWHERE), Unavailable)
    assert world.counted("reserve_seconds_count") == 5
    assert isinstance(await world.reserve(), Admitted)
    world.counters.gone = set()
    async with world.running():
        await until(lambda: not world.counted("breaker_open"))
    assert isinstance(await world.reserve(10, ELSEWHERE), Admitted)


async def test_an_outage_of_one_server_is_told_once_though_others_answer(caplog):
    world = independent()
    world.counters.refusing = {THERE}
    for _ in range(3):
        await world.reserve(10, ELSEWHERE)
        await world.reserve()
    assert Counter(caplog.messages)["redis unavailable: on_store_failure applies"] == 1
    assert "redis available again: decisions resume" not in caplog.messages


async def test_nothing_expires_where_a_server_was_away_and_elsewhere_it_does():
    world = independent(expiry_interval_s=0.002, renewed_within_s=0.2)
    here, there = await world.admitted(), (await world.reserve(10, ELSEWHERE)).reservation
    for shard in world.shards:
        shard.leases._open.clear()
    world.clock.passes(1000)
    world.counters.refusing = {THERE}
    async with world.running():
        await until(lambda: len(world.ledger._entries) == 1)
        world.counters.refusing = set()
        await asyncio.sleep(0.1)
        assert list(world.ledger._entries) == [here.id]
        await until(lambda: there.id in world.ledger._entries)


async def test_a_rebuild_of_some_partitions_waits_for_no_server_that_is_away_or_broken():
    server, clock = LosableServer(), Clock()
    world = World(counters=Apart(server), clock=clock, name="r", save_after_s=0.0, turn_s=0.0, fresh_s=0.2)
    world.follows_the_epochs()
    while not await world.epochs.start():
        pass
    streaming = await world.admitted(30)
    away_p, (broken, unreadable) = THERE, [p for p in range(PARTITIONS) if p not in (HERE, THERE)][:2]
    world.counters.gone, world.counters.refusing, world.counters.unreadable = {away_p}, {broken}, {unreadable}
    server.lose()
    for _ in range(3):
        with pytest.raises(StoreError, match="away"):
            await world.epochs.check()
    assert server.lives[HERE].epoch.ready
    assert await world.counts() == (0, 30)
    assert not server.lives[broken].epoch.ready
    assert not server.lives[unreadable].epoch.ready
    assert world.counted("partitions_unready") == 3
    await asyncio.wait_for(world.fence.wait_until_open(), 1)
    await asyncio.sleep(0.21)
    with pytest.raises(StoreError, match="away"):
        await world.epochs.check()
    await asyncio.wait_for(world.fence.wait_until_open(), 1)
    for identity in (ELSEWHERE, of_partition(broken)):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fence_of(world, identity).wait_until_open(), 0.05)
    world.service.close(streaming, usage(7))
    async with world.running():
        await until(lambda: world.ledger._entries)
    world.counters.gone = world.counters.refusing = world.counters.unreadable = set()
    await until(world.epochs.check)
    assert all(life.epoch.ready for life in server.lives.values())
    assert world.counted("partitions_unready") == 0


async def test_what_waits_for_one_shard_does_not_take_all_the_room():
    lost, room = Counter(), QueueRoom(4 * PARTITIONS, PARTITIONS)
    here, there = (
        DeliveryQueue(DeliveryOptions("q"), None, lambda name, n: lost.update({name: n}), room=room)
        for _ in range(2)
    )
    for n in range(4 * PARTITIONS):
        assert here.put(n), "all of it, as long as nobody else needs any"
    assert not here.put(-1)
    assert lost == {"q": 1}
    for n in range(4):
        assert there.put(n)
    assert not there.put(-1)
    assert there.put(-1, beyond=True)
    assert len(here) == 4 * PARTITIONS
    assert len(room) == 4 * PARTITIONS + 5


# Renewals.


async def test_a_stream_that_grows_often_while_the_counters_are_away_waits_once():
    world = World()
    stream = await world.admitted()
    world.counters.before = [away()] * 3
    for more in range(1, 50):
        world.service.grow(replace(stream, extra_output=more))
    assert world.leases.waiting == 1
    async with world.running():
        await until(lambda: not world.counters.before)
        world.service.grow(replace(stream, extra_output=60))
        world.retry()
        await until(lambda: not world.leases.waiting)
    assert (await world.counts())[1] == stream.held + 60
    assert len(world.counters.renewed) <= 2


async def test_a_stream_that_grows_while_it_is_being_renewed_is_renewed_again():
    world = World()
    stream = await world.admitted()
    renew, grown = world.counters.renew, []

    async def growing(reservations):
        if not grown:
            grown.append(1)
            world.service.grow(replace(stream, extra_output=9))
        await renew(reservations)

    world.counters.renew = growing
    world.service.grow(replace(stream, extra_output=3))
    async with world.running():
        await until(lambda: not world.leases.waiting)
    assert (await world.counts())[1] == stream.held + 9


async def test_a_stream_whose_renewal_was_refused_is_renewed_the_next_time():
    world = World()
    stream = await world.admitted()
    world.counters.before = [refused()]
    world.service.grow(replace(stream, extra_output=3))
    async with world.running():
        await until(lambda: world.counted("queue_lost_total", queue="renewals"))
        world.service.grow(replace(stream, extra_output=4))
        await until(lambda: not world.leases.waiting)
    assert (await world.counts())[1] == stream.held + 4


# Faults of ours.


async def test_what_a_fault_of_ours_interrupts_is_not_forgotten():
    world = World()
    world.service.close(await world.admitted(), usage(7))

    async def broken(closings, thresholds=()):
        raise ZeroDivisionError

    world.counters.close = broken
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(world.settler.run(), 5)
    assert len(world.settler._ends) == 1, "it can be put into the spool"
