"""Epochs that are begun, registered in and ready, as a recovery of nothing makes them; and backends whose epochs end."""

from extproc.core.quota.partitions import PARTITIONS
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.presence import Notes
from extproc.stores.redis import RedisCounters, RedisOptions
from tests.memory_server import LosableServer

SEEN = "tw:{0}:seen"


def patient(url, **options):
    """Return counters that wait longer than the product does: on a busy machine a server answers late."""
    bounds = dict.fromkeys(("connect_timeout_s", "command_timeout_s", "batch_timeout_s", "note_timeout_s"), 30.0)
    return RedisCounters(RedisOptions(url, **(bounds | options)))


async def make_ready(*clients, replica="r"):
    """Lets clients count; returns the epochs. What they restore, forget and install is nothing."""
    for number, client in enumerate(clients):
        for epoch in await client.epochs():
            await client.register(epoch, f"{replica}{number}")
    for epoch in await clients[0].epochs():
        if not epoch.ready:
            await clients[0].complete(epoch)
    return await clients[0].epochs()


class MemoryBackend:
    """Counters in memory that several replicas share."""

    def __init__(self):
        self.server = LosableServer()

    def client(self):
        return MemoryCounters(self.server)

    async def lose(self):
        """Everything is gone."""
        self.server.lose()

    async def restart(self):
        """Another process has what is left: it may have lost something."""
        for partition in list(self.server.lives):
            self.server.begin(partition)

    async def note(self, replica, at):
        """The replica was last noted at that time of the store's clock."""
        self.server.seen.setdefault(0, Notes())._at[replica] = at

    async def shift(self, by_s):
        """All notes are by so many seconds later."""
        notes = self.server.seen[0]
        notes._at = {replica: at + by_s for replica, at in notes._at.items()}


class RedisBackend:
    """Counters on a real server that several replicas share."""

    def __init__(self, part, plain):
        self.part = part
        self.plain = plain

    def client(self):
        return patient(self.part.url)

    async def lose(self):
        await self.plain.flushall()

    async def restart(self):
        for partition in range(PARTITIONS):
            await self.plain.hset(f"tw:{{{partition}}}:epoch", "run", "the process before")

    async def note(self, replica, at):
        await self.plain.zadd(SEEN, {replica: at})

    async def shift(self, by_s):
        notes = await self.plain.zrangebyscore(SEEN, "-inf", "+inf", withscores=True)
        await self.plain.zadd(SEEN, {replica: at + by_s for replica, at in notes})
