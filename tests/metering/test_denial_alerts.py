"""Denials and lockouts alert once per bucket, window and reason, on whichever replica they happen."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from extproc.core.quota.binding import Policy, Terms
from extproc.core.quota.limits import Bucket, Limit, Scope, Window, interval_at
from extproc.core.quota.reservation import BucketState, Count, Denied
from extproc.core.request.identity import Identity
from extproc.metering.denial_alerts import DenialAlerts
from extproc.ports.alerts import AlertReason
from extproc.ports.base import StoreError
from extproc.stores.memory.counters import MemoryCounters, MemoryServer

from .waiting import until
from .world import Alerts, World, ask

ALL = frozenset(Window)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WHO = Identity("acme", "sa", "10.0.0.1")


class Clock:
    def __init__(self):
        self.at = NOW

    def now(self):
        return self.at


@asynccontextmanager
async def telling(notes=None, alerts=None, windows=ALL, clock=None):
    told = alerts if alerts is not None else Alerts()
    made = DenialAlerts(notes or MemoryCounters(), told, clock or Clock(), windows)
    task = asyncio.create_task(made.run())
    try:
        yield made, told
    finally:
        task.cancel()


def denied(used, held=0, need=10, *, amount=45, account="sa", window=Window.DAY, at=NOW):
    limit = Limit(Scope.SERVICE_ACCOUNT, window, amount)
    bucket = Bucket(limit, (account,), interval_at(window, at, ZoneInfo("UTC")))
    return Denied(BucketState(bucket, Count(used, held)), need)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_denial_far_below_every_threshold_alerts_once_with_what_was_used_held_and_needed():
    async with telling() as (alerts, told):
        for _ in range(5):
            alerts.denied("acme", denied(24, 15))
        await settle()
    (alert,) = told
    assert (alert.reason, alert.tenant, alert.used, alert.held, alert.needed) == (
        AlertReason.DENIED, "acme", 24, 15, 10,
    )  # fmt: skip
    assert (alert.bucket.limit.amount, alert.at) == (45, NOW)


async def test_a_limit_that_is_used_up_is_a_lockout_and_another_message():
    async with telling() as (alerts, told):
        alerts.denied("acme", denied(24))
        alerts.denied("acme", denied(45))
        alerts.denied("acme", denied(46))
        await settle()
    assert [alert.reason for alert in told] == [AlertReason.DENIED, AlertReason.LOCKED_OUT]


async def test_each_bucket_and_each_window_has_a_message_of_its_own():
    async with telling() as (alerts, told):
        for each in (
            denied(24), denied(24, account="sa2"), denied(24, window=Window.HOUR),
            denied(24, at=NOW + timedelta(days=1)),
        ):  # fmt: skip
            alerts.denied("acme", each)
        alerts.denied("other", denied(24))
        await settle()
    assert len(told) == 5


async def test_of_several_replicas_one_tells():
    server = MemoryServer()
    told = Alerts()
    async with (
        telling(MemoryCounters(server), told) as (one, _),
        telling(MemoryCounters(server), told) as (two, _),
    ):
        one.denied("acme", denied(24))
        two.denied("acme", denied(25))
        await settle()
    assert len(told) == 1


async def test_windows_that_do_not_alert_are_left_out():
    async with telling(windows=frozenset({Window.MONTH})) as (alerts, told):
        alerts.denied("acme", denied(45))
        await settle()
    assert told == []


@pytest.mark.parametrize("of_tenant", [True, False])
async def test_a_suspended_caller_alerts_once_a_day_of_its_account_or_its_tenant(of_tenant):
    terms = {} if of_tenant else {"accounts": {"sa": Terms(suspended="unpaid")}}
    policy = Policy("acme", (), ZoneInfo("UTC"), suspended="unpaid" if of_tenant else None, **terms)
    clock = Clock()
    async with telling(clock=clock) as (alerts, told):
        for _ in range(3):
            alerts.suspended(WHO, policy)
        alerts.suspended(Identity("acme", "sa", "10.0.0.2"), policy)
        await settle()
        assert [(alert.reason, alert.told, alert.bucket.parts) for alert in told] == [
            (AlertReason.SUSPENDED, "unpaid", () if of_tenant else ("sa",))
        ]
        clock.at += timedelta(days=1)
        alerts.suspended(WHO, policy)
        await settle()
    assert len(told) == 2


async def test_without_redis_it_is_told_rather_twice_than_never():
    class Away(MemoryCounters):
        async def is_first(self, alert):
            raise StoreError("away", transient=True)

    async with telling(Away()) as (alerts, told):
        alerts.denied("acme", denied(24))
        await settle()
    assert len(told) == 1


async def test_a_flood_of_buckets_is_bounded():
    async with telling() as (alerts, told):
        for number in range(12_000):
            alerts.denied("acme", denied(24, account=f"sa{number}"))
        await settle()
    assert len(told) == 1_000


async def test_the_service_alerts_on_a_denied_request_and_on_a_suspended_caller():
    """With a limit of 45, requests were denied at 24 used."""
    world = World(limit=45, alert_on_denials=True)
    admitted = await world.service.reserve(ask(24))
    denial = await world.service.reserve(ask(24))
    assert isinstance(denial, Denied)
    async with world.running():
        await until(lambda: world.alerts)
        world.limits.documents["acme"] = {"sa_limit": 45, "suspended": "unpaid"}
        await world.service.reserve(ask(1))
        await until(lambda: len(world.alerts) == 2)
    first, second = world.alerts
    assert (first.reason, first.used, first.held, first.needed) == (AlertReason.DENIED, 0, 24, 24)
    assert (second.reason, second.told) == (AlertReason.SUSPENDED, "unpaid")
    del admitted


async def test_alerts_on_denials_can_be_switched_off():
    world = World(limit=9)
    assert isinstance(await world.service.reserve(ask(10)), Denied)
    async with world.running():
        await world.drained()
    assert world.alerts == []
