"""Whether a request fits, and what is held for it: `decide` against a model that tries every output bound."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.costs import Bound, Cost, Demand, Weights
from extproc.core.quota.limits import Bucket, Interval, Limit, Mode, Scope, Unit, Window
from extproc.core.quota.reservation import (
    Admitted,
    BucketState,
    Count,
    Denied,
    Reservation,
    admitted,
    decide,
    denied,
    grantable,
    tightest,
)
from tests.changing import replace
from tests.core.samples import FUZZ, WEIGHTS, bounds, reservation

MINUTELY = Limit(Scope.TENANT, Window.MINUTE, 100)
DAILY = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 1000)
PER_IP = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 500)
LIMITS = (MINUTELY, DAILY, PER_IP)


def limit(amount=100, unit=Unit.TOKENS, mode=Mode.RESERVE, window=Window.DAY, *, shadow=False) -> Limit:
    return Limit(Scope.TENANT, window, amount, unit, mode, shadow)


def test_the_used_part_of_a_limit_does_not_count_holds_and_all_of_a_limit_of_0_is_used():
    def used_ratio(amount, used):
        return BucketState(Bucket(limit(amount), (), Interval(0, 86400)), Count(used, 30)).used_ratio

    assert (used_ratio(100, 0), used_ratio(100, 25), used_ratio(100, 110), used_ratio(0, 0)) == (0, 0.25, 1.1, 1)


# Reserve: used + held + cost <= limit.


def test_a_request_is_admitted_up_to_the_very_last_token():
    asked = reservation(Cost(20, 30), LIMITS)
    decision = decide(asked, [Count(50, 0), Count(900, 50), Count(0, 450)])
    assert isinstance(decision, Admitted)
    assert decision.reservation is asked
    assert [state.count for state in decision.states] == [Count(50, 50), Count(900, 100), Count(0, 500)]
    assert [state.remaining for state in decision.states] == [0, 0, 0]
    assert decision.shadowed == ()


@pytest.mark.parametrize("place", range(3))
def test_a_request_that_one_bucket_can_not_take_is_denied_and_told_of_it(place):
    counts = [Count(50, 0), Count(900, 50), Count(0, 450)]
    counts[place] = Count(counts[place].used, counts[place].held + 1)
    asked = reservation(Cost(20, 30), LIMITS)
    decision = decide(asked, counts)
    assert decision == Denied(BucketState(asked.buckets[place], counts[place]), 50)


def test_of_several_full_buckets_the_tightest_of_those_that_reset_last_is_told():
    asked = reservation(Cost(20, 30), LIMITS)
    decision = decide(asked, [Count(80, 0), Count(990, 0), Count(0, 460)])
    assert decision.state.bucket.limit == DAILY


def test_of_several_full_buckets_the_one_that_resets_last_is_told_however_tight_the_others_are():
    asked = reservation(Cost(20, 30), LIMITS)
    decision = decide(asked, [Count(100, 0), Count(960, 0), Count(0, 0)])
    assert decision.state.bucket.limit == DAILY


def test_a_bucket_that_still_fits_is_not_told_however_tight():
    asked = reservation(Cost(0, 1), LIMITS)
    decision = decide(asked, [Count(99, 0), Count(1001, 0), Count(0, 0)])
    assert decision.state.bucket.limit == DAILY


def test_a_limit_of_zero_denies_all_but_what_costs_nothing():
    nothing = Limit(Scope.TENANT, Window.DAY, 0)
    assert isinstance(decide(reservation(Cost(1, 0), (nothing,)), [Count(0, 0)]), Denied)
    assert isinstance(decide(reservation(Cost(0, 0), (nothing,)), [Count(0, 0)]), Admitted)


def test_where_no_limit_binds_everything_is_admitted():
    asked = reservation(Cost(10**9, 10**9), ())
    assert decide(asked, []) == Admitted(asked, ())


def test_a_store_that_decided_by_itself_gets_the_same_values():
    asked = reservation(Cost(20, 30), LIMITS)
    counts = [Count(1, 2), Count(3, 4), Count(5, 6)]
    assert admitted(asked, counts) == decide(asked, counts)
    full = [Count(100, 0), Count(3, 4), Count(5, 6)]
    assert denied(asked, full) == decide(asked, full)


def test_counts_that_do_not_match_the_buckets_are_a_fault():
    with pytest.raises(ValueError, match="zip"):
        decide(reservation(Cost(1, 1), LIMITS), [Count(0, 0)])


def test_remaining_is_never_negative():
    state = BucketState(reservation().buckets[0], Count(20_000, 5))
    assert state.remaining == 0


# Soft: used < limit.


@pytest.mark.parametrize(
    ("count", "fits"), [(Count(99, 10_000), True), (Count(100, 0), False), (Count(0, 0), True)]
)
def test_a_soft_limit_admits_until_it_is_used_up_whatever_is_held(count, fits):
    decision = decide(reservation(Cost(5000, 0), (limit(mode=Mode.SOFT),)), [count])
    assert isinstance(decision, Admitted) is fits


def test_a_soft_limit_of_zero_denies_even_what_costs_nothing():
    assert isinstance(decide(reservation(Cost(0, 0), (limit(0, mode=Mode.SOFT),)), [Count(0, 0)]), Denied)


# Units and weights.


@pytest.mark.parametrize(
    ("unit", "held"),
    [(Unit.TOKENS, 50), (Unit.INPUT_TOKENS, 20), (Unit.OUTPUT_TOKENS, 30), (Unit.REQUESTS, 1)],
)
def test_each_unit_holds_what_it_counts(unit, held):
    counted = limit(unit=unit)
    asked = reservation(Cost(20, 30), (counted,))
    assert asked.hold(counted) == held
    assert decide(asked, [Count(100 - held, 0)]).states[0].count == Count(100 - held, held)
    assert decide(asked, [Count(101 - held, 0)]).need == held


def test_a_request_may_count_as_several():
    counted = limit(unit=Unit.REQUESTS)
    assert reservation(limits=(counted,), requests=3).hold(counted) == 3


def test_only_weighted_tokens_are_weighted_and_the_dearer_kind_is_held_rounded_up():
    weights = Weights(input=100, cached_input=333, output=1500, reasoning=1)
    asked = reservation(Cost(20, 3), LIMITS, weights=weights)
    assert asked.hold(limit()) == 12  # 20 * 0.333 + 3 * 1.5 = 11.16
    assert [asked.hold(limit(unit=unit)) for unit in (Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS)] == [20, 3]
    assert asked.held == 12


# Strict: the output bound is lowered to what fits.

STRICT = limit(mode=Mode.STRICT)


def strictly(*limits: Limit, prompt=10, output=40, least=5, choices=2, **fields) -> Reservation:
    bound = Bound(prompt, output, least, choices)
    return reservation(Cost(3, 7), limits, bound=bound, **fields)


def test_a_strict_limit_holds_the_bound_and_not_the_estimate():
    decision = decide(strictly(STRICT), [Count(0, 10)])
    assert decision.states[0].count == Count(0, 100)
    assert decision.reservation.output_bound == 40


@pytest.mark.parametrize(("used", "granted"), [(10, 40), (11, 39), (12, 39), (13, 38), (79, 5), (80, 5)])
def test_where_little_is_left_the_output_bound_is_lowered_to_the_largest_that_fits(used, granted):
    decision = decide(strictly(STRICT), [Count(used, 0)])
    assert decision.reservation.output_bound == granted
    assert decision.reservation.held == 10 + 2 * granted
    assert decision.states[0].count == Count(used, 10 + 2 * granted)


def test_what_could_not_get_the_least_is_denied_and_told_what_it_needs_for_that():
    asked = strictly(STRICT)
    assert decide(asked, [Count(81, 0)]) == Denied(BucketState(asked.buckets[0], Count(81, 0)), 20)


def test_the_tightest_of_several_strict_buckets_decides_on_the_output_bound():
    limits = (STRICT, limit(50, mode=Mode.STRICT, window=Window.HOUR), limit(30, Unit.OUTPUT_TOKENS, Mode.STRICT))
    assert decide(strictly(*limits), [Count(0, 0), Count(10, 0), Count(0, 4)]).reservation.output_bound == 13
    assert decide(strictly(*limits), [Count(0, 0), Count(5, 0), Count(0, 8)]).reservation.output_bound == 11


def test_a_limit_that_is_not_strict_never_lowers_the_output_bound():
    asked = strictly(STRICT, limit(50, window=Window.HOUR))
    assert decide(asked, [Count(0, 0), Count(40, 0)]).reservation is asked
    assert decide(asked, [Count(0, 0), Count(41, 0)]).need == 10


def test_where_no_output_bound_can_be_written_none_is():
    asked = reservation(limits=(STRICT,), bound=Bound(10, 40, 40, writable=False))
    assert decide(asked, [Count(0, 0)]).reservation.output_bound is None
    assert decide(asked, [Count(51, 0)]).need == 50


def test_a_bound_that_no_strict_limit_rests_on_is_not_written():
    for limits in ((limit(),), (replace(STRICT, shadow=True),), ()):
        asked = strictly(*limits)
        assert (asked.strict, asked.output_bound, asked.output_held, asked.held) == (False, None, 7, 10)


@pytest.mark.parametrize("unit", [Unit.REQUESTS, Unit.INPUT_TOKENS])
def test_a_strict_limit_that_counts_no_output_does_not_shorten_answers(unit):
    asked = strictly(limit(unit=unit, mode=Mode.STRICT), limit())
    assert (asked.strict, asked.output_bound, asked.held) == (False, None, 10)
    assert asked.hold(limit(unit=Unit.INPUT_TOKENS, mode=Mode.STRICT)) == 10


def test_without_a_bound_a_strict_limit_holds_the_estimate():
    asked = reservation(Cost(20, 30), (STRICT,))
    assert (asked.strict, asked.hold(STRICT), asked.output_held) == (False, 50, 30)
    assert grantable(asked, [Count(0, 0)]) == 0


def test_granting_the_bound_that_was_asked_for_changes_nothing():
    asked = strictly(STRICT)
    assert asked.granted(40) is asked
    assert asked.granted(39) == replace(asked, bound=Bound(10, 39, 5, 2))
    assert reservation().granted(3) == reservation()


# Shadow: never denies.


def test_a_shadow_holds_like_any_limit_and_names_itself_where_it_would_have_denied():
    shadow = limit(shadow=True)
    asked = reservation(Cost(20, 30), (shadow, DAILY))
    full = decide(asked, [Count(51, 0), Count(0, 0)])
    assert full.states[0].count == Count(51, 50)
    assert full.shadowed == (BucketState(asked.buckets[0], Count(51, 0)),)
    assert decide(asked, [Count(50, 0), Count(0, 0)]).shadowed == ()


def test_the_shadow_of_a_strict_limit_would_have_lowered_the_output_bound_before_it_denied():
    asked = strictly(replace(STRICT, shadow=True))
    assert decide(asked, [Count(80, 0)]).shadowed == ()
    assert decide(asked, [Count(80, 0)]).reservation is asked
    assert [state.count for state in decide(asked, [Count(81, 0)]).shadowed] == [Count(81, 0)]


def test_a_shadow_is_not_told_of_as_the_reason_of_a_denial():
    asked = reservation(Cost(20, 30), (limit(0, window=Window.MONTH, shadow=True), MINUTELY))
    assert decide(asked, [Count(0, 0), Count(51, 0)]).state.bucket.limit == MINUTELY


# The tightest bucket.


def test_among_equally_tight_buckets_the_one_that_resets_last_is_told():
    buckets = reservation(limits=(MINUTELY, Limit(Scope.TENANT, Window.DAY, 100))).buckets
    states = [BucketState(bucket, Count(100, 0)) for bucket in buckets]
    assert tightest(states).bucket.limit.window is Window.DAY
    assert tightest(states[::-1]).bucket.limit.window is Window.DAY


def test_the_tightest_is_told_of_tokens_and_of_requests_apart_and_never_of_a_shadow():
    limits = (
        limit(50),
        limit(40, Unit.OUTPUT_TOKENS),
        limit(3, Unit.REQUESTS),
        limit(2, Unit.REQUESTS, window=Window.MINUTE),
        limit(1, shadow=True),
        limit(1, Unit.REQUESTS, shadow=True),
    )
    states = [BucketState(bucket, Count(0, 0)) for bucket in reservation(limits=limits).buckets]
    assert tightest(states).bucket.limit == limits[1]
    assert tightest(states, requests=True).bucket.limit == limits[3]
    assert tightest(states[4:]) is None
    assert tightest(states[:2], requests=True) is None


# Against the plain model: every output bound from the wanted one down to the least is tried.


def plain_need(asked: Reservation, of: Limit, output: int) -> int:
    """What a bucket needs where the output bound is `output`, straight from the rule."""
    prompt, generated = asked.cost.prompt, asked.cost.output
    if of.mode is Mode.STRICT and asked.bound is not None:
        prompt, generated = asked.bound.prompt, output * asked.bound.choices
    weights = asked.weights
    dearest_in = Fraction(max(weights.input, weights.cached_input), 1000)
    dearest_out = Fraction(max(weights.output, weights.reasoning), 1000)
    return {
        Unit.TOKENS: ceil(dearest_in * prompt + dearest_out * generated),
        Unit.INPUT_TOKENS: prompt,
        Unit.OUTPUT_TOKENS: generated,
        Unit.REQUESTS: asked.requests,
    }[of.unit]


def plainly_admits(asked: Reservation, of: Limit, count: Count, output: int) -> bool:
    if of.mode is Mode.SOFT:
        return count.used < of.amount
    return count.used + count.held + plain_need(asked, of, output) <= of.amount


def plain_decision(asked: Reservation, counts: list[Count]) -> int | None:
    """The output bound that is granted (0 without any), None where the request is denied."""
    bound = asked.bound
    tried = range(bound.output, bound.least - 1, -1) if bound is not None else [0]
    real = [(b.limit, c) for b, c in zip(asked.buckets, counts, strict=True) if not b.limit.shadow]
    return next((o for o in tried if all(plainly_admits(asked, limit, c, o) for limit, c in real)), None)


def buckets_of(limits: list[Limit]) -> tuple[Bucket, ...]:
    ends = {window: (place + 1) * 60 for place, window in enumerate(Window)}
    return tuple(Bucket(limit, (), Interval(0, ends[limit.window])) for limit in limits)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Reservation, list[Count]]:
    """A reservation of any kind, and counts about as large as its limits: half of them decide on the last token."""
    limits = draw(
        st.lists(
            st.builds(
                limit,
                st.integers(0, 260),
                st.sampled_from(Unit),
                st.sampled_from(Mode),
                st.sampled_from(Window),
                shadow=st.sampled_from([False, False, True]),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda limit: limit.kind,
        )
    )
    asked = reservation(
        draw(st.builds(Cost, st.integers(0, 60), st.integers(0, 60))),
        buckets=buckets_of(limits),
        bound=draw(st.none() | bounds(40)),
        weights=draw(st.just(Weights()) | WEIGHTS),
        requests=draw(st.integers(1, 3)),
    )
    counts = []
    for of in limits:
        need = plain_need(asked, of, draw(st.integers(0, 40)))
        near = max(0, of.amount - need + draw(st.integers(-2, 2)))
        total = draw(st.integers(0, near) | st.just(near))
        held = draw(st.integers(0, total))
        counts.append(Count(total - held, held))
    return asked, counts


@FUZZ
@given(situations())
def test_the_largest_output_bound_that_fits_is_granted_and_only_what_fits_is_admitted(situation):
    asked, counts = situation
    expected = plain_decision(asked, counts)
    decision = decide(asked, counts)
    assert isinstance(decision, Admitted) is (expected is not None)
    if expected is None:
        return
    granted = decision.reservation
    if asked.bound is not None:
        assert asked.bound.least <= granted.bound.output == expected <= asked.bound.output
    assert granted == (replace(asked, bound=replace(asked.bound, output=expected)) if asked.bound else asked)
    for state, before in zip(decision.states, counts, strict=True):
        of = state.bucket.limit
        assert state.count == Count(before.used, before.held + plain_need(asked, of, expected))
        assert granted.hold(of) == plain_need(asked, of, expected)
        if of.mode is not Mode.SOFT and not of.shadow:
            assert state.count.used + state.count.held <= of.amount


@FUZZ
@given(situations())
def test_a_denial_names_a_bucket_that_refuses_even_the_least_and_resets_last_of_those(situation):
    asked, counts = situation
    decision = decide(asked, counts)
    if isinstance(decision, Admitted):
        return
    least = asked.bound.least if asked.bound is not None else 0
    refusing = [
        (bucket, count)
        for bucket, count in zip(asked.buckets, counts, strict=True)
        if not bucket.limit.shadow and not plainly_admits(asked, bucket.limit, count, least)
    ]
    told = decision.state
    assert (told.bucket, told.count) in refusing
    assert told.bucket.interval.end == max(bucket.interval.end for bucket, _ in refusing)
    assert decision.need == plain_need(asked, told.bucket.limit, least)
    assert decision == denied(asked, counts)


@FUZZ
@given(situations())
def test_shadows_never_deny_and_exactly_those_are_named_that_would_have_if_they_were_real(situation):
    asked, counts = situation

    def fits(real: int | None) -> bool:
        """Whether it would be admitted if of all shadows only the one at `real` were none."""
        limits = [
            replace(bucket.limit, shadow=bucket.limit.shadow and place != real)
            for place, bucket in enumerate(asked.buckets)
        ]
        return plain_decision(replace(asked, buckets=buckets_of(limits)), counts) is not None

    shadows = [place for place, bucket in enumerate(asked.buckets) if bucket.limit.shadow]
    only_shadows = replace(asked, buckets=tuple(asked.buckets[place] for place in shadows))
    assert isinstance(decide(only_shadows, [counts[place] for place in shadows]), Admitted)
    decision = decide(asked, counts)
    if isinstance(decision, Admitted):
        assert [asked.buckets.index(state.bucket) for state in decision.shadowed] == [
            place for place in shadows if not fits(place)
        ]


@FUZZ
@given(situations())
def test_a_store_that_decided_by_itself_gets_the_same_values_of_any_reservation(situation):
    asked, counts = situation
    decision = decide(asked, counts)
    if isinstance(decision, Admitted):
        assert admitted(asked, counts, grantable(asked, counts)) == decision
    else:
        assert denied(asked, counts) == decision


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(0, 40),
)
def test_a_request_is_admitted_exactly_where_every_bucket_can_take_it(buckets, prompt, output):
    limits = tuple(
        Limit(Scope.TENANT, window, amount) for window, (amount, _, _) in zip(Window, buckets, strict=False)
    )
    counts = [Count(used, held) for _, used, held in buckets]
    decision = decide(reservation(Cost(prompt, output), limits), counts)
    fits = all(used + held + prompt + output <= amount for amount, used, held in buckets)
    assert isinstance(decision, Admitted) is fits
    if isinstance(decision, Admitted):
        assert all(s.count.used + s.count.held <= s.bucket.limit.amount for s in decision.states)
    else:
        assert not decision.state.admits(prompt + output)


@FUZZ
@given(st.integers(0, 10**7), st.integers(1, 10**6), st.integers(-(10**6), 10**6))
def test_the_most_that_fits_into_some_room_fits_and_one_more_does_not(fixed, slope, room):
    wanted = Demand(fixed, slope)
    most = wanted.most(room)
    assert wanted.at(most) <= room < wanted.at(most + 1)
