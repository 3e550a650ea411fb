"""What the general form of limits does to a reservation: modes, suspensions, growth, renewals, hits, alerts."""

import pytest

from extproc.core.quota.costs import Bound, Cost, Costing
from extproc.core.quota.hits import Hit, RouteLimit
from extproc.core.quota.limits import Limit, Scope, Subject, Unit, Window
from extproc.core.quota.models import Prices
from extproc.core.quota.reservation import Admitted, Denied, Suspended, Unavailable, Unbounded
from extproc.core.quota.settlement import Outcome, Settlement, released
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from tests.changing import replace

from .waiting import until
from .world import WHO, World, ask, away, usage


def settled(tokens_in, tokens_out, **details):
    whole = Usage(tokens_in, tokens_out, total=tokens_in + tokens_out, **details)
    return Settlement(Outcome.SETTLED, whole, whole.total, "usage", 200)


async def reserve(world, **facts):
    return await world.service.reserve(ask(**facts))


# ---------------------------------------------------------------- who may


async def test_a_suspended_caller_is_told_why_holds_nothing_and_is_recorded():
    world = World()
    world.limits.documents["acme"] = {"suspended": "unpaid bill"}
    assert await world.reserve() == Suspended("unpaid bill")
    await world.drained()
    (entry,) = await world.entries()
    assert (entry.outcome, entry.reason, entry.charge) == (Outcome.DENIED, "suspended", 0)
    assert world.counted("decisions_total", outcome="denied", reason="suspended") == 1
    assert world.counted("reserve_seconds_count") == 0


async def test_suspensions_are_not_recorded_where_denials_are_not():
    world = World(record_denied=False)
    world.limits.documents["acme"] = {"service_accounts": [{"name": "sa", "suspended": True}]}
    assert await world.reserve() == Suspended("suspended")
    assert isinstance(await world.reserve(identity=Identity("acme", "other", "10.0.0.1")), Admitted)
    await world.drained()
    assert await world.entries() == []


async def test_an_unlimited_tenant_is_recorded_all_the_same():
    world = World(limit=1)
    world.limits.documents["acme"] = {"unlimited": True}
    reservation = await world.admitted(500)
    assert reservation.buckets == ()
    world.service.close(reservation, usage(300))
    await world.drained()
    assert await world.recorded() == [(Outcome.SETTLED, 300)]


@pytest.mark.parametrize("unit", ["tokens", "input_tokens", "output_tokens"])
async def test_what_has_no_bound_is_refused_where_a_strict_limit_would_need_one(unit):
    world = World()
    strict = {"scope": "tenant", "window": "day", "amount": 10_000, "unit": unit, "mode": "strict"}
    world.limits.documents["acme"] = {"sa_limit": 10_000, "limits": [strict]}
    assert await reserve(world, unbounded_prompt=True) == Unbounded()
    assert isinstance(await reserve(world), Admitted)
    await world.drained()
    assert [(entry.outcome, entry.reason) for entry in await world.entries()] == [
        (Outcome.DENIED, "unbounded_prompt")
    ]
    assert world.counted("decisions_total", outcome="denied", reason="unbounded_prompt") == 1


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"sa_limit": 10_000}, {}),
        ({"sa_limit": 10_000, "mode": "shadow", "shadows": "strict"}, {}),
        ({"ratelimitIPPerMinute": 5, "mode": "strict", "unlimited": True}, {}),
        ({"sa_limit": 10_000, "mode": "strict"}, {"refuse_unbounded": False}),
    ],
)
async def test_elsewhere_what_has_no_bound_is_admitted(fields, options):
    world = World(**options)
    world.limits.documents["acme"] = fields
    assert isinstance(await reserve(world, unbounded_prompt=True), Admitted)


