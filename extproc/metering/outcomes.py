"""Find out how reservations ended, whichever replica ended them."""

from collections.abc import Iterable

from extproc.core.quota.reservation import ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.ports.journal import Journal
from extproc.ports.records import Records


class Outcomes:
    """Look for the ends of reservations in the journal and in the ledger."""

    def __init__(self, journal: Journal, records: Records) -> None:
        self._journal = journal
        self._records = records

    async def of(self, ids: Iterable[ReservationId], partitions: Iterable[int]) -> dict[ReservationId, Outcome]:
        """Return the outcomes of reservations whose counters are in these partitions. Raise `StoreError`."""
        wanted = dict.fromkeys(ids)
        if not wanted:
            return {}
        # The journal first: an entry that leaves it is in the ledger by then.
        waiting = [each for p in partitions for each in await self._journal.journalled(p)]
        found = {each.id: each.outcome for each in waiting if each.id in wanted}
        return found | await self._records.outcomes([each for each in wanted if each not in found])
