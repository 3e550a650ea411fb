"""Write entries to the ledger, and tell everybody who kept them that they are there.

An entry waits in the journal from the end of its reservation on. This process writes it from memory; where it
can't, any replica finds it in the journal (journal_sweeper.py). The ledger knows an entry by its id, so it may be
written twice.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from extproc.core.quota.ledger import Entry, denied_entry
from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.metering.delivery_queue import DeliveryOptions
from extproc.metering.denials import Denials
from extproc.metering.exclusive_delivery import ExclusiveDelivery
from extproc.metering.shards import Part, ShardQueues, part_of, parts_of
from extproc.metering.write_fence import WriteFence
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing, Counters, Receipt
from extproc.ports.journal import Journal
from extproc.ports.ledger import Ledger
from extproc.ports.records import Records
from extproc.ports.spool import Spool

# Entries beyond this number are left in the journal. An entry takes some kilobytes of memory.
_ENTRIES_AT_MOST: Final = 20_000
# Denials are queued only while fewer entries wait: the rest of the room is for what was charged.
_DENIED_AT_MOST: Final = 10_000


@dataclass(slots=True, eq=False)
class Record:
    """Carry an entry to the ledger. A denied request has no `closing`: it was never counted.

    A `recalled` record is not written: its closing is carried out once more, and makes another record.
    """

    entry: Entry
    receipt: Receipt | None = None
    closing: Closing | None = None
    recalled: bool = False


class LedgerWriter:
    """Deliver entries to the ledger in batches, in order, part by part of the counters."""

    def __init__(
        self,
        counters: Counters,
        journal: Journal,
        ledger: Ledger,
        records: Records,
        spool: Spool,
        *,
        fence: WriteFence,
        denials: Denials,
        metrics: Metrics,
        linger_s: float,
    ) -> None:
        """Write nothing while the fence is closed. Wait `linger_s` seconds for more entries to fill a batch."""
        self._denials = denials
        self._counters = counters
        self._journal = journal
        self._ledger = ledger
        self._records = records
        self._spool = spool
        self._fence = fence
        self._metrics = metrics
        self._saved: set[ReservationId] = set()
        self._parts = parts_of(counters)
        self._writing = {part: ExclusiveDelivery() for part in self._parts}
        self._queue: ShardQueues[Record] = ShardQueues(
            DeliveryOptions("ledger", max_queued=_ENTRIES_AT_MOST, linger_s=linger_s),
            counters,
            lambda record: record.entry.identity.tenant,
            self._write,
            on_lost=metrics.lost,
            refused=self._refused,
        )
        metrics.watch_queue("ledger", self._queue.__len__)

    # ------------------------------------------------ what comes in

    def put(self, record: Record) -> None:
        """Queue the entry of a reservation that ended. Return at once.

        If the queue is full and the journal has the entry, it stays in the journal alone.
        """
        if record.receipt is None or not self._queue.full(self._part_of(record.entry)):
            self._queue.put(record)

    def deny(self, reservation: Reservation, reason: str, bucket: str) -> None:
        """Record a request that was denied: the first of a minute and bucket singly, the others in a sum.

        In a long outage of the ledger, denials of more callers than there is room for are lost, and counted.
        """
        tenant = reservation.identity.tenant
        if self._denials.is_single(reservation, bucket) and self._has_room(tenant):
            self._queue.put(Record(denied_entry(reservation, reason)))
            return
        if not self._denials.add(reservation, reason):
            self._put_sums()
            if not self._denials.add(reservation, reason):
                self._metrics.lost("denied", 1)

    def _has_room(self, tenant: TenantId) -> bool:
        waiting, share = self._queue.beside(tenant), _DENIED_AT_MOST // len(self._parts)
        return len(self._queue) < _DENIED_AT_MOST or waiting < share

    def _put_sums(self, *, beyond: bool = False) -> None:
        """Queue what was counted of denials, as far as there is room."""
        while (beyond or len(self._queue) < _DENIED_AT_MOST) and (entry := self._denials.pop()) is not None:
            self._queue.put(Record(entry), beyond=beyond)

    async def append(self, entries: Sequence[Entry]) -> None:
        """Write entries of one part now. Raise `StoreError`."""
        await self._append(self._part_of(entries[0]), lambda: entries)

    # ------------------------------------------------ what others have to know

    def ids(self) -> set[ReservationId]:
        """Return the reservations whose entries wait here."""
        return {record.entry.id for record in self._queue}

    def unwritten(self, partitions: set[int]) -> list[Record]:
        """Return the records of reservations in these partitions that wait here and are not recalled."""
        return [
            record
            for record in self._queue
            if record.closing is not None
            and not record.recalled
            and partition_of(record.entry.identity.tenant) in partitions
        ]

    def lost_if_stopped(self) -> int:
        """Return how many entries wait in this process alone."""
        return sum(record.receipt is None for record in self._queue) + len(self._denials)

    async def outcomes(
        self, ids: Iterable[ReservationId], partitions: Iterable[int]
    ) -> dict[ReservationId, Outcome]:
        """Return how reservations ended, by the journal of these partitions and by the ledger.

        Raise `StoreError`.
        """
        wanted = dict.fromkeys(ids)
        if not wanted:
            return {}
        # The journal first: an entry that leaves it is in the ledger by then.
        waiting = [each for p in partitions for each in await self._journal.journalled(p)]
        found = {each.id: each.outcome for each in waiting if each.id in wanted}
        return found | await self._records.outcomes([each for each in wanted if each not in found])

    def is_saved(self, reservation_id: ReservationId) -> bool:
        """Tell whether an open reservation is saved in the records, to be dropped when its entry is written."""
        return reservation_id in self._saved

    def saved(self, ids: Iterable[ReservationId]) -> None:
        """Remember that these are saved in the records."""
        self._saved.update(ids)

    def ended_elsewhere(self, closing: Closing) -> None:
        """Forget a reservation that another end came first for: its entry was written or journalled then."""
        self._saved.discard(closing.reservation.id)
        self.forget_spooled([closing])

    @asynccontextmanager
    async def paused(self, part: Part) -> AsyncIterator[None]:
        """Write nothing of a part meanwhile. A write that hangs is detached, and repeated afterwards."""
        async with self._writing[part].pause():
            yield

    def __len__(self) -> int:
        return len(self._queue)

    def retry(self) -> None:
        """Try at once what waits for its next attempt: the stores may be back."""
        self._queue.retry()

    # ------------------------------------------------ life

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run())
            group.create_task(self._write_sums())

    async def _write_sums(self) -> None:
        while True:
            await asyncio.sleep(self._denials.options.write_s)
            self._put_sums()

    def release(self) -> None:
        """Open the fence for good: this process ends."""
        self._fence.release()

    async def drained(self) -> None:
        """Return when all that was queued is written. From now on no batch waits to fill."""
        self._put_sums(beyond=True)
        await self._queue.drained()

    async def written(self, ids: Sequence[ReservationId], receipts: Sequence[Receipt]) -> None:
        """Remove entries that are in the ledger from the journal, and their reservations from the records.

        A failure is left to others: they find the entries in the ledger.
        """
        with suppress(StoreError):
            if receipts:
                await self._journal.written(receipts)
        # Others may be saved while these are dropped.
        while saved := [each for each in ids if each in self._saved]:
            self._saved.difference_update(saved)
            with suppress(StoreError):
                await self._records.drop(saved)

    def forget_spooled(self, closings: Iterable[Closing]) -> None:
        """Remove from the spool what it holds of these reservations: it is safe elsewhere."""
        local = [closing.reservation.id for closing in closings if closing.reservation.local]
        if local:
            self._spool.done(local)

    # ------------------------------------------------ deliveries

    async def _write(self, records: Sequence[Record]) -> None:
        written: list[Record] = []

        def not_recalled() -> list[Entry]:
            written[:] = [record for record in records if not record.recalled]
            return [record.entry for record in written]

        await self._append(self._part_of(records[0].entry), not_recalled)
        self.forget_spooled(record.closing for record in written if record.closing is not None)
        receipts = [record.receipt for record in written if record.receipt is not None]
        await self.written([record.entry.id for record in written], receipts)

    async def _append(self, part: Part, entries: Callable[[], Sequence[Entry]]) -> None:
        """Write `entries()`, read when it is their turn and the fence is open."""

        async def append() -> bool:
            if self._fence.is_open(part):  # it may have closed while another write had its turn
                await self._ledger.append(entries())
                return True
            return False

        done = False
        while not done:
            await self._fence.wait_until_open(part)
            done = await self._writing[part].deliver(append)

    async def _refused(self, record: Record, error: StoreError) -> None:
        await self._journal.set_aside(record.entry, record.receipt, str(error))
        if record.closing is not None:
            self.forget_spooled([record.closing])

    def _part_of(self, entry: Entry) -> Part:
        return part_of(self._counters, entry.identity.tenant)
