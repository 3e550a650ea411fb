"""Know the reservations that this process answers for: asked for, leased, or ended and not recorded yet."""

from datetime import timedelta

from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Reservation
from extproc.metering.admission import Admission
from extproc.metering.leases import Leases
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.settler import Settler
from extproc.ports.base import Clock
from extproc.ports.records import Records


class Holdings:
    """Tell a rebuild, and the records, which reservations this process holds."""

    def __init__(
        self,
        admission: Admission,
        leases: Leases,
        settler: Settler,
        writer: LedgerWriter,
        records: Records,
        *,
        clock: Clock,
        save_after_s: float,
    ) -> None:
        """Save reservations in the records once they are `save_after_s` seconds old."""
        self._admission = admission
        self._leases = leases
        self._settler = settler
        self._writer = writer
        self._records = records
        self._clock = clock
        self._save_after_s = save_after_s

    def to_restore(self, partition: int) -> list[Reservation]:
        """Return all that this process holds or may hold in a partition, to be restored in its new epoch.

        Reservations that ended here are included, unless they are known to have ended on the counters.
        """
        found = (*self._admission.to_restore(), *self._leases, *self._settler.unended())
        by_id = {reservation.id: reservation for reservation in found}
        return [r for r in by_id.values() if partition_of(r.identity.tenant) == partition]

    def renew_all(self, partition: int) -> None:
        """Tell the counters the state of each lease in a partition: they may have an older one."""
        self._leases.renew_all(partition)

    def retry(self) -> None:
        """Try at once what waits for its next attempt: the stores may be back."""
        self._settler.retry()
        self._leases.retry()

    async def save(self) -> None:
        """Save what has been held for a while in the records, in case this process and the counters are both lost.

        Raise `StoreError`.
        """
        before = self._clock.now() - timedelta(seconds=self._save_after_s)
        unsaved = [*self._leases.unsaved(before), *self._settler.unsaved(before)]
        if not unsaved:
            return
        await self._records.keep(unsaved)
        self._leases.saved(unsaved)
        known = {reservation.id for reservation in self._leases} | self._settler.ids()
        self._writer.saved(r.id for r in unsaved if r.id in known)
        recorded = [r.id for r in unsaved if r.id not in known]  # their entries were written meanwhile
        if recorded:
            await self._records.drop(recorded)
