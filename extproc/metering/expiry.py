"""Expire reservations that no replica ended in time; they are charged as held."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from extproc.core.quota.drafting import is_recorded
from extproc.core.quota.settlement import expiry
from extproc.metering.circuit_breaker import CircuitBreaker
from extproc.metering.leases import Lease
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.settler import Settler
from extproc.metering.shared_clock import SharedClock
from extproc.ports.base import ShardId, StoreError
from extproc.ports.counters import Counters
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
_EXPIRE_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class ExpiryOptions:
    """Set the durations of expiry, in seconds.

    Overdue reservations are looked for every `interval_s`. After an outage or a rebuild nothing expires for
    `renewed_within_s`, so that every replica can renew its leases first. After a step of their clock nothing
    expires for `stepped_within_s`, so that every replica can notice the step and renew.
    """

    interval_s: float = 5.0
    renewed_within_s: float = 10.0
    stepped_within_s: float = 30.0


class Expiry:
    """End overdue reservations of any replica in one shard."""

    def __init__(
        self,
        counters: Counters,
        shard_id: ShardId,
        settler: Settler,
        writer: LedgerWriter,
        *,
        breaker: CircuitBreaker,
        clock: SharedClock,
        options: ExpiryOptions,
    ) -> None:
        self._counters = counters
        self._shard_id = shard_id
        self._settler = settler
        self._writer = writer
        self._breaker = breaker
        self._clock = clock
        self._options = options
        self._outage_at = float("-inf")  # when the counters were last known to take no renewals, loop time

    def no_renewals_now(self) -> None:
        """Let every replica renew its leases first: the counters are being rebuilt, and take no renewals."""
        self._outage_at = _now()

    async def run(self) -> None:
        """Expire until cancelled."""

        async def expire() -> None:
            if self._may_expire() and (expired := await self.expire_overdue()):
                _log.warning("reservations expired: charged as held", extra={"reservations": expired})

        def failed(error: StoreError) -> None:
            self.no_renewals_now()
            _log.warning("redis: overdue reservations could not be read", extra={"error": str(error)})

        await periodically(expire, self._options.interval_s, expected=StoreError, on_failure=failed)

    async def expire_overdue(self) -> int:
        """End reservations whose deadline has passed; return how many. Raise `StoreError`."""
        overdue = await self._counters.overdue(self._clock.now(), _EXPIRE_AT_ONCE, self._shard_id)
        self._writer.saved(reservation.id for reservation in overdue)  # whoever held them may have saved them
        for reservation in overdue:
            self._settler.end(Lease(reservation), expiry(reservation), recorded=is_recorded(reservation))
        return len(overdue)

    def _may_expire(self) -> bool:
        """Tell whether every replica had the time to renew its leases."""
        if self._breaker.is_open:
            return False
        outage_at = max(self._breaker.closed_at, self._outage_at)
        now, options = _now(), self._options
        return now >= max(outage_at + options.renewed_within_s, self._clock.stepped_at + options.stepped_within_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
