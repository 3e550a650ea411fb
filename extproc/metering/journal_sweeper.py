"""What waits in the journal because its replica died before the ledger had it."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from extproc.core.quota.ledger import Entry
from extproc.core.quota.reservation import ReservationId
from extproc.metering.shards import Part
from extproc.metering.write_fence import WriteFence
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.ports.counters import Receipt
from extproc.ports.journal import Journal

_AT_ONCE = 500
_log = logging.getLogger(__name__)


class JournalSweeper:
    """Has what was left behind appended to the ledger. `written` is told of what is in it."""

    def __init__(
        self,
        journal: Journal,
        append: Callable[[Sequence[Entry]], Awaitable[object]],
        written: Callable[[Sequence[ReservationId], Sequence[Receipt]], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._append = append
        self._written = written

    async def collect(self, older_than_s: float, partition: int | None = None) -> int:
        """Writes entries that have waited for so long to the ledger; returns how many. Raises `StoreError`."""
        collected = 0
        seen: set[Receipt] = set()
        while found := await self._journal.waiting(older_than_s, _AT_ONCE, partition):
            if seen.issuperset(waiting.receipt for waiting in found):
                # Nor would what is behind them ever be seen.
                raise StoreError("what is in the ledger can't be removed from the journal", transient=True)
            seen.update(waiting.receipt for waiting in found)
            for waiting in found:
                if waiting.entry is None:
                    await self._journal.set_aside(None, waiting.receipt, "it can't be read")
            readable = [(waiting.entry, waiting.receipt) for waiting in found if waiting.entry is not None]
            await self._write(readable)
            collected += len(readable)
        return collected

    async def follow(self, part: Part, gate: WriteFence, older_than_s: float, every_s: float) -> None:
        """Collects what a part of the counters has, now and again, until cancelled."""
        while True:
            # Not all replicas at once.
            await asyncio.sleep(every_s * random.uniform(0.5, 1.5))
            try:
                await gate.passes(part)
                collected = await self.collect(older_than_s, part)
            except StoreError as error:
                _log.warning("what waits in the journal could not be written", extra={"error": str(error)})
                continue
            if collected:
                _log.warning("wrote entries that others had left behind", extra={"entries": collected})

    async def watch(self, metrics: Metrics, every_s: float) -> None:
        """Tells what waits, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            with suppress(StoreError):
                backlog = await self._journal.backlog()
                metrics.backlog(backlog.waiting, backlog.oldest_s, backlog.aside)

    async def _write(self, found: Sequence[tuple[Entry, Receipt]]) -> None:
        """Writes all at once or, where the ledger refuses that for good, each on its own."""
        if not found:
            return
        try:
            await self._append([entry for entry, _ in found])
        except StoreError as error:
            if error.transient:
                raise
            if len(found) == 1:
                await self._journal.set_aside(*found[0], str(error))
                return
            for each in found:
                await self._write([each])
        else:
            await self._written([entry.id for entry, _ in found], [receipt for _, receipt in found])
