"""Servers that are really killed and started again: what they lost is noticed before anything is counted."""

import asyncio
import random

import pytest

from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Admitted
from extproc.core.quota.settlement import Outcome
from extproc.local import parts
from extproc.local.ports import free_ports
from extproc.ports.base import StoreError, UnreadyError
from tests.changing import replace
from tests.missing import missing
from tests.sizes import sampled

from .ready import make_ready, patient
from .reservations import counts, entry, outcomes, reservation, settled, who
from .servers import Restartable, program, running

ACME = partition_of("acme")
AOF = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(params=["valkey", "redis"])
def server_of(request, tmp_path):
    """Makes a server of the kind, with further arguments."""
    try:
        program(request.param)
    except parts.MissingPartError as error:
        if request.param == "redis":
            pytest.skip(f"not run on Redis 7.0: {error}")
        missing(str(error))
    return lambda *arguments: Restartable(request.param, tmp_path / "server", *free_ports(1), *arguments)


async def clients_of(server, count=2):
    clients = [patient(server.url) for _ in range(count)]
    await make_ready(*clients)
    return clients


async def unready(call):
    with pytest.raises(UnreadyError):
        await call


async def refused_at_once(client, held):
    """Not even one call of a client that did not notice counts."""
    await unready(client.reserve(reservation(1)))
    await unready(client.close([settled(held, 1)]))
    await unready(client.renew([held]))


async def closed(*clients):
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("persistence", [AOF, ()], ids=["with-aof", "without"])
async def test_a_server_that_was_killed_begins_new_epochs_whatever_it_kept(server_of, persistence):
    async with running(server_of(*persistence)) as (server,):
        one, two = await clients_of(server)
        before = {epoch.id for epoch in await one.epochs()}
        held, done = reservation(10), reservation(5)
        for each in (held, done):
            await one.reserve(each)
        closing = replace(settled(done, 5), entry=replace(entry(5), id=done.id))
        await one.close([closing])
        await server.restart()
        await refused_at_once(one, held)
        epochs = await two.epochs()
        assert not any(epoch.ready for epoch in epochs)
        assert not before & {epoch.id for epoch in epochs}
        await refused_at_once(one, held)
        assert await two.left_open(epochs[ACME]) == ([held] if persistence else [])
        assert [each.entry for each in await two.waiting(0, 9)] == ([closing.entry] if persistence else [])
        await make_ready(two)
        await refused_at_once(one, held)
        assert await counts(two, held) == [(0, 0)]
        await closed(one, two)


async def test_a_server_that_came_back_with_an_old_snapshot_begins_new_epochs(server_of):
    async with running(server_of()) as (server,):
        one, two = await clients_of(server)
        held = reservation(10)
        async with server.plain() as plain:
            await plain.save()  # the epochs are in it, and none of what follows
        await one.reserve(held)
        await server.restart()
        async with server.plain() as plain:
            assert await plain.hget(f"tw:{{{ACME}}}:epoch", "state") == "ready"
        await refused_at_once(one, held)
        assert not any(epoch.ready for epoch in await two.epochs())
        await refused_at_once(one, held)
        await closed(one, two)


async def test_a_flushed_server_begins_new_epochs(server_of):
    async with running(server_of()) as (server,):
        one, two = await clients_of(server)
        held = reservation(10)
        await one.reserve(held)
        async with server.plain() as plain:
            await plain.flushall()
        await refused_at_once(one, held)
        assert not any(epoch.ready for epoch in await two.epochs())
        await refused_at_once(one, held)
        await closed(one, two)


@pytest.mark.parametrize("words", ["SCRIPT FLUSH", "DEBUG RELOAD"])
async def test_a_server_that_lost_nothing_goes_on_in_its_epochs(server_of, words):
    async with running(server_of("--enable-debug-command", "yes")) as (server,):
        one, two = await clients_of(server)
        before = await one.epochs()
        held = reservation(10)
        await one.reserve(held)
        async with server.plain() as plain:
            await plain.execute_command(words)
        assert isinstance(await one.reserve(reservation(1)), Admitted)
        assert await outcomes(two, [settled(held, 4)]) == [Outcome.SETTLED]
        assert await one.epochs() == before
        assert await counts(one, held) == [(4, 1)]
        await closed(one, two)


async def test_a_client_that_connected_while_the_server_restarted_loads_nothing_for_the_process_before(server_of):
    async with running(server_of(*AOF)) as (server,):
        one, two = await clients_of(server)
        for _ in range(3):
            await server.restart()
            # All load the scripts at once, from several connections.
            results = await asyncio.gather(
                *(client.reserve(reservation(1)) for client in (one, two) for _ in range(8)),
                return_exceptions=True,
            )
            assert all(isinstance(result, StoreError) for result in results)
        await closed(one, two)


