"""Units, modes and weights: every implementation of `ports.Counters` holds and admits by them alike."""

import random
from datetime import timedelta

import pytest

from extproc.core.quota.costs import MAX_WEIGHT, Bound, Cost, Weights
from extproc.core.quota.limits import MAX_AMOUNT, Mode, Unit
from extproc.core.quota.reservation import Admitted, BucketState, Count, Denied
from extproc.core.quota.settlement import Estimates, Outcome, charges
from extproc.core.quota.usage import Usage
from extproc.ports.base import StoreError
from extproc.ports.counters import Closed, Closing
from tests.changing import replace

from .reservations import (
    NOW,
    TTL_S,
    bound_by,
    counts,
    expired,
    outcomes,
    released,
    reservation,
    settled,
    strictly,
    who,
)

LATE = NOW + timedelta(seconds=TTL_S + 1)
PER_UNIT = [{"unit": unit} for unit in Unit]


def in_use(amount, used, identity=None):
    """An earlier request that used up a part of the strict limit."""
    return strictly(amount, output=0, least=0, prompt=used, identity=identity)


async def use(counters, amount, used):
    """Leaves `used` in the bucket of the strict limit."""
    earlier = in_use(amount, used)
    assert isinstance(await counters.reserve(earlier), Admitted)
    await counters.close([settled(earlier, used)])


# ---------------------------------------------------------------- units


async def test_a_reservation_holds_of_each_unit_what_it_needs_of_it_and_is_charged_so(counters):
    held = bound_by(*((100, unit) for unit in PER_UNIT), cost=Cost(12, 20), requests=2)
    decision = await counters.reserve(held)
    assert [state.count for state in decision.states] == [Count(0, 32), Count(0, 12), Count(0, 20), Count(0, 2)]
    assert await counts(counters, held) == [(0, 32), (0, 12), (0, 20), (0, 2)]
    assert await outcomes(counters, [Closing(held, Outcome.SETTLED, (30, 11, 19, 1))]) == [Outcome.SETTLED]
    assert await counts(counters, held) == [(30, 0), (11, 0), (19, 0), (1, 0)]


@pytest.mark.parametrize(("lacking", "needs"), list(enumerate([32, 12, 20, 2])))
async def test_what_does_not_fit_by_one_unit_is_held_in_none(counters, lacking, needs):
    amounts = [needs - 1 if i == lacking else 100 for i in range(4)]
    held = bound_by(*zip(amounts, PER_UNIT, strict=True), cost=Cost(12, 20), requests=2)
    decision = await counters.reserve(held)
    assert decision == Denied(BucketState(held.buckets[lacking], Count(0, 0)), needs)
    assert await counts(counters, held) == [(0, 0)] * 4


async def test_buckets_of_different_units_never_share_a_counter(counters):
    for unit in PER_UNIT:
        assert isinstance(
            await counters.reserve(bound_by((10, unit), cost=Cost(6, 6), requests=6)), (Admitted, Denied)
        )
    assert await counts(counters, bound_by(*((10, unit) for unit in PER_UNIT))) == [(0, 0), (0, 6), (0, 6), (0, 6)]


async def test_a_request_that_no_limit_binds_is_admitted_and_ends_like_any_other(counters):
    held = reservation(10, buckets=())
    assert await counters.reserve(held) == await counters.reserve(held) == Admitted(held, ())
    longer = replace(held, deadline=held.deadline + 60)
    await counters.renew([longer])
    assert await counters.overdue(LATE, 10) == []
    assert await counters.overdue(LATE + timedelta(seconds=60), 10) == [longer]
    assert await counters.close([settled(longer, 5)], (80,)) == [Closed(Outcome.SETTLED)]
    assert await outcomes(counters, [expired(longer)]) == [Outcome.SETTLED]
    assert await counters.overdue(LATE + timedelta(seconds=60), 10) == []
    with pytest.raises(StoreError):
        await counters.reserve(held)


# ---------------------------------------------------------------- weights


async def test_weights_are_of_the_dearest_kind_and_round_up(counters):
    weights = Weights(input=100, cached_input=10, output=1000, reasoning=2500)
    held = bound_by(*((100, unit) for unit in PER_UNIT), cost=Cost(3, 5), weights=weights)
    await counters.reserve(held)
    assert await counts(counters, held) == [(0, 13), (0, 3), (0, 5), (0, 1)]  # 0.3 + 12.5, in tokens


