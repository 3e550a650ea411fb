"""Clears what earlier epochs left behind, in the background and a little at a time."""

import asyncio
import logging
from typing import Final

from extproc.ports.base import StoreError
from extproc.ports.epochs import Epoch
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.keys import EVERY_KEY, epoch_key, of_epoch
from extproc.stores.redis.server import Call, command

_LOOKED_AT: Final = 500  # keys of one SCAN
_PAUSE_S: Final = 0.005  # in between: it has time, requests have not
_log = logging.getLogger(__name__)


class Sweeper:
    """Walks over a server's keys once for all epochs that it was told of. What it leaves expires by itself."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._told: dict[int, Epoch] = {}
        self._task: asyncio.Task[None] | None = None

    def clear(self, epoch: Epoch) -> None:
        """Removes the keys of the partition's other epochs, some time."""
        self._told[epoch.partition] = epoch
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._sweep())

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _sweep(self) -> None:
        try:
            while self._told:
                told, self._told = self._told, {}
                for walk in await self._client.by_server(told):
                    await self._walk({p: told[p] for p in walk})
        except StoreError as error:
            _log.info("keys of earlier epochs are left to expire", extra={"error": str(error)})

    async def _walk(self, epochs: dict[int, Epoch]) -> None:
        """Over all keys of the server that has these partitions."""
        anyone = next(iter(epochs))
        cursor: int | bytes = 0
        while True:
            scan = command(anyone, "SCAN", cursor, "MATCH", EVERY_KEY, "COUNT", _LOOKED_AT)
            ((cursor, keys),) = await self._client.call_all([scan])
            victims: dict[int, list[str]] = {}
            for key in keys:
                belongs = of_epoch(key)
                if belongs is not None and belongs[0] in epochs and belongs[1] != epochs[belongs[0]].id:
                    victims.setdefault(belongs[0], []).append(str(key, "ascii"))
            await self._client.try_all(
                [Call(p, "clear", (epoch_key(p), *some), (epochs[p].id,)) for p, some in victims.items()]
            )
            if not int(cursor):
                return
            await asyncio.sleep(_PAUSE_S)
