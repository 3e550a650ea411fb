"""Queue alerts for one receiver: bounded, with several attempts at once and retries with backoff.

A `DeliveryQueue` (extproc.metering) keeps the order, retries forever, and lets a failed item delay the others.
Alerts need no order, a refused alert must not delay others, and an alert is given up after an hour.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

from extproc.alerts.document import id_of
from extproc.alerts.post import Delivered, Failed, Refused, Verdict
from extproc.ports.alerts import Alert
from extproc.timing.backoff import Backoff
from extproc.timing.events import happens_within

_log = logging.getLogger(__name__)

QUEUE = "webhook"


class WebhookMetrics(Protocol):
    """Count attempts and losses."""

    def posted(self, outcome: str) -> None:
        """Count one attempt by its outcome: delivered, failed or refused."""

    def lost(self, queue: str, items: int) -> None:
        """Count alerts that are lost."""

    def watch_queue(self, queue: str, size: Callable[[], int]) -> None:
        """Register a function that returns the number of waiting alerts."""


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """Set the bounds of the queue: at most `max_queued` alerts wait, and `concurrency` attempts run at once.

    After a failure an alert waits as `backoff` says, or longer if the receiver asks for it: up to
    `max_retry_after_s` seconds. An alert is given up `give_up_after_s` seconds after it was put.
    """

    host: str
    max_queued: int = 1000
    concurrency: int = 4
    backoff: Backoff = Backoff(first_s=1.0, max_s=300.0)  # noqa: RUF009 - immutable
    max_retry_after_s: float = 600.0
    give_up_after_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Tell the time in seconds, and wait for an event with a timeout in seconds or None. Tests replace both."""

    monotonic: Callable[[], float] = time.monotonic
    wait: Callable[[asyncio.Event, float | None], Awaitable[object]] = happens_within


@dataclass(frozen=True, slots=True)
class _Waiting:
    alert: Alert
    put_at: float
    due: float
    failures: int = 0


class Webhook:
    """Deliver alerts to one receiver, each at least once. Count an alert as lost if it is not delivered.

    Alerts that wait when the process is killed are lost without being counted.
    """

    def __init__(
        self,
        options: WebhookOptions,
        post: Callable[[Alert], Awaitable[Verdict]],
        metrics: WebhookMetrics,
        timing: Timing | None = None,
    ) -> None:
        self._options = options
        self._post = post
        self._metrics = metrics
        self._timing = timing or Timing()
        self._waiting: dict[str, _Waiting] = {}  # by alert id
        self._in_hand = 0
        self._not_before = 0.0  # the receiver asked for no attempt until then
        self._draining = False
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._told: set[str] = set()
        self._lost = 0
        metrics.watch_queue(QUEUE, self.__len__)

    def __len__(self) -> int:
        return len(self._waiting) + self._in_hand

    def put(self, alert: Alert) -> None:
        """Queue an alert. Return at once and raise nothing.

        If the queue is full, its oldest alert is lost.
        """
        now = self._timing.monotonic()
        self._wait(_Waiting(alert, put_at=now, due=now))

    async def run(self) -> None:
        """Deliver alerts until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._options.concurrency):
                group.create_task(self._work())

    async def drain(self, timeout_s: float) -> bool:
        """Post each queued alert once more, at once. Return False if any alert was lost.

        Take at most `timeout_s` seconds; alerts that are left then are lost. `run` must still be running.
        """
        lost = self._lost
        self._draining = True
        self._changed.set()
        await happens_within(self._empty, timeout_s)
        left = len(self)
        if left:
            self._metrics.lost(QUEUE, left)
            _log.error(
                "webhook: alerts were not delivered before the end: they are lost",
                extra={"host": self._options.host, "alerts": left},
            )
        return not left and self._lost == lost

    async def _work(self) -> None:
        while True:
            item = await self._next()
            if self._timing.monotonic() > item.put_at + self._options.give_up_after_s:
                self._lose("given up")
            else:
                self._carry_out(item, await self._attempt(item))
            if not len(self):
                self._empty.set()

    async def _attempt(self, item: _Waiting) -> Verdict:
        self._in_hand += 1
        try:
            return await self._post(item.alert)
        except asyncio.CancelledError:
            self._wait(item)
            raise
        except Exception as error:  # noqa: BLE001  # a bug here must not end the metering
            return Failed("fault", type(error).__name__)
        finally:
            self._in_hand -= 1

    async def _next(self) -> _Waiting:
        while True:
            wait_s = None
            if self._waiting:
                first = min(self._waiting.values(), key=lambda item: item.due)
                now = self._timing.monotonic()
                wait_s = 0.0 if self._draining else max(first.due, self._not_before) - now
                if wait_s <= 0:
                    return self._waiting.pop(id_of(first.alert))
            self._changed.clear()
            await self._timing.wait(self._changed, wait_s)

    def _carry_out(self, item: _Waiting, verdict: Verdict) -> None:
        match verdict:
            case Delivered():
                self._metrics.posted("delivered")
                self._tell_success()
            case Failed():
                self._metrics.posted("failed")
                self._try_again(item, verdict)
            case Refused():
                self._metrics.posted("refused")
                self._lose(f"refused: {verdict.cause}")
            case _:
                assert_never(verdict)

    def _try_again(self, item: _Waiting, failed: Failed) -> None:
        now = self._timing.monotonic()
        self._tell_once(
            failed.cause, logging.WARNING, "webhook: delivery failed: it will be repeated", failed.detail
        )
        asked_s = min(failed.retry_after_s, self._options.max_retry_after_s)
        if asked_s:  # the wait applies to all alerts, not to this one only
            self._not_before = max(self._not_before, now + asked_s)
        if self._draining:
            self._lose("stopping")
            return
        failures = item.failures + 1
        self._wait(_Waiting(item.alert, item.put_at, now + self._options.backoff.wait_s(failures), failures))

    def _wait(self, item: _Waiting) -> None:
        self._waiting[id_of(item.alert)] = item
        if len(self._waiting) > self._options.max_queued:
            oldest = min(self._waiting.values(), key=lambda item: item.put_at)
            del self._waiting[id_of(oldest.alert)]
            self._lose("queue full")
        self._empty.clear()
        self._changed.set()

    def _lose(self, why: str) -> None:
        self._lost += 1
        self._metrics.lost(QUEUE, 1)
        self._tell_once(why, logging.ERROR, "webhook: alerts are lost", "")

    def _tell_once(self, cause: str, level: int, message: str, detail: str) -> None:
        """Log each cause once until a delivery succeeds. The content of each alert is in the log anyway."""
        if cause in self._told:
            return
        self._told.add(cause)
        _log.log(level, message, extra={"host": self._options.host, "cause": cause, "detail": detail})

    def _tell_success(self) -> None:
        # A refusal concerns one alert: a delivery of another alert does not end it.
        ended = {cause for cause in self._told if not cause.startswith("refused")}
        if ended:
            self._told -= ended
            _log.warning("webhook: alerts are delivered again", extra={"host": self._options.host})
