"""Counters shared by all replicas. Every mutation is one Lua script, idempotent by reservation id.

Nothing may be evicted (`maxmemory-policy noeviction`): a bucket that is gone counts from zero.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from extproc.core.by_identity import ByIdentity
from extproc.core.quota.limits import Bucket, Mode
from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.reservation import Admitted, Count, Denied, Reservation, admitted, denied
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.base import ShardId, StoreError, UnreadyError
from extproc.ports.counters import Closed, Closing, Crossed
from extproc.stores.redis.alert_notes import RedisAlertNotes
from extproc.stores.redis.epochs import RedisEpochs
from extproc.stores.redis.generations import RedisGenerations
from extproc.stores.redis.journal import RedisJournal, receipt_of
from extproc.stores.redis.keys import bucket_keys, epoch_key, open_key, reservation_key, reservation_keys
from extproc.stores.redis.packing import encoded, packed_end
from extproc.stores.redis.presence import RedisPresence
from extproc.stores.redis.reservations import (
    END_MEMORY_S,
    bucket_forgotten_at,
    kept_s,
    read_reservation,
    renewal,
)
from extproc.stores.redis.server import Call, command
from extproc.stores.redis.topology import RedisOptions
from extproc.stores.redis.warnings import warnings_of

_ENDED: Final = -1  # reserve.lua's verdict on a reservation that is over
_READY: Final = b"ready"
_OUTCOMES: Final = {outcome.encode(): outcome for outcome in Outcome}
_TIME_S: Final = 0.1


class RedisCounters(RedisEpochs, RedisJournal, RedisPresence, RedisGenerations, RedisAlertNotes):
    """Implements `ports.Counters`, `Journal`, `Epochs`, `Presence`, `Generations` and `AlertNotes`."""

    def __init__(self, options: RedisOptions) -> None:
        super().__init__(options)
        self._seen: dict[int, str] = {}  # the epochs that were current when somebody last read

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        partition = partition_of(reservation.identity.tenant)
        epoch = self._epoch(partition)
        keys = reservation_keys(partition, epoch, reservation)
        reply = await self._ask(Call(partition, "reserve", keys, self._asking(reservation)))
        return _decision(reservation, reply)

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        calls = {i: self._renewal(r) for i, r in enumerate(reservations)}
        await self._all_of(calls)

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        replies = await self._all_of({i: self._ending(closing, thresholds) for i, closing in enumerate(closings)})
        return [_closed(closing, reply) for closing, reply in zip(closings, replies, strict=True)]

    async def overdue(self, now: datetime, at_most: int, shard_id: ShardId = None) -> list[Reservation]:
        """Those of partitions whose server is away are left out, as long as another one answers."""
        partitions = range(PARTITIONS) if shard_id is None else (shard_id,)
        replies = await self.try_all([command(p, "HGET", epoch_key(p), "id") for p in partitions])
        if all(isinstance(reply, StoreError) for reply in replies):
            raise replies[0]
        current = {
            p: str(r, "ascii")
            for p, r in zip(partitions, replies, strict=True)
            if r is not None and not isinstance(r, StoreError)
        }
        limit = ("LIMIT", 0, at_most)
        due = await self.call_all(
            [
                command(p, "ZRANGEBYSCORE", open_key(p, e), "-inf", f"({now.timestamp()}", "WITHSCORES", *limit)
                for p, e in current.items()
            ]
        )
        rows = [
            (score, p, e, str(name, "utf-8"))
            for (p, e), found in zip(current.items(), due, strict=True)
            for name, score in found
        ]
        rows.sort()
        return await self._open_reservations([(p, e, name) for _, p, e, name in rows[:at_most]])

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        """Of the epoch that is current, whether this replica registered in it or not; one round trip as a rule."""
        partition = partition_of(tenant)
        for _ in range(2):
            epoch = self._seen.get(partition, "-")
            keys = bucket_keys(partition, epoch, tenant, [bucket.key for bucket in buckets])
            calls = [command(partition, "HMGET", key, "used", "held") for key in keys]
            # Asked last: as long as the epoch is the current one, its keys are there.
            calls.append(command(partition, "HMGET", epoch_key(partition), "id", "state"))
            *rows, (current, state) = await self.call_all(calls)
            if state != _READY:
                raise UnreadyError("the counters are being rebuilt")
            self._seen[partition] = str(current, "ascii")
            if self._seen[partition] == epoch:
                return [Count(int(used or 0), int(held or 0)) for used, held in rows]
        raise UnreadyError("another epoch has begun")

    async def time(self) -> float:
        """The clock of the first partition's server; of another one where that one is away."""
        # So short for one of many that hangs, because the answer is taken for half as old as it seems.
        within_s = _TIME_S if self.independent else None
        replies = await self.try_all([command(p, "TIME") for p in range(PARTITIONS)], within_s)
        for reply in replies:
            if not isinstance(reply, StoreError):
                return float(reply[0] + reply[1] / 1e6)
        raise replies[0]

    async def ping(self, shard_id: ShardId = None) -> None:
        """Returns when the partition's server answers; any server."""
        if shard_id is not None:
            await self._call(command(shard_id, "PING"))
            return
        replies = await self.try_all([command(p, "PING") for p in range(PARTITIONS)])
        if all(isinstance(reply, StoreError) for reply in replies):
            raise replies[0]

    async def warnings(self) -> list[str]:
        """What about the servers' configuration endangers the counters, for people to read at the start."""
        return await warnings_of(self)

    # ------------------------------------------------ calls

    def _asking(self, reservation: Reservation) -> tuple[bytes, ...]:
        """Return the ARGV of `reserve`."""
        bound = reservation.bound
        wants: list[object] = [
            *((bound.output, bound.least) if bound is not None else (0, 0)),
            reservation.deadline,
            *kept_s(reservation),
            self._options.max_waiting,
        ]
        for rule, bucket in zip(_RULES.of(reservation.buckets), reservation.buckets, strict=True):
            demand = reservation.demand(bucket.limit)
            wants += (*rule, demand.fixed, demand.slope)
        return encoded(wants), self._body(reservation), *_said_apart(reservation.id)

    def _renewal(self, reservation: Reservation) -> Call | StoreError:
        partition = partition_of(reservation.identity.tenant)
        try:
            epoch = self._epoch(partition)
        except StoreError as error:
            return error
        body = self._body(reservation)
        return renewal(partition, epoch, reservation, body, take_up=reservation.local, renew=True)

    def _ending(self, closing: Closing, thresholds: Sequence[int]) -> Call | StoreError:
        reservation = closing.reservation
        partition = partition_of(reservation.identity.tenant)
        try:
            epoch = self._epoch(partition)
        except StoreError as error:
            return error
        text, beside = self._entry(closing)
        says: list[object] = [
            closing.outcome,
            END_MEMORY_S,
            int(reservation.local),
            int(beside),
            thresholds,
        ]
        watched = closing.watched or (True,) * len(reservation.buckets)
        for bucket, charge, looked_at in zip(reservation.buckets, closing.charges, watched, strict=True):
            says += (charge, bucket.limit.amount if looked_at else 0, bucket_forgotten_at(bucket))
        args = (encoded(says), text, *_said_apart(reservation.id))
        return Call(partition, "close", reservation_keys(partition, epoch, reservation), args)

    def _entry(self, closing: Closing) -> tuple[bytes, bool]:
        """Return the entry as it is sent, and whether the reservation's body has to stand beside it."""
        entry = closing.entry
        if entry is None:
            return b"", False
        if self._packs and not closing.reservation.local:  # a local one may not be known: it has no body there
            end = packed_end(closing.reservation, entry)
            if end is not None:
                return end, True
        return msgspec.json.encode(entry), False

    async def _all_of(self, wanted: dict[int, Call | StoreError]) -> list[Any]:
        """Makes all calls that can be made, then raises the first fault."""
        calls = [call for call in wanted.values() if isinstance(call, Call)]
        replies = iter(await self.try_all(calls))
        results = [next(replies) if isinstance(call, Call) else call for call in wanted.values()]
        for result in results:
            if isinstance(result, StoreError):
                raise result
        return results

    async def _open_reservations(self, ids: Sequence[tuple[int, str, str]]) -> list[Reservation]:
        rows = await self.call_all(
            [command(p, "HMGET", reservation_key(p, e, name), "body", "output") for p, e, name in ids]
        )
        found: list[Reservation] = []
        gone: list[Call] = []
        for (p, e, name), row in zip(ids, rows, strict=True):
            reservation = read_reservation(row) if row[0] is not None else None
            if reservation is not None:
                found.append(reservation)
            else:
                # Ended in the meantime, forgotten, or not to be read by anybody: it must not be found for ever.
                gone.append(command(p, "ZREM", open_key(p, e), name))
        await self.call_all(gone)
        return found