@pytest.mark.parametrize(("prompt", "holds"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)])
async def test_a_thousandth_of_a_token_holds_a_whole_one(counters, prompt, holds):
    held = bound_by((2, {}), cost=Cost(prompt, 0), weights=Weights(1, 1, 1, 1))
    await counters.reserve(held)
    assert await counts(counters, held) == [(0, holds)]


# ---------------------------------------------------------------- nothing held


async def test_what_held_nothing_is_charged_though_another_one_left_the_bucket_empty(counters):
    nothing, other = reservation(0, ip_limit=100), reservation(5, ip_limit=100)
    await counters.reserve(nothing)
    await counters.reserve(other)
    await counters.close([released(other)])
    await counters.close([settled(nothing, 7)])
    assert await counts(counters, nothing) == [(7, 0), (7, 0)]


async def test_what_held_nothing_and_grew_is_held_though_another_one_left_the_bucket_empty(counters):
    nothing, other = reservation(0), reservation(5)
    await counters.reserve(nothing)
    await counters.reserve(other)
    await counters.close([released(other)])
    grown = replace(nothing, cost=Cost(2, 6))
    for _ in range(2):
        await counters.renew([grown])
    assert await counts(counters, nothing) == [(0, 8)]
    await counters.close([settled(grown, 7)])
    assert await counts(counters, nothing) == [(7, 0)]


# ---------------------------------------------------------------- soft


async def test_a_soft_limit_admits_while_less_than_it_is_used_whatever_is_held(counters):
    made = [bound_by((10, {"mode": Mode.SOFT}), cost=30) for _ in range(4)]
    for n, held in enumerate(made[:3], start=1):
        decision = await counters.reserve(held)
        assert decision.states == (BucketState(held.buckets[0], Count(0, 30 * n)),)
        assert decision.states[0].remaining == 0
    await counters.close([settled(made[0], 9)])
    assert isinstance(await counters.reserve(made[3]), Admitted)
    await counters.close([settled(made[1], 1)])
    last = bound_by((10, {"mode": Mode.SOFT}), cost=0)
    assert await counters.reserve(last) == Denied(BucketState(last.buckets[0], Count(10, 60)), 0)
    await counters.close([settled(made[2], 500), released(made[3])])
    assert await counts(counters, last) == [(510, 0)]


async def test_a_soft_limit_of_nothing_admits_nothing(counters):
    assert isinstance(await counters.reserve(bound_by((0, {"mode": Mode.SOFT}), cost=0)), Denied)


async def test_a_soft_limit_beside_another_one_does_not_soften_it(counters):
    soft, hard = (10, {"mode": Mode.SOFT}), (40, {"unit": Unit.OUTPUT_TOKENS})
    assert isinstance(await counters.reserve(bound_by(soft, hard, cost=Cost(0, 40))), Admitted)
    denied = await counters.reserve(bound_by(soft, hard, cost=Cost(0, 1)))
    assert denied.state.bucket.limit.unit is Unit.OUTPUT_TOKENS


# ---------------------------------------------------------------- shadow


async def test_a_shadow_never_denies_and_counts_in_a_bucket_of_its_own(counters):
    made = [bound_by((100, {}), (15, {"shadow": True}), cost=10) for _ in range(3)]
    first, second, third = [await counters.reserve(held) for held in made]
    assert first == Admitted(
        made[0], (BucketState(made[0].buckets[0], Count(0, 10)), BucketState(made[0].buckets[1], Count(0, 10)))
    )
    assert second.shadowed == (BucketState(made[1].buckets[1], Count(0, 10)),)
    assert third.shadowed == (BucketState(made[2].buckets[1], Count(0, 20)),)
    assert await counts(counters, made[0]) == [(0, 30), (0, 30)]
    await counters.close([settled(made[0], 4), released(made[1]), expired(made[2])])
    assert await counts(counters, made[0]) == [(14, 0), (14, 0)]


async def test_repeating_a_reservation_says_again_what_the_shadow_would_have_done(counters):
    held = bound_by((100, {}), (5, {"shadow": True}), cost=10)
    first = await counters.reserve(held)
    assert len(first.shadowed) == 1
    assert await counters.reserve(held) == first