async def test_beside_a_strict_limit_others_are_charged_what_was_used():
    world = World()
    strict = {"scope": "tenant", "window": "day", "amount": 100, "mode": "strict"}
    world.limits.documents["acme"] = {"sa_limit": 10_000, "limits": [strict]}
    world.service.close((await reserve(world)).reservation, settled(5, 9000))
    await world.drained()
    insight = await world.service.inspect(WHO, Subject())
    assert [state.count.used for _, state in insight.limits] == [9005, 74]
    assert [entry.charge for entry in await world.entries()] == [9005]


# ---------------------------------------------------------------- what it costs


async def test_only_a_strict_limit_makes_a_bound():
    world = World()
    assert (await world.admitted()).bound is None
    world.limits.documents["acme"] = {"sa_limit": 1000, "mode": "strict", "min_output_tokens": 3}
    reservation = await world.admitted()
    # 5 bytes, and the most that a chat template adds.
    assert reservation.bound == Bound(5 + 64, 5, 5, 1, writable=False)
    reservation = (await reserve(world, boundable=True)).reservation
    assert reservation.bound == Bound(5 + 64, 5, 3, 1, writable=True)


async def test_a_strict_bound_is_lowered_to_what_is_left_and_never_exceeded():
    world = World()
    world.limits.documents["acme"] = {"sa_limit": 100, "mode": "strict"}
    decision = await reserve(world, boundable=True, output_bound=5000)
    assert decision.reservation.output_bound == 100 - 69
    world.service.close(decision.reservation, settled(69, 9000))
    await world.drained()
    assert await world.counts() == (100, 0)


async def test_weights_of_the_tenant_count_before_the_operators():
    world = World()
    world.limits.documents["acme"] = {"sa_limit": 1000, "weights": {"output": 3, "cached_input": 0.1}}
    reservation = await world.admitted(10)
    assert await world.counts() == (0, 5 + 15)
    world.service.close(reservation, Settlement(Outcome.SETTLED, Usage(5, 2, total=7), 11, "usage", 200))
    await world.drained()
    assert await world.counts() == (11, 0)


async def test_an_entry_has_its_price():
    world = World(prices=Prices(input=1_000_000, output=2_000_000))
    world.service.close(await world.admitted(), settled(5, 2))
    await world.drained()
    assert [entry.price for entry in await world.entries()] == [9000]


async def test_a_prompt_is_counted_where_its_model_has_a_tokenizer():
    world = World(costing=Costing(prompt_overhead_tokens=2, message_bound_tokens=10, template_bound_tokens=100))
    prompt = b'{"messages":[{"role":"user","content":"four"}]}'
    decision = await reserve(world, model="counted", prompt=prompt, prompt_bytes=40, output_bound=7)
    assert decision.reservation.cost == Cost(4 + 4 + 2, 7)  # text, message, overhead
    world.limits.documents["acme"] = {"sa_limit": 1000, "mode": "strict"}
    decision = await reserve(world, model="counted", prompt=prompt, prompt_bytes=40, output_bound=7)
    assert decision.reservation.bound.prompt == 4 + 10 + 100


@pytest.mark.parametrize(
    ("facts", "weight"),
    [
        ({"model": "m"}, 0.5),
        ({"model": "counted", "prompt": b"no object"}, 0.8),
        ({"model": "counted", "prompt": b""}, 1),
    ],
)
async def test_a_prompt_that_can_not_be_counted_goes_by_its_weighed_bytes(facts, weight):
    world = World(costing=Costing(prompt_bytes_per_token=4, prompt_overhead_tokens=2))
    decision = await reserve(world, prompt_bytes=40, output_bound=7, **({"prompt": b"{}"} | facts))
    assert decision.reservation.cost == Cost(10 * weight + 2, 7)


async def test_a_large_prompt_is_read_aside_and_counted():
    world = World(costing=Costing(prompt_overhead_tokens=0))
    prompt = b'{"messages":[{"role":"user","content":"' + b"x" * 100_000 + b'"}]}'
    decision = await reserve(world, model="counted", prompt=prompt, prompt_bytes=40, output_bound=7)
    assert isinstance(decision, Denied)
    assert decision.need == 100_000 + 4 + 7


