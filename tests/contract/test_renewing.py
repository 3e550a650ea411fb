"""Renewing: a long answer keeps its reservation alive and lets it grow, on every implementation of the counters."""

import asyncio
from datetime import timedelta

import pytest

from extproc.core.quota.costs import Cost
from extproc.core.quota.reservation import Admitted, Count, Denied
from extproc.core.quota.settlement import Outcome
from tests.changing import replace

from .reservations import NOW, counts, expired, outcomes, released, reservation, settled, strictly, who


def renewed(held, output=None, more_s=60):
    """The reservation as its holder wants it to go on."""
    cost = held.cost if output is None else Cost(held.cost.prompt, output)
    return replace(held, cost=cost, deadline=held.deadline + more_s)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


async def test_a_renewed_reservation_is_overdue_at_its_new_deadline_only(counters):
    held = reservation(10, ttl_s=10)
    await counters.reserve(held)
    await counters.renew([renewed(held)])
    assert await counters.overdue(at(69), 10) == []
    assert await counters.overdue(at(71), 10) == [renewed(held)]
    assert await counts(counters, held) == [(0, 10)]


async def test_a_renewed_reservation_holds_more_in_every_bucket_and_settles_as_any_other(counters):
    held, other = reservation(Cost(4, 6), ip_limit=100), reservation(7, ip_limit=100)
    await counters.reserve(held)
    await counters.reserve(other)
    grown = renewed(held, output=21)
    await counters.renew([grown])
    assert await counts(counters, held) == [(0, 32), (0, 32)]
    await counters.close([settled(grown, 20)])
    assert await counts(counters, held) == [(20, 7), (20, 7)]


async def test_renewing_never_holds_less(counters):
    held = reservation(Cost(4, 6))
    await counters.reserve(held)
    await counters.renew([renewed(held, output=1)])
    assert await counts(counters, held) == [(0, 10)]
    await counters.renew([renewed(held, output=9, more_s=70)])
    assert await counts(counters, held) == [(0, 13)]
    await counters.close([released(held)])
    assert await counts(counters, held) == [(0, 0)]


async def test_renewing_again_changes_nothing(counters):
    held = reservation(Cost(4, 6), ttl_s=10)
    await counters.reserve(held)
    grown = renewed(held, output=16)
    await asyncio.gather(*(counters.renew([grown, grown]) for _ in range(4)))
    assert await counts(counters, held) == [(0, 20)]
    assert await counters.overdue(at(71), 10) == [grown]


async def test_a_renewal_that_comes_late_takes_nothing_back(counters):
    held = reservation(Cost(4, 6), ttl_s=10)
    await counters.reserve(held)
    early, late = renewed(held, output=12), renewed(held, output=18, more_s=120)
    await counters.renew([late])
    await counters.renew([early])
    assert await counts(counters, held) == [(0, 22)]
    assert await counters.overdue(at(71), 10) == []
    assert await counters.overdue(at(131), 10) == [late]


async def test_renewing_admits_nothing_and_so_may_hold_more_than_the_limit(counters):
    held = reservation(Cost(4, 6), limit=20)
    await counters.reserve(held)
    await counters.renew([renewed(held, output=30)])
    assert await counts(counters, held) == [(0, 34)]
    denied = await counters.reserve(reservation(1, limit=20))
    assert isinstance(denied, Denied)
    assert (denied.state.count, denied.state.remaining) == (Count(0, 34), 0)


async def test_a_strict_limit_is_not_outgrown_by_a_larger_estimate(counters):
    held = strictly(30, prompt=10, output=40)
    granted = (await counters.reserve(held)).reservation
    await counters.renew([renewed(granted, output=500)])
    assert await counts(counters, held) == [(0, 30)]
    (overdue,) = await counters.overdue(at(10_000), 10)
    assert overdue == renewed(granted, output=500)
    await counters.close([expired(overdue)])
    assert await counts(counters, held) == [(30, 0)]


@pytest.mark.parametrize("end", [released, expired, lambda held: settled(held, 3)])
async def test_renewing_after_the_end_opens_nothing(counters, end):
    held = reservation(10, ttl_s=10)
    await counters.reserve(held)
    await counters.close([end(held)])
    before = await counts(counters, held)
    await counters.renew([renewed(held, output=50)])
    assert await counts(counters, held) == before
    assert await counters.overdue(at(1000), 10) == []
    assert await outcomes(counters, [settled(held, 9)]) == [end(held).outcome]


async def test_renewing_what_was_never_made_makes_nothing_and_stands_in_nobodys_way(counters):
    held = reservation(10, ttl_s=10)
    await counters.renew([renewed(held, output=50)])
    assert await counts(counters, held) == [(0, 0)]
    assert await counters.overdue(at(1000), 10) == []
    assert isinstance(await counters.reserve(held), Admitted)
    assert await counts(counters, held) == [(0, 10)]


async def test_a_renewed_reservation_that_expires_is_charged_all_that_it_held(counters):
    held = reservation(Cost(4, 6), ip_limit=100, ttl_s=10)
    await counters.reserve(held)
    await counters.renew([renewed(held, output=21)])
    (overdue,) = await counters.overdue(at(71), 10)
    assert await outcomes(counters, [expired(overdue)]) == [Outcome.EXPIRED]
    assert await counts(counters, held) == [(25, 0), (25, 0)]


async def test_one_that_is_not_open_does_not_keep_the_others_from_being_renewed(counters):
    made = [reservation(Cost(4, 6), identity=who(tenant=f"t{n}"), ttl_s=10) for n in range(4)]
    for held in made[1:]:
        await counters.reserve(held)
    await counters.close([released(made[2])])
    await counters.renew([renewed(held, output=16) for held in made])
    assert [await counts(counters, held) for held in made] == [[(0, 0)], [(0, 20)], [(0, 0)], [(0, 20)]]
    overdue = await counters.overdue(at(71), 10)
    assert sorted(held.id for held in overdue) == sorted([made[1].id, made[3].id])
    await counters.renew([])
