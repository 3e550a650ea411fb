"""Keep together everything that belongs to counters which fail together.

A shard is one failure domain of the counters: all partitions where they are on one server, one partition in a
Redis Cluster. An outage of one shard delays nothing of another. Each replica has one `Shard` object for each:

    admission       asks the counters in time            circuit_breaker  stops asking while they are away
    leases          open reservations of this replica    expiry           ends reservations that nobody renews
    settler         ends, on their way to the counters   ledger_writer    entries, on their way to the ledger
    write_fence     no entry leaves while counters are rebuilt
    journal_sweeper writes entries that waited long     takeover         of what a dead replica left

When counters were lost, their epoch is over: the shard restores in the new one what this replica answers for
(`register`), and what the old one alone had is told again.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.ledger import Entry
from extproc.core.quota.reservation import Admitted, Denied, Reservation, ReservationId, Unavailable
from extproc.core.quota.settlement import Settlement
from extproc.metering.admission import Admission
from extproc.metering.circuit_breaker import CircuitBreaker
from extproc.metering.expiry import Expiry
from extproc.metering.journal_sweeper import JournalSweeper
from extproc.metering.leases import Lease, Leases
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.outcomes import Outcomes
from extproc.metering.settler import Settler
from extproc.metering.takeover import Takeover
from extproc.metering.write_fence import WriteFence
from extproc.ports.counters import Closing
from extproc.ports.epochs import CounterStore, Epoch
from extproc.timing.in_parallel import in_parallel


@dataclass(frozen=True, slots=True)
class ShardParts:
    """Name the objects that a shard consists of."""

    admission: Admission
    leases: Leases
    settler: Settler
    writer: LedgerWriter
    breaker: CircuitBreaker
    fence: WriteFence
    expiry: Expiry
    sweeper: JournalSweeper
    takeover: Takeover


class Shard:
    """Do for one shard of the counters what this replica does with them."""

    def __init__(self, parts: ShardParts, counters: CounterStore, outcomes: Outcomes) -> None:
        self.parts = parts
        self._counters = counters
        self._outcomes = outcomes
        self._registered: dict[int, str] = {}
        self._ready = False

    # ------------------------------------------------ requests

    def drafted(self, reservation: Reservation) -> None:
        """Remember a reservation from its draft until `decided`."""
        self.parts.admission.drafted(reservation)

    def decided(self, reservation: Reservation) -> None:
        """Forget a reservation that was drafted: it is open now, or it never will be."""
        self.parts.admission.decided(reservation)

    async def decide(self, reservation: Reservation, on_failure: StoreFailure) -> Admitted | Denied | Unavailable:
        """Admit or deny in time. Raise nothing of the counters'; may be cancelled."""
        return await self.parts.admission.decide(reservation, on_failure)

    def open(self, lease: Lease) -> None:
        """Keep the lease of a reservation that was admitted."""
        self.parts.leases.add(lease)

    def grow(self, reservation: Reservation) -> None:
        """Hold more for a reservation: as much as it says now. Return at once."""
        self.parts.leases.grow(reservation)

    def close(self, reservation: Reservation, settlement: Settlement) -> None:
        """End a reservation of this replica, and have it recorded. Return at once."""
        self.parts.settler.end(self.parts.leases.end(reservation), settlement, recorded=True)

    def end_unrecorded(self, reservation: Reservation, settlement: Settlement) -> None:
        """End a reservation that has no entry in the ledger. Return at once."""
        self.parts.settler.end(Lease(reservation), settlement, recorded=False)

    def record_denial(self, entry: Entry, *, beyond: bool = False) -> bool:
        """Have a denial recorded. Return False if too many entries wait; with `beyond` that is no reason."""
        return self.parts.writer.put_denial(entry, beyond=beyond)

    # ------------------------------------------------ life

    async def run(self) -> None:
        """Deliver, renew, expire, sweep and probe until cancelled."""
        parts = self.parts
        async with asyncio.TaskGroup() as group:
            for each in (parts.settler, parts.writer, parts.leases, parts.expiry, parts.sweeper, parts.takeover):
                group.create_task(each.run())
            group.create_task(self._recover())

    def retry(self) -> None:
        """Try at once what waits for its next attempt: the stores may be back."""
        self.parts.settler.retry()
        self.parts.writer.retry()
        self.parts.leases.retry()

    def release(self) -> None:
        """Open the fence until the end: this process ends."""
        self.parts.fence.release()

    async def ends_drained(self) -> None:
        """Return when all ends are on the counters."""
        await self.parts.settler.drained()

    async def entries_drained(self) -> None:
        """Return when all entries are in the ledger."""
        await self.parts.writer.drained()

    async def _recover(self) -> None:
        while True:
            await self.parts.breaker.recover()
            self.retry()

    # ------------------------------------------------ epochs

    async def register(self, epochs: Sequence[Epoch], replica: str) -> None:
        """Take part in those of the shard's epochs that are new here. Raise `StoreError`; safe to repeat.

        Restore what this replica answers for: then its calls count in these epochs. Deliver nothing meanwhile.
        """
        new = [epoch for epoch in epochs if self._registered.get(epoch.partition) != epoch.id]
        if not new:
            return
        async with self._paused():
            await self._tell_again(new)
            await in_parallel(self._register_in(epoch, replica) for epoch in new)
        self.retry()

    def looked(self, at: float, epochs: Sequence[Epoch]) -> None:
        """Open the fence for some time: this replica takes part in these epochs, seen at `at` (loop time).

        Deliver at once what waited for them to be ready.
        """
        ready = all(epoch.ready for epoch in epochs)
        if not (ready and self._ready):
            self.parts.expiry.no_renewals_now()
        if ready and not self._ready:
            self.retry()
        self._ready = ready
        self.parts.fence.looked(at)

    def rebuilding(self, *, going_on: bool) -> None:
        """Write nothing to the ledger while the counters are being rebuilt."""
        self.parts.fence.rebuilding(going_on=going_on)

    async def _register_in(self, epoch: Epoch, replica: str) -> None:
        self.parts.admission.epoch_begins()  # from here on, whatever is admitted in an older epoch is refused
        await self._counters.restore(epoch, self._answers_for(epoch))
        # Others may have found these in the journal; if they were the last to look, nobody takes them out later.
        unended = [r for r in self.parts.settler.unended() if epoch.counts(r.identity.tenant)]
        outcomes = await self._outcomes.of([r.id for r in unended], [epoch.partition])
        ended = [(r, outcomes[r.id]) for r in unended if r.id in outcomes]
        if ended:
            await self._counters.forget(epoch, ended)
        await self._counters.register(epoch, replica)
        self._registered[epoch.partition] = epoch.id
        self.parts.leases.renew([r for r in self.parts.leases if epoch.counts(r.identity.tenant)])

    def _answers_for(self, epoch: Epoch) -> list[Reservation]:
        """Return the admitted reservations that are not known to have ended on the counters of an epoch."""
        found = {r.id: r for r in (*self.parts.leases, *self.parts.settler.unended())}
        return [r for r in found.values() if epoch.counts(r.identity.tenant)]

    async def _tell_again(self, epochs: Sequence[Epoch]) -> None:
        """Queue once more the ends that the ledger does not have: these epochs do not know them."""
        unwritten = self.parts.writer.unwritten(epochs)
        known = await self._outcomes.of([record.entry.id for record in unwritten], [e.partition for e in epochs])
        for record in unwritten:
            if record.closing is not None and record.entry.id not in known:
                self.parts.settler.again(record.closing)
                record.recalled = True

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Deliver nothing meanwhile. A delivery that hangs is detached, and repeated afterwards."""
        async with self.parts.settler.deliveries.pause(), self.parts.writer.deliveries.pause():
            yield

    # ------------------------------------------------ what others left, or have to know

    async def end_for_others(self, closings: Sequence[Closing]) -> None:
        """End reservations that another process left. When it returns, their entries wait in the journal.

        Raise `StoreError`.
        """
        await self.parts.settler.close_now(closings)

    def closing_of(self, reservation: Reservation, settlement: Settlement) -> Closing:
        """Return the end of a reservation that another process left, to be recorded."""
        return self.parts.settler.closing_of(reservation, settlement, ())

    def unsaved(self, admitted_before: datetime) -> list[Reservation]:
        """Return the recorded reservations that this replica answers for, and that the records do not have."""
        parts = (self.parts.leases, self.parts.settler, self.parts.writer)
        return [each for part in parts for each in part.unsaved(admitted_before)]

    def undecided_since(self) -> datetime | None:
        """Return the earliest instant of admission among the reservations that may still become leases."""
        return self.parts.admission.undecided_since()

    def awaits(self, replica: str, waited_s: float, *, barrier_s: float, unseen_s: float) -> bool:
        """Tell whether a rebuild that waited so long waits on for a replica that has not registered."""
        return self.parts.takeover.awaits(replica, waited_s, barrier_s=barrier_s, unseen_s=unseen_s)

    def saved(self, reservations: Sequence[Reservation]) -> list[ReservationId]:
        """Remember that the records have these. Return those whose entry was written meanwhile."""
        waiting = self.unrecorded()
        still: list[ReservationId] = []
        gone: list[ReservationId] = []
        for each in reservations:
            waits = self.parts.leases.saved(each) or each.id in waiting
            (still if waits else gone).append(each.id)
        self.parts.writer.saved(still)
        return gone

    def unrecorded(self) -> set[ReservationId]:
        """Return the reservations that ended here, and whose entry is not known to be in the ledger."""
        return self.parts.settler.ids() | self.parts.writer.ids()

    def lost_if_stopped(self) -> int:
        """Return how many entries wait in this process alone, beside the ends that are not on the counters."""
        return self.parts.writer.lost_if_stopped()

    def unended(self) -> list[Closing]:
        """Return the ends that are not known to be on the counters."""
        return list(self.parts.settler.waiting())