async def test_token_ids_are_counted_as_they_are():
    world = World(costing=Costing(prompt_overhead_tokens=2))
    decision = await reserve(world, prompt_tokens=50, prompt_bytes=400, output_bound=7)
    assert decision.reservation.cost == Cost(52, 7)


# ---------------------------------------------------------------- learning


async def test_what_a_models_answers_need_is_learned_from_those_without_a_bound():
    world = World(limit=10**9)
    for _ in range(40):
        world.service.close((await reserve(world, output_bound=None)).reservation, settled(5, 60))
    await world.drained()
    assert (await reserve(world, output_bound=None)).reservation.cost.output == 60
    assert (await reserve(world, output_bound=None, model="other")).reservation.cost.output == 5
    assert (await reserve(world, output_bound=3)).reservation.cost.output == 3


@pytest.mark.parametrize(
    ("facts", "settlement"),
    [
        ({"output_bound": 100}, settled(5, 60)),
        ({"output_bound": None}, Settlement(Outcome.ESTIMATED, Usage(5, 60, total=65), 65, "missing", 200)),
        ({"output_bound": None}, Settlement(Outcome.SETTLED, Usage(5, 60, total=65), 65, "cut_off", 200)),
        ({"output_bound": None, "counts_tokens": False}, settled(5, 60)),
    ],
)
async def test_answers_that_say_nothing_of_a_whole_one_teach_nothing(facts, settlement):
    world = World(limit=10**9)
    for _ in range(40):
        world.service.close((await reserve(world, **facts)).reservation, settlement)
    await world.drained()
    assert (await reserve(world, output_bound=None)).reservation.cost.output == 5


async def test_the_error_of_the_estimate_is_a_metric():
    world = World()
    world.service.close((await reserve(world, prompt_bytes=30)).reservation, settled(20, 1))
    await world.drained()
    assert world.counted("prompt_estimate_ratio_sum") == 1.5
    assert world.counted("prompt_estimate_ratio_count") == 1


# ---------------------------------------------------------------- shadows


async def test_a_shadow_denies_nobody_and_its_verdict_is_counted_and_recorded():
    world = World()
    tight = {"scope": "tenant", "window": "day", "amount": 3, "mode": "shadow"}
    world.limits.documents["acme"] = {"sa_limit": 1000, "limits": [tight]}
    decision = await world.reserve(10)
    assert isinstance(decision, Admitted)
    world.service.close(decision.reservation, usage(7))
    await world.drained()
    (entry,) = await world.entries()
    assert entry.shadow == ("tenant:day~shadow",)
    assert world.counted("shadow_denied_total", scope="tenant") == 1
    assert world.counted("decisions_total", outcome="admitted", reason="") == 1


# ---------------------------------------------------------------- long streams


async def test_a_hold_that_grew_is_held_and_charged_as_it_grew():
    world = World(limit=100)
    reservation = await world.admitted(10)
    grown = type(reservation)(
        **{f: getattr(reservation, f) for f in reservation.__slots__} | {"cost": Cost(5, 55)}
    )
    world.service.grow(grown)
    async with world.running():
        await until(lambda: world.counters.renewed)
        assert await world.counts() == (0, 60)
        world.service.close(grown, settled(5, 50))
        assert await world.metering.drain(1)
    assert await world.counts() == (55, 0)
    (entry,) = await world.entries()
    assert (entry.held, entry.charge) == (60, 55)


async def test_a_hold_that_grew_as_its_stream_broke_off_is_never_charged_above_what_is_on_record():
    """The last growth may not have been carried out any more: the end alone tells of it."""
    world = World(limit=100)
    reservation = await world.admitted(10)
    world.service.close(replace(reservation, cost=Cost(5, 55)), settled(5, 25))
    await world.drained()
    assert await world.counts() == (30, 0)
    (entry,) = await world.entries()
    assert (entry.held, entry.charge) == (60, 30)
    assert (entry.shadow, entry.id) == ((), reservation.id)


