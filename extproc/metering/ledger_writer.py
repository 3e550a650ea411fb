"""Write entries to the ledger, and tell everybody who kept them that they are there.

An entry waits in the journal from the end of its reservation on. This process writes it from memory; where it
can't, any replica finds it in the journal (journal_sweeper.py). The ledger knows an entry by its id, so it may be
written twice.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from msgspec import Struct

from extproc.core.quota.ledger import Entry
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.metering.delivery_queue import DeliveryOptions, DeliveryQueue, QueueRoom
from extproc.metering.exclusive_delivery import ExclusiveDelivery
from extproc.metering.write_fence import WriteFence
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing, Receipt
from extproc.ports.epochs import Epoch
from extproc.ports.journal import Journal
from extproc.ports.ledger import Ledger
from extproc.ports.records import Records
from extproc.ports.spool import Spool

# Entries of all shards beyond this number are left in the journal. An entry takes some kilobytes of memory.
ENTRIES_AT_MOST: Final = 20_000
# Denials are queued only while fewer entries wait.
DENIALS_AT_MOST: Final = 10_000
# While more entries wait, MongoDB is behind: reservations are not saved there until their entries are written.
_SAVED_AT_MOST: Final = 500


class Record(Struct, eq=False):
    """Carry an entry to the ledger. A denied request has no `closing`: it was never counted.

    A `recalled` record is not written: its closing is carried out once more, and makes another record.
    """

    entry: Entry
    receipt: Receipt | None = None
    closing: Closing | None = None
    recalled: bool = False


class LedgerWriter:
    """Deliver the entries of one shard to the ledger in batches, in order."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        records: Records,
        spool: Spool,
        *,
        fence: WriteFence,
        metrics: Metrics,
        room: QueueRoom,
        denial_room: QueueRoom,
        linger_s: float,
    ) -> None:
        """Write nothing while the fence is closed. Wait `linger_s` seconds for more entries to fill a batch.

        Denials are queued only while there is `denial_room`: the rest of the room is for what was charged.
        """
        self._journal = journal
        self._ledger = ledger
        self._records = records
        self._spool = spool
        self._fence = fence
        self._saved: set[ReservationId] = set()
        self._perhaps_saved: set[ReservationId] = set()  # by others; not enough to leave out saving them
        self._denial_room = denial_room
        denial_room.join(self)
        self.deliveries = ExclusiveDelivery()
        self._queue: DeliveryQueue[Record] = DeliveryQueue(
            DeliveryOptions("ledger", linger_s=linger_s), self._write, metrics.lost, self._refused, room
        )

    # ------------------------------------------------ what comes in

    def put(self, record: Record) -> None:
        """Queue the entry of a reservation that ended. Return at once.

        If the queue is full and the journal has the entry, it stays in the journal alone.
        """
        if record.receipt is None or not self._queue.full:
            self._queue.put(record)

    def put_denial(self, entry: Entry, *, beyond: bool) -> bool:
        """Queue the entry of a denial. Return False if too many entries wait; with `beyond` that is no reason."""
        if not beyond and not self._denial_room.takes_more(self):
            return False
        self._queue.put(Record(entry), beyond=beyond)
        return True

    async def append(self, entries: Sequence[Entry]) -> None:
        """Write entries now. Raise `StoreError`."""
        await self._append(lambda: entries)

    # ------------------------------------------------ what others have to know

    def ids(self) -> set[ReservationId]:
        """Return the reservations whose entries wait here."""
        return {record.entry.id for record in self._queue}

    def unwritten(self, epochs: Sequence[Epoch]) -> list[Record]:
        """Return the records of reservations in these epochs' partitions that wait here and are not recalled."""
        return [
            record
            for record in self._queue
            if record.closing is not None
            and not record.recalled
            and any(epoch.counts(record.entry.identity.tenant) for epoch in epochs)
        ]

    def unsaved(self, admitted_before: datetime) -> list[Reservation]:
        """Return reservations admitted before an instant whose entry waits here, and that are not saved.

        While many wait, leave out those whose entries are in the journal: `journalled_since` tells since when.
        """
        waiting = self._waiting(journalled=len(self._queue) <= _SAVED_AT_MOST)
        return [each for each in waiting if each.admitted_at < admitted_before and each.id not in self._saved]

    def journalled_since(self) -> datetime | None:
        """Return the earliest admission of those that `unsaved` leaves out; None if it leaves out none."""
        if len(self._queue) <= _SAVED_AT_MOST:
            return None
        waiting = self._waiting(journalled=True)
        return min((each.admitted_at for each in waiting if each.id not in self._saved), default=None)

    def lost_if_stopped(self) -> int:
        """Return how many entries wait in this process alone."""
        return sum(record.receipt is None for record in self._queue)

    def is_saved(self, reservation_id: ReservationId) -> bool:
        """Tell whether an open reservation is saved in the records, to be dropped when its entry is written."""
        return reservation_id in self._saved

    def saved(self, ids: Iterable[ReservationId]) -> None:
        """Remember that these are saved in the records."""
        self._saved.update(ids)

    def perhaps_saved(self, ids: Iterable[ReservationId]) -> None:
        """Have these dropped from the records when their entries are written: others may have saved them."""
        self._perhaps_saved.update(ids)

    def ended_elsewhere(self, closing: Closing) -> None:
        """Forget a reservation that another end came first for: its entry was written or journalled then."""
        self._saved.discard(closing.reservation.id)
        self._perhaps_saved.discard(closing.reservation.id)
        self.forget_spooled([closing])

    def __len__(self) -> int:
        return len(self._queue)

    def retry(self) -> None:
        """Try at once what waits for its next attempt: the stores may be back."""
        self._queue.retry()

    # ------------------------------------------------ life

    async def run(self) -> None:
        """Write until cancelled."""
        await self._queue.run()

    async def drained(self) -> None:
        """Return when all that was queued is written. From now on no batch waits to fill."""
        await self._queue.drained()

    async def written(self, ids: Sequence[ReservationId], receipts: Sequence[Receipt]) -> None:
        """Remove entries that are in the ledger from the journal, and their reservations from the records.

        A failure is left to others: they find the entries in the ledger.
        """
        with suppress(StoreError):
            if receipts:
                await self._journal.written(receipts)
        # Others may be saved while these are dropped.
        while saved := [each for each in ids if each in self._saved or each in self._perhaps_saved]:
            self._saved.difference_update(saved)
            self._perhaps_saved.difference_update(saved)
            with suppress(StoreError):
                await self._records.drop(saved)

    def forget_spooled(self, closings: Iterable[Closing]) -> None:
        """Remove from the spool what it holds of these reservations: it is safe elsewhere."""
        local = [closing.reservation.id for closing in closings if closing.reservation.local]
        if local:
            self._spool.done(local)

    def _waiting(self, *, journalled: bool) -> list[Reservation]:
        """Return the reservations whose entries wait here; without `journalled` those that wait here alone."""
        return [
            record.closing.reservation
            for record in self._queue
            if record.closing is not None and (journalled or record.receipt is None)
        ]

    # ------------------------------------------------ deliveries

    async def _write(self, records: Sequence[Record]) -> None:
        written: list[Record] = []

        def not_recalled() -> list[Entry]:
            written[:] = [record for record in records if not record.recalled]
            return [record.entry for record in written]

        await self._append(not_recalled)
        self.forget_spooled(record.closing for record in written if record.closing is not None)
        receipts = [record.receipt for record in written if record.receipt is not None]
        await self.written([record.entry.id for record in written], receipts)

    async def _append(self, entries: Callable[[], Sequence[Entry]]) -> None:
        """Write `entries()`, read when it is their turn and the fence is open."""

        async def append() -> bool:
            if self._fence.is_open():  # it may have closed while another write had its turn
                await self._ledger.append(entries(), self._fence.is_open)
                return True
            return False

        done = False
        while not done:
            await self._fence.wait_until_open()
            done = await self.deliveries.deliver(append)

    async def _refused(self, record: Record, error: StoreError) -> None:
        await self._journal.set_aside(record.entry, record.receipt, str(error))
        if record.closing is not None:
            self.forget_spooled([record.closing])
