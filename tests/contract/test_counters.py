"""What every implementation of `ports.Counters` must do."""

import asyncio
import random
from datetime import timedelta

import pytest

from extproc.core.quota.costs import Cost
from extproc.core.quota.reservation import Admitted, BucketState, Count, Denied
from extproc.core.quota.settlement import Outcome
from extproc.ports.base import StoreError
from tests.changing import replace

from .reservations import (
    HOSTILE,
    NOW,
    SA_IP,
    TTL_S,
    bucket,
    counts,
    expired,
    outcomes,
    released,
    reservation,
    settled,
    who,
)

# ---------------------------------------------------------------- reserving


async def test_what_is_admitted_is_held_in_every_bucket(counters):
    held = reservation(30, limit=100, ip_limit=50)
    decision = await counters.reserve(held)
    assert isinstance(decision, Admitted)
    assert decision.reservation == held
    assert [state.count for state in decision.states] == [Count(0, 30), Count(0, 30)]
    assert [state.remaining for state in decision.states] == [70, 20]
    assert await counts(counters, held) == [(0, 30), (0, 30)]


@pytest.mark.parametrize(("limit", "ip_limit"), [(1000, 29), (29, 1000)])
async def test_what_does_not_fit_in_one_bucket_is_held_in_none(counters, limit, ip_limit):
    held = reservation(30, limit=limit, ip_limit=ip_limit)
    decision = await counters.reserve(held)
    assert isinstance(decision, Denied)
    assert decision.state == BucketState(next(b for b in held.buckets if b.limit.amount == 29), Count(0, 0))
    assert decision.need == held.cost.total
    assert await counts(counters, held) == [(0, 0), (0, 0)]


async def test_the_limit_itself_is_admitted_and_one_token_more_is_not(counters):
    used, held = reservation(40, limit=100), reservation(35, limit=100)
    await counters.reserve(used)
    await counters.close([settled(used, 40)])
    await counters.reserve(held)
    assert isinstance(await counters.reserve(reservation(26, limit=100)), Denied)
    edge = reservation(25, limit=100)
    assert isinstance(await counters.reserve(edge), Admitted)
    assert await counts(counters, edge) == [(40, 60)]
    assert isinstance(await counters.reserve(reservation(1, limit=100)), Denied)


async def test_a_limit_of_nothing_admits_nothing(counters):
    assert isinstance(await counters.reserve(reservation(1, limit=0)), Denied)


async def test_reserving_again_with_the_same_id_holds_once_and_answers_alike(counters):
    held = reservation(60, limit=100)
    first = await counters.reserve(held)
    assert await counters.reserve(held) == first  # though 60 more would not fit
    assert await counts(counters, held) == [(0, 60)]


async def test_reserving_again_after_a_denial_may_be_admitted(counters):
    other, held = reservation(60, limit=100), reservation(60, limit=100)
    await counters.reserve(other)
    assert isinstance(await counters.reserve(held), Denied)
    await counters.close([released(other)])
    assert isinstance(await counters.reserve(held), Admitted)


async def test_a_denied_client_is_told_of_the_tightest_bucket_that_is_too_small(counters):
    held = reservation(60, limit=50, ip_limit=40)
    decision = await counters.reserve(held)
    assert decision.state.bucket == held.buckets[1]


@pytest.mark.parametrize("close", [released, expired, lambda held: settled(held, 3)])
async def test_a_reservation_is_not_opened_after_its_own_end(counters, close):
    held = reservation(30)
    await counters.close([close(held)])
    with pytest.raises(StoreError) as caught:
        await counters.reserve(held)
    assert not caught.value.transient
    assert await counts(counters, held) == [(0, 0)]
    assert await counters.overdue(NOW + timedelta(seconds=TTL_S + 1), 10) == []


async def test_concurrent_reservations_are_admitted_up_to_the_limit_and_not_one_more(counters):
    made = [reservation(7, limit=100, ip_limit=1000) for _ in range(64)]
    decisions = await asyncio.gather(*map(counters.reserve, made))
    assert sum(isinstance(d, Admitted) for d in decisions) == 100 // 7
    assert await counts(counters, made[0]) == [(0, 98), (0, 98)]


async def test_concurrent_reservations_of_any_size_leave_less_room_than_the_largest_needs(counters):
    dice = random.Random(20260301)
    for number in range(5):
        identity = who(account=f"sa{number}")
        costs = [dice.randint(1, 40) for _ in range(64)]
        made = [reservation(cost, limit=500, identity=identity) for cost in costs]
        decisions = await asyncio.gather(*map(counters.reserve, made))
        admitted = sum(c for c, d in zip(costs, decisions, strict=True) if isinstance(d, Admitted))
        assert 0 <= 500 - admitted < max(costs)
        assert await counts(counters, made[0]) == [(0, admitted)]


async def test_a_raised_limit_keeps_its_counter(counters):
    held = reservation(80, limit=100)
    await counters.reserve(held)
    await counters.close([settled(held, 80)])
    decision = await counters.reserve(reservation(80, limit=200))
    assert decision.states[0].count == Count(80, 80)
    assert decision.states[0].remaining == 40


