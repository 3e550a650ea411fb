"""Epochs: a life of a partition's counters in one Redis process, built again where a life was lost."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from extproc.core.quota.partitions import PARTITIONS
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.ports.base import StoreError, UnreadyError
from extproc.ports.epochs import Epoch, Used
from extproc.stores.pieces import in_pieces
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.keys import (
    EVERY_KEY,
    bucket_keys,
    bucket_of,
    epoch_key,
    of_epoch,
    open_key,
    replicas_key,
    reservation_key,
    reservation_keys,
)
from extproc.stores.redis.reservations import (
    END_MEMORY_S,
    LIST_MEMORY_S,
    forgotten_at,
    read_reservation,
    renewal,
    window_end,
)
from extproc.stores.redis.server import Argument, Call, command
from extproc.stores.redis.sweep import Sweeper
from extproc.stores.redis.topology import RedisOptions

_READY: Final = b"ready"
_BUCKETS_AT_ONCE: Final = 100
_SOME: Final = 500
_OF_A_BATCH: Final = 1 / 4


class RedisEpochs(RedisClient):
    """Implements `ports.Epochs`."""

    def __init__(self, options: RedisOptions) -> None:
        super().__init__(options)
        self._sweeper = Sweeper(self)

    async def epochs(self) -> list[Epoch]:
        """One round trip, as long as no server was restarted. A partition whose server is away is left out."""
        calls = [Call(p, "begin", (epoch_key(p),), (secrets.token_hex(8),)) for p in range(PARTITIONS)]
        # A server of many that hangs: the others' epochs are not to be seen too late for it.
        within_s = self._options.batch_timeout_s * (_OF_A_BATCH if self.independent else 1)
        replies = await self.try_all(calls, within_s)
        found = [
            Epoch(p, str(reply[0], "ascii"), reply[1] == _READY)
            for p, reply in enumerate(replies)
            if not isinstance(reply, StoreError)
        ]
        if not found:
            raise replies[0]
        return found

    async def restore(self, epoch: Epoch, reservations: Sequence[Reservation]) -> None:
        for some in in_pieces(reservations, _SOME):
            await self.call_all(
                [renewal(epoch.partition, epoch.id, r, self._body(r), take_up=True, renew=False) for r in some]
            )

    async def register(self, epoch: Epoch, replica: str) -> None:
        keys = (epoch_key(epoch.partition), replicas_key(epoch.partition, epoch.id))
        await self.call_all([Call(epoch.partition, "register", keys, (epoch.id, replica, LIST_MEMORY_S))])
        self._adopted[epoch.partition] = epoch.id

    async def registered(self, epoch: Epoch) -> set[str]:
        p = epoch.partition
        names, _ = await self._of(epoch, command(p, "SMEMBERS", replicas_key(p, epoch.id)))
        return {str(name, "utf-8") for name in names}

    async def left_open(self, epoch: Epoch) -> list[Reservation]:
        _, previous = await self._of(epoch)
        left = await self._open_in(epoch.partition, previous) if previous else []
        # A hit of the rate limit service stands in no ledger: whether it was charged is not to be found out.
        return [r for r in left if r.endpoint is not Endpoint.ROUTE]

    async def still_open(self, epoch: Epoch) -> list[Reservation]:
        await self._of(epoch)
        return await self._open_in(epoch.partition, epoch.id)

    async def forget(self, epoch: Epoch, ended: Sequence[tuple[Reservation, Outcome]]) -> None:
        p = epoch.partition
        for some in in_pieces(ended, _SOME):
            await self.call_all(
                [
                    Call(p, "forget", reservation_keys(p, epoch.id, r), (epoch.id, r.id, outcome, END_MEMORY_S))
                    for r, outcome in some
                ]
            )

    async def install(self, epoch: Epoch, used: Sequence[Used]) -> None:
        calls = []
        for some in in_pieces(used, _BUCKETS_AT_ONCE):
            keys, args = [epoch_key(epoch.partition)], list[Argument]([epoch.id])
            for each in some:
                keys += bucket_keys(epoch.partition, epoch.id, each.tenant, [each.key])
                args += (each.amount, forgotten_at(each.until))
            calls.append(Call(epoch.partition, "install", keys, args))
        for batch in in_pieces(calls, 10):  # the server serves others in between
            await self.call_all(batch)

    async def counted(self, epochs: Sequence[Epoch]) -> list[Used]:
        """Look at the epochs last: if another process had answered, its counts could be older."""
        found = await self._counted({epoch.partition: epoch.id for epoch in epochs})
        current = await self.epochs()
        if not all(epoch.ready and epoch in current for epoch in epochs):
            raise UnreadyError("another epoch has begun, or the counters are being rebuilt")
        return found

    async def counted_before(self, epochs: Sequence[Epoch]) -> list[Used]:
        calls = [command(e.partition, "HMGET", epoch_key(e.partition), "id", "previous") for e in epochs]
        before: dict[int, str] = {}
        for epoch, (current, previous) in zip(epochs, await self.call_all(calls), strict=True):
            if current != epoch.id.encode():
                raise UnreadyError("another epoch has begun")
            before[epoch.partition] = str(previous or b"", "ascii")
        return await self._counted({partition: each for partition, each in before.items() if each})

    async def complete(self, epoch: Epoch) -> None:
        call = Call(epoch.partition, "complete", (epoch_key(epoch.partition),), (epoch.id,))
        (first,) = await self.call_all([call])
        if first:  # whoever else completes it leaves the clearing to this one; else keys go when they expire
            self._sweeper.clear(epoch)

    async def aclose(self) -> None:
        await self._sweeper.aclose()
        await super().aclose()

    async def _counted(self, epochs: Mapping[int, str]) -> list[Used]:
        """Read what is used of all buckets of epochs, given by partition."""
        found: dict[bytes, Used] = {}
        for walk in await self.by_server(epochs):
            cursor: int | bytes = 0
            while True:
                scan = command(walk[0], "SCAN", cursor, "MATCH", EVERY_KEY, "COUNT", _SOME)
                ((cursor, keys),) = await self.call_all([scan])
                await self._read_buckets(epochs, keys, found)
                if not int(cursor):
                    break
        return list(found.values())

    async def _read_buckets(
        self, epochs: Mapping[int, str], keys: Iterable[bytes], found: dict[bytes, Used]
    ) -> None:
        places = {key: of_epoch(key) for key in keys}
        buckets = {
            key: (place[0], bucket)
            for key, place in places.items()
            if place is not None and epochs.get(place[0]) == place[1] and (bucket := bucket_of(key)) is not None
        }
        calls = []
        for key, (partition, _) in buckets.items():
            name = str(key, "ascii")
            calls += [command(partition, "HGET", name, "used"), command(partition, "EXPIRETIME", name)]
        replies = await self.call_all(calls)
        for (key, (_, bucket)), used, expires in zip(buckets.items(), replies[::2], replies[1::2], strict=True):
            if int(used or 0):
                found[key] = Used(*bucket, window_end(expires), int(used))

    async def _of(self, epoch: Epoch, *further: Call) -> tuple[Any, str]:
        """What a command finds while the epoch is current, and the epoch before it."""
        known = command(epoch.partition, "HMGET", epoch_key(epoch.partition), "id", "previous")
        *found, (current, previous) = await self.call_all([*further, known])
        if current != epoch.id.encode():
            raise UnreadyError("another epoch has begun")
        return found[0] if found else None, str(previous or b"", "ascii")

    async def _open_in(self, partition: int, epoch: str) -> list[Reservation]:
        """What is open in an epoch. What is opened or ended meanwhile may be among it or not."""
        found: dict[str, Reservation] = {}
        cursor: int | bytes = 0
        while True:
            scan = command(partition, "ZSCAN", open_key(partition, epoch), cursor, "COUNT", _SOME)
            ((cursor, rows),) = await self.call_all([scan])
            ids = [str(row[0], "utf-8") for row in rows]
            for some in in_pieces(ids, _SOME):
                keys = [reservation_key(partition, epoch, each) for each in some]
                fields = ("outcome", "body", "output")
                replies = await self.call_all([command(partition, "HMGET", key, *fields) for key in keys])
                for each, (outcome, *row) in zip(some, replies, strict=True):
                    reservation = read_reservation(row) if outcome == b"open" else None
                    if reservation is not None:
                        found[each] = reservation
            if not int(cursor):
                return list(found.values())
