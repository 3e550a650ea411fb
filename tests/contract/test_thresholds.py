"""Thresholds: each is crossed once per bucket, on every implementation of the counters."""

import asyncio
from datetime import timedelta

from extproc.core.quota.costs import Cost
from extproc.core.quota.limits import MAX_AMOUNT, Mode, Unit
from extproc.core.quota.settlement import Outcome
from extproc.ports.counters import Closed, Closing, Crossed
from tests.changing import replace

from .reservations import NOW, bound_by, bucket, counts, expired, released, reservation, settled, strictly, who

PERCENT = (80, 95, 100)


async def crossed(counters, held, charge, thresholds=PERCENT):
    """What a reservation crosses that is made and settled: (used, threshold)."""
    await counters.reserve(held)
    (closed,) = await counters.close([settled(held, charge)], thresholds)
    assert closed.outcome is Outcome.SETTLED
    assert {each.bucket for each in closed.crossed} <= set(held.buckets)
    return [(each.used, each.threshold) for each in closed.crossed]


async def test_each_threshold_is_crossed_once_by_the_end_that_reaches_it(counters):
    steps = [(79, []), (1, [(80, 80)]), (5, []), (9, []), (1, [(95, 95)]), (4, []), (1, [(100, 100)]), (7, [])]
    for charge, expected in steps:
        held = bound_by((100, {"mode": Mode.SOFT}), cost=1)
        assert await crossed(counters, held, charge) == expected, charge


async def test_one_end_may_cross_several_and_says_all_in_their_order(counters):
    held = reservation(100)
    await counters.reserve(held)
    (closed,) = await counters.close([settled(held, 100)], PERCENT)
    assert closed == Closed(Outcome.SETTLED, tuple(Crossed(held.buckets[0], 100, t) for t in PERCENT))


async def test_each_bucket_has_thresholds_of_its_own(counters):
    held = bound_by((100, {}), (20, {"unit": Unit.INPUT_TOKENS}), (2, {"unit": Unit.REQUESTS}), cost=Cost(16, 4))
    await counters.reserve(held)
    (closed,) = await counters.close([Closing(held, Outcome.SETTLED, (80, 16, 1))], PERCENT)
    assert closed.crossed == (Crossed(held.buckets[0], 80, 80), Crossed(held.buckets[1], 16, 80))
    later = bound_by((100, {}), (20, {"unit": Unit.INPUT_TOKENS}), (2, {"unit": Unit.REQUESTS}), cost=Cost(1, 1))
    await counters.reserve(later)
    (closed,) = await counters.close([Closing(later, Outcome.SETTLED, (1, 1, 1))], PERCENT)
    assert closed.crossed == tuple(Crossed(later.buckets[2], 2, t) for t in PERCENT)


async def test_a_part_of_a_percent_below_a_threshold_does_not_reach_it(counters):
    assert await crossed(counters, reservation(7999, limit=10_000), 7999) == []
    assert await crossed(counters, reservation(1, limit=10_000), 1) == [(8000, 80)]


async def test_a_repeated_end_says_again_what_it_crossed_for_the_first_answer_may_be_lost(counters):
    held = reservation(96)
    await counters.reserve(held)
    first = await counters.close([settled(held, 96)], PERCENT)
    assert [each.threshold for each in first[0].crossed] == [80, 95]
    assert await counters.close([settled(held, 96)], PERCENT) == first
    await crossed(counters, reservation(4), 4)
    assert await counters.close([settled(held, 96)], PERCENT) == first  # as it was then
    assert await counters.close([settled(held, 96), settled(held, 96)], PERCENT) == first * 2


async def test_an_end_that_came_too_late_crossed_nothing(counters):
    held = reservation(100)
    await counters.reserve(held)
    await counters.close([expired(held)], PERCENT)
    assert await counters.close([settled(held, 100)], PERCENT) == [Closed(Outcome.EXPIRED)]
    assert await counters.close([released(held)], PERCENT) == [Closed(Outcome.EXPIRED)]


async def test_the_end_of_an_unknown_reservation_crosses_nothing_also_when_repeated(counters):
    held = reservation(100)
    for _ in range(2):
        assert await counters.close([settled(held, 100)], PERCENT) == [Closed(Outcome.SETTLED)]


async def test_what_goes_back_crosses_nothing(counters):
    held = reservation(100)
    await counters.reserve(held)
    assert await counters.close([released(held)], PERCENT) == [Closed(Outcome.RELEASED)]
    assert await crossed(counters, reservation(80), 80) == [(80, 80)]


async def test_what_expires_crosses_as_any_other(counters):
    held = strictly(100, prompt=10, output=500)
    granted = (await counters.reserve(held)).reservation
    (closed,) = await counters.close([expired(granted)], PERCENT)
    assert [(each.used, each.threshold) for each in closed.crossed] == [(100, t) for t in PERCENT]