async def test_under_a_lowered_limit_nothing_remains_rather_than_less_than_nothing(counters):
    held = reservation(80, limit=100)
    await counters.reserve(held)
    decision = await counters.reserve(reservation(1, limit=50))
    assert isinstance(decision, Denied)
    assert decision.state.remaining == 0
    assert decision.state.count == Count(0, 80)


async def test_another_window_is_another_bucket(counters):
    today = reservation(100, limit=100)
    tomorrow = replace(reservation(100), buckets=(bucket(who(), 100, now=NOW + timedelta(days=1)),))
    for held in (today, tomorrow):
        assert isinstance(await counters.reserve(held), Admitted)


# ---------------------------------------------------------------- ends


async def test_settling_charges_the_actual_cost_and_gives_the_difference_back(counters):
    held = reservation(30, ip_limit=100)
    await counters.reserve(held)
    assert await outcomes(counters, [settled(held, 12)]) == [Outcome.SETTLED]
    assert await counts(counters, held) == [(12, 0), (12, 0)]


async def test_what_outgrew_its_hold_is_charged_in_full(counters):
    held = reservation(30, limit=30)
    await counters.reserve(held)
    await counters.close([settled(held, 45)])
    assert await counts(counters, held) == [(45, 0)]
    denied = await counters.reserve(reservation(1, limit=30))
    assert denied.state.remaining == 0


async def test_settling_twice_charges_once(counters):
    held = reservation(30)
    await counters.reserve(held)
    assert await outcomes(counters, [settled(held, 12), settled(held, 13)]) == [Outcome.SETTLED] * 2
    assert await outcomes(counters, [settled(held, 14)]) == [Outcome.SETTLED]
    assert await counts(counters, held) == [(12, 0)]


async def test_two_that_settle_at_once_charge_once(counters):
    held = reservation(30)
    await counters.reserve(held)
    await asyncio.gather(*(counters.close([settled(held, 12)]) for _ in range(8)))
    assert await counts(counters, held) == [(12, 0)]


async def test_releasing_gives_all_back(counters):
    held = reservation(30, ip_limit=100)
    await counters.reserve(held)
    assert await outcomes(counters, [released(held)]) == [Outcome.RELEASED]
    assert await counts(counters, held) == [(0, 0), (0, 0)]


async def test_expiring_charges_what_was_held(counters):
    held = reservation(30)
    await counters.reserve(held)
    assert await outcomes(counters, [expired(held)]) == [Outcome.EXPIRED]
    assert await counts(counters, held) == [(30, 0)]


async def test_settling_after_it_expired_changes_nothing_and_says_so(counters):
    held = reservation(30)
    await counters.reserve(held)
    await counters.close([expired(held)])
    assert await outcomes(counters, [settled(held, 12)]) == [Outcome.EXPIRED]
    assert await counts(counters, held) == [(30, 0)]


async def test_expiring_after_it_was_settled_changes_nothing_and_says_so(counters):
    held = reservation(30)
    await counters.reserve(held)
    await counters.close([settled(held, 12)])
    assert await outcomes(counters, [expired(held)]) == [Outcome.SETTLED]
    assert await counts(counters, held) == [(12, 0)]


async def test_the_end_of_an_unknown_reservation_changes_no_bucket(counters):
    held, unknown = reservation(30), reservation(20)
    await counters.reserve(held)
    assert await outcomes(counters, [settled(unknown, 20)]) == [Outcome.SETTLED]
    assert await outcomes(counters, [released(unknown)]) == [Outcome.SETTLED]  # the first end stands
    assert await counts(counters, held) == [(0, 30)]


async def test_a_batch_ends_each_reservation_in_its_order(counters):
    made = [reservation(10, identity=who(tenant=f"t{n}")) for n in range(5)]
    await asyncio.gather(*map(counters.reserve, made))
    ends = [settled(made[0], 1), released(made[1]), expired(made[2]), settled(made[3], 4)]
    assert await outcomes(counters, ends) == [end.outcome for end in ends]
    assert [await counts(counters, held) for held in made] == [[(1, 0)], [(0, 0)], [(10, 0)], [(4, 0)], [(0, 10)]]
    assert await outcomes(counters, []) == []


# ---------------------------------------------------------------- expiry


async def test_overdue_are_open_ones_past_their_deadline_of_every_tenant(counters):
    ttl = {"a": 10, "b": 20, "c": 30, "d": 10, "e": 10}
    made = {t: reservation(10, identity=who(tenant=t), ttl_s=s) for t, s in ttl.items()}
    await asyncio.gather(*map(counters.reserve, made.values()))
    await counters.close([settled(made["d"], 1), released(made["e"])])
    overdue = await counters.overdue(NOW + timedelta(seconds=25), 10)
    assert sorted(overdue, key=lambda r: r.id) == sorted([made["a"], made["b"]], key=lambda r: r.id)
    await counters.close([expired(held) for held in overdue])
    assert await counts(counters, made["a"]) == [(10, 0)]
    assert await counters.overdue(NOW + timedelta(seconds=25), 10) == []


