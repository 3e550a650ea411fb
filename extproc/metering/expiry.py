"""Expire reservations that no replica ended in time; they are charged as held."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from extproc.core.quota.drafting import is_recorded
from extproc.core.quota.settlement import expiry
from extproc.metering.leases import Lease
from extproc.metering.settler import Settler
from extproc.metering.shards import Part, parts_of
from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Counters
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
_EXPIRE_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class ExpiryOptions:
    """Set the durations of expiry, in seconds.

    Overdue reservations are looked for every `interval_s`. After an outage of the counters nothing expires for
    `renewed_within_s`, so that every replica can renew its leases first. After a step of their clock nothing
    expires for `stepped_within_s`, so that every replica can notice the step and renew.
    """

    interval_s: float = 5.0
    renewed_within_s: float = 10.0
    stepped_within_s: float = 30.0


class Expiry:
    """End overdue reservations of any replica, part by part."""

    def __init__(self, counters: Counters, settler: Settler, clock: Clock, options: ExpiryOptions) -> None:
        self._counters = counters
        self._settler = settler
        self._clock = clock
        self._options = options
        self._not_before = dict.fromkeys(parts_of(counters), 0.0)
        self._away: set[Part] = set()

    async def run(self) -> None:
        """Expire until cancelled."""
        async with asyncio.TaskGroup() as group:
            for part in self._not_before:
                group.create_task(self._follow(part))

    async def expire_overdue(self, part: Part = None) -> int:
        """End reservations whose deadline has passed; return how many. Raise `StoreError`."""
        overdue = await self._counters.overdue(self._clock.now(), _EXPIRE_AT_ONCE, part)
        for reservation in overdue:
            self._settler.end(Lease(reservation), expiry(reservation), recorded=is_recorded(reservation))
        return len(overdue)

    def counters_away(self, part: Part) -> None:
        """Expire nothing of a part until its counters are back."""
        self._away.add(part)

    def counters_back(self, part: Part) -> None:
        """Let every replica renew its leases before anything of a part expires."""
        self._away.discard(part)
        self._wait(part, self._options.renewed_within_s)

    def clock_stepped(self) -> None:
        """Let every replica notice the step and renew: a reservation that seems overdue now may not be."""
        for part in self._not_before:
            self._wait(part, self._options.stepped_within_s)

    def _wait(self, part: Part, seconds: float) -> None:
        self._not_before[part] = max(self._not_before[part], _now() + seconds)

    async def _follow(self, part: Part) -> None:
        async def expire() -> None:
            if part in self._away or _now() < self._not_before[part]:
                return
            if expired := await self.expire_overdue(part):
                _log.warning("reservations expired: charged as held", extra={"reservations": expired})

        def failed(error: StoreError) -> None:
            self._wait(part, self._options.renewed_within_s)
            _log.warning("redis: overdue reservations could not be read", extra={"error": str(error)})

        await periodically(expire, self._options.interval_s, expected=StoreError, on_failure=failed)


def _now() -> float:
    return asyncio.get_running_loop().time()