async def test_a_shadow_of_a_soft_limit_would_deny_as_a_soft_limit_does(counters):
    soft_shadow = (5, {"mode": Mode.SOFT, "shadow": True})
    held = bound_by(soft_shadow, cost=10)
    assert (await counters.reserve(held)).shadowed == ()
    await counters.close([settled(held, 5)])
    later = bound_by(soft_shadow, cost=0)
    assert (await counters.reserve(later)).shadowed == (BucketState(later.buckets[0], Count(5, 0)),)


async def test_a_shadow_of_a_strict_limit_lowers_no_bound_and_holds_the_whole_one(counters):
    held = strictly(30, prompt=10, output=40, least=20, shadow=True)
    decision = await counters.reserve(held)
    assert decision == Admitted(held, (BucketState(held.buckets[0], Count(0, 50)),))


async def test_a_shadow_of_a_strict_limit_would_deny_what_does_not_fit_with_the_least_bound(counters):
    held = strictly(30, prompt=10, output=40, least=21, shadow=True)
    decision = await counters.reserve(held)
    assert decision.reservation == held
    assert decision.shadowed == (BucketState(held.buckets[0], Count(0, 0)),)
    assert await counts(counters, held) == [(0, 50)]


async def test_what_a_real_limit_denies_is_held_in_no_shadow_and_told_of_the_real_one(counters):
    held = bound_by((5, {}), (1, {"shadow": True}), cost=10)
    assert await counters.reserve(held) == Denied(BucketState(held.buckets[0], Count(0, 0)), 10)
    assert await counts(counters, held) == [(0, 0), (0, 0)]


# ---------------------------------------------------------------- strict


async def test_where_there_is_room_the_bound_stays_as_it_is_wanted(counters):
    held = strictly(100, prompt=10, output=40, least=8)
    decision = await counters.reserve(held)
    assert decision == Admitted(held, (BucketState(held.buckets[0], Count(0, 50)),))


async def test_where_little_is_left_the_bound_is_lowered_to_exactly_what_fits(counters):
    await use(counters, 100, 60)
    first, held = strictly(100, prompt=5, output=5, least=5), strictly(100, prompt=10, output=40, least=8)
    await counters.reserve(first)
    decision = await counters.reserve(held)
    assert decision.reservation == held.granted(20)
    assert decision.states == (BucketState(held.buckets[0], Count(60, 40)),)
    assert await counters.reserve(held) == decision  # repeated: the same bound, and nothing more is held
    assert await counts(counters, held) == [(60, 40)]


async def test_a_repeated_reservation_keeps_its_lowered_bound_when_room_comes_back(counters):
    other, held = strictly(100, output=90), strictly(100, output=40)
    await counters.reserve(other)
    assert (await counters.reserve(held)).reservation.bound.output == 10
    await counters.close([released(other)])
    again = await counters.reserve(held)
    assert again.reservation.bound.output == 10
    assert again.states[0].count == Count(0, 10)


@pytest.mark.parametrize(("room", "granted"), [(19, 9), (18, 8), (17, None), (10, None), (9, None), (0, None)])
async def test_a_request_is_denied_where_its_least_does_not_fit(counters, room, granted):
    await use(counters, 100, 100 - room)
    held = strictly(100, prompt=10, output=40, least=8)
    decision = await counters.reserve(held)
    if granted is None:
        assert decision == Denied(BucketState(held.buckets[0], Count(100 - room, 0)), 18)
        assert await counts(counters, held) == [(100 - room, 0)]
        assert await counters.overdue(LATE, 10) == []
    else:
        assert decision.reservation.bound == Bound(10, granted, 8)


async def test_a_lowered_reservation_that_expires_is_charged_exactly_what_it_held(counters):
    await use(counters, 100, 70)
    held = strictly(100, prompt=10, output=40, least=8)
    await counters.reserve(held)
    overdue = await counters.overdue(LATE, 10)
    assert overdue == [held.granted(20)]
    await counters.close([expired(overdue[0])])
    assert await counts(counters, held) == [(100, 0)]


async def test_the_bound_counts_for_each_choice(counters):
    await use(counters, 100, 69)
    held = strictly(100, prompt=1, output=40, choices=3)
    decision = await counters.reserve(held)
    assert decision.reservation.bound.output == 10
    assert decision.states[0].count == Count(69, 31)


