"""The queue before a receiver: retries that back off, losses that are counted, and nobody who waits for it."""

import asyncio
import logging

import pytest

from extproc.alerts.document import id_of
from extproc.alerts.post import Delivered, Failed, Post, PostOptions, Refused
from extproc.alerts.webhook import Timing, Webhook, WebhookOptions
from extproc.timing.backoff import Backoff

from .webhook_receiver import (
    CLOSE,
    HANG,
    SECRET,
    Counted,
    FakeTime,
    Receiver,
    StoppedClock,
    alert,
    running,
    until,
)


class Scripted:
    """Attempts that end as they are told to, then as deliveries."""

    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)
        self.tried = []
        self.at = []
        self.time = None
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, given):
        self.tried.append(given)
        self.at.append(self.time.now)
        await self.open.wait()
        verdict = self.verdicts.pop(0) if self.verdicts else Delivered()
        if isinstance(verdict, Exception):
            raise verdict
        return verdict


class World:
    """A webhook whose time passes at once where it waits, with one attempt at a time."""

    def __init__(self, *verdicts, post=None, draw=lambda: 0.5, first_s=1.0, max_s=300.0, **options):
        self.time = FakeTime()
        self.metrics = Counted()
        self.post = post or Scripted(*verdicts)
        self.post.time = self.time
        options = {
            "host": "receiver.example",
            "concurrency": 1,
            "backoff": Backoff(first_s, max_s, draw),
        } | options
        timing = Timing(self.time.monotonic, self.time.pause)
        self.webhook = Webhook(WebhookOptions(**options), self.post, self.metrics, timing)

    async def finish(self, *alerts):
        for each in alerts or [alert()]:
            self.webhook.put(each)
        async with running(self.webhook):
            await until(lambda: not len(self.webhook))
        return self


def lines(caplog):
    return [(r.levelname, r.getMessage(), r.cause if hasattr(r, "cause") else "") for r in caplog.records]


LATER = Failed("status 503")


# ---------------------------------------------------------------- over a real socket


def posting(receiver, timeout_s=60.0):  # a busy machine takes its time
    return Post(PostOptions(receiver.url, SECRET, timeout_s), StoppedClock())


async def test_what_fails_is_tried_again_until_it_is_delivered():
    async with Receiver(500, CLOSE, 429).listening() as receiver:
        world = await World(post=posting(receiver)).finish()
    assert [request.headers["webhook-id"] for request in receiver.requests] == [id_of(alert())] * 4
    assert world.metrics.posts == ["failed", "failed", "failed", "delivered"]
    assert world.metrics.lost_items == 0


async def test_what_a_receiver_refuses_is_not_tried_again():
    async with Receiver(400).listening() as receiver:
        world = await World(post=posting(receiver)).finish(alert(1), alert(2))
    assert [request.headers["webhook-id"] for request in receiver.requests] == [id_of(alert(1)), id_of(alert(2))]
    assert world.metrics.posts == ["refused", "delivered"]
    assert world.metrics.lost_items == 1


async def test_a_receiver_that_asks_for_a_rest_over_http_gets_it():
    async with Receiver((429, {"retry-after": "90"})).listening() as receiver:
        world = await World(post=posting(receiver)).finish()
    assert world.time.waited == [90.0]


async def test_a_receiver_that_hangs_holds_up_nothing_but_its_own_attempt():
    async with Receiver(HANG, HANG, HANG).listening() as receiver:
        world = World(post=posting(receiver), concurrency=4)
        for number in range(4):
            world.webhook.put(alert(number))
        async with running(world.webhook):
            await until(lambda: world.metrics.posts == ["delivered"])
            world.webhook.put(alert(5))  # and nobody who puts one waits
            await until(lambda: world.metrics.posts == ["delivered"] * 2)
            assert world.metrics.queued() == 3


# ---------------------------------------------------------------- when


async def test_waits_double_up_to_the_longest_one():
    world = await World(*[LATER] * 6, first_s=2.0, max_s=20.0).finish()
    assert world.time.waited == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]  # the lot, here 0.5, leaves half of each


