"""How a reservation ends, and what each of its buckets is charged for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.costs import EVEN, Bound, Cost, Weights
from extproc.core.quota.limits import Limit, Mode, Scope, Unit, Window
from extproc.core.quota.reservation import Admitted, Count, Reservation, decide
from extproc.core.quota.settlement import Estimates, Outcome, Settlement, charges, expiry, released
from extproc.core.quota.usage import NO_USAGE, Usage
from tests.changing import replace
from tests.core.samples import FEWER, FUZZ, WEIGHTS, bounds, reservation, usages


def limits(mode=Mode.RESERVE, amount=10**6, *, shadow=False) -> tuple[Limit, ...]:
    """One of each unit: tokens, input, output, requests."""
    return tuple(Limit(Scope.TENANT, Window.DAY, amount, unit, mode, shadow) for unit in Unit)


HELD = Cost(20, 30)
USAGE = Usage(18, 25, cached=8, reasoning=5, total=45)  # 2 more, that only the total knows of
LARGE = Usage(40, 60, total=100)
WEIGHED = Weights(input=2000, cached_input=500, output=3000, reasoning=4000)


def estimates(of: Reservation) -> Estimates:
    return Estimates.of(of, bytes_per_token=3)


# Settled on what the upstream reported.


def test_each_unit_is_charged_what_it_counts():
    held = reservation(HELD, limits())
    settlement = estimates(held).settle(USAGE, complete=True)
    assert settlement == Settlement(Outcome.SETTLED, USAGE, 45, "usage")
    assert charges(held, settlement) == (45, 18, 27, 1)


def test_only_tokens_are_weighted():
    held = reservation(HELD, limits(), weights=WEIGHED)
    settlement = estimates(held).settle(USAGE, complete=True)
    assert settlement.charge == 2 * 10 + 4 + 3 * 22 + 4 * 5
    assert charges(held, settlement) == (110, 18, 27, 1)


def test_a_request_that_counts_as_several_is_charged_as_several():
    held = reservation(HELD, limits(), requests=3)
    assert charges(held, estimates(held).settle(USAGE, complete=True))[3] == 3


@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.RESERVE])
def test_an_answer_that_outgrew_its_hold_is_charged_in_full(mode):
    held = reservation(HELD, limits(mode))
    settlement = estimates(held).settle(LARGE, complete=True)
    assert (settlement.charge, settlement.reason) == (100, "usage")
    assert charges(held, settlement) == (100, 40, 60, 1)


@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.RESERVE])
def test_who_was_cut_off_pays_no_more_than_was_held(mode):
    held = reservation(HELD, limits(mode))
    settlement = estimates(held).settle(LARGE, complete=False)
    assert (settlement.charge, settlement.reason) == (50, "cut_off")
    assert charges(held, settlement) == (50, 20, 30, 1)
    smaller = estimates(held).settle(USAGE, complete=False)
    assert (smaller.charge, smaller.reason) == (45, "cut_off")
    assert charges(held, smaller) == (45, 18, 27, 1)


# Strict.


def test_a_strict_bucket_is_charged_no_more_than_the_bound_whatever_the_upstream_does():
    held = reservation(HELD, limits(Mode.STRICT), bound=Bound(22, 11, 1, choices=3))
    overrun = estimates(held).settle(LARGE, complete=True)
    assert (overrun.charge, overrun.reason, overrun.usage) == (55, "overran", LARGE)
    assert charges(held, overrun) == (55, 22, 33, 1)
    within = estimates(held).settle(USAGE, complete=True)
    assert (within.charge, within.reason) == (45, "usage")
    assert charges(held, within) == (45, 18, 27, 1)


def test_the_bound_that_was_granted_is_what_counts():
    wanted = reservation(HELD, limits(Mode.STRICT, 40), bound=Bound(22, 11, 1, choices=3))
    granted = decide(wanted, [Count(0, 0)] * 4).reservation
    assert granted.output_bound == 6
    overrun = estimates(granted).settle(LARGE, complete=True)
    assert (overrun.charge, charges(granted, overrun)) == (40, (40, 22, 18, 1))


def test_beside_a_strict_bucket_another_is_charged_what_was_used_though_it_held_less():
    of_tokens = Limit(Scope.TENANT, Window.DAY, 1000)
    strict = Limit(Scope.TENANT, Window.HOUR, 1000, mode=Mode.STRICT)
    held = reservation(Cost(5, 10), (of_tokens, strict), bound=Bound(22, 50, 1))
    settlement = estimates(held).settle(USAGE, complete=True)
    assert [held.hold(of_tokens), held.hold(strict)] == [15, 72]
    assert charges(held, settlement) == (45, 45)
    cut_off = estimates(held).settle(LARGE, complete=False)
    assert cut_off.charge == 72
    assert charges(held, cut_off) == (72, 72)
    assert charges(held, expiry(held)) == (72, 72)


def test_a_strict_limit_without_output_is_capped_on_its_own_and_the_charge_is_not():
    of_input = Limit(Scope.TENANT, Window.DAY, 1000, Unit.INPUT_TOKENS, Mode.STRICT)
    of_tokens = Limit(Scope.TENANT, Window.DAY, 1000)
    held = reservation(HELD, (of_input, of_tokens), bound=Bound(22, 11, 1))
    settlement = estimates(held).settle(LARGE, complete=True)
    assert (settlement.charge, settlement.reason) == (100, "usage")
    assert charges(held, settlement) == (22, 100)


def test_the_shadow_of_a_strict_limit_is_charged_as_it_would_be():
    held = reservation(HELD, limits(Mode.STRICT, shadow=True), bound=Bound(22, 11, 1, choices=3))
    settlement = estimates(held).settle(LARGE, complete=True)
    assert settlement.charge == 100
    assert charges(held, settlement) == (55, 22, 33, 1)


# Estimated.


def test_an_answer_without_usage_is_charged_its_prompt_and_what_was_counted():
    held = reservation(HELD, limits())
    settlement = estimates(held).estimate(30, 4, "missing")
    assert settlement == Settlement(Outcome.ESTIMATED, Usage(20, 10, total=30), 30, "missing", capped=True)
    assert charges(held, settlement) == (30, 20, 10, 1)


def test_an_estimate_never_exceeds_what_was_held():
    held = reservation(HELD, limits(), weights=WEIGHED)
    settlement = estimates(held).estimate(10**9, 4, "missing")
    assert settlement.usage == Usage(20, 30, total=50)
    assert settlement.charge == 2 * 20 + 3 * 30
    assert charges(held, settlement) == (130, 20, 30, 1)


def test_an_estimate_of_a_strict_reservation_stays_within_its_bound():
    held = reservation(Cost(40, 30), limits(Mode.STRICT), bound=Bound(22, 11, 1, choices=3))
    settlement = estimates(held).estimate(10**9, 4, "missing")
    assert settlement.usage == Usage(40, 33, total=73)
    assert (settlement.charge, charges(held, settlement)) == (55, (55, 22, 33, 1))


def test_estimates_without_a_hold_of_their_own_hold_their_cost():
    plain = Estimates(HELD, 3, WEIGHED)
    assert plain.settle(Usage(10**6, 0, total=10**6), complete=False).charge == 2 * 20 + 4 * 30


# What a server reports against what it can have generated.


def claim(output, *, reasoning=0, total=None):
    return Usage(
        10, output, reasoning=reasoning, total=10 + output if total is None else total, audio_output=output
    )


def bounded(bound, choices=1):
    return Estimates(HELD, 4, bound=bound, choices=choices)


@pytest.mark.parametrize(
    ("bound", "choices", "possible", "usage", "most"),
    [
        (5, 1, 60, claim(9_999_990), 10 + 4096),
        (5, 1, 60, claim(9_999_990, reasoning=9_999_990), 10 + 4096 + 8192),
        (5, 1, 60, claim(5, total=9_999_999), 10 + 4096 + 8192),
        (5, 1, 30_000, claim(9_999_990), 30_000),
        (20_000, 2, 60, claim(9_999_990), 40_000 + 4096),
        (None, 1, 60, claim(9_999_990), 8192),
        (None, 3, 60, claim(9_999_990), 3 * 8192),
        (None, 1, 30_000, claim(9_999_990), 30_000),
        (None, 1, 60, claim(9_999_990, reasoning=9_999_990), 8192 + 131_072),
    ],
)
def test_more_output_than_there_can_be_is_capped(bound, choices, possible, usage, most):
    believed = bounded(bound, choices).believable(usage, possible)
    assert believed.total - believed.input == most
    assert believed.output == min(usage.output, most)
    assert believed.reasoning <= believed.output
    assert believed.audio_output <= believed.output


@pytest.mark.parametrize(
    ("bound", "possible", "usage"),
    [
        (5, 20, claim(5)),
        (64, 20, claim(3000)),  # a server that ignores the bound, or counts what nobody sees
        (100, 40, claim(1100, reasoning=1000)),  # xAI: reasoning is beside the bound
        (None, 200, claim(4160)),  # a picture by its address
        (None, 30_000, claim(30_000)),  # each token is a byte at least
        (None, 40, claim(60_000, reasoning=59_990)),
        (None, 40, claim(20, total=40_000)),  # Gemini: thoughts are in the total only
    ],
)
def test_what_servers_do_report_is_believed_as_it_is(bound, possible, usage):
    assert bounded(bound).believable(usage, possible) is usage


def test_an_estimate_of_text_stays_within_the_bound_of_its_client():
    assert bounded(None).tokens(4000, 7) == 1000
    assert bounded(300).tokens(4000, 7) == 300
    assert bounded(300).estimate(4000, 7, "missing", complete=True).usage.output == 300
    # More pieces than the bound were counted one by one.
    assert bounded(300).estimate(4000, 400, "missing", complete=True).usage.output == 400


# Released and expired.


@pytest.mark.parametrize(("forwarded", "requests"), [(True, 3), (False, 0)])
def test_a_release_charges_no_token_and_counts_a_request_only_if_it_was_forwarded(forwarded, requests):
    for mode in Mode:
        held = reservation(HELD, limits(mode), bound=Bound(22, 11, 1), requests=3)
        settlement = released("upstream_error", forwarded=forwarded)
        assert charges(held, settlement) == (0, 0, 0, requests)
        assert (settlement.outcome, settlement.charge, settlement.usage) == (Outcome.RELEASED, 0, NO_USAGE)


def test_what_nobody_ended_is_charged_as_held():
    held = reservation(Cost(20, 30), limits())
    expired = Settlement(Outcome.EXPIRED, Usage(20, 30, total=50), 50, "expired", capped=True)
    assert expiry(held) == expired
    assert charges(held, expired) == (50, 20, 30, 1)


def test_what_nobody_ended_under_a_strict_limit_is_charged_its_bound():
    held = reservation(Cost(20, 5), limits(Mode.STRICT), bound=Bound(22, 11, 1, choices=3))
    assert expiry(held).charge == 55
    assert charges(held, expiry(held)) == (55, 22, 33, 1)


# Any reservation, any end.


@st.composite
def reservations(draw: st.DrawFn) -> Reservation:
    kinds = st.builds(
        Limit,
        st.just(Scope.TENANT),
        st.sampled_from(Window),
        st.integers(0, 300),
        st.sampled_from(Unit),
        st.sampled_from(Mode),
        st.booleans(),
    )
    return reservation(
        draw(st.builds(Cost, st.integers(0, 60), st.integers(0, 60))),
        draw(st.lists(kinds, min_size=1, max_size=4, unique_by=lambda limit: limit.kind)),
        bound=draw(st.none() | bounds()),
        weights=draw(st.just(EVEN) | WEIGHTS),
        requests=draw(st.integers(1, 3)),
    )


_any_count = st.integers(0, 200) | st.sampled_from([2**31, 2**53, 2**63])
# No reader gives these. What a limit promises does not rest on that.
ABSURD_USAGES = st.builds(Usage, _any_count, _any_count, _any_count, _any_count, _any_count)


@st.composite
def endings(draw: st.DrawFn, of: Reservation, usage: st.SearchStrategy[Usage]) -> Settlement:
    match draw(st.sampled_from(["settled", "cut off", "estimated", "released", "refused", "expired"])):
        case "estimated":
            return estimates(of).estimate(draw(st.integers(0, 300)), draw(st.integers(0, 100)), "missing")
        case "released":
            return released("upstream_error")
        case "refused":
            return released("unreachable", forwarded=False)
        case "expired":
            return expiry(of)
        case end:
            return estimates(of).settle(draw(usage), complete=end == "settled")


@FUZZ
@given(st.data(), reservations())
def test_a_strict_bucket_is_never_charged_more_than_it_held_by_any_end_on_any_usage(data, held):
    settlement = data.draw(endings(held, usages() | ABSURD_USAGES))
    for bucket, charge in zip(held.buckets, charges(held, settlement), strict=True):
        if bucket.limit.mode is Mode.STRICT:
            assert charge <= held.hold(bucket.limit)


@FUZZ
@given(st.data(), reservations())
def test_only_a_complete_answer_is_ever_charged_more_than_was_held(data, held):
    settlement = data.draw(endings(held, usages()))
    charged = charges(held, settlement)
    holds = tuple(held.hold(bucket.limit) for bucket in held.buckets)
    assert all(charge >= 0 for charge in charged)
    if settlement.reason == "overran" and not held.all_strict:
        assert settlement.charge > held.held  # the others beside the strict ones are charged all of it
    elif settlement.reason != "usage":
        assert settlement.charge <= held.held
        # Beside a strict bucket, one that holds an estimate is charged what the ledger says: up to the bound.
        most = [
            held.held if _follows(bucket.limit) else hold for bucket, hold in zip(held.buckets, holds, strict=True)
        ]
        assert settlement.reason == "overran" or all(c <= m for c, m in zip(charged, most, strict=True))


def _follows(limit: Limit) -> bool:
    return limit.unit is Unit.TOKENS and limit.mode is not Mode.STRICT


@FUZZ
@given(st.data(), reservations())
def test_every_limit_on_tokens_is_charged_what_the_ledger_says(data, held):
    """Estimate and bound may be held side by side; the ledger has one number, and counters are its sum."""
    settlement = data.draw(endings(held, usages()))
    for bucket, charge in zip(held.buckets, charges(held, settlement), strict=True):
        limit = bucket.limit
        if _follows(limit):
            assert charge == settlement.charge
        elif limit.unit is Unit.TOKENS and not limit.shadow and held.strict:
            assert charge == min(settlement.charge, held.hold(limit))
            assert charge == settlement.charge or not held.all_strict


def ends(held: Reservation, settlement: Settlement, counts: list[Count]) -> list[Count]:
    """The counts after the end."""
    holds = [held.hold(bucket.limit) for bucket in held.buckets]
    charged = charges(held, settlement)
    return [Count(n.used + c, n.held - h) for n, c, h in zip(counts, charged, holds, strict=True)]


@FEWER
@given(st.data(), reservations())
def test_strict_buckets_stay_within_their_limit_through_any_order_of_requests_and_ends(data, first):
    counts = [Count(0, 0)] * len(first.buckets)
    in_flight: list[Reservation] = []
    charged = [0] * len(first.buckets)

    def end_one() -> None:
        nonlocal counts
        held = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
        settlement = data.draw(endings(held, usages()))
        counts = ends(held, settlement, counts)
        charged[:] = [sum(pair) for pair in zip(charged, charges(held, settlement), strict=True)]

    for _ in range(data.draw(st.integers(1, 12))):
        if in_flight and data.draw(st.booleans()):
            end_one()
        cost = data.draw(st.builds(Cost, st.integers(0, 60), st.integers(0, 60)))
        bound = data.draw(bounds()) if first.bound is not None else None
        decision = decide(replace(first, cost=cost, bound=bound), counts)
        if isinstance(decision, Admitted):
            counts = [state.count for state in decision.states]
            in_flight.append(decision.reservation)
        for bucket, count in zip(first.buckets, counts, strict=True):
            assert count.held >= 0
            if bucket.limit.mode is Mode.STRICT and not bucket.limit.shadow:
                assert count.used + count.held <= bucket.limit.amount
    while in_flight:
        end_one()
    assert counts == [Count(used, 0) for used in charged]
