"""Count in memory: the reference for the tests of the other stores.

`MemoryServer` is shared by several replicas, like a Redis server. `lose` removes its data. `MemoryCounters` is the
client of one replica. A client without a given server gets one of its own, which is ready; it lives as long as the
client.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count

import msgspec
from msgspec.structs import replace

from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import Bucket
from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.reservation import Admitted, Count, Denied, Reservation, ReservationId, admitted, decide
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import TenantId
from extproc.ports.alerts import Alert
from extproc.ports.base import ShardId, StoreError, UnreadyError
from extproc.ports.counters import Closed, Closing, Crossed, Receipt
from extproc.ports.epochs import Epoch, Used
from extproc.ports.journal import Aside, Backlog, Journalled, Waiting
from extproc.stores.memory.presence import Notes

_NOTHING = Count(0, 0)


@dataclass(slots=True)
class _Known:
    """Hold a reservation that is open, or has ended (`closed`)."""

    reservation: Reservation
    holds: list[int]
    closed: Closed | None = None


@dataclass(slots=True)
class _Life:
    """Hold the data of a partition in one epoch."""

    epoch: Epoch
    counts: dict[tuple[str, str], Count] = field(default_factory=dict)
    alerted: dict[tuple[str, str], int] = field(default_factory=dict)
    known: dict[ReservationId, _Known] = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    until: dict[tuple[str, str], int] = field(default_factory=dict)  # the ends of the windows


class MemoryServer:
    """Hold the data that all replicas share. `clock` returns seconds since the epoch."""

    def __init__(
        self, clock: Callable[[], float] = time.time, new_id: Callable[[], str] = secrets.token_hex
    ) -> None:
        """Create an empty server. `new_id` must return a new id for each epoch."""
        self.clock = clock
        self._new_id = new_id
        self.lives: dict[int, _Life] = {}
        self.before: dict[int, _Life] = {}  # the latest epochs that were ready
        self.journal: dict[Receipt, tuple[Entry, float]] = {}
        self.admitted_by: dict[ReservationId, str] = {}  # the replica, while the entry is in the journal
        self.aside: deque[Aside] = deque()
        self.seen: dict[int, Notes] = {}
        self.generation = 0
        self.told: set[tuple[str, str, str]] = set()
        self._numbers = count(1)

    def begin(self, partition: int) -> None:
        """Begin an epoch, because counts may be lost. Keep the previous one for inspection."""
        known = self.lives.get(partition)
        if known is not None and known.epoch.ready:
            self.before[partition] = known
        self.lives[partition] = _Life(Epoch(partition, self._new_id(), ready=False))

    def receipt(self, partition: int) -> Receipt:
        return Receipt(partition, str(next(self._numbers)))


class MemoryCounters:
    """Implement `ports.CounterStore`. Each call is atomic, because none of them awaits anything."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self._adopted: dict[int, str] = {}
        self.server = server or MemoryServer()
        if server is None:
            for partition in range(PARTITIONS):
                self.server.begin(partition)
                life = self.server.lives[partition]
                life.epoch = replace(life.epoch, ready=True)
                self._adopted[partition] = life.epoch.id

    # ------------------------------------------------ counters

    @property
    def independent(self) -> bool:
        return False

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        life = self._life(reservation, ready=True)
        known = life.known.get(reservation.id)
        counts = [life.counts.get(key, _NOTHING) for key in _keys(reservation)]
        if known is not None and known.closed is not None:
            raise StoreError("the reservation was ended before it was made", transient=False)
        if known is not None:
            before = [Count(c.used, c.held - hold) for c, hold in zip(counts, known.holds, strict=True)]
            bound = known.reservation.bound
            return admitted(reservation, before, bound.output if bound is not None else 0)
        decision = decide(reservation, counts)
        if isinstance(decision, Admitted):
            _hold(life, decision.reservation)
        return decision

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        for reservation in reservations:
            life = self._life(reservation, ready=False)
            known = life.known.get(reservation.id)
            if known is None and reservation.local:
                _hold(life, reservation)
            elif known is not None and known.closed is None:
                _renew(life, known, reservation)

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        return [self._close(closing, thresholds) for closing in closings]

    async def overdue(self, now: datetime, at_most: int, shard_id: ShardId = None) -> list[Reservation]:
        due = (
            known.reservation
            for partition, life in self.server.lives.items()
            if shard_id in (None, partition)
            for known in life.known.values()
            if known.closed is None and known.reservation.deadline < now.timestamp()
        )
        return sorted(due, key=lambda r: r.deadline)[:at_most]

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        life = self.server.lives.get(partition_of(tenant))
        counts = life.counts if life is not None else {}
        return [counts.get((tenant, bucket.key), _NOTHING) for bucket in buckets]

    async def time(self) -> float:
        return self.server.clock()

    async def warnings(self) -> list[str]:
        return []

    async def ping(self, shard_id: ShardId = None) -> None:
        """Return at once: memory is always there."""

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""

    def _life(self, reservation: Reservation, *, ready: bool) -> _Life:
        partition = partition_of(reservation.identity.tenant)
        life = self.server.lives.get(partition)
        if life is None or self._adopted.get(partition) != life.epoch.id:
            raise UnreadyError("another epoch has begun")
        if ready and not life.epoch.ready:
            raise UnreadyError("the counters are being rebuilt")
        return life

    def _close(self, closing: Closing, thresholds: Sequence[int]) -> Closed:
        reservation = closing.reservation
        life = self._life(reservation, ready=True)
        known = life.known.get(reservation.id)
        if known is None and reservation.local:
            known = life.known[reservation.id] = _Known(reservation, [0] * len(reservation.buckets))
            _note_ends(life, reservation)
        if known is None:
            closed = Closed(closing.outcome)
            life.known[reservation.id] = _Known(reservation, [], closed)
            return closed
        if known.closed is not None:
            return known.closed if known.closed.outcome is closing.outcome else Closed(known.closed.outcome)
        crossed: list[Crossed] = []
        watched = closing.watched or (True,) * len(reservation.buckets)
        for i, (key, bucket) in enumerate(zip(_keys(reservation), reservation.buckets, strict=True)):
            used = _take_back(life, key, known.holds[i], closing.charges[i])
            if watched[i] and bucket.limit.amount:
                crossed += _cross(life, key, bucket, used, thresholds)
        receipt = None
        if closing.entry is not None:
            receipt = self.server.receipt(life.epoch.partition)
            self.server.journal[receipt] = (closing.entry, self.server.clock())
            self.server.admitted_by[reservation.id] = reservation.replica
        known.closed = Closed(closing.outcome, tuple(crossed), receipt)
        return known.closed

    # ------------------------------------------------ journal

    async def written(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            self._out_of_journal(receipt)

    async def waiting(
        self, older_than_s: float, at_most: int, partition: int | None = None, after: Receipt | None = None
    ) -> list[Waiting]:
        now = self.server.clock()
        found = [
            Waiting(receipt, entry, self.server.admitted_by.get(entry.id, ""))
            for receipt, (entry, since) in self.server.journal.items()
            if (older_than_s <= 0 or now - since >= older_than_s) and partition in (None, receipt.partition)
            if after is None or int(receipt.id) > int(after.id)
        ]
        return found[:at_most]

    def _out_of_journal(self, receipt: Receipt) -> Entry | None:
        entry, _ = self.server.journal.pop(receipt, (None, 0.0))
        if entry is not None:
            self.server.admitted_by.pop(entry.id, None)
        return entry

    async def journalled(self, partition: int) -> list[Journalled]:
        journal = self.server.journal.items()
        return [Journalled.of(entry) for receipt, (entry, _) in journal if receipt.partition == partition]

    async def set_aside(self, entry: Entry | None, receipt: Receipt | None, reason: str) -> None:
        known = self._out_of_journal(receipt) if receipt is not None else None
        kept = entry or known
        if kept is not None:
            stands = receipt or self.server.receipt(partition_of(kept.identity.tenant))
            self.server.aside.append(Aside(msgspec.json.encode(kept).decode(), reason, stands))

    async def aside(self, at_most: int) -> list[Aside]:
        return list(self.server.aside)[:at_most]

    async def forget_aside(self, receipts: Sequence[Receipt]) -> None:
        gone = set(receipts)
        self.server.aside = deque(each for each in self.server.aside if each.receipt not in gone)

    async def backlog(self) -> Backlog:
        since = [since for _, since in self.server.journal.values()]
        oldest_s = max(0.0, self.server.clock() - min(since)) if since else 0.0
        return Backlog(len(since), oldest_s, len(self.server.aside))

    # ------------------------------------------------ epochs

    async def epochs(self) -> list[Epoch]:
        for partition in range(PARTITIONS):
            if partition not in self.server.lives:
                self.server.begin(partition)
        return [self.server.lives[partition].epoch for partition in range(PARTITIONS)]

    async def restore(self, epoch: Epoch, reservations: Sequence[Reservation]) -> None:
        life = self._current(epoch)
        for reservation in reservations:
            if reservation.id not in life.known:
                _hold(life, reservation)

    async def register(self, epoch: Epoch, replica: str) -> None:
        self._current(epoch).registered.add(replica)
        self._adopted[epoch.partition] = epoch.id

    async def registered(self, epoch: Epoch) -> set[str]:
        return set(self._current(epoch).registered)

    async def left_open(self, epoch: Epoch) -> list[Reservation]:
        self._current(epoch)
        before = self.server.before.get(epoch.partition)
        left = _open(before) if before is not None else []
        # Hits of the rate limit service are not in the ledger, so nobody can find out whether they were charged.
        return [r for r in left if r.endpoint is not Endpoint.ROUTE]

    async def still_open(self, epoch: Epoch) -> list[Reservation]:
        return _open(self._current(epoch))

    async def forget(self, epoch: Epoch, ended: Sequence[tuple[Reservation, Outcome]]) -> None:
        life = self._current(epoch)
        for reservation, outcome in ended:
            known = life.known.get(reservation.id)
            if known is not None and known.closed is None:
                for key, hold in zip(_keys(known.reservation), known.holds, strict=True):
                    _take_back(life, key, hold, 0)
                known.closed = Closed(outcome)

    async def install(self, epoch: Epoch, used: Sequence[Used]) -> None:
        life = self._current(epoch)
        if life.epoch.ready:
            raise UnreadyError("the epoch is ready already")
        for each in used:
            key = (each.tenant, each.key)
            life.counts[key] = Count(each.amount, life.counts.get(key, _NOTHING).held)
            life.until[key] = each.until

    async def counted(self, epochs: Sequence[Epoch]) -> list[Used]:
        lives = [self._current(epoch) for epoch in epochs]
        if not all(life.epoch.ready for life in lives):
            raise UnreadyError("the counters are being rebuilt")
        return [used for life in lives for used in _counted(life)]

    async def counted_before(self, epochs: Sequence[Epoch]) -> list[Used]:
        lives = [self.server.before.get(self._current(epoch).epoch.partition) for epoch in epochs]
        return [used for life in lives if life is not None for used in _counted(life)]

    async def complete(self, epoch: Epoch) -> None:
        life = self._current(epoch)
        life.epoch = replace(life.epoch, ready=True)
        self.server.before.pop(epoch.partition, None)

    # ------------------------------------------------ presence

    async def seen(self, replica: str, shard_id: ShardId = None) -> dict[str, float]:
        return self.server.seen.setdefault(shard_id or 0, Notes()).note(replica, self.server.clock())

    async def forget_replica(self, replica: str, shard_id: ShardId = None, *, older_than_s: float = 0.5) -> bool:
        notes = self.server.seen.setdefault(shard_id or 0, Notes())
        return notes.forget(replica, self.server.clock(), older_than_s)

    async def opened_by(self, replica: str, shard_id: ShardId = None) -> list[Reservation]:
        lives = [life for partition, life in self.server.lives.items() if shard_id in (None, partition)]
        return [each for life in lives for each in _open(life) if each.replica == replica]

    # ------------------------------------------------ alerts

    async def is_first(self, alert: Alert) -> bool:
        key = (alert.tenant, alert.bucket.key, alert.reason.value)
        first = key not in self.server.told
        self.server.told.add(key)
        return first

    # ------------------------------------------------ generation

    async def note_generation(self, number: int) -> int:
        self.server.generation = max(self.server.generation, number)
        return self.server.generation

    def _current(self, epoch: Epoch) -> _Life:
        life = self.server.lives.get(epoch.partition)
        if life is None or life.epoch.id != epoch.id:
            raise UnreadyError("another epoch has begun")
        return life


def _open(life: _Life) -> list[Reservation]:
    return [known.reservation for known in life.known.values() if known.closed is None]


def _counted(life: _Life) -> list[Used]:
    return [
        Used(TenantId(key[0]), key[1], life.until[key], count.used)
        for key, count in life.counts.items()
        if count.used
    ]


def _hold(life: _Life, reservation: Reservation) -> None:
    """Hold the reservation's amounts, whatever the limits are."""
    holds = [reservation.hold(bucket.limit) for bucket in reservation.buckets]
    life.known[reservation.id] = _Known(reservation, holds)
    _note_ends(life, reservation)
    for key, hold in zip(_keys(reservation), holds, strict=True):
        before = life.counts.get(key, _NOTHING)
        life.counts[key] = Count(before.used, before.held + hold)


def _note_ends(life: _Life, reservation: Reservation) -> None:
    for key, bucket in zip(_keys(reservation), reservation.buckets, strict=True):
        life.until[key] = bucket.interval.end


def _renew(life: _Life, known: _Known, reservation: Reservation) -> None:
    if known.reservation.deadline > reservation.deadline:
        return  # a later renewal came first
    known.reservation = reservation
    for i, (key, bucket) in enumerate(zip(_keys(reservation), reservation.buckets, strict=True)):
        grown = max(0, reservation.hold(bucket.limit) - known.holds[i])
        known.holds[i] += grown
        before = life.counts.get(key, _NOTHING)
        life.counts[key] = Count(before.used, before.held + grown)


def _take_back(life: _Life, key: tuple[str, str], hold: int, charge: int) -> int:
    """Give a hold back and charge. Return the used amount after that."""
    before = life.counts.get(key, _NOTHING)
    life.counts[key] = after = Count(before.used + charge, before.held - hold)
    if after == _NOTHING:
        del life.counts[key]
    return after.used


def _cross(
    life: _Life, key: tuple[str, str], bucket: Bucket, used: int, thresholds: Sequence[int]
) -> list[Crossed]:
    before = life.alerted.get(key, 0)
    reached = [t for t in thresholds if t > before and used * 100 >= bucket.limit.amount * t]
    if reached:
        life.alerted[key] = reached[-1]
    return [Crossed(bucket, used, threshold) for threshold in reached]


def _keys(reservation: Reservation) -> list[tuple[str, str]]:
    return [(reservation.identity.tenant, bucket.key) for bucket in reservation.buckets]