async def test_growth_of_what_is_over_holds_nothing():
    world = World()
    reservation = await world.admitted(10)
    world.service.close(reservation, usage(7))
    world.service.grow(reservation)
    await world.drained()
    assert world.counters.renewed == []
    assert await world.counts() == (7, 0)


async def test_a_reservation_lives_as_long_as_its_stream():
    world = World(reservation_ttl_s=30.0)
    reservation = await world.admitted(10)
    held = world.leases
    world.clock.passes(9)
    assert held.renew_due() == 0
    world.clock.passes(2)
    assert held.renew_due() == 1
    assert held.renew_due() == 0
    async with world.running():
        await until(lambda: world.counters.renewed)
    world.clock.passes(25)  # past its first deadline, not past the second
    assert await world.expiry.expire_overdue() == 0
    world.service.close(reservation, usage(7))
    assert len(held) == 0
    world.clock.passes(60)
    assert held.renew_due() == 0
    await world.drained()
    assert await world.recorded() == [(Outcome.SETTLED, 7)]


async def test_renewing_goes_on_by_itself_and_through_an_outage():
    world = World(reservation_ttl_s=0.06)
    await world.admitted(10)
    world.counters.before = [away(), away()]
    async with world.running():
        world.clock.passes(0.05)
        await until(lambda: world.counters.renewed)
    assert await world.expiry.expire_overdue() == 0


async def test_nobody_renews_what_a_dead_process_held():
    world = World(reservation_ttl_s=30.0)
    await world.admitted(10)
    world.leases._open.clear()  # the process that knew of it is gone
    world.clock.passes(31)
    assert await world.expiry.expire_overdue() == 1
    await world.drained()
    assert await world.recorded() == [(Outcome.EXPIRED, 10)]


# ---------------------------------------------------------------- hits


async def test_a_hit_counts_as_one_request_at_once_and_is_not_in_the_ledger():
    world = World()
    world.limits.documents["acme"] = {"ratelimitIPPerMinute": 2}
    decisions = [await world.service.hit(Hit(WHO, None, 1)) for _ in range(3)]
    assert [type(decision) for decision in decisions] == [Admitted, Admitted, Denied]
    await world.drained()
    assert isinstance(await world.service.hit(Hit(WHO, None, 1)), Denied)
    assert await world.entries() == []
    world.clock.passes(60)
    assert isinstance(await world.service.hit(Hit(WHO, None, 2)), Admitted)
    assert isinstance(await world.service.hit(Hit(WHO, None, 1)), Denied)


async def test_only_limits_on_requests_bind_a_hit():
    world = World(limit=0)
    decision = await world.service.hit(Hit(WHO, None, 1))
    assert isinstance(decision, Admitted)
    assert decision.states == ()
    assert world.counted("reserve_seconds_count") == 0


async def test_a_route_may_bring_limits_of_its_own():
    world = World()
    limit = Limit(Scope.CLIENT_IP, Window.MINUTE, 1, Unit.REQUESTS)
    hit = Hit(WHO, "iris", 1, (RouteLimit(limit, (WHO.client_ip, "domain", "route", "a")),))
    assert isinstance(await world.service.hit(hit), Admitted)
    assert isinstance(await world.service.hit(hit), Denied)


async def test_a_suspended_caller_gets_through_no_route():
    world = World()
    world.limits.documents["acme"] = {"suspended": "unpaid"}
    assert await world.service.hit(Hit(WHO, None, 1)) == Suspended("unpaid")


async def test_a_hit_that_nobody_counted_in_time_is_no_decision_and_holds_nothing():
    world = World()
    world.limits.documents["acme"] = {"ratelimitIPPerMinute": 1}
    world.counters.after = [away()]
    assert isinstance(await world.service.hit(Hit(WHO, None, 1)), Unavailable)
    await world.drained()
    assert isinstance(await world.service.hit(Hit(WHO, None, 1)), Admitted)


