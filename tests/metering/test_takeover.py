"""Others take over what a dead replica left: its entries, its open holds; and release what nobody was served for."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from extproc.core.quota.partitions import PARTITIONS
from extproc.core.quota.settlement import Outcome
from extproc.metering.takeover import TakeoverOptions

from .shared import AT_ONCE, Cluster
from .waiting import until
from .world import World, away, usage

OPTIONS = TakeoverOptions()


def now():
    return asyncio.get_running_loop().time()


def is_gone(survivor, replica):
    return not survivor.shard.presence.awaits(replica.name, 0.0, barrier_s=10.0, unseen_s=1.0)


def is_here(survivor, replica):
    return survivor.shard.presence.awaits(replica.name, 9.0, barrier_s=10.0, unseen_s=1.0)


async def alive(stack, cluster, *replicas):
    """These replicas note that they are here, deliver and save, until the stack is left."""
    began, then = now(), cluster.clock.time

    async def time_passes():
        while True:
            cluster.clock.time = then + timedelta(seconds=now() - began)
            await asyncio.sleep(0.01)

    async def follows(replica):
        while True:
            await replica.epochs.check()
            await replica.saver.save()
            await asyncio.sleep(0.25)

    clock = asyncio.create_task(time_passes())
    stack.callback(clock.cancel)
    lives = []
    for replica in replicas:
        await stack.enter_async_context(replica.running())
        follower = asyncio.create_task(follows(replica))
        stack.callback(follower.cancel)
        lives.append(follower)
    return lives


async def dead_with(stack, cluster, *, open_holds=0, ended=0):
    """A cluster in which r2 lived for three seconds, and is dead now. Returns the survivors, it, and its streams."""
    a, b, dead = await cluster.started()
    await alive(stack, cluster, a, b)
    async with AsyncExitStack() as life:
        await alive(life, cluster, dead)
        streams = [await dead.admitted(10) for _ in range(open_holds)]
        await asyncio.sleep(3)
        cluster.ledger.before = [away()] * 50 if ended else []
        for _ in range(ended):
            dead.service.close(await dead.admitted(10), usage(7))
        await until(lambda: len(cluster.server.journal) == ended)
    cluster.ledger.before = []
    return (a, b), dead, streams


async def test_within_two_seconds_its_entries_are_in_the_ledger_and_its_holds_are_saved():
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        _, dead, streams = await dead_with(stack, cluster, open_holds=2, ended=3)
        cluster.ledger._saved.clear()  # as if it had died before it saved them, and said so
        cluster.ledger._saved_until[dead.name] -= timedelta(seconds=10)
        died = now()
        await until(lambda: len(cluster.ledger._entries) == 3)
        await until(lambda: cluster.ledger._saved.keys() == {stream.id for stream in streams})
        assert now() - died < 2.0
    assert not cluster.server.journal
    assert dead.name not in cluster.server.seen[0]._at


async def test_one_of_those_that_are_here_acts_and_another_only_if_that_one_fails():
    cluster = Cluster()
    acted = []
    async with AsyncExitStack() as stack:
        (a, b), *_ = await dead_with(stack, cluster, open_holds=1)
        for replica in (a, b):
            take_over = replica.shard.takeover.take_over

            async def noted(gone, by=replica.name, take_over=take_over):
                acted.append(by)
                if by == "r0":
                    raise away()
                await take_over(gone)

            replica.shard.takeover.take_over = noted
        await until(lambda: "r1" in acted)
        await asyncio.sleep(2)
    assert acted[0] == "r0"
    assert acted.count("r1") == 1


async def test_a_replica_that_only_stood_still_loses_and_doubles_nothing():
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        (a, _), late, (stream, another) = await dead_with(stack, cluster, open_holds=2, ended=2)
        await until(lambda: late.name not in cluster.server.seen[0]._at)
        assert is_gone(a, late)
        await alive(stack, cluster, late)
        late.service.close(stream, usage(9))
        await until(lambda: len(cluster.ledger._entries) == 3)
        await until(lambda: is_here(a, late))
        assert await a.counts() == (23, 10)
        late.service.close(another, usage(8))
        await until(lambda: not cluster.ledger._saved)
    assert await cluster.quiet() == 31
    assert len(await a.entries()) == 4


@pytest.mark.parametrize("told", [True, False])
async def test_a_hold_that_its_replica_never_knew_of_is_released_and_not_charged(told):
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        a, b, dead = await cluster.started()
        await alive(stack, cluster, a, b)
        async with AsyncExitStack() as life:
            await alive(life, cluster, dead)
            asked = await dead.admitted(10)
            if not told:  # held, but the answer never came, and the release did not arrive
                dead.leases._open.clear()
            await asyncio.sleep(3)
        assert (asked.id in cluster.ledger._saved) is told
        assert await a.counts() == (0, 10)
        await until(lambda: dead.name not in cluster.server.seen[0]._at)
        await until(lambda: not a.settler.unended() and not len(a.settler) and not len(b.settler))
        assert await a.counts() == (0, 10 if told else 0)
    assert await a.entries() == []


async def test_a_hold_of_its_last_moment_is_kept_since_nobody_knows():
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        (a, _), dead, _ = await dead_with(stack, cluster)
        young = await dead.admitted(10)
        await until(lambda: young.id in cluster.ledger._saved)
        assert await a.counts() == (0, 10)


async def test_nobody_seems_gone_after_the_counters_were_away():
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        a, b, c = await cluster.started()
        await alive(stack, cluster, a, b, c)
        await asyncio.sleep(2)
        seen, acted = cluster.server.seen[0].note, []

        def gone(replica, at):
            raise away()

        cluster.server.seen[0].note = gone
        for replica in (a, b, c):
            replica.shard.takeover.take_over = acted.append
        await asyncio.sleep(5)
        cluster.server.seen[0].note = seen
        await asyncio.sleep(2)
        assert all(is_here(a, each) for each in (a, b, c))
    assert acted == []


async def test_what_it_left_expires_and_is_dropped_from_the_records():
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        (a, _), dead, (stream,) = await dead_with(stack, cluster, open_holds=1)
        await until(lambda: dead.name not in cluster.server.seen[0]._at)
        cluster.server.clock = cluster.clock.seconds
        a.clock.time += timedelta(seconds=1000)
        await a.metering.clock.sync()
        assert await a.expiry.expire_overdue() == 1
        await until(lambda: not cluster.ledger._saved)
    assert [(e.id, e.outcome) for e in await a.entries()] == [(stream.id, Outcome.EXPIRED)]


# Rebuilds.


async def seconds_until_ready(cluster):
    """How long the counters are not ready for, after they were lost now."""
    cluster.server.lose()
    lost = now()

    await until(lambda: is_ready(cluster))
    return now() - lost


def is_ready(cluster):
    lives = cluster.server.lives
    return len(lives) == PARTITIONS and all(life.epoch.ready for life in lives.values())


async def test_a_rebuild_does_not_wait_for_one_that_is_known_to_be_gone():
    cluster = Cluster(recovery=AT_ONCE)
    async with AsyncExitStack() as stack:
        (a, _), dead, _ = await dead_with(stack, cluster, open_holds=1)
        await until(lambda: dead.name not in cluster.server.seen[0]._at)
        assert await seconds_until_ready(cluster) < 0.6
        assert await a.counts() == (0, 10)


async def test_a_rebuild_waits_a_moment_for_one_that_nobody_has_seen_since():
    cluster = Cluster(recovery=AT_ONCE)
    async with AsyncExitStack() as stack:
        await dead_with(stack, cluster)
        assert 1.25 <= await seconds_until_ready(cluster) < 2.0


async def test_a_rebuild_waits_longer_for_one_of_version_01_which_shows_itself_only_in_its_heartbeat():
    cluster = Cluster(recovery=AT_ONCE)
    async with AsyncExitStack() as stack:
        _, dead, _ = await dead_with(stack, cluster)
        del cluster.ledger._saved_until[dead.name]
        assert 10.0 <= await seconds_until_ready(cluster) < 11.0


@pytest.mark.parametrize("told", [True, False])
async def test_what_a_dead_one_never_knew_of_is_not_restored_from_the_epoch_before(told):
    cluster = Cluster(recovery=AT_ONCE)
    async with AsyncExitStack() as stack:
        (a, _), *_ = await dead_with(stack, cluster, open_holds=1)
        if not told:
            cluster.ledger._saved.clear()
        for partition in list(cluster.server.lives):
            cluster.server.begin(partition)  # it restarts with all that it had
        await until(lambda: is_ready(cluster))
        assert await a.counts() == (0, 10 if told else 0)


async def test_ends_that_wait_are_saved_after_a_gap_too():
    """What others may have saved is not known to be saved: else this replica's mark would say too much."""
    world = World()
    held = await world.admitted()
    world.service.close(held, usage(5))
    later = held.admitted_at + timedelta(seconds=1)
    world.shard.takeover._was_taken_over()
    assert [each.id for each in world.shard.unsaved(later)] == [held.id]


async def test_what_others_saved_of_a_replica_that_lived_and_that_it_gave_back_is_not_restored():
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        (a, _), late, (kept, given_back) = await dead_with(stack, cluster, open_holds=2)
        await until(lambda: late.name not in cluster.server.seen[0]._at)
        assert cluster.ledger._saved.keys() == {kept.id, given_back.id}
        late.leases._open.pop(given_back.id)  # its answer got lost: it was asked for, and is given back
        late.settler.undo(given_back)
        await alive(stack, cluster, late)
        await until(lambda: cluster.ledger._saved.keys() == {kept.id})
        await cluster.ledger.save([given_back])  # whoever took over had not saved yet
        await until(lambda: cluster.ledger._saved.keys() == {kept.id})
        assert await a.counts() == (0, 10)
