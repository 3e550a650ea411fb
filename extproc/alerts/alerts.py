"""Report each alert once: count it, log it, and queue it for the receivers."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from extproc.alerts.document import document_of, id_of
from extproc.ports.alerts import Alert, AlertReason

_log = logging.getLogger(__name__)

# Ids of reported alerts. More than a replica sees in the time in which an alert can be repeated.
_REMEMBERED: Final = 10_000
# Fields of the document that are not logged: a log line has its own time and message.
_MESSAGES: Final = {
    AlertReason.THRESHOLD: "quota: usage reached a threshold of its limit",
    AlertReason.DENIED: "quota: a limit denied a request",
    AlertReason.LOCKED_OUT: "quota: a limit is used up, and requests are denied",
    AlertReason.SUSPENDED: "quota: a suspended caller is refused",
}
_NOT_LOGGED: Final = frozenset({"id", "type", "version", "occurred_at"})


class AlertMetrics(Protocol):
    """Count alerts."""

    def alerted(self, threshold: int | str, scope: str) -> None:
        """Count one alert by its threshold in percent, or its reason, and the scope of its limit."""


class Receiver(Protocol):
    """Receive alerts."""

    def put(self, alert: Alert) -> None:
        """Queue an alert. Return at once and raise nothing."""

    async def run(self) -> None:
        """Send queued alerts until cancelled."""

    async def drain(self, timeout_s: float) -> bool:
        """Send the queued alerts within `timeout_s` seconds. Return False if any was not sent."""


class Alerts:
    """Report alerts to metrics, log and receivers. No call waits for a receiver."""

    def __init__(self, metrics: AlertMetrics, receivers: Sequence[Receiver] = ()) -> None:
        self._metrics = metrics
        self._receivers = tuple(receivers)
        self._told: dict[str, None] = {}  # an ordered set: the oldest id comes first

    def put(self, alert: Alert) -> None:
        """Count, log and queue an alert, unless its id was put before. Return at once and raise nothing."""
        if self._is_repeated(id_of(alert)):
            return
        of_threshold = alert.reason is AlertReason.THRESHOLD
        self._metrics.alerted(alert.threshold if of_threshold else alert.reason.value, alert.bucket.limit.scope)
        fields = {name: value for name, value in document_of(alert).items() if name not in _NOT_LOGGED}
        _log.warning(_MESSAGES[alert.reason], extra={"alert": id_of(alert), **fields})
        for receiver in self._receivers:
            receiver.put(alert)

    async def run(self) -> None:
        """Send queued alerts until cancelled. Return at once if there is no receiver."""
        async with asyncio.TaskGroup() as group:
            for receiver in self._receivers:
                group.create_task(receiver.run())

    async def drain(self, timeout_s: float) -> bool:
        """Send all queued alerts within `timeout_s` seconds. Return False if a receiver did not get all of its
        alerts.

        `run` must still be running.
        """
        return all(await asyncio.gather(*(receiver.drain(timeout_s) for receiver in self._receivers)))

    def _is_repeated(self, alert_id: str) -> bool:
        if alert_id in self._told:
            return True
        self._told[alert_id] = None
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return False
