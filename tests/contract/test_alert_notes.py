"""What every implementation of `ports.AlertNotes` must do."""

import asyncio
from datetime import timedelta

from extproc.core.quota.limits import Scope, Window
from extproc.ports.alerts import Alert, AlertReason

from .reservations import HOSTILE, NOW, bucket, who


def alert(**changes):
    fields = {"tenant": "acme", "bucket": bucket(who(), 45), "used": 24, "threshold": 0, "at": NOW}
    return Alert(**(fields | {"reason": AlertReason.DENIED} | changes))


async def test_of_all_replicas_one_is_the_first(replicas):
    for told in (alert(), alert(reason=AlertReason.LOCKED_OUT), alert(tenant="other")):
        answers = await asyncio.gather(*(each.is_first(told) for each in replicas * 3))
        assert sum(answers) == 1


async def test_another_window_another_amount_and_hostile_names(replicas):
    one, two = replicas
    assert await one.is_first(alert())
    assert not await two.is_first(alert(bucket=bucket(who(), 90)))  # a limit that is raised keeps its bucket
    tomorrow = NOW + timedelta(days=1)
    assert await two.is_first(alert(bucket=bucket(who(), 45, now=tomorrow), at=tomorrow))
    named = [alert(tenant=t, bucket=bucket(who(t, a), 45)) for t, a, _ in {(t, a, "") for t, a, _ in HOSTILE}]
    for each in named:
        assert await one.is_first(each)
        assert not await two.is_first(each)


async def test_those_of_windows_that_are_over_are_forgotten(redis, redis_counters):
    minute = (Scope.SERVICE_ACCOUNT, Window.MINUTE)
    for number in range(5):
        at = NOW + timedelta(minutes=number)
        assert await redis_counters.is_first(alert(bucket=bucket(who(), 45, minute, now=at), at=at))
    (key,) = [key async for key in redis.scan_iter("tw:{*:alerts")]
    assert await redis.zcard(key) <= 2
    assert 0 < await redis.ttl(key) <= 35 * 86_400
