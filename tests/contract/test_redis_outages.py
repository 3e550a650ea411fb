"""Replicas on a real Redis Cluster, and behind real Sentinels: one node that is away is nobody else's business."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from extproc.app import SystemClock
from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.reservation import Admitted, Unavailable
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import Identity
from extproc.local import parts
from extproc.ports.base import StoreError
from extproc.ports.ledger import UsageFilter
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.redis import RedisCounters, RedisOptions
from tests.metering.world import World, usage
from tests.missing import missing

from .servers import program, until
from .topologies import caught_up, cluster_url, is_master, on_node

WHO = [
    next(Identity(t, "sa", "10.0.0.1") for t in map("t{}".format, range(999)) if partition_of(t) == p)
    for p in range(PARTITIONS)
]
HUNG = [p for p in range(PARTITIONS) if on_node(p) == 1]
OTHERS = [p for p in range(PARTITIONS) if on_node(p) != 1]
DECISION_S = 0.1
# A command that waited for the node would take so long, which is well more than a busy machine needs.
COMMAND_S = 20.0


@pytest.fixture(autouse=True)
def _valkey():
    try:
        program("valkey")
    except parts.MissingPartError as error:
        missing(str(error))


class Replica(World):
    def __init__(self, url, ledger, name):
        super().__init__(
            limit=100_000,
            counters=RedisCounters(RedisOptions(url, command_timeout_s=COMMAND_S)),
            ledger=ledger,
            clock=SystemClock(),
            name=name,
            decision_timeout_s=DECISION_S,
            save_after_s=0.0,
            turn_s=0.0,
        )
        self.follows_the_epochs()

    async def ready(self):
        try:
            return await self.epochs.start()
        except StoreError:
            return False

    async def recorded_of(self, partitions):
        tenants = {WHO[p].tenant for p in partitions}
        entries = await self.ledger.entries(UsageFilter(), 10_000)
        return sorted((e.outcome, e.charge) for e in entries if e.identity.tenant in tenants)

    async def one_for_each(self, partitions, cost=10):
        """What is admitted for a tenant of each partition; on a busy machine not all of it at the first try."""
        found = {}
        async with asyncio.timeout(30):
            while left := [p for p in partitions if p not in found]:
                decisions = await asyncio.gather(*(self.reserve(cost, WHO[p]) for p in left))
                found |= {
                    p: d.reservation for p, d in zip(left, decisions, strict=True) if isinstance(d, Admitted)
                }
        return [found[p] for p in partitions]

    def close(self, reservations, charge):
        for reservation in reservations:
            self.service.close(reservation, usage(charge))


@asynccontextmanager
async def replicas_at(url, count=2):
    ledger, running = MemoryLedger(), []
    made = [Replica(url, ledger, f"r{n}") for n in range(count)]
    try:
        while not all([await each.ready() for each in made]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        running += [asyncio.create_task(each.metering.deliver()) for each in made]
        running += [asyncio.create_task(each.epochs.run()) for each in made]
        yield made
        assert not any(task.done() for task in running), running
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        for each in made:
            await each.counters.aclose()


async def agree(replicas, partitions):
    """Counters are what the ledger says, and nothing is held."""
    entries = await replicas[0].ledger.entries(UsageFilter(), 10_000)
    for p in partitions:
        charged = sum(entry.charge for entry in entries if entry.identity == WHO[p])
        if await replicas[0].counts(WHO[p]) != (charged, 0):
            return False
    return True


async def settled(replicas, partitions=range(PARTITIONS), deadline_s=20.0):
    async def quiet():
        if any(len(s.settler) or len(s.ledger_writer) for each in replicas for s in each.shards):
            return False
        try:
            return await agree(replicas, partitions)
        except StoreError:
            return False

    await until(quiet, deadline_s)


async def test_a_node_that_hangs_holds_nothing_of_the_others_up_and_all_is_exact_when_it_goes_on(nodes):
    assert len(HUNG) > 1
    async with replicas_at(cluster_url(nodes)) as (one, two):
        open_there = await one.one_for_each(HUNG)
        closing_there = await two.one_for_each(HUNG)
        open_here = await one.one_for_each(OTHERS)
        nodes[1].stop()
        try:
            two.close(closing_there, 7)  # they are on their way from now on
            for _ in range(8):
                began = time.monotonic()
                refused = await asyncio.gather(*(one.reserve(10, WHO[p]) for p in HUNG))
                assert refused == [Unavailable()] * len(HUNG)
                assert time.monotonic() - began < COMMAND_S / 2
                for each in (one, two):
                    each.close(await each.one_for_each(OTHERS), 5)
            one.close(open_here, 6)
            here = sorted([(Outcome.SETTLED, 6)] * len(OTHERS) + [(Outcome.SETTLED, 5)] * 16 * len(OTHERS))

            async def recorded():
                return await one.recorded_of(OTHERS) == here

            # Nothing of it waits for the node, for which a batch has two seconds, again and again.
            await until(recorded)
            assert await agree([one], OTHERS)
            assert one.counted("breaker_open") == 1
            assert all(one.shards._by_partition[p].circuit_breaker.is_open for p in HUNG)
            assert await one.recorded_of(HUNG) == []
        finally:
            nodes[1].go_on()
        one.close(open_there, 8)
        await settled([one, two])
        assert await one.recorded_of(HUNG) == sorted([(Outcome.SETTLED, 7), (Outcome.SETTLED, 8)] * len(HUNG))
        assert sorted(await one.recorded_of(OTHERS)) == here
        await until(lambda: _decides(one))

        async def acknowledged():
            return await one.counters.waiting(0, 100) == []

        await until(acknowledged)


async def _decides(replica):
    return all(
        isinstance(each, Admitted)
        for each in await asyncio.gather(*(replica.reserve(1, WHO[p]) for p in range(PARTITIONS)))
    )


@pytest.mark.thorough
async def test_while_a_node_hangs_what_another_one_lost_is_rebuilt_and_a_replica_that_starts_serves(nodes):
    async with replicas_at(cluster_url(nodes)) as (one, two):
        one.close(await one.one_for_each(OTHERS), 5)
        await settled([one, two], OTHERS)
        held = await two.one_for_each(OTHERS)
        nodes[1].stop()
        try:
            for node in (nodes[0], nodes[2]):
                async with node.plain() as plain:
                    await plain.flushall()

            async def rebuilt():
                try:
                    return [await two.counts(WHO[p]) for p in OTHERS] == [(5, 10)] * len(OTHERS)
                except StoreError:
                    return False

            await until(rebuilt, 15.0)
            third = Replica(cluster_url(nodes), one.ledger, "r2")
            await until(third.ready, 15.0)
            assert len(await third.one_for_each(OTHERS)) == len(OTHERS)
            assert await third.counters.time() > 0
            await third.counters.aclose()
        finally:
            nodes[1].go_on()
        two.close(held, 3)


@pytest.mark.thorough
async def test_after_a_failover_in_a_cluster_the_books_are_exact(nodes):
    async with replicas_at(cluster_url(nodes)) as (one, two):
        await _failover(one, two, nodes[0], nodes[3])


async def test_after_a_failover_behind_sentinels_the_books_are_exact(sentinels):
    master, replica, url = sentinels
    async with replicas_at(url) as (one, two):
        await _failover(one, two, master, replica)


async def _failover(one, two, master, replica):
    """Some writes are acknowledged that the one which takes over has never seen."""
    everywhere = range(PARTITIONS)
    before, streaming = await one.one_for_each(everywhere), await two.one_for_each(everywhere)
    one.close(before, 9)
    await settled_but(one, len(before))
    await until(lambda: caught_up(master, replica))
    replica.stop()
    try:
        unseen = await one.one_for_each(everywhere)
        ended_unseen = await two.one_for_each(everywhere)
        two.close(ended_unseen, 4)
        await settled_but(two, len(before) + len(ended_unseen))
        await master.kill()
    finally:
        replica.go_on()
    async with replica.plain() as plain:
        await until(lambda: is_master(plain))
    one.close(unseen, 3)
    two.close(streaming, 2)
    await settled([one, two], deadline_s=30.0)
    charges = sorted([(Outcome.SETTLED, charge) for charge in (9, 4, 3, 2)] * PARTITIONS)
    assert await one.recorded_of(everywhere) == charges
    for each in (one, two):
        await until(lambda each=each: _decides(each))


async def settled_but(replica, entries):
    async def written():
        return len(await replica.ledger.entries(UsageFilter(), 10_000)) == entries

    await until(written)