async def test_a_wait_is_drawn_by_lot_so_that_replicas_do_not_retry_together():
    lots = iter([0.25, 0.5, 0.999])
    world = await World(*[LATER] * 3, draw=lambda: next(lots), first_s=10.0, max_s=10.0).finish()
    assert world.time.waited == pytest.approx([2.5, 5.0, 9.99])


async def test_a_receiver_that_asks_for_a_rest_gets_it_for_all_alerts():
    world = await World(Failed("status 429", "", 60.0)).finish(alert(1), alert(2), alert(3))
    assert world.post.at == [1000.0, 1060.0, 1060.0, 1060.0]
    assert world.metrics.posts == ["failed", *["delivered"] * 3]


async def test_a_rest_that_is_shorter_than_the_wait_does_not_shorten_it():
    world = await World(Failed("status 429", "", 0.25), first_s=8.0).finish()
    assert world.time.waited == [4.0]


async def test_nobody_can_ask_for_an_endless_rest():
    world = await World(Failed("status 503", "", 1e18), max_retry_after_s=600.0).finish()
    assert world.time.waited == [600.0]


async def test_an_alert_that_fails_does_not_hold_back_the_others():
    world = await World(LATER).finish(alert(1), alert(2))
    assert [id_of(given) for given in world.post.tried] == [id_of(alert(1)), id_of(alert(2)), id_of(alert(1))]


async def test_an_alert_is_given_up_an_hour_after_it_was_put():
    world = await World(*[LATER] * 500).finish()
    assert world.metrics.lost_items == 1
    assert 15 <= len(world.post.tried) <= 40
    assert 3300 <= world.post.at[-1] - world.post.at[0] <= 3600
    assert world.metrics.posts == ["failed"] * len(world.post.tried)


async def test_an_alert_that_waited_too_long_for_its_turn_is_not_sent_any_more():
    world = World()
    world.webhook.put(alert(1))
    world.time.now += 3601
    await world.finish(alert(2))
    assert [id_of(given) for given in world.post.tried] == [id_of(alert(2))]
    assert world.metrics.lost_items == 1


# ---------------------------------------------------------------- how many


async def test_a_full_queue_loses_its_oldest_alert():
    world = World(max_queued=3)
    for number in range(5):
        world.time.now += 1
        world.webhook.put(alert(number))
    assert world.metrics.queued() == 3
    assert world.metrics.lost_items == 2
    async with running(world.webhook):
        await until(lambda: not len(world.webhook))
    assert [id_of(given) for given in world.post.tried] == [id_of(alert(number)) for number in (2, 3, 4)]


async def test_an_alert_that_comes_back_to_a_full_queue_is_the_oldest_one():
    world = World(LATER, max_queued=2)
    world.post.open.clear()
    world.webhook.put(alert(1))
    async with running(world.webhook):
        await until(lambda: world.post.tried)
        world.time.now += 1
        world.webhook.put(alert(2))
        world.webhook.put(alert(3))
        world.post.open.set()
        await until(lambda: not len(world.webhook))
    assert [id_of(given) for given in world.post.tried] == [id_of(alert(1)), id_of(alert(2)), id_of(alert(3))]
    assert world.metrics.lost_items == 1


