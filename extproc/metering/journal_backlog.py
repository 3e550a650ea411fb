"""Report the length and the age of the journal as metrics."""

from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.ports.journal import Journal
from extproc.timing.periodic import periodically


class JournalBacklog:
    """Follow the backlog of the journal of all partitions."""

    def __init__(self, journal: Journal, metrics: Metrics, every_s: float) -> None:
        self._journal = journal
        self._metrics = metrics
        self._every_s = every_s

    async def run(self) -> None:
        """Report until cancelled."""
        await periodically(self._report, self._every_s, expected=StoreError, on_failure=lambda _: None)

    async def _report(self) -> None:
        backlog = await self._journal.backlog()
        self._metrics.backlog(backlog.waiting, backlog.oldest_s, backlog.aside)
