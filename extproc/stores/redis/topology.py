"""Where the partitions are: on one server, behind Sentinels, or spread over a Cluster."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from extproc.stores.redis.server import Server
from extproc.stores.redis_addresses import Address

_LOOK_EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """`url` as in `addresses`. Bounds are per process, and per server.

    A call on one reservation takes at most `command_timeout_s`, one on many `batch_timeout_s`. A note that this
    replica is here takes at most `note_timeout_s`: after that, a connection that hangs is left, long before
    others take the replica for gone. While `max_waiting` entries of a partition wait for the ledger, nothing new
    is reserved in it. `current_url` returns the present URL; each new connection logs in with its user and
    password. `packs`: reservations and entries are written packed, not as JSON, which version 0.1 reads too.
    """

    url: str
    connect_timeout_s: float = 1.0
    command_timeout_s: float = 1.0
    batch_timeout_s: float = 2.0
    note_timeout_s: float = 0.5
    max_waiting: int = 200_000
    packs: bool = True
    current_url: Callable[[], str] | None = None


class Topology(Protocol):
    """Raises the driver's errors. `independent`: partitions may be on different servers."""

    @property
    def independent(self) -> bool: ...

    async def server(self, partition: int) -> Server:
        """The server that has the partition."""

    async def moved(self) -> None:
        """Looks again where everything is, and returns when that is known."""

    def suspect(self) -> None:
        """A server did not answer: looks again in the background, from time to time."""

    async def aclose(self) -> None:
        """Gives connections back."""


class OneServer:
    """All partitions are where the URL leads to."""

    independent = False

    def __init__(self, address: Address, options: RedisOptions) -> None:
        pool = BlockingConnectionPool(**(pool_options(options) | address.options))
        self._server = Server(Redis.from_pool(pool))

    async def server(self, partition: int) -> Server:  # noqa: ARG002 - there is but one
        return self._server

    async def moved(self) -> None:
        """It is nowhere else."""

    def suspect(self) -> None:
        """It is nowhere else."""

    async def aclose(self) -> None:
        await self._server.aclose()


class Looking(ABC):
    """One look at a time, and not more often than that is of use."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")

    @abstractmethod
    async def look(self) -> None:
        """Looks where servers are."""

    async def moved(self) -> None:
        await asyncio.shield(self._looking())

    def suspect(self) -> None:
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._looking()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _looking(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            self._looked_at = time.monotonic()
            self._task = asyncio.create_task(self.look())
            self._task.add_done_callback(_seen)
        return self._task


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever waits gets its error too; where nobody does, the next call finds out."""
    if not task.cancelled():
        task.exception()


def pool_options(options: RedisOptions) -> dict[str, Any]:
    """What every pool of connections is made with."""
    return {
        "max_connections": 4,  # each of a server's two is made anew while the former one ends
        "timeout": options.command_timeout_s,
        "socket_connect_timeout": options.connect_timeout_s,
        # Each call is bounded as a whole (`translated`). redis-py's own timeout makes a task for every command,
        # and before Python 3.12 may swallow a cancellation: a decision would outlast its time.
        "socket_timeout": None,
        "health_check_interval": 0,  # a connection that ends is noticed at once, one that hangs by its callers
        "retry": Retry(NoBackoff(), 0),
    }