async def test_earlier_epochs_are_cleared_and_nothing_else(server_of):
    async with running(server_of()) as (server,):
        one, two = await clients_of(server)
        made = [reservation(1, identity=who(tenant=f"t{n}", account=f"sa{n}")) for n in range(600)]
        await asyncio.gather(*map(one.reserve, made))
        closing = replace(settled(made[0], 1), entry=entry(1))
        await one.close([closing])
        async with server.plain() as plain:
            await plain.set("tw:{1}:somebody:else", "x")
            await one.seen("one")
            await one.seen("one", 3)
            await plain.set("other", "x")
            for partition in range(16):
                await plain.hset(f"tw:{{{partition}}}:epoch", "run", "before")
            epochs = await one.epochs()
            for epoch in epochs:
                await one.restore(
                    epoch, [r for r in made if partition_of(r.identity.tenant) == epoch.partition][:2]
                )
                await one.register(epoch, "one")
                await one.complete(epoch)
            await one._sweeper._task
            ids = {epoch.id for epoch in epochs}
            left = [key for key in await plain.keys("tw:*:*:*") if key.split(":")[2] not in ids]
            assert left == ["tw:{1}:somebody:else"]
            assert await plain.exists("other", "tw:{0}:seen", "tw:{3}:seen") == 3
            assert await plain.keys("tw:*:r:*")
        assert [each.entry for each in await two.waiting(0, 10)] == [closing.entry]
        assert await counts(one, made[1]) in ([(0, 1)], [(0, 0)])
        await closed(one, two)


async def test_a_clearing_that_an_epoch_overtook_clears_nothing_of_it(server_of):
    async with running(server_of()) as (server,):
        one, two = await clients_of(server)
        over = (await one.epochs())[ACME]
        held = reservation(10)
        await one.reserve(held)
        async with server.plain() as plain:
            await plain.hset(f"tw:{{{ACME}}}:epoch", "run", "before")
            epoch = (await two.epochs())[ACME]
            await two.restore(epoch, [reservation(5)])
            keys = sorted(await plain.keys("*"))
            one._sweeper.clear(over)
            await one._sweeper._task
            assert sorted(await plain.keys("*")) == keys
        assert await two.left_open(epoch) == [held]
        await closed(one, two)


@pytest.mark.parametrize("seed", sampled(range(6), quick=1))
async def test_whatever_is_killed_when_no_call_counts_in_an_epoch_that_is_not_ready(server_of, seed):
    dice = random.Random(seed)
    async with running(server_of(*AOF)) as (server,):
        clients = await clients_of(server, 3)
        hammer = Hammer(server, clients, dice)
        tasks = [asyncio.create_task(hammer.run(client)) for client in clients for _ in range(4)]
        for _ in range(3):
            await hammer.after(150)
            await server.kill()
            hammer.succeeded.clear()
            hammer.losing = True
            await server.start()
            await hammer.after(60)  # calls on a server that may have lost something: all refused
            assert hammer.succeeded == []
            await clients[0].epochs()
            await hammer.after(60)
            assert hammer.succeeded == []
            hammer.losing = False
            await make_ready(*clients)
        hammer.over = True
        await asyncio.gather(*tasks)
        assert hammer.total > 300
        await closed(*clients)


class Hammer:
    """Random calls of several clients, however they end; what succeeds while it must not is kept."""

    def __init__(self, server, clients, dice):
        self.server, self.clients, self.dice = server, clients, dice
        self.losing = self.over = False
        self.succeeded, self.total, self.calls = [], 0, 0

    async def run(self, client):
        held = []
        while not self.over:
            losing = self.losing  # as the call began
            try:
                done = await self.call(client, held)
            except StoreError:
                done = None
            self.calls += 1
            if done:
                self.total += 1
                if losing and self.losing:
                    self.succeeded.append(done)
            await asyncio.sleep(0.001)

    async def call(self, client, held):
        if not held or self.dice.random() < 0.5:
            held.append(reservation(1, limit=10**9, identity=who(tenant=f"t{self.dice.randint(0, 30)}")))
            await client.reserve(held[-1])
            return "reserve"
        mine = self.dice.choice(held)
        if self.dice.random() < 0.3:
            await client.renew([mine])
            return "renew"
        await client.close([settled(mine, 1)])
        held.remove(mine)
        return "close"

    async def after(self, calls):
        wanted = self.calls + calls
        async with asyncio.timeout(30):
            while self.calls < wanted:  # noqa: ASYNC110 - many tasks count
                await asyncio.sleep(0.005)
