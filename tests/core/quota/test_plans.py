"""A plan is what computing it anew would give, at every instant, and is computed once while nothing changes."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from extproc.core.quota import plans as module
from extproc.core.quota.binding import Policy, Terms, TopUp, bind_request
from extproc.core.quota.limits import Limit, Mode, Scope, Subject, Unit, Window, local_date
from extproc.core.quota.plans import Plans
from extproc.core.quota.reservation import Suspended
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, TenantId
from tests.changing import replace

NOON = datetime(2026, 3, 28, 12, 0, 30, tzinfo=UTC)
WHO = Identity(TenantId("acme"), "robot", "10.0.0.1")
ALL = tuple(Limit(Scope.SERVICE_ACCOUNT, window, 1000) for window in Window)
POLICY = Policy(TenantId("acme"), ALL, ZoneInfo("Europe/Berlin"))
ROUTE = Route("search", (Limit(Scope.TENANT, Window.MINUTE, 5, unit=Unit.REQUESTS),))


def planned(plans, policy=POLICY, now=NOON, *, identity=WHO, model="m", route=NO_ROUTE):
    return plans.of(policy, identity, endpoint=Endpoint.CHAT_COMPLETIONS, model=model, route=route, now=now)


def anew(policy, now, route=NO_ROUTE):
    binding = bind_request(policy, WHO, now, Subject("m", Endpoint.CHAT_COMPLETIONS))
    return (*binding.buckets, *route.buckets(WHO, now, policy.zone)), local_date(now, policy.zone)


def test_the_next_request_of_a_caller_finds_the_same_plan():
    plans = Plans()
    assert planned(plans, now=NOON + timedelta(seconds=29)) is planned(plans)
    for other in ({"model": "n"}, {"identity": replace(WHO, client_ip="10.0.0.2")}, {"route": ROUTE}):
        assert planned(plans, **other) is not planned(plans)


@pytest.mark.parametrize("backwards", [False, True])
def test_at_every_instant_a_plan_is_what_computing_it_anew_gives(backwards):
    plans = Plans()
    steps = [
        NOON + timedelta(seconds=20 * n) for n in range(3 * 60 * 40)
    ]  # over midnight and a change of the clocks
    for now in steps[::-7] if backwards else steps[::7]:
        plan = planned(plans, now=now, route=ROUTE)
        assert (plan.buckets, plan.date) == anew(POLICY, now, ROUTE), now


def test_a_plan_ends_with_the_policy_and_with_a_top_up():
    plans = Plans()
    until = NOON.timestamp() + 10
    top_up = TopUp(Scope.SERVICE_ACCOUNT, Window.DAY, Unit.TOKENS, 500, until)
    more = replace(POLICY, top_ups=(top_up,))
    assert [b.limit.amount for b in planned(plans).buckets if b.limit.window is Window.DAY] == [1000]
    assert [b.limit.amount for b in planned(plans, more).buckets if b.limit.window is Window.DAY] == [1500]
    later = planned(plans, more, NOON + timedelta(seconds=10))
    assert [b.limit.amount for b in later.buckets if b.limit.window is Window.DAY] == [1000]
    assert planned(plans, replace(more)) is not later


def test_a_suspended_caller_has_no_buckets():
    policy = replace(POLICY, accounts={"robot": Terms(suspended="owes")})
    plan = planned(Plans(), policy, route=ROUTE)
    assert (plan.refusal, plan.buckets) == (Suspended("owes"), ())


@pytest.mark.parametrize(
    ("limit", "strict", "refuses"),
    [
        (Limit(Scope.TENANT, Window.DAY, 9), False, False),
        (Limit(Scope.TENANT, Window.DAY, 9, mode=Mode.STRICT), True, True),
        (Limit(Scope.TENANT, Window.DAY, 9, mode=Mode.STRICT, shadow=True), True, False),
        (Limit(Scope.TENANT, Window.DAY, 9, mode=Mode.STRICT, unit=Unit.REQUESTS), False, False),
    ],
)
def test_which_limits_need_a_bound(limit, strict, refuses):
    plan = planned(Plans(), replace(POLICY, limits=(limit,)))
    assert (plan.strict, plan.refuses_unbounded) == (strict, refuses)


def test_only_the_latest_callers_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "_AT_MOST", 3)
    plans = Plans()
    first = planned(plans, model="0")
    for number in range(1, 4):
        planned(plans, model=str(number))
    assert len(plans._known) == 3
    assert planned(plans, model="0") is not first
    assert [plan.model for plan in plans.latest()] == ["0", "3", "2"], "the newest first"
