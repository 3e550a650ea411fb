"""A master that Sentinels know: found anew for each connection, by redis-py's own code."""

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from extproc.stores.redis.server import Server
from extproc.stores.redis.topology import Looking, RedisOptions, pool_options
from extproc.stores.redis_addresses import Address


class _Master:
    """What redis-py's connections ask of their pool."""

    is_master = True
    check_connection = False

    def __init__(self, sentinel: Sentinel, service: str) -> None:
        self._sentinel = sentinel
        self._service = service

    async def get_master_address(self) -> tuple[str, int]:
        host, port = await self._sentinel.discover_master(self._service)
        return str(host), int(port)


class BehindSentinels(Looking):
    """Implements `Topology`: all partitions are on the master, whoever that is."""

    independent = False

    def __init__(self, address: Address, options: RedisOptions) -> None:
        super().__init__()
        asking: dict[str, Any] = dict(address.sentinel_options or {})
        asking["ssl"] = asking.pop("connection_class", None) is SSLConnection
        bounds = {"socket_connect_timeout": options.connect_timeout_s, "socket_timeout": options.connect_timeout_s}
        self._sentinel = Sentinel(address.hosts, sentinel_kwargs=asking | bounds)  # type: ignore[no-untyped-call]
        self._master = _Master(self._sentinel, address.service)
        self._address: tuple[str, int] | None = None
        options_of_master = dict(address.options)
        tls = options_of_master.pop("connection_class", None) is SSLConnection
        managed = SentinelManagedSSLConnection if tls else SentinelManagedConnection
        pool = BlockingConnectionPool(
            connection_class=managed,
            **(pool_options(options) | options_of_master | {"connection_pool": self._master}),
        )
        self._server = Server(Redis.from_pool(pool))

    async def server(self, partition: int) -> Server:  # noqa: ARG002 - there is but one
        return self._server

    async def look(self) -> None:
        """Connections to a master that is none any more are dropped: it may hang, and never say so."""
        address = await self._master.get_master_address()
        if address != self._address:
            self._server.leave()
        self._address = address

    async def aclose(self) -> None:
        await self.stop()
        await self._server.aclose()
        await self._sentinel.aclose()