async def test_no_more_attempts_than_allowed_run_at_once():
    world = World(concurrency=2)
    world.post.open.clear()
    for number in range(5):
        world.webhook.put(alert(number))
    async with running(world.webhook):
        await until(lambda: len(world.post.tried) == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(world.post.tried) == 2
        world.post.open.set()
        await until(lambda: not len(world.webhook))
    assert len(world.post.tried) == 5


async def test_a_fault_of_the_sender_is_a_failure_and_ends_nothing(caplog):
    world = await World(RuntimeError("with a secret")).finish(alert(1), alert(2))
    assert world.metrics.posts == ["failed", "delivered", "delivered"]
    assert caplog.records[0].detail == "RuntimeError"


# ---------------------------------------------------------------- what is told


async def test_an_outage_is_told_of_once_a_cause_and_its_end_once(caplog):
    await World(LATER, LATER, Failed("timeout"), LATER).finish(alert(1), alert(2))
    assert lines(caplog) == [
        ("WARNING", "webhook: delivery failed: it will be repeated", "status 503"),
        ("WARNING", "webhook: delivery failed: it will be repeated", "timeout"),
        ("WARNING", "webhook: alerts are delivered again", ""),
    ]
    assert {record.host for record in caplog.records} == {"receiver.example"}


async def test_the_next_outage_is_told_of_again(caplog):
    world = await World(LATER).finish()
    world.post.verdicts = [LATER]
    await world.finish(alert(2))
    assert [message for _, message, _ in lines(caplog)] == [
        "webhook: delivery failed: it will be repeated",
        "webhook: alerts are delivered again",
    ] * 2


async def test_a_refusal_is_told_of_once_a_cause_though_others_get_through(caplog):
    refused = Refused("status 400")
    world = World(refused, Delivered(), refused, Refused("status 413"), Delivered(), refused)
    await world.finish(*(alert(number) for number in range(6)))
    assert lines(caplog) == [
        ("ERROR", "webhook: alerts are lost", "refused: status 400"),
        ("ERROR", "webhook: alerts are lost", "refused: status 413"),
    ]
    assert world.metrics.lost_items == 4


async def test_a_thousand_alerts_that_are_lost_are_counted_each_and_told_of_once(caplog):
    world = World(max_queued=1)
    for number in range(1001):
        world.webhook.put(alert(number))
    assert world.metrics.lost_items == 1000
    assert lines(caplog) == [("ERROR", "webhook: alerts are lost", "queue full")]


# ---------------------------------------------------------------- the end


async def test_draining_an_empty_queue_returns_at_once():
    world = World()
    async with running(world.webhook):
        assert await world.webhook.drain(0.0)


async def test_draining_tries_once_more_what_waits_without_waiting():
    world = World(LATER)
    world.time.pause = lambda changed, seconds: changed.wait()  # time does not pass
    world.webhook = Webhook(
        WebhookOptions("h"), world.post, world.metrics, Timing(world.time.monotonic, world.time.pause)
    )
    world.webhook.put(alert())
    async with running(world.webhook):
        await until(lambda: world.metrics.posts == ["failed"])
        assert len(world.webhook) == 1
        assert await world.webhook.drain(5.0)
    assert world.metrics.posts == ["failed", "delivered"]
    assert world.metrics.lost_items == 0


async def test_what_fails_while_draining_is_lost_and_said_to_be(caplog):
    world = World(LATER, Failed("status 429", "", 300.0))
    world.post.open.clear()
    world.webhook.put(alert(1))
    world.webhook.put(alert(2))
    async with running(world.webhook):
        draining = asyncio.create_task(world.webhook.drain(5.0))
        await asyncio.sleep(0)
        world.post.open.set()
        assert not await draining
    assert world.metrics.lost_items == 2
    assert len(world.post.tried) == 2
    assert ("ERROR", "webhook: alerts are lost", "stopping") in lines(caplog)


async def test_draining_ends_in_time_where_the_receiver_hangs(caplog):
    world = World()
    world.post.open.clear()
    for number in range(3):
        world.webhook.put(alert(number))
    async with running(world.webhook):
        assert not await world.webhook.drain(0.01)
    assert world.metrics.lost_items == 3
    assert (caplog.records[-1].levelno, caplog.records[-1].alerts) == (logging.ERROR, 3)


async def test_an_attempt_that_was_cancelled_goes_back_into_the_queue():
    world = World()
    world.post.open.clear()
    world.webhook.put(alert())
    async with running(world.webhook):
        await until(lambda: world.post.tried)
    assert len(world.webhook) == 1
    world.post.open.set()
    async with running(world.webhook):
        await until(lambda: not len(world.webhook))
    assert world.metrics.posts == ["delivered"]


async def test_real_time_passes_while_it_waits():
    metrics, post = Counted(), Scripted(LATER, LATER)
    post.time = FakeTime()
    webhook = Webhook(WebhookOptions("h", backoff=Backoff(0.004, 300.0)), post, metrics)
    async with running(webhook):
        await asyncio.sleep(0)  # it waits for the first one already
        webhook.put(alert())
        async with asyncio.timeout(5):
            await until(lambda: not len(webhook))
    assert metrics.posts == ["failed", "failed", "delivered"]
