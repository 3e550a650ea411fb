"""A real Redis Cluster and real Sentinels: whoever has a partition counts in it, and a takeover begins an epoch."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from redis.crc import key_slot

from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.reservation import Admitted
from extproc.core.quota.settlement import Outcome
from extproc.local import parts
from extproc.local.ports import HOST, free_ports
from extproc.ports.base import StoreError, UnreadyError
from extproc.ports.epochs import Used
from extproc.stores.redis import RedisCounters, RedisOptions
from tests.changing import replace
from tests.missing import missing

from .ready import make_ready
from .reservations import counts, entry, expired, outcomes, reservation, settled, who
from .servers import Restartable, program, running, until
from .topologies import caught_up, cluster_url, is_master, on_node

TENANTS = [next(f"t{n}" for n in range(999) if partition_of(f"t{n}") == p) for p in range(PARTITIONS)]
ACME = partition_of("acme")


@pytest.fixture(autouse=True)
def _valkey():
    try:
        program("valkey")
    except parts.MissingPartError as error:
        missing(str(error))


@asynccontextmanager
async def clients_at(url, count=2):
    clients = [RedisCounters(RedisOptions(url, command_timeout_s=0.5, batch_timeout_s=1.0)) for _ in range(count)]
    try:
        await make_ready(*clients)
        yield clients
    finally:
        for client in clients:
            await client.aclose()


def of_each(tenants=TENANTS, cost=5):
    return [reservation(cost, identity=who(tenant=tenant)) for tenant in tenants]


# ---------------------------------------------------------------- Cluster


async def test_a_cluster_counts_journals_and_rebuilds_as_one_server_does(nodes):
    assert {on_node(p) for p in range(PARTITIONS)} == {0, 1, 2}
    async with clients_at(cluster_url(nodes)) as (one, two):
        made = of_each()
        for held in made:
            assert isinstance(await one.reserve(held), Admitted)
        assert sorted(r.id for r in await two.overdue(made[0].admitted_at.replace(year=2100), 99)) == sorted(
            r.id for r in made
        )
        await two.renew([replace(held, deadline=held.deadline + 9) for held in made])
        closings = [replace(settled(held, 3), entry=replace(entry(3), id=held.id)) for held in made]
        closed = await two.close(closings)
        assert await two.close(closings) == closed
        assert [(await counts(one, held)) for held in made] == [[(3, 0)]] * PARTITIONS
        assert {each.receipt for each in await one.waiting(0, 99)} == {each.receipt for each in closed}
        assert (await one.backlog()).waiting == PARTITIONS
        await one.set_aside(None, closed[3].receipt, "no")
        await one.written([each.receipt for each in closed])
        assert await two.waiting(0, 99) == []
        assert len(await two.aside(9)) == 1
        await one.ping()
        assert await one.time() > 0

        for p in (0, 3, 15):
            await one.seen("one", p)
            assert set(await two.seen("two", p)) == {"one", "two"}
        left = [replace(held, replica="gone") for held in of_each()]
        for held in left:
            await one.reserve(held)
        assert {r.id for r in await two.opened_by("gone")} == {r.id for r in left}
        assert await two.opened_by("gone", 3) == [left[3]]
        assert await two.forget_replica("one", 3, older_than_s=0)
        assert [set(await two.seen("two", p)) for p in (0, 3)] == [{"one", "two"}, {"two"}]

        await _lose(nodes)
        open_now = of_each()
        epochs = await one.epochs()
        assert [epoch.partition for epoch in epochs] == list(range(PARTITIONS))
        for epoch, held, before in zip(epochs, open_now, made, strict=True):
            await one.restore(epoch, [held])
            key, until_s = before.buckets[0].key, before.buckets[0].interval.end
            await one.install(epoch, [Used(held.identity.tenant, key, until_s, 3)])
            await one.register(epoch, "one")
            assert await two.still_open(epoch) == [held]
            await one.complete(epoch)
        await two.epochs()
        for held in open_now:
            assert await counts(two, held) == [(3, 5)]
        assert await outcomes(one, [expired(held) for held in open_now]) == [Outcome.EXPIRED] * PARTITIONS


async def _lose(nodes):
    for node in nodes[:3]:
        async with node.plain() as plain:
            await plain.flushall()


async def test_a_node_that_is_away_hides_who_is_here_in_its_own_partitions_only(nodes):
    async with clients_at(cluster_url(nodes)) as (one, two):
        await nodes[1].kill()
        away = next(p for p in range(PARTITIONS) if on_node(p) == 1)
        there = next(p for p in range(PARTITIONS) if on_node(p) == 2)
        for call in (one.seen("one", away), one.forget_replica("two", away), one.opened_by("two", away)):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.transient
        with pytest.raises(StoreError):
            await one.opened_by("two")  # it would not be all
        await one.seen("one", there)
        assert set(await two.seen("two", there)) == {"one", "two"}
        assert await two.opened_by("one", there) == []


@pytest.mark.thorough
async def test_a_node_that_hangs_keeps_no_partition_of_another_one_waiting(nodes):
    async with clients_at(cluster_url(nodes)) as (one, _):
        made = of_each()
        for held in made:
            await one.reserve(held)
        nodes[1].stop()
        try:
            for p, tenant in enumerate(TENANTS):
                if on_node(p) != 1:
                    async with asyncio.timeout(5):
                        await one.reserve(reservation(1, identity=who(tenant=tenant)))
            with pytest.raises(StoreError) as caught:
                await one.close([settled(held, 2) for held in made])
            assert caught.value.transient
            # All others were closed beside it, and are answered for.
            for p, held in enumerate(made):
                if on_node(p) != 1:
                    assert await counts(one, held) == [(2, 1)]
            epochs = await one.epochs()
            assert {epoch.partition for epoch in epochs} == {p for p in range(PARTITIONS) if on_node(p) != 1}
        finally:
            nodes[1].go_on()


async def test_a_replica_that_takes_over_begins_epochs_of_its_partitions_only(nodes):
    async with clients_at(cluster_url(nodes)) as (one, two):
        before = await one.epochs()
        made = of_each()
        for held in made:
            await one.reserve(held)
        async with nodes[3].plain() as plain:
            await until(lambda: caught_up(nodes[0], nodes[3]))
            await nodes[0].kill()
            await until(lambda: is_master(plain))
        for client in (one, two):
            await until(lambda client=client: _answers_all(client))
        epochs = await two.epochs()
        for was, now in zip(before, epochs, strict=True):
            assert (was == now) is (on_node(now.partition) != 0)
        for p, held in enumerate(made):
            if on_node(p) == 0:
                with pytest.raises(UnreadyError):
                    await one.close([settled(held, 1)])
                assert await two.left_open(epochs[p]) == [held]
            else:
                assert await outcomes(one, [settled(held, 1)]) == [Outcome.SETTLED]
        await make_ready(one)
        assert isinstance(await one.reserve(reservation(1, identity=who(tenant=TENANTS[0]))), Admitted)


async def _answers_all(client):
    try:
        return len(await client.epochs()) == PARTITIONS
    except StoreError:
        return False


async def test_a_slot_that_was_moved_is_found_and_begins_an_epoch(nodes):
    async with clients_at(cluster_url(nodes)) as (one, two):
        p = next(p for p in range(PARTITIONS) if on_node(p) == 1)
        slot, held = key_slot(f"{{{p}}}".encode()), of_each()[p]
        await one.reserve(held)
        async with nodes[1].plain() as source, nodes[2].plain() as target:
            ids = [await plain.execute_command("CLUSTER", "MYID") for plain in (source, target)]
            await target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            keys = await source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            await source.execute_command("MIGRATE", HOST, nodes[2].port, "", 0, 5000, "KEYS", *keys)
            for plain in (target, source):
                await plain.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        with pytest.raises(UnreadyError):
            await one.reserve(reservation(1, identity=who(tenant=TENANTS[p])))
        epoch = (await two.epochs())[p]
        assert not epoch.ready
        assert await two.left_open(epoch) == [held]
        await make_ready(one)
        assert isinstance(await one.reserve(reservation(1, identity=who(tenant=TENANTS[p]))), Admitted)


# ---------------------------------------------------------------- Sentinel


async def test_a_failover_that_loses_acknowledged_writes_begins_new_epochs(sentinels):
    master, replica, url = sentinels
    async with clients_at(url) as (one, two):
        held, lost = reservation(10), reservation(7)
        await one.reserve(held)
        await until(lambda: caught_up(master, replica))
        replica.stop()
        try:
            await one.reserve(lost)  # acknowledged, and on its way to nobody
            await master.kill()
        finally:
            replica.go_on()
        async with replica.plain() as plain:
            await until(lambda: is_master(plain))
        await until(lambda: _answers_all(two))
        with pytest.raises(UnreadyError):
            await one.reserve(reservation(1))
        with pytest.raises(UnreadyError):
            await one.close([settled(lost, 1)])
        epoch = (await two.epochs())[ACME]
        assert not epoch.ready
        left = await two.left_open(epoch)
        assert held in left
        await make_ready(one, two)
        assert isinstance(await one.reserve(reservation(1)), Admitted)


@pytest.mark.thorough
async def test_a_master_that_hangs_is_left_for_the_one_that_took_over(sentinels):
    master, replica, url = sentinels
    async with clients_at(url) as (one, two):
        await asyncio.gather(*(one.reserve(reservation(1)) for _ in range(20)))  # over connections to lose
        await until(lambda: caught_up(master, replica))
        master.stop()
        try:
            async with replica.plain() as plain:
                await until(lambda: is_master(plain))
            for client in (one, two):
                await until(lambda client=client: _answers_all(client))
            await make_ready(one, two)
            await one._topology.moved()
            # At once: each over a connection of its own, none of which may be an old one.
            again = [one.reserve(reservation(1, limit=1000)) for _ in range(20)]
            assert all(isinstance(each, Admitted) for each in await asyncio.gather(*again))
        finally:
            master.go_on()


# ---------------------------------------------------------------- a name that leads to another server


async def test_a_master_that_became_a_replica_is_left_for_what_its_name_leads_to_now(tmp_path):
    ports = free_ports(3)
    first, second = (Restartable("valkey", tmp_path / str(n), ports[n]) for n in range(2))
    async with (
        running(first, second),
        name_for(first, ports[2]) as name,
        clients_at(f"redis://{HOST}:{ports[2]}/0", 1) as (one,),
    ):
        await asyncio.gather(*(one.reserve(reservation(1)) for _ in range(10)))
        async with first.plain() as plain:
            await plain.replicaof(HOST, ports[1])
        name.leads_to = second.port
        with pytest.raises(StoreError) as caught:
            await one.reserve(reservation(1))
        assert caught.value.transient
        for _ in range(12):
            with pytest.raises(UnreadyError):
                await one.reserve(reservation(1))
        await make_ready(one)
        assert isinstance(await one.reserve(reservation(1)), Admitted)


class _Name:
    leads_to = 0


@asynccontextmanager
async def name_for(server, port):
    """A virtual address: new connections go to where it leads; those that there are stay."""
    name = _Name()
    name.leads_to = server.port
    tasks = set()

    async def pump(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def connected(reader, writer):
        there = await asyncio.open_connection(HOST, name.leads_to)
        for ends in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(pump(*ends))
            tasks.add(task)

    listening = await asyncio.start_server(connected, HOST, port)
    try:
        yield name
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
