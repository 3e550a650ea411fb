"""Each alert is told of once: counted, logged, and given to whoever receives."""

import asyncio
import logging

from extproc.alerts import alerts as module
from extproc.alerts.alerts import Alerts
from extproc.alerts.document import document_of
from extproc.alerts.post import Post, PostOptions
from extproc.alerts.webhook import Webhook, WebhookOptions

from .webhook_receiver import HANG, SECRET, Counted, Receiver, StoppedClock, alert, running, until


class Inbox:
    """A receiver in memory."""

    def __init__(self, *, clean=True):
        self.alerts = []
        self.clean = clean
        self.running = False
        self.drained = None

    def put(self, given):
        self.alerts.append(given)

    async def run(self):
        self.running = True
        await asyncio.Event().wait()

    async def drain(self, timeout_s):
        self.drained = timeout_s
        return self.clean


def test_an_alert_is_counted_logged_and_given_to_every_receiver(caplog):
    metrics, first, second = Counted(), Inbox(), Inbox()
    Alerts(metrics, [first, second]).put(alert(threshold=95))
    assert metrics.alerts == [(95, "service_account")]
    assert first.alerts == second.alerts == [alert(threshold=95)]
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "quota: usage reached a threshold of its limit",
    )


def test_the_log_line_has_what_the_receivers_are_told(caplog):
    Alerts(Counted()).put(alert())
    (record,) = caplog.records
    document = document_of(alert())
    assert record.alert == document.pop("id")
    for name in ("type", "version", "occurred_at"):
        del document[name]
    assert document.items() <= record.__dict__.items()


def test_an_alert_that_comes_again_is_told_of_once(caplog):
    metrics, inbox = Counted(), Inbox()
    alerts = Alerts(metrics, [inbox])
    for _ in range(3):
        alerts.put(alert())
    alerts.put(alert(threshold=95))
    assert len(metrics.alerts) == len(inbox.alerts) == len(caplog.records) == 2


def test_what_is_remembered_of_alerts_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    inbox = Inbox()
    alerts = Alerts(Counted(), [inbox])
    for number in (1, 2, 3, 4, 4, 3, 2):
        alerts.put(alert(number))
    assert len(inbox.alerts) == 4
    alerts.put(alert(1))  # forgotten
    assert len(inbox.alerts) == 5


async def test_receivers_run_together_until_cancelled():
    inboxes = [Inbox(), Inbox()]
    async with running(Alerts(Counted(), inboxes)):
        await until(lambda: all(inbox.running for inbox in inboxes))


async def test_without_receivers_there_is_nothing_to_run_and_nothing_to_drain():
    alerts = Alerts(Counted())
    alerts.put(alert())
    await alerts.run()
    assert await alerts.drain(0.0)


async def test_draining_asks_every_receiver_and_says_where_one_kept_something():
    clean, unclean = Inbox(), Inbox(clean=False)
    assert not await Alerts(Counted(), [unclean, clean]).drain(2.5)
    assert clean.drained == unclean.drained == 2.5
    assert await Alerts(Counted(), [clean]).drain(2.5)


async def test_one_receiver_that_hangs_does_not_hold_up_another():
    async with Receiver(*[HANG] * 20).listening() as slow, Receiver().listening() as quick:
        counted = [Counted(), Counted()]
        webhooks = [
            Webhook(
                WebhookOptions("h"), Post(PostOptions(receiver.url, SECRET, timeout_s=60), StoppedClock()), metrics
            )
            for receiver, metrics in zip((slow, quick), counted, strict=True)
        ]
        alerts = Alerts(Counted(), webhooks)
        async with running(alerts):
            for number in range(10):
                alerts.put(alert(number))
            await until(lambda: len(counted[1].posts) == 10)
            assert counted[0].posts == []
            assert len(webhooks[0]) == 10
            assert not await alerts.drain(0.01)
    assert [metrics.lost_items for metrics in counted] == [10, 0]