async def test_of_several_strict_limits_the_one_with_the_least_room_sets_the_bound(counters):
    strict = {"mode": Mode.STRICT}
    limits = ((35, strict), (20, strict | {"unit": Unit.OUTPUT_TOKENS}), (100, strict | {"unit": Unit.REQUESTS}))
    held = bound_by(*limits, cost=Cost(1, 1), bound=Bound(10, 40, 4))
    decision = await counters.reserve(held)
    assert decision.reservation.bound.output == 20
    assert await counts(counters, held) == [(0, 30), (0, 20), (0, 1)]
    least = bound_by(*limits, cost=Cost(1, 1), bound=Bound(1, 40, 4))
    assert await counters.reserve(least) == Denied(BucketState(least.buckets[1], Count(0, 20)), 4)


async def test_a_prompt_that_does_not_fit_is_denied_for_no_bound_makes_it_shorter(counters):
    held = strictly(9, unit=Unit.INPUT_TOKENS, prompt=10, output=40)
    assert await counters.reserve(held) == Denied(BucketState(held.buckets[0], Count(0, 0)), 10)
    held = strictly(10, unit=Unit.INPUT_TOKENS, prompt=10, output=40)
    assert (await counters.reserve(held)).reservation.bound.output == 40


async def test_a_strict_limit_holds_the_bound_and_the_others_the_estimate(counters):
    strict, estimate = (100, {"mode": Mode.STRICT}), (50, {"unit": Unit.OUTPUT_TOKENS})
    held = bound_by(strict, estimate, cost=Cost(3, 7), bound=Bound(10, 40, 1))
    await counters.reserve(held)
    assert await counts(counters, held) == [(0, 50), (0, 7)]


async def test_weighted_tokens_lower_the_bound_to_the_last_one_that_fits(counters):
    weights = Weights(input=100, cached_input=50, output=1000, reasoning=1500)
    for amount in range(2, 40):
        identity = who(account=f"sa{amount}")
        held = strictly(amount, prompt=10, output=20, weights=weights, identity=identity)
        decision = await counters.reserve(held)
        fitting = [n for n in range(1, 21) if 1000 + 1500 * n <= amount * 1000]
        if not fitting:
            assert isinstance(decision, Denied), amount
            continue
        assert decision.reservation.bound.output == fitting[-1], amount
        assert decision.states[0].count == Count(0, -(-(1000 + 1500 * fitting[-1]) // 1000)), amount


async def test_whatever_the_upstream_generates_a_strict_limit_stands(counters):
    made = [strictly(100, prompt=4, output=40, least=2) for _ in range(5)]
    granted = [d.reservation for d in [await counters.reserve(held) for held in made] if isinstance(d, Admitted)]
    usage = Usage(900, 5000, 0, 100, 6000)
    for held in granted:
        settlement = Estimates.of(held, 4).settle(usage, complete=True)
        await counters.close([Closing(held, settlement.outcome, charges(held, settlement))])
    assert await counts(counters, made[0]) == [(100, 0)]


async def test_large_numbers_lower_the_bound_to_the_digit(counters):
    dice = random.Random(20260302)
    for number in range(40):
        weights = Weights(*(dice.randint(1, MAX_WEIGHT) for _ in range(4)))
        choices, output = dice.randint(1, 128), dice.randint(900_000, 1_000_000)
        prompt, amount = dice.randint(0, 10**7), MAX_AMOUNT - dice.randint(0, 10**6)
        identity = who(account=f"sa{number}")
        fixed = max(weights.input, weights.cached_input) * prompt
        slope = max(weights.output, weights.reasoning) * choices
        want = dice.randint(1, output)  # which must be granted, for there is room for it and not for one more
        room = -(-(fixed + slope * want) // 1000) + dice.choice([0, (slope - 1) // 1000 - 1, slope // 2000])
        filler = strictly(amount, prompt=amount - room, output=0, least=0, identity=identity)
        await counters.reserve(filler)
        held = strictly(amount, prompt=prompt, output=output, choices=choices, weights=weights, identity=identity)
        decision = await counters.reserve(held)
        exact = min(output, (room * 1000 - fixed) // slope)
        assert decision.reservation.bound.output == exact, number
        assert decision.states[0].count == Count(0, amount - room - (-(fixed + slope * exact) // 1000)), number