async def test_nothing_is_overdue_at_its_deadline_but_right_after_it(counters):
    held = reservation(10, ttl_s=10.5)
    await counters.reserve(held)
    assert await counters.overdue(NOW + timedelta(seconds=10.5), 10) == []
    assert await counters.overdue(NOW + timedelta(seconds=10.51), 10) == [held]


async def test_overdue_returns_no_more_than_asked_for_and_the_rest_later(counters):
    made = [reservation(1, limit=1000, ttl_s=1) for _ in range(12)]
    await asyncio.gather(*map(counters.reserve, made))
    seen = set()
    for size in (5, 5, 2, 0):
        overdue = await counters.overdue(NOW + timedelta(seconds=2), 5)
        assert len(overdue) == size
        seen |= {held.id for held in overdue}
        await counters.close([expired(held) for held in overdue])
    assert seen == {held.id for held in made}


# ---------------------------------------------------------------- identities


async def test_hostile_names_never_share_a_bucket_and_come_back_unharmed(counters):
    made = [
        reservation(n, limit=1000, ip_limit=1000, identity=who(*names), ttl_s=1)
        for n, names in enumerate(HOSTILE, start=1)
    ]
    for held in made:
        assert isinstance(await counters.reserve(held), Admitted)
    accounts = {}
    for n, held in enumerate(made, start=1):
        account = held.identity.tenant, held.identity.service_account
        accounts[account] = accounts.get(account, 0) + n
    for n, held in enumerate(made, start=1):
        account = held.identity.tenant, held.identity.service_account
        assert await counts(counters, held) == [(0, accounts[account]), (0, n)]
    overdue = await counters.overdue(NOW + timedelta(seconds=2), 100)
    assert {held.identity for held in overdue} == {held.identity for held in made}
    assert sorted(overdue, key=lambda r: r.id) == sorted(made, key=lambda r: r.id)


async def test_reading_a_bucket_that_nothing_was_counted_in_gives_zero(counters):
    identity = who()
    assert await counters.read(identity.tenant, []) == []
    assert (
        await counters.read(identity.tenant, [bucket(identity, 1), bucket(identity, 1, SA_IP)])
        == [Count(0, 0)] * 2
    )


async def test_ping_returns(counters):
    await counters.ping()


# ---------------------------------------------------------------- against a model


class Model:
    """The counters in the plainest way: every reservation, and sums over them."""

    def __init__(self):
        self.open = {}
        self.ended = {}
        self.used = {}

    def held(self, key):
        return sum(r.cost.total for r in self.open.values() if key in {b.key for b in r.buckets})

    def reserve(self, held):
        if held.id in self.ended:
            return StoreError
        if held.id in self.open:
            return Admitted
        fits = all(
            self.used.get(b.key, 0) + self.held(b.key) + held.cost.total <= b.limit.amount for b in held.buckets
        )
        if fits:
            self.open[held.id] = held
        return Admitted if fits else Denied

    def close(self, closing):
        held = closing.reservation
        if held.id not in self.ended:
            self.ended[held.id] = closing.outcome
            if self.open.pop(held.id, None):
                for each in held.buckets:
                    self.used[each.key] = self.used.get(each.key, 0) + closing.charges[0]
        return self.ended[held.id]


@pytest.mark.parametrize("seed", range(6))
async def test_any_sequence_of_calls_ends_as_in_a_plain_model(counters, seed):
    dice = random.Random(seed)
    model, made = Model(), []
    identities = [who(account=a, ip=ip) for a in ("a", "b") for ip in ("1", "2")]
    for step in range(120):
        if not made or dice.random() < 0.45:
            limit = dice.choice([150, 200, 0, 60])
            held = reservation(dice.randint(0, 40), limit=limit, ip_limit=90, identity=dice.choice(identities))
            made.append(held)
        held = dice.choice(made[-12:])
        where = f"seed {seed}, step {step}"
        if dice.random() < 0.6:
            try:
                got = type(await counters.reserve(held))
            except StoreError:
                got = StoreError
            assert got is model.reserve(held), where
        else:
            charge = dice.choice([0, held.cost.total, dice.randint(0, 80)])
            closing = dice.choice([settled(held, charge), released(held), expired(held)])
            assert await outcomes(counters, [closing]) == [model.close(closing)], where
        for each, (used, in_flight) in zip(held.buckets, await counts(counters, held), strict=True):
            assert (used, in_flight) == (model.used.get(each.key, 0), model.held(each.key)), where
            assert in_flight >= 0, where
    overdue = await counters.overdue(NOW + timedelta(seconds=TTL_S + 1), 1000)
    assert {r.id for r in overdue} == set(model.open)
    await counters.close([released(r) for r in overdue])
    for held in made:
        assert [in_flight for _, in_flight in await counts(counters, held)] == [0, 0]


async def test_large_numbers_lose_no_digit(counters):
    amount = 10**12
    held = replace(reservation(limit=amount), cost=Cost(amount - 1, 0))
    await counters.reserve(held)
    await counters.close([settled(held, amount - 1)])
    last = reservation(1, limit=amount)
    assert isinstance(await counters.reserve(last), Admitted)
    assert await counts(counters, last) == [(amount - 1, 1)]
