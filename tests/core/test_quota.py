"""Which limits bind, what a request costs, and whether it fits."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.identity import Identity
from extproc.core.limits import Limit, Scope, Window, interval_at
from extproc.core.quota import (
    Admitted,
    BucketState,
    Cost,
    Costing,
    Count,
    Denied,
    Policy,
    admitted,
    bind,
    cost_of,
    decide,
    denied,
    tightest,
)
from extproc.core.requests import RequestFacts

from .samples import BERLIN, CALLER, FUZZ, NOW, reservation

MINUTELY = Limit(Scope.TENANT, Window.MINUTE, 100)
DAILY = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 1000)
PER_IP = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 500)
LIMITS = (MINUTELY, DAILY, PER_IP)


def request(**fields) -> RequestFacts:
    plain = {
        "model": "m",
        "stream": False,
        "choices": 1,
        "output_bound": None,
        "prompt_bytes": 30,
        "media_parts": 0,
        "wants_usage": False,
    }
    return RequestFacts(**(plain | fields))


# Cost.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Cost(10 + 8, 256)),
        ({"prompt_bytes": 31}, Cost(11 + 8, 256)),
        ({"prompt_bytes": 0}, Cost(8, 256)),
        ({"output_bound": 5}, Cost(18, 5)),
        ({"output_bound": 5, "choices": 3}, Cost(18, 15)),
        ({"choices": 3}, Cost(18, 768)),
        ({"media_parts": 2}, Cost(18 + 2048, 256)),
    ],
)
def test_a_request_costs_its_prompt_and_the_output_of_every_choice(fields, expected):
    assert cost_of(request(**fields), Costing()) == expected
    assert expected.total == expected.prompt + expected.output


def test_the_costing_is_the_operators():
    costing = Costing(bytes_per_token=10, overhead_tokens=1, media_tokens=5, typical_output_tokens=7)
    assert cost_of(request(media_parts=1), costing) == Cost(3 + 1 + 5, 7)


# Binding.


def test_every_limit_of_the_policy_binds_in_the_tenants_time_zone():
    buckets = bind(Policy(CALLER.tenant, LIMITS, BERLIN), CALLER, NOW)
    assert [bucket.limit for bucket in buckets] == list(LIMITS)
    assert [bucket.parts for bucket in buckets] == [
        (),
        (CALLER.service_account,),
        (CALLER.service_account, CALLER.client_ip),
    ]
    assert [bucket.interval for bucket in buckets] == [interval_at(limit.window, NOW, BERLIN) for limit in LIMITS]


def test_other_callers_and_other_days_have_buckets_of_their_own():
    policy = Policy(CALLER.tenant, (DAILY,), BERLIN)
    other = Identity(CALLER.tenant, "other", CALLER.client_ip)
    buckets = {bind(policy, who, NOW + timedelta(days=day)) for who in (CALLER, other) for day in (0, 1)}
    assert len(buckets) == 4
    assert bind(policy, CALLER, NOW) == bind(policy, CALLER, NOW + timedelta(hours=1))


# Deciding.


def test_a_request_is_admitted_up_to_the_very_last_token():
    asked = reservation(Cost(20, 30), LIMITS)
    decision = decide(asked, [Count(50, 0), Count(900, 50), Count(0, 450)])
    assert isinstance(decision, Admitted)
    assert decision.reservation is asked
    assert [state.count for state in decision.states] == [Count(50, 50), Count(900, 100), Count(0, 500)]
    assert [state.remaining for state in decision.states] == [0, 0, 0]


@pytest.mark.parametrize("place", range(3))
def test_a_request_that_one_bucket_can_not_take_is_denied_and_told_of_it(place):
    counts = [Count(50, 0), Count(900, 50), Count(0, 450)]
    counts[place] = Count(counts[place].used, counts[place].held + 1)
    asked = reservation(Cost(20, 30), LIMITS)
    decision = decide(asked, counts)
    assert decision == Denied(BucketState(asked.buckets[place], counts[place]), Cost(20, 30))


def test_of_several_full_buckets_the_tightest_is_told():
    asked = reservation(Cost(20, 30), LIMITS)
    decision = decide(asked, [Count(80, 0), Count(990, 0), Count(0, 460)])
    assert decision.state.bucket.limit == DAILY


def test_a_bucket_that_still_fits_is_not_told_however_tight():
    asked = reservation(Cost(0, 1), LIMITS)
    decision = decide(asked, [Count(99, 0), Count(1001, 0), Count(0, 0)])
    assert decision.state.bucket.limit == DAILY


def test_a_limit_of_zero_denies_all_but_what_costs_nothing():
    nothing = Limit(Scope.TENANT, Window.DAY, 0)
    assert isinstance(decide(reservation(Cost(1, 0), (nothing,)), [Count(0, 0)]), Denied)
    assert isinstance(decide(reservation(Cost(0, 0), (nothing,)), [Count(0, 0)]), Admitted)


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


def test_among_equally_tight_buckets_the_one_that_resets_last_is_told():
    buckets = reservation(limits=(MINUTELY, Limit(Scope.TENANT, Window.DAY, 100))).buckets
    states = [BucketState(bucket, Count(100, 0)) for bucket in buckets]
    assert tightest(states).bucket.limit.window is Window.DAY
    assert tightest(states[::-1]).bucket.limit.window is Window.DAY


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
