"""Several replicas on one server for counters and one ledger, all in this process."""

import asyncio

from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.request.identity import Identity
from tests.memory_server import LosableServer

from .waiting import until
from .world import WHO, Clock, Counters, Ledger, World

HERE = partition_of(WHO.tenant)
# A tenant whose counters are in another partition.
ELSEWHERE = next(
    Identity(name, "sa", "10.0.0.1") for name in map("t{}".format, range(99)) if partition_of(name) != HERE
)
AT_ONCE = {"turn_s": 0.0}


class Replica(World):
    """A replica that can be killed (`dead`) and stopped: it does nothing then, until it is called again."""

    def __init__(self, cluster, name, **options):
        self.name = name
        super().__init__(
            counters=Counters(cluster.server), ledger=cluster.ledger, clock=cluster.clock, name=name, **options
        )
        self.follows_the_epochs()

    async def delivered(self):
        """All ends are on the counters, and all entries in the ledger."""
        self.retry()
        async with self.running(), asyncio.timeout(5):
            await self.settler._ends.drained()
            await self.writer.drained()

    async def ended(self):
        """All ends are on the counters; no entry gets any further."""
        self.ledger.open.clear()
        try:
            async with self.running(), asyncio.timeout(5):
                await self.settler._ends.drained()
        finally:
            self.ledger.open.set()


class Cluster:
    def __init__(self, replicas=3, limit=1000, recovery=AT_ONCE, **options):
        self.clock, self.ledger = Clock(), Ledger()
        self.server = LosableServer(self.clock.seconds)
        self.limit = limit
        self.options = {"limit": limit} | recovery | options
        self.replicas = [Replica(self, f"r{n}", **self.options) for n in range(replicas)]

    async def ready(self, *replicas):
        """All of them look at the epochs at once, until every one sees all counters ready."""
        wanted = replicas or self.replicas

        async def all_see_it():
            return all(await asyncio.gather(*(each.epochs.check() for each in wanted)))

        await until(all_see_it)

    async def started(self):
        await asyncio.gather(*(each.epochs.start() for each in self.replicas))
        await self.ready()
        return self.replicas

    async def quiet(self, *replicas):
        """Everything that ended is in the ledger, and the books agree; returns what is used."""
        for each in replicas or self.replicas:
            await each.delivered()
        return await self.agreed(*replicas)

    async def agreed(self, *replicas, identity=WHO):
        """Counters are what the ledger and the open reservations make of them."""
        entries = [entry for entry in await self.replicas[0].entries() if entry.identity == identity]
        used, held = await self.replicas[0].counts(identity)
        assert len({entry.id for entry in entries}) == len(entries)
        assert used == sum(entry.charge for entry in entries)
        holding = [r for each in replicas or self.replicas for r in each.leases if r.identity == identity]
        assert held == sum(r.held for r in holding)
        assert used + held <= self.limit
        return used


def lives(server):
    return [server.lives[partition].epoch for partition in range(PARTITIONS)]
