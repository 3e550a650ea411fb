"""Write entries to the ledger whose replica died before it could: they are found in the journal."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from extproc.core.quota.ledger import Entry
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.write_fence import WriteFence
from extproc.ports.base import ShardId, StoreError
from extproc.ports.counters import Receipt
from extproc.ports.journal import Journal
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 500
# Replicas sweep at different times: each waits 0.5 to 1.5 intervals.
_JITTER: Final = 0.5


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Set the durations of sweeping, in seconds.

    An entry that waited in the journal for `older_than_s` is written by any replica.
    """

    older_than_s: float = 5.0
    every_s: float = 2.0


class JournalSweeper:
    """Have entries that other replicas left in the journal of one shard written to the ledger."""

    def __init__(
        self, journal: Journal, shard_id: ShardId, writer: LedgerWriter, fence: WriteFence, options: SweepOptions
    ) -> None:
        self._journal = journal
        self._shard_id = shard_id
        self._writer = writer
        self._fence = fence
        self._options = options

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""

        async def sweep() -> None:
            await self._fence.wait_until_open()
            if written := await self.sweep(self._options.older_than_s):
                _log.warning("journal: wrote entries that other replicas left", extra={"entries": written})

        def failed(error: StoreError) -> None:
            _log.warning("journal: entries of other replicas could not be written", extra={"error": str(error)})

        await periodically(sweep, self._options.every_s, expected=StoreError, on_failure=failed, jitter=_JITTER)

    async def sweep(self, older_than_s: float) -> int:
        """Write entries that have waited for so long; return how many. Raise `StoreError`."""
        written = 0
        seen: set[Receipt] = set()
        while found := await self._journal.waiting(older_than_s, _AT_ONCE, self._shard_id):
            if seen.issuperset(waiting.receipt for waiting in found):
                # The entries behind them would never be seen.
                raise StoreError("entries in the ledger can't be removed from the journal", transient=True)
            seen.update(waiting.receipt for waiting in found)
            for waiting in found:
                if waiting.entry is None:
                    await self._journal.set_aside(None, waiting.receipt, "it can't be read")
            readable = [(waiting.entry, waiting.receipt) for waiting in found if waiting.entry is not None]
            await self._write(readable)
            written += len(readable)
        return written

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
