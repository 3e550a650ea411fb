"""Keep together everything that belongs to counters which fail together.

A shard is one failure domain of the counters: all partitions where they are on one server, one partition in a
Redis Cluster. An outage of one shard delays nothing of another. Each replica has one `Shard` object for each:

    admission       asks the counters in time            circuit_breaker  stops asking while they are away
    leases          open reservations of this replica    expiry           ends reservations that nobody renews
    settler         ends, on their way to the counters   ledger_writer    entries, on their way to the ledger
    write_fence     no entry leaves while counters are rebuilt
    presence        which replicas are here              takeover         of what a dead replica left
    journal_sweeper writes entries that were left

When counters were lost, their epoch is over: the shard restores in the new one what this replica answers for
(`register`), and what the old one alone had is told again.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Settlement
from extproc.metering.admission import Admission
from extproc.metering.circuit_breaker import CircuitBreaker
from extproc.metering.expiry import Expiry
from extproc.metering.journal_sweeper import JournalSweeper
from extproc.metering.leases import Leases
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.outcomes import Outcomes
from extproc.metering.presence import Presence
from extproc.metering.settler import Settler
from extproc.metering.takeover import Takeover
from extproc.metering.write_fence import WriteFence
from extproc.ports.epochs import CounterStore, Epoch
from extproc.timing.in_parallel import in_parallel


@dataclass(eq=False, slots=True)
class Shard:
    """Do for one shard of the counters what this replica does with them.

    What one of its objects does alone is asked of that object. The methods here need several of them.
    """

    counters: CounterStore
    outcomes: Outcomes
    admission: Admission
    leases: Leases
    settler: Settler
    ledger_writer: LedgerWriter
    circuit_breaker: CircuitBreaker
    write_fence: WriteFence
    expiry: Expiry
    journal_sweeper: JournalSweeper
    presence: Presence
    takeover: Takeover
    _registered: dict[int, str] = field(default_factory=dict, init=False)
    _ready: bool = field(default=False, init=False)

    def close(self, reservation: Reservation, settlement: Settlement) -> None:
        """End a reservation of this replica, and have it recorded. Return at once."""
        self.settler.end(self.leases.end(reservation), settlement, recorded=True)

    # ------------------------------------------------ life

    async def run(self) -> None:
        """Deliver, renew, expire, sweep and probe until cancelled."""
        async with asyncio.TaskGroup() as group:
            for each in (
                self.settler,
                self.ledger_writer,
                self.leases,
                self.expiry,
                self.journal_sweeper,
                self.takeover,
            ):
                group.create_task(each.run())
            group.create_task(self._recover())

    def retry(self) -> None:
        """Try at once what waits for its next attempt: the stores may be back."""
        self.settler.retry()
        self.ledger_writer.retry()
        self.leases.retry()

    async def _recover(self) -> None:
        while True:
            await self.circuit_breaker.recover()
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
            self.expiry.no_renewals_now()
        if ready and not self._ready:
            self.retry()
        self._ready = ready
        self.write_fence.looked(at)

    async def _register_in(self, epoch: Epoch, replica: str) -> None:
        self.admission.epoch_begins()  # from here on, whatever is admitted in an older epoch is refused
        await self.counters.restore(epoch, self._answers_for(epoch))
        # Others may have found these in the journal; if they were the last to look, nobody takes them out later.
        unended = [r for r in self.settler.unended() if epoch.counts(r.identity.tenant)]
        outcomes = await self.outcomes.of([r.id for r in unended], [epoch.partition])
        ended = [(r, outcomes[r.id]) for r in unended if r.id in outcomes]
        if ended:
            await self.counters.forget(epoch, ended)
        await self.counters.register(epoch, replica)
        self._registered[epoch.partition] = epoch.id
        self.leases.renew([r for r in self.leases if epoch.counts(r.identity.tenant)])

    def _answers_for(self, epoch: Epoch) -> list[Reservation]:
        """Return the admitted reservations that are not known to have ended on the counters of an epoch."""
        found = {r.id: r for r in (*self.leases, *self.settler.unended())}
        return [r for r in found.values() if epoch.counts(r.identity.tenant)]

    async def _tell_again(self, epochs: Sequence[Epoch]) -> None:
        """Queue once more the ends that the ledger does not have: these epochs do not know them."""
        unwritten = self.ledger_writer.unwritten(epochs)
        known = await self.outcomes.of([record.entry.id for record in unwritten], [e.partition for e in epochs])
        for record in unwritten:
            if record.closing is not None and record.entry.id not in known:
                self.settler.again(record.closing)
                record.recalled = True

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Deliver nothing meanwhile. A delivery that hangs is detached, and repeated afterwards."""
        async with self.settler.deliveries.pause(), self.ledger_writer.deliveries.pause():
            yield

    # ------------------------------------------------ what the records have to know

    def unsaved(self, admitted_before: datetime) -> list[Reservation]:
        """Return the recorded reservations that this replica answers for, and that the records do not have."""
        holders = (self.leases, self.settler, self.ledger_writer)
        return [each for holder in holders for each in holder.unsaved(admitted_before)]

    def saved(self, reservations: Sequence[Reservation]) -> list[ReservationId]:
        """Remember that the records have these. Return those whose entry was written meanwhile."""
        waiting = self.unrecorded()
        still: list[ReservationId] = []
        gone: list[ReservationId] = []
        for each in reservations:
            waits = self.leases.saved(each) or each.id in waiting
            (still if waits else gone).append(each.id)
        self.ledger_writer.saved(still)
        return gone

    def unrecorded(self) -> set[ReservationId]:
        """Return the reservations that ended here, and whose entry is not known to be in the ledger."""
        return self.settler.ids() | self.ledger_writer.ids()