async def test_a_bucket_that_is_not_watched_crosses_nothing_and_may_later(counters):
    held = reservation(90, ip_limit=100)
    await counters.reserve(held)
    (closed,) = await counters.close([replace(settled(held, 90), watched=(False, True))], PERCENT)
    assert closed.crossed == (Crossed(held.buckets[1], 90, 80),)
    held = reservation(1, ip_limit=100)
    await counters.reserve(held)
    (closed,) = await counters.close([replace(settled(held, 1), watched=(True, False))], PERCENT)
    assert closed.crossed == (Crossed(held.buckets[0], 91, 80),)


async def test_a_limit_of_nothing_has_no_thresholds(counters):
    held = bound_by((0, {"shadow": True}), (100, {}), cost=90)
    await counters.reserve(held)
    (closed,) = await counters.close([settled(held, 90)], PERCENT)
    assert closed.crossed == (Crossed(held.buckets[1], 90, 80),)


async def test_without_thresholds_nothing_is_crossed_and_the_next_end_that_has_some_does(counters):
    assert await crossed(counters, reservation(85), 85, ()) == []
    assert await crossed(counters, reservation(0), 0) == [(85, 80)]


async def test_a_limit_that_is_raised_in_mid_window_crosses_no_threshold_again(counters):
    assert await crossed(counters, reservation(90, limit=100), 90) == [(90, 80)]
    assert await crossed(counters, reservation(75, limit=200), 75) == []  # 165, and 80 % once more
    assert await crossed(counters, reservation(25, limit=200), 25) == [(190, 95)]
    assert await crossed(counters, reservation(10, limit=1000), 10) == []
    assert await crossed(counters, reservation(800, limit=1000), 800) == [(1000, 100)]


async def test_a_limit_that_is_lowered_in_mid_window_crosses_what_it_then_has_reached(counters):
    assert await crossed(counters, reservation(85, limit=100), 85) == [(85, 80)]
    held = reservation(5, limit=100)
    await counters.reserve(held)
    lowered = replace(held, buckets=(bucket(who(), 50),))
    (closed,) = await counters.close([settled(lowered, 5)], PERCENT)
    assert closed.crossed == tuple(Crossed(lowered.buckets[0], 90, t) for t in (95, 100))


async def test_another_window_crosses_anew(counters):
    assert await crossed(counters, reservation(90), 90) == [(90, 80)]
    tomorrow = reservation(90, buckets=(bucket(who(), 100, now=NOW + timedelta(days=1)),))
    assert await crossed(counters, tomorrow, 90) == [(90, 80)]


async def test_thresholds_above_a_hundred_percent_are_crossed_by_what_overshoots(counters):
    assert await crossed(counters, reservation(100), 149, (100, 150)) == [(149, 100)]
    soft = bound_by((100, {"mode": Mode.SOFT}), cost=0)
    assert await crossed(counters, soft, 1, (100, 150)) == []  # denied: it is not there to be charged
    assert await counts(counters, soft) == [(149, 0)]


async def test_of_fifty_that_end_at_once_each_threshold_is_crossed_by_one(counters):
    made = [reservation(2, ip_limit=50) for _ in range(50)]
    await asyncio.gather(*map(counters.reserve, made))
    open_ones = made[: sum(held for _, held in [(await counts(counters, made[0]))[1]]) // 2]
    assert len(open_ones) == 25
    made += [reservation(2) for _ in range(25)]
    await asyncio.gather(*map(counters.reserve, made[50:]))
    ends = await asyncio.gather(*(counters.close([settled(held, 2)], PERCENT) for held in made))
    told = [(each.bucket.limit.scope, each.threshold) for (closed,) in ends for each in closed.crossed]
    assert sorted(told) == sorted((b.limit.scope, t) for b in made[0].buckets for t in PERCENT)
    assert await counts(counters, made[0]) == [(100, 0), (50, 0)]


async def test_large_numbers_cross_without_losing_a_digit_also_when_repeated(counters):
    amount = MAX_AMOUNT - 1
    held = reservation(Cost(amount, 0), limit=amount)
    await counters.reserve(held)
    almost = amount * 80 // 100  # of 100, rounded down: just below
    (closed,) = await counters.close([settled(held, almost)], PERCENT)
    assert closed.crossed == ()
    held = reservation(Cost(amount - almost, 0), limit=amount)
    await counters.reserve(held)
    first = await counters.close([settled(held, amount - almost)], PERCENT)
    assert first[0].crossed == tuple(Crossed(held.buckets[0], amount, t) for t in PERCENT)
    assert await counters.close([settled(held, 1)], PERCENT) == first
