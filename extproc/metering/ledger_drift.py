"""Compare the ledger with the counters, and show the difference as a metric.

What the counters had charged at the look before must be in the ledger by now, and the ledger must not have more
than the counters have after it was read. So if they agree, the difference is 0, however much is charged meanwhile.
"""

from collections.abc import Callable, Sequence
from typing import Final

from extproc.core.quota.limits import Unit
from extproc.core.quota.reservation import BucketState
from extproc.core.request.identity import TenantId
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Counters
from extproc.ports.records import Records
from extproc.timing.periodic import periodically

# Entries need less than a second as a rule; those that a dead replica left, a minute.
_EVERY_S: Final = 90.0
_JITTER: Final = 0.1


class LedgerDrift:
    """Compare the tenants' own buckets that are shown as metrics: their number is bounded."""

    def __init__(
        self,
        counters: Counters,
        records: Records,
        shown: Callable[[], Sequence[tuple[TenantId, BucketState]]],
        *,
        clock: Clock,
        metrics: Metrics,
        tenants: int,
    ) -> None:
        """Compare what `shown` returns. Nothing is compared if no `tenants` are shown."""
        self._counters = counters
        self._records = records
        self._shown = shown
        self._clock = clock
        self._metrics = metrics
        self._tenants = tenants
        self._before: list[tuple[TenantId, BucketState]] = []

    async def run(self) -> None:
        """Compare until cancelled."""
        if self._tenants:
            await periodically(self.look, _EVERY_S, expected=StoreError, on_failure=lambda _: None, jitter=_JITTER)

    async def look(self) -> None:
        """Compare once, with what was shown at the look before.

        Raise `StoreError`; the last difference stays then.
        """
        now = self._clock.now()
        shown = [(tenant, state) for tenant, state in self._shown() if _is_recorded(state)]
        before, self._before = self._before, shown
        before = [(tenant, state) for tenant, state in before if state.bucket.interval.end > now.timestamp()]
        in_ledger = await self._records.used_of([(tenant, state.bucket.key) for tenant, state in before], now)
        if in_ledger is None:
            return
        largest = 0
        for (tenant, state), written in zip(before, in_ledger, strict=True):
            (count,) = await self._counters.read(tenant, [state.bucket])
            largest = max(largest, state.count.used - written, written - count.used)
        self._metrics.ledger_drift(largest)


def _is_recorded(state: BucketState) -> bool:
    """Tell whether the ledger has all that the bucket counts: requests on other routes have no entries."""
    return not state.bucket.parts and state.bucket.limit.unit is not Unit.REQUESTS
