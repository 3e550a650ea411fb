"""Write entries to the ledger that were left in the journal.

A replica that is here writes its own entries, however long MongoDB takes: others would only be in its way. What is
left is of replicas that are gone, or of this one and no longer in its memory.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from extproc.core.quota.ledger import Entry
from extproc.core.quota.partitions import PARTITIONS
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.presence import Presence
from extproc.metering.write_fence import WriteFence
from extproc.ports.base import Clock, ShardId, StoreError
from extproc.ports.counters import Receipt
from extproc.ports.journal import Journal, Waiting
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 500
# Replicas sweep at different times: each waits 0.5 to 1.5 intervals.
_JITTER: Final = 0.5


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Set the durations of sweeping, in seconds.

    An entry that was left in the journal and has waited there for `older_than_s` is written by any replica; one of
    a replica that is here after `stuck_s`.
    """

    older_than_s: float = 5.0
    every_s: float = 2.0
    stuck_s: float = 60.0


class JournalSweeper:
    """Have entries that were left in the journal of one shard written to the ledger."""

    def __init__(
        self,
        journal: Journal,
        shard_id: ShardId,
        writer: LedgerWriter,
        *,
        fence: WriteFence,
        presence: Presence,
        clock: Clock,
        options: SweepOptions,
    ) -> None:
        self._journal = journal
        self._shard_id = shard_id
        self._writer = writer
        self._fence = fence
        self._presence = presence
        self._clock = clock
        self._options = options

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""

        async def sweep() -> None:
            await self._fence.wait_until_open()
            if written := await self.sweep(self._options.older_than_s):
                _log.warning("journal: wrote entries that were left there", extra={"entries": written})

        def failed(error: StoreError) -> None:
            _log.warning("journal: entries that were left there could not be written", extra={"error": str(error)})

        await periodically(sweep, self._options.every_s, expected=StoreError, on_failure=failed, jitter=_JITTER)

    async def sweep(self, older_than_s: float) -> int:
        """Write entries that were left and have waited for so long; return how many. Raise `StoreError`.

        Look at the oldest entries only, as long as any of them was left. Younger ones come to the front when those
        are written.
        """
        written = 0
        seen: set[Receipt] = set()
        while found := self._left(await self._journal.waiting(older_than_s, _AT_ONCE, self._shard_id)):
            if seen.issuperset(waiting.receipt for waiting in found):
                # The entries behind them would never be seen.
                raise StoreError("entries in the ledger can't be removed from the journal", transient=True)
            seen.update(waiting.receipt for waiting in found)
            written += await self._write_all(found)
        return written

    async def sweep_all(self, older_than_s: float) -> int:
        """Look at the whole journal for what was left and has waited for so long. As `sweep` otherwise."""
        written = 0
        for partition in range(PARTITIONS) if self._shard_id is None else (self._shard_id,):
            last: Receipt | None = None
            while found := await self._journal.waiting(older_than_s, _AT_ONCE, partition, last):
                written += await self._write_all(self._left(found))
                last = found[-1].receipt
        return written

    def _left(self, found: Sequence[Waiting]) -> list[Waiting]:
        me = self._presence.replica
        mine = self._writer.ids() if any(each.replica == me for each in found) else set()
        stuck_since = self._clock.now() - timedelta(seconds=self._options.stuck_s)

        def is_left(entry: Entry, replica: str) -> bool:
            if replica == me:
                return entry.id not in mine
            return entry.ended_at < stuck_since or not self._presence.is_here(replica)

        return [each for each in found if each.entry is None or is_left(each.entry, each.replica)]

    async def _write_all(self, found: Sequence[Waiting]) -> int:
        """Write entries, or set them aside; return how many were written."""
        for waiting in found:
            if waiting.entry is None:
                await self._journal.set_aside(None, waiting.receipt, "it can't be read")
        readable = [(waiting.entry, waiting.receipt) for waiting in found if waiting.entry is not None]
        await self._write(readable)
        return len(readable)

    async def _write(self, found: Sequence[tuple[Entry, Receipt]]) -> None:
        """Write all at once; or each on its own, if the ledger refuses them permanently."""
        if not found:
            return
        try:
            await self._writer.append([entry for entry, _ in found])
        except StoreError as error:
            if error.transient:
                raise
            if len(found) == 1:
                await self._journal.set_aside(*found[0], str(error))
                return
            for each in found:
                await self._write([each])
        else:
            await self._writer.written([entry.id for entry, _ in found], [receipt for _, receipt in found])
