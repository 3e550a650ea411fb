"""What binds an identity now, read from the counters."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from extproc.core.quota.binding import Policy, Terms
from extproc.core.quota.costs import Cost
from extproc.core.quota.limits import Bucket, Limit, Scope, Subject, Window, interval_at
from extproc.core.quota.reservation import Reservation
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.metering.quota_view import insight_into
from extproc.stores.memory.counters import MemoryCounters
from tests.changing import replace

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
WHO = Identity("acme", "sa", "10.0.0.1")
PLAIN = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 100)
PER_MODEL = Limit(Scope.MODEL, Window.DAY, 50)
BIG = Limit(Scope.TENANT, Window.HOUR, 40, model="big-*")
SCORES = Limit(Scope.TENANT, Window.DAY, 30, endpoints=(Endpoint.SCORE, Endpoint.RERANK))
POLICY = Policy("acme", (PLAIN, PER_MODEL, BIG, SCORES), BERLIN)


class Counting(MemoryCounters):
    """Remembers how often it was asked."""

    asked = 0

    async def read(self, tenant, buckets):
        self.asked += 1
        return await super().read(tenant, buckets)


async def told(subject=None, policy=POLICY, counters=None):
    found = await insight_into(counters or MemoryCounters(), policy, WHO, NOW, *([subject] if subject else []))
    return {limit: state is not None for limit, state in found.limits}


async def test_limits_that_count_by_a_model_have_no_counts_without_one():
    assert await told() == {PLAIN: True, PER_MODEL: False, BIG: True, SCORES: True}


async def test_with_a_model_and_an_endpoint_every_limit_that_may_bind_has_counts():
    subject = Subject("big-1", Endpoint.SCORE)
    assert await told(subject) == {PLAIN: True, PER_MODEL: True, BIG: True, SCORES: True}


async def test_limits_on_another_model_or_endpoint_are_left_out():
    assert await told(Subject("small")) == {PLAIN: True, PER_MODEL: True, SCORES: True}
    assert await told(Subject(endpoint=Endpoint.CHAT_COMPLETIONS)) == {PLAIN: True, PER_MODEL: False, BIG: True}


async def test_the_counts_are_those_of_the_identitys_own_buckets():
    counters = MemoryCounters()
    bucket = Bucket(PER_MODEL, ("m",), interval_at(Window.DAY, NOW, BERLIN))
    held = Reservation(
        "r", "q", WHO, Endpoint.SCORE, "m", False, Cost(7, 0), (bucket,), NOW, "2026-03-01", NOW.timestamp() + 60
    )
    await counters.reserve(held)
    found = await insight_into(counters, POLICY, WHO, NOW, Subject("m"))
    assert {limit: state.count.held for limit, state in found.limits if state} == {
        PLAIN: 0,
        PER_MODEL: 7,
        SCORES: 0,
    }


async def test_the_counters_are_asked_once_and_not_at_all_for_nothing():
    counters = Counting()
    await told(Subject("big-1", Endpoint.SCORE), counters=counters)
    assert counters.asked == 1
    await told(policy=replace(POLICY, limits=(PER_MODEL,)), counters=counters)
    assert counters.asked == 1


async def test_a_suspension_is_told():
    policy = replace(POLICY, accounts={"sa": Terms(suspended="unpaid")})
    assert (await insight_into(MemoryCounters(), policy, WHO, NOW)).suspended == "unpaid"
