"""Tells of each alert once: a metric, a log line, and whoever receives webhooks."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from extproc.alerts.document import document_of, id_of
from extproc.core.quota.alerting import Alert

_log = logging.getLogger(__name__)

# Ids that were told of; more than a replica sees in the time after which nobody repeats one any more.
_REMEMBERED: Final = 10_000
# They are in the document for receivers; a log line has a time and a message of its own.
_NOT_LOGGED: Final = frozenset({"id", "type", "version", "occurred_at"})


class AlertMetrics(Protocol):
    """Where alerts are counted."""

    def alerted(self, threshold: int, scope: str) -> None:
        """One alert: its threshold in percent, and the scope of its limit."""


class Receiver(Protocol):
    """Somebody whom alerts are sent to."""

    def put(self, alert: Alert) -> None:
        """Queues it. Returns at once and raises nothing."""

    async def run(self) -> None:
        """Sends what is queued, until cancelled."""

    async def drain(self, timeout_s: float) -> bool:
        """Sends what can be sent within the time; False where something was left."""


class Alerts:
    """Where alerts go. Nothing here makes a request wait."""

    def __init__(self, metrics: AlertMetrics, receivers: Sequence[Receiver] = ()) -> None:
        self._metrics = metrics
        self._receivers = tuple(receivers)
        self._told: dict[str, None] = {}  # a set that knows which id it has had longest

    def put(self, alert: Alert) -> None:
        """Counts, logs and queues an alert, unless it was put before. Returns at once and raises nothing."""
        if self._is_repeated(id_of(alert)):
            return
        self._metrics.alerted(alert.threshold, alert.bucket.limit.scope)
        fields = {name: value for name, value in document_of(alert).items() if name not in _NOT_LOGGED}
        _log.warning("usage reached a threshold of its limit", extra={"alert": id_of(alert), **fields})
        for receiver in self._receivers:
            receiver.put(alert)

    async def run(self) -> None:
        """Sends what is queued, until cancelled; without receivers there is nothing to run."""
        async with asyncio.TaskGroup() as group:
            for receiver in self._receivers:
                group.create_task(receiver.run())

    async def drain(self, timeout_s: float) -> bool:
        """Gives every receiver what is queued for it, within the time; False where something was left.

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
