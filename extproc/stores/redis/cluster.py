"""A Redis Cluster: each partition is one slot, on whichever node has it.

redis-py's own client is not used for it: it asks node after node, so that one that hangs holds up the others, and
its map of all 16,384 slots keeps the event loop for longer than a decision takes.
"""

import asyncio
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from extproc.core.quota.partitions import PARTITIONS
from extproc.stores.redis.keys import epoch_key
from extproc.stores.redis.server import Server
from extproc.stores.redis.topology import Looking, RedisOptions, pool_options
from extproc.stores.redis_addresses import Address

Place = tuple[str, int]
_SLOTS: Final = {p: key_slot(epoch_key(p).encode()) for p in range(PARTITIONS)}


class Cluster(Looking):
    """Implements `Topology`. The first node that answers says where the slots are."""

    independent = True

    def __init__(self, address: Address, options: RedisOptions) -> None:
        super().__init__()
        self._first = address.hosts
        self._options = options
        self._connection = pool_options(options) | {"connection_class": Connection} | address.options
        self._servers: dict[Place, Server] = {}
        self._places: dict[int, Place] = {}
        self._given_up: set[asyncio.Task[dict[int, Place]]] = set()

    async def server(self, partition: int) -> Server:
        if partition not in self._places:
            await self.moved()
        try:
            return self._servers[self._places[partition]]
        except KeyError:
            raise RedisConnectionError("no node of the Cluster has the slot") from None

    async def look(self) -> None:
        """Asks all nodes that are known at once; what is known stays where none answers."""
        places = {*self._first, *self._places.values()}
        asked = {asyncio.create_task(self._ask(place)) for place in places}
        try:
            found: dict[int, Place] = {}
            while asked and not found:
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    found = found or task.result()
        finally:
            for task in asked:
                task.cancel()
                self._given_up.add(task)  # until it has given its connection back
                task.add_done_callback(self._given_up.discard)
        if not found:
            raise RedisConnectionError("no node of the Cluster answers")
        self._places = found
        for place in set(found.values()) - self._servers.keys():
            self._servers[place] = self._connect(place)
        for place in self._servers.keys() - set(found.values()):
            await self._servers.pop(place).aclose()

    async def aclose(self) -> None:
        await self.stop()
        if self._given_up:
            await asyncio.wait(self._given_up)
        for server in self._servers.values():
            await server.aclose()

    async def _ask(self, place: Place) -> dict[int, Place]:
        """Where the partitions are by this node; nowhere if it does not answer in time."""
        client: Redis = Redis.from_pool(self._pool(place))
        try:
            with suppress(RedisError, OSError):
                async with asyncio.timeout(self._options.connect_timeout_s):
                    return _places(await client.execute_command("CLUSTER", "SLOTS"), place)  # type: ignore[no-untyped-call]
        finally:
            with suppress(RedisError, OSError):
                await client.aclose()
        return {}

    def _connect(self, place: Place) -> Server:
        return Server(Redis.from_pool(self._pool(place)))

    def _pool(self, place: Place) -> BlockingConnectionPool:
        host, port = place
        return BlockingConnectionPool(**(self._connection | {"host": host, "port": port}))


def _places(slots: list[list[Any]], asked: Place) -> dict[int, Place]:
    """From CLUSTER SLOTS: ranges, each with its master (host, port, ...) first. Without a host: who was asked."""
    found = {}
    for first, last, master, *_ in slots:
        host = _str(master[0])
        place = (host if host not in ("", "?") else asked[0], int(master[1]))
        found.update({p: place for p, slot in _SLOTS.items() if int(first) <= slot <= int(last)})
    return found


def _str(text: bytes | str | None) -> str:
    return text.decode() if isinstance(text, bytes) else text or ""
