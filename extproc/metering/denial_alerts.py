"""Alert on denials: once per bucket, window and reason, over all replicas.

A limit can deny requests long before its usage reaches a threshold: requests in flight hold the rest, or one
request needs more than is left. And a caller that is suspended uses nothing at all.
"""

import asyncio
from collections import deque
from collections.abc import Set as AbstractSet
from typing import Final

from extproc.core.quota.binding import Policy
from extproc.core.quota.limits import Bucket, Limit, Scope, Window, interval_at
from extproc.core.quota.reservation import Denied
from extproc.core.request.identity import Identity
from extproc.ports.alerts import Alert, AlertNotes, AlertReason, AlertSink
from extproc.ports.base import Clock, StoreError

# Alerts that this process told lately: a flood of denials costs one look-up each.
_REMEMBERED: Final = 10_000
_QUEUED_AT_MOST: Final = 1_000
_WITHIN_S: Final = 2.0


class DenialAlerts:
    """Tell of the first denial of each bucket, window and reason. No request waits for it."""

    def __init__(self, notes: AlertNotes, alerts: AlertSink, clock: Clock, windows: AbstractSet[Window]) -> None:
        """Alert on limits of these windows; none: on no denial. `notes` is what all replicas share."""
        self._notes = notes
        self._alerts = alerts
        self._clock = clock
        self._windows = windows
        self._told: dict[tuple[str, str, AlertReason], None] = {}
        self._waiting: deque[Alert] = deque()
        self._changed = asyncio.Event()

    def denied(self, tenant: str, denied: Denied) -> None:
        """Take a limit's decision. Return at once.

        It is a lockout if the limit is used up: nothing is admitted until it resets. Else it is a denial, and a
        smaller request, or a later one, may pass.
        """
        bucket, count = denied.state.bucket, denied.state.count
        if bucket.limit.window not in self._windows:
            return
        used_up = count.used >= bucket.limit.amount
        reason = AlertReason.LOCKED_OUT if used_up else AlertReason.DENIED
        if self._is_new(tenant, bucket, reason):
            now = self._clock.now()
            self._put(Alert(tenant, bucket, count.used, 0, now, reason, count.held, denied.need))

    def suspended(self, identity: Identity, policy: Policy) -> None:
        """Take the refusal of a caller that is suspended. Return at once. Once a day, for account or tenant."""
        if not self._windows:
            return
        now = self._clock.now()
        of_tenant = policy.suspended is not None
        scope = Scope.TENANT if of_tenant else Scope.SERVICE_ACCOUNT
        parts = () if of_tenant else (str(identity.service_account),)
        bucket = Bucket(Limit(scope, Window.DAY, 0), parts, interval_at(Window.DAY, now, policy.zone))
        if self._is_new(identity.tenant, bucket, AlertReason.SUSPENDED):
            why = policy.suspension(identity) or ""
            self._put(Alert(identity.tenant, bucket, 0, 0, now, AlertReason.SUSPENDED, told=why))

    async def run(self) -> None:
        """Report what is new to all replicas, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting:
                alert = self._waiting.popleft()
                if await self._is_first(alert):
                    self._alerts.put(alert)

    async def _is_first(self, alert: Alert) -> bool:
        try:
            async with asyncio.timeout(_WITHIN_S):
                return await self._notes.is_first(alert)
        except (StoreError, TimeoutError):
            return True  # rather twice than never: receivers know an alert by its id

    def _is_new(self, tenant: str, bucket: Bucket, reason: AlertReason) -> bool:
        key = (tenant, bucket.key, reason)
        if key in self._told:
            return False
        self._told[key] = None
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return True

    def _put(self, alert: Alert) -> None:
        if len(self._waiting) < _QUEUED_AT_MOST:
            self._waiting.append(alert)
            self._changed.set()