async def test_a_hit_whose_end_got_lost_expires_without_an_entry():
    world = World(reservation_ttl_s=30.0)
    world.limits.documents["acme"] = {"ratelimitIPPerMinute": 5}
    await world.service.hit(Hit(WHO, None, 1))
    world.settler._ends._items.clear()
    world.clock.passes(31)
    assert await world.expiry.expire_overdue() == 1
    await world.drained()
    assert await world.entries() == []


# ---------------------------------------------------------------- what is left


async def test_a_caller_sees_its_limits_with_what_is_used_and_held():
    world = World()
    by_model = {"scope": "model", "window": "day", "amount": 50, "model": "gpt-*"}
    other = {"scope": "tenant", "window": "day", "amount": 60, "model": "llama-*"}
    world.limits.documents["acme"] = {"sa_limit": 1000, "limits": [by_model, other]}
    world.service.close(await world.admitted(10), usage(7))
    await world.drained()
    await world.admitted(10)
    insight = await world.service.inspect(WHO, Subject())
    assert [limit.amount for limit, _ in insight.limits] == [1000, 50, 60]
    assert [state and state.count for _, state in insight.limits] == [
        type(insight.limits[0][1].count)(7, 10),
        None,
        type(insight.limits[0][1].count)(0, 0),
    ]
    insight = await world.service.inspect(WHO, Subject("gpt-4"))
    assert [(limit.amount, state.count.used) for limit, state in insight.limits] == [(1000, 7), (50, 0)]


async def test_a_suspended_caller_sees_that_it_is():
    world = World()
    world.limits.documents["acme"] = {"suspended": "unpaid", "unlimited": True}
    insight = await world.service.inspect(WHO, Subject())
    assert (insight.suspended, insight.limits) == ("unpaid", ())


async def test_a_quota_that_can_not_be_read_in_time_is_not_guessed():
    world = World()
    world.counters.hang_reads = True
    assert await world.service.inspect(WHO, Subject()) == Unavailable()


# ---------------------------------------------------------------- alerts


async def test_a_threshold_alerts_once_in_a_window():
    world = World(limit=100, thresholds=(80, 95))
    for charge in (79, 1, 1, 15, 4):
        world.service.close(await world.admitted(0), usage(charge))
        await world.drained()
    assert [(alert.threshold, alert.used) for alert in world.alerts] == [(80, 80), (95, 96)]
    assert {alert.tenant for alert in world.alerts} == {"acme"}


async def test_windows_that_nobody_watches_and_shadows_do_not_alert():
    world = World(thresholds=(80,), alert_windows=frozenset({Window.MONTH}))
    shadow = {"scope": "tenant", "window": "month", "amount": 1, "mode": "shadow"}
    world.limits.documents["acme"] = {"sa_limit": 1, "limits": [shadow]}
    world.service.close(await world.admitted(0), usage(50))
    await world.drained()
    assert world.alerts == []


async def test_a_release_alerts_nobody():
    world = World(limit=100, thresholds=(1,))
    world.service.close(await world.admitted(10), released("upstream_error"))
    await world.drained()
    assert world.alerts == []


# ---------------------------------------------------------------- requests


async def test_a_request_counts_as_one_unless_it_never_went_upstream():
    world = World()
    world.limits.documents["acme"] = {"ratelimitEachSAPerMinute": 3}

    async def requests():
        insight = await world.service.inspect(WHO, Subject())
        (state,) = [s for limit, s in insight.limits if limit.unit is Unit.REQUESTS]
        return state.count.used

    facts = {"counts_tokens": False, "endpoint": Endpoint.PREDICT}
    world.service.close((await reserve(world, **facts)).reservation, settled(0, 0))
    world.service.close((await reserve(world, **facts)).reservation, released("upstream_error"))
    world.service.close((await reserve(world)).reservation, released("not_forwarded", forwarded=False))
    await world.drained()
    assert await requests() == 2