def _rules(buckets: tuple[Bucket, ...]) -> list[tuple[int, int, int]]:
    """Return what `reserve` has to know of each bucket whatever the request is."""
    return [
        (b.limit.amount, bucket_forgotten_at(b), (b.limit.mode is Mode.SOFT) + 2 * b.limit.shadow) for b in buckets
    ]


# The buckets of a caller's requests are the same objects until a window ends.
_RULES: Final = ByIdentity(_rules)


def _said_apart(reservation_id: str) -> tuple[bytes, ...]:
    """Return the id if scripts don't find it at the end of the reservation's key, where it is escaped."""
    return () if reservation_id.isalnum() and reservation_id.isascii() else (reservation_id.encode(),)


def _decision(reservation: Reservation, reply: Sequence[int]) -> Admitted | Denied:
    if reply[0] == _ENDED:
        raise StoreError("the reservation was ended before it was made", transient=False)
    verdict, output, *numbers = reply
    counts = [Count(used, held) for used, held in zip(numbers[::2], numbers[1::2], strict=True)]
    return admitted(reservation, counts, output) if verdict else denied(reservation, counts)


def _closed(closing: Closing, reply: Sequence[Any]) -> Closed:
    outcome, stream_id, *numbers = reply
    reservation = closing.reservation
    crossed: tuple[Crossed, ...] = ()
    if numbers:
        found = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        crossed = tuple(Crossed(reservation.buckets[i - 1], used, threshold) for i, used, threshold in found)
    partition = partition_of(reservation.identity.tenant)
    receipt = receipt_of(partition, str(stream_id, "ascii"), reservation.id) if stream_id else None
    return Closed(_OUTCOMES[outcome], crossed, receipt)
