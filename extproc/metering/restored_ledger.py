"""Notice that the ledger went back, as a restore from a backup makes it, and correct its sums from the counters.

The ledger has a generation, a number that replicas raise every two seconds. The counters' store notes it. A ledger
whose generation is lower than the one that was noted went back: entries are lost that the counters have charged.
Then, and before a rebuild could admit that amount a second time,

    1. every replica saves its holds again: the records that had them went back too;
    2. what the counters have beyond ledger and journal is recorded as a correction of each bucket;
    3. the generation is raised: the ledger's sums agree with the counters again.

A rebuild that comes before takes what the epoch before had counted, where that is more (`counted_before`).
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from extproc.core.quota.partitions import PARTITIONS
from extproc.core.request.identity import TenantId
from extproc.metering.shards import Shards
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError
from extproc.ports.epochs import CounterStore, Epoch, Used
from extproc.ports.records import Records
from extproc.timing.periodic import periodically

_Sums = dict[tuple[TenantId, str], Used]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestoredLedgerOptions:
    """Look at the generation every `look_s` seconds; read the sums `readings` times, `pause_s` seconds apart.

    A reading says too much by what is charged while it lasts, never too little. The lowest one counts.
    """

    look_s: float = 2.0
    readings: int = 3
    pause_s: float = 0.3


class RestoredLedger:
    """Compare the ledger's generation with the one that the counters' store has noted."""

    def __init__(
        self,
        counters: CounterStore,
        records: Records,
        shards: Shards,
        *,
        clock: Clock,
        metrics: Metrics,
        options: RestoredLedgerOptions | None = None,
    ) -> None:
        self._counters = counters
        self._records = records
        self._shards = shards
        self._clock = clock
        self._metrics = metrics
        self._options = options or RestoredLedgerOptions()
        self._seen = 0
        self._corrected: int | None = None
        self._behind = False

    async def run(self) -> None:
        """Look until cancelled."""
        await periodically(self.look, self._options.look_s, expected=StoreError, on_failure=self._failed)

    async def look(self) -> None:
        """Compare once, and correct the ledger's sums if it went back. Raise `StoreError`."""
        noted = await self._note()
        if noted is None:
            return
        self._metrics.ledger_behind()
        self._shards.save_again()
        epochs = await self._counters.epochs()
        if len(epochs) < PARTITIONS or not all(epoch.ready for epoch in epochs):
            return  # all of them are needed: what is not corrected now never is
        missing = await self._missing(epochs)
        await self._records.correct(missing)
        await self._records.corrected(noted)
        _log.error(
            "mongodb: the ledger went back: what it lacks is recorded as corrections, the lost entries are not",
            extra={"buckets": len(missing)},
        )

    async def counted_before(self, epochs: Sequence[Epoch]) -> list[Used]:
        """Return what the epochs before these had counted, if the ledger lacks any of it. Raise `StoreError`."""
        if await self._note() is None:
            return []
        return await self._counters.counted_before(epochs)

    async def _note(self) -> int | None:
        """Raise the generation. Return the one that was noted if the ledger went back."""
        noted = await self._counters.note_generation(self._seen)
        found = await self._records.advance(noted)
        if found is None:
            if not self._behind:
                _log.error("mongodb: the ledger is older than the counters: its sums will be corrected from them")
            self._behind = True
            return noted
        self._behind = False
        if self._corrected not in (None, found.corrected):  # another replica has corrected the sums
            self._shards.save_again()
        self._seen, self._corrected = found.number, found.corrected
        await self._counters.note_generation(self._seen)
        return None

    def _failed(self, error: StoreError) -> None:
        if self._behind:
            _log.warning(
                "mongodb: the ledger's sums can't be corrected: it is tried again", extra={"error": str(error)}
            )
        else:
            _log.debug("the ledger's generation can't be looked at", extra={"error": str(error)})

    async def _missing(self, epochs: Sequence[Epoch]) -> list[Used]:
        """Return what was used of buckets beside the entries that the ledger and the journal have."""
        lowest = await self._beyond_the_ledger(epochs)
        for _ in range(self._options.readings - 1):
            if not lowest:
                break
            await asyncio.sleep(self._options.pause_s)
            found = await self._beyond_the_ledger(epochs)
            lowest = {key: min(each, found[key], key=_amount) for key, each in lowest.items() if key in found}
        return list(lowest.values())

    async def _beyond_the_ledger(self, epochs: Sequence[Epoch]) -> _Sums:
        """Read the corrections that buckets need. The counters are read last: so no correction is too small."""
        now = self._clock.now()
        waiting = [each for epoch in epochs for each in await self._counters.journalled(epoch.partition)]
        corrections = _by_bucket(await self._records.corrections(now))
        known = _by_bucket(await self._records.used(now))
        written = await self._records.outcomes([each.id for each in waiting])
        for entry in waiting:
            for charge in entry.charges if entry.id not in written else ():
                used = known.get((entry.tenant, charge.key), Used(entry.tenant, charge.key, charge.until, 0))
                known[entry.tenant, charge.key] = replace(used, amount=used.amount + charge.amount)
        counted = _by_bucket(await self._counters.counted(epochs))
        found: _Sums = {}
        for key, each in counted.items():
            beyond = each.amount - (known[key].amount if key in known else 0)
            if beyond > 0 and each.until > now.timestamp():
                before = corrections[key].amount if key in corrections else 0
                found[key] = replace(each, amount=before + beyond)
        return found


def larger(some: Iterable[Used], others: Iterable[Used]) -> list[Used]:
    """Return the larger amount of each bucket."""
    found = _by_bucket(some)
    for key, each in _by_bucket(others).items():
        if key not in found or found[key].amount < each.amount:
            found[key] = each
    return list(found.values())


def _by_bucket(used: Iterable[Used]) -> _Sums:
    return {(each.tenant, each.key): each for each in used}


def _amount(used: Used) -> int:
    return used.amount
