"""Alerts that wait for their receiver: a bounded queue, several attempts at once, retries that back off.

This is not a `DeliveryQueue` (extproc.metering): that one keeps order, tries for ever, and holds everything back
behind what fails. Alerts need no order; a refused one must not hold others back; one of an hour ago is too old.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

from extproc.alerts.document import id_of
from extproc.alerts.post import Delivered, Failed, Refused, Verdict
from extproc.core.quota.alerting import Alert
from extproc.timing.backoff import Backoff
from extproc.timing.events import happens_within

_log = logging.getLogger(__name__)

QUEUE = "webhook"


class WebhookMetrics(Protocol):
    """Where attempts and losses are counted."""

    def posted(self, outcome: str) -> None:
        """One attempt: delivered, failed or refused."""

    def lost(self, queue: str, items: int) -> None:
        """Alerts that were not delivered and will not be."""

    def watch_queue(self, queue: str, size: Callable[[], int]) -> None:
        """How many wait can be asked at any time."""


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """`max_queued` alerts wait at most, `concurrency` attempts run at once.

    After a failure an alert waits as `backoff` says; a receiver may ask for more, up to `max_retry_after_s`. An
    alert is given up `give_up_after_s` after it was put.
    """

    host: str
    max_queued: int = 1000
    concurrency: int = 4
    backoff: Backoff = Backoff(first_s=1.0, max_s=300.0)  # noqa: RUF009 - it can't change
    max_retry_after_s: float = 600.0
    give_up_after_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How a webhook tells the time in seconds, and waits for an event with a timeout in seconds or None."""

    monotonic: Callable[[], float] = time.monotonic
    wait: Callable[[asyncio.Event, float | None], Awaitable[object]] = happens_within


@dataclass(frozen=True, slots=True)
class _Waiting:
    alert: Alert
    put_at: float
    due: float
    failures: int = 0


class Webhook:
    """One receiver. An alert is delivered at least once, or counted as lost, as long as the process lives."""

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
        self._not_before = 0.0  # the receiver asked for a rest until then
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
        """Queues an alert. Returns at once and raises nothing.

        Where the queue is full, the oldest one is lost: of all it is the least worth knowing.
        """
        now = self._timing.monotonic()
        self._wait(_Waiting(alert, put_at=now, due=now))

    async def run(self) -> None:
        """Delivers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._options.concurrency):
                group.create_task(self._work())

    async def drain(self, timeout_s: float) -> bool:
        """Tries what is queued once more, at once; what fails is lost. False where anything was.

        Takes at most `timeout_s`; `run` must still be running.
        """
        lost = self._lost
        self._draining = True
        self._changed.set()
        await happens_within(self._empty, timeout_s)
        left = len(self)
        if left:
            self._metrics.lost(QUEUE, left)
            _log.error("alerts were not delivered in time", extra={"host": self._options.host, "alerts": left})
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
        except Exception as error:  # noqa: BLE001  # no fault in telling of usage may end the metering of it
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
        self._tell_once(failed.cause, logging.WARNING, "webhook fails, alerts wait", failed.detail)
        asked_s = min(failed.retry_after_s, self._options.max_retry_after_s)
        if asked_s:  # it means the sender, not this one alert
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
        self._tell_once(why, logging.ERROR, "alerts are lost", "")

    def _tell_once(self, cause: str, level: int, message: str, detail: str) -> None:
        """A line a cause, until a delivery succeeds: what each alert says is in the log anyway."""
        if cause in self._told:
            return
        self._told.add(cause)
        _log.log(level, message, extra={"host": self._options.host, "cause": cause, "detail": detail})

    def _tell_success(self) -> None:
        # A refusal is about one alert: others that get through do not end it.
        ended = {cause for cause in self._told if not cause.startswith("refused")}
        if ended:
            self._told -= ended
            _log.warning("webhook delivers again", extra={"host": self._options.host})
