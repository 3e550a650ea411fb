"""What a request costs: estimates, bounds that can be proven, and the weighted sum of usage."""

import json
from fractions import Fraction
from math import ceil, floor
from unicodedata import normalize

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.core.quota.costs import (
    EVEN,
    MAX_OUTPUT_BOUND,
    MAX_WEIGHT,
    NO_COST,
    Bound,
    Cost,
    Costing,
    Demand,
    Weights,
    bound_of,
    cost_of,
    demand,
    strict_demand,
)
from extproc.core.quota.limits import MAX_AMOUNT, Unit
from extproc.core.quota.rendering import rendering_bytes
from extproc.core.quota.usage import Usage
from extproc.core.request.body import MAX_CHOICES, MAX_TOKENS, RequestFacts
from tests.changing import replace
from tests.core.samples import FUZZ, WEIGHTS, bounds, usages

# Beyond this, numbers in Lua lose their last digit.
EXACT = 2**53


def request(**fields) -> RequestFacts:
    plain = {
        "model": "m",
        "stream": False,
        "choices": 1,
        "output_bound": None,
        "prompt_bytes": 30,
        "media_parts": 0,
        "wants_usage": False,
        "boundable": True,
    }
    return RequestFacts(**(plain | fields))


def estimated(facts: RequestFacts, costing: Costing | None = None) -> Cost:
    costing = costing or Costing()
    return cost_of(facts, 18, costing.typical_output_tokens)


# Estimates.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Cost(18, 256)),
        ({"output_bound": 5}, Cost(18, 5)),
        ({"output_bound": 5, "choices": 3}, Cost(18, 15)),
        ({"choices": 3}, Cost(18, 768)),
        ({"output_bound": 5, "bound_is_common": False}, Cost(18, 256)),
        ({"output_bound": 500, "choices": 2, "bound_is_common": False}, Cost(18, 1000)),
    ],
)
def test_a_request_costs_its_prompt_and_the_output_of_every_choice(fields, expected):
    assert estimated(request(**fields)) == expected
    assert expected.total == expected.prompt + expected.output


def test_the_costing_is_the_operators():
    assert estimated(request(), Costing(typical_output_tokens=7)) == Cost(18, 7)


def test_what_generates_nothing_costs_its_prompt_and_what_counts_no_tokens_costs_none():
    assert estimated(request(generates=False, output_bound=5)) == Cost(18, 0)
    assert estimated(request(counts_tokens=False, output_bound=5)) == NO_COST


# Bounds.


@pytest.mark.parametrize(
    ("fields", "counted", "prompt"),
    [
        ({}, None, 30 + 64),
        ({"prompt_bytes": 0}, None, 64),
        ({"media_parts": 2}, None, 30 + 64 + 2 * 16_384),
        ({"messages": 3}, None, 30 + 64),
        ({"messages": 3}, 7, 7 + 3 * 16 + 64),
        ({"messages": 3, "media_parts": 1}, 0, 3 * 16 + 64 + 16_384),
        ({"prompt_tokens": 5}, None, 5 + 64),
        ({"prompt_tokens": 0}, 7, 64),
        ({"prompt_tokens": 5, "messages": 3}, 7, 5 + 64),
    ],
)
def test_a_prompt_is_bound_by_its_bytes_or_by_what_was_counted_and_all_that_is_added(fields, counted, prompt):
    assert bound_of(request(**fields), Costing(), counted).prompt == prompt
    assert bound_of(request(generates=False, **fields), Costing(), counted).prompt == prompt


def test_text_that_normalization_can_lengthen_is_bound_by_as_much_more():
    facts = request(further_bytes=100, media_parts=1)
    for factor in (1, 3, 11):
        costing = Costing(prompt_bound_factor=factor)
        assert bound_of(facts, costing).prompt == factor * (30 + 100) + 64 + 16_384
        assert bound_of(facts, costing, 7).prompt == 7 + 16 + factor * 100 + 64 + 16_384


def test_what_a_template_adds_when_it_writes_json_anew_is_part_of_the_bound():
    facts = request(prompt=b'{"tools":[{"a":1e15},{"a":1}]}')
    more = rendering_bytes(facts.prompt)
    assert more > 0
    assert bound_of(facts, Costing(prompt_bound_factor=3)).prompt == 3 * 30 + more + 64
    assert bound_of(facts, Costing(), 7).prompt == 7 + 16 + more + 64
    assert bound_of(replace(facts, prompt_tokens=7), Costing()).prompt == 7 + 64


def test_what_servers_take_for_the_output_bound_counts_before_the_models():
    assert bound_of(request(usual_bound=40), Costing()).output == 40
    assert bound_of(request(usual_bound=40, output_bound=50), Costing()).output == 50


def test_the_bounds_of_what_is_added_are_the_operators():
    costing = Costing(media_bound_tokens=5, template_bound_tokens=1, message_bound_tokens=2)
    assert bound_of(request(media_parts=1, messages=3), costing, 10).prompt == 10 + 3 * 2 + 1 + 5


@pytest.mark.parametrize(
    ("fields", "output", "least"),
    [
        ({}, 1024, 16),
        ({"output_bound": 100}, 100, 16),
        ({"output_bound": 5}, 5, 5),
        ({"output_bound": MAX_TOKENS}, MAX_OUTPUT_BOUND, 16),
        ({"output_bound": 100, "boundable": False}, 100, 100),
        ({"boundable": False}, 1024, 1024),
    ],
)
def test_the_output_bound_is_the_clients_or_the_models_and_may_be_lowered_to_the_least(fields, output, least):
    writable = fields.get("boundable", True)
    assert bound_of(request(choices=3, **fields), Costing()) == Bound(94, output, least, 3, writable)


def test_the_least_is_the_tenants_own_or_the_models_and_never_nothing():
    facts = request(output_bound=100)
    assert bound_of(facts, Costing(), min_output_tokens=40).least == 40
    assert bound_of(facts, Costing(min_output_tokens=40)).least == 40
    assert bound_of(facts, Costing(min_output_tokens=40), min_output_tokens=7).least == 7
    assert bound_of(facts, Costing(), min_output_tokens=0).least == 1
    assert bound_of(facts, Costing(min_output_tokens=0)).least == 1


def test_the_field_that_is_written_is_the_models():
    assert bound_of(request(), Costing(output_field="max_completion_tokens")).field == "max_completion_tokens"
    assert bound_of(request(), Costing()).field is None


def test_what_generates_nothing_is_bound_by_its_prompt_and_what_counts_no_tokens_by_nothing():
    assert bound_of(request(generates=False, choices=3, output_bound=9), Costing()) == Bound(
        94, 0, 0, writable=False
    )
    assert bound_of(request(counts_tokens=False, media_parts=3), Costing()) == Bound(0, 0, 0, writable=False)


COSTINGS = st.builds(
    Costing,
    prompt_bound_factor=st.sampled_from([1, 3, 11]),
    media_bound_tokens=st.integers(0, 10**6),
    template_bound_tokens=st.integers(0, 10**5),
    message_bound_tokens=st.integers(0, 10**4),
    max_output_tokens=st.integers(1, MAX_OUTPUT_BOUND),
    min_output_tokens=st.integers(1, MAX_OUTPUT_BOUND),
)
# What the readers of requests allow; bodies up to 2 GB.
FACTS = st.builds(
    request,
    choices=st.integers(1, MAX_CHOICES) | st.just(MAX_CHOICES),
    output_bound=st.none() | st.integers(1, MAX_TOKENS) | st.just(MAX_TOKENS),
    prompt_bytes=st.integers(0, 2**31) | st.just(2**31),
    media_parts=st.integers(0, 2**28) | st.just(2**28),
    messages=st.integers(1, MAX_CHOICES),
    further_bytes=st.integers(0, 1024),
    usual_bound=st.none() | st.just(16),
    prompt_tokens=st.none() | st.integers(0, 2**30),
    boundable=st.booleans(),
    generates=st.sampled_from([True, True, False]),
    counts_tokens=st.sampled_from([True, True, False]),
)
COUNTED = st.none() | st.integers(0, 2**31)
AMOUNTS = st.integers(0, MAX_AMOUNT) | st.just(MAX_AMOUNT)
LARGE_WEIGHTS = WEIGHTS | st.just(Weights(MAX_WEIGHT, MAX_WEIGHT, MAX_WEIGHT, MAX_WEIGHT))


@FUZZ
@given(FACTS, COSTINGS, COUNTED, st.none() | st.integers(0, MAX_OUTPUT_BOUND))
def test_a_bound_leaves_room_between_its_least_and_what_is_wanted(facts, costing, counted, tenants):
    bound = bound_of(facts, costing, counted, tenants)
    assert 0 <= bound.least <= bound.output <= MAX_OUTPUT_BOUND
    assert bound.all_output == bound.output * bound.choices
    if bound.writable:
        assert bound.least >= 1
        assert facts.output_bound is None or bound.output <= facts.output_bound
    else:
        assert bound.least == bound.output


@FUZZ
@given(FACTS, COSTINGS, COUNTED, st.data())
def test_a_larger_request_never_has_a_smaller_bound(facts, costing, counted, data):
    larger = replace(
        facts,
        **{
            name: getattr(facts, name) + data.draw(st.integers(0, 10**6))
            for name in ("choices", "prompt_bytes", "media_parts", "messages", "further_bytes")
        },
        prompt_tokens=None
        if facts.prompt_tokens is None
        else facts.prompt_tokens + data.draw(st.integers(0, 10**6)),
    )
    more = None if counted is None else counted + data.draw(st.integers(0, 10**6))
    one, other = bound_of(facts, costing, counted), bound_of(larger, costing, more)
    assert one.prompt <= other.prompt
    assert one.all_output <= other.all_output


@FUZZ
@given(st.text(max_size=40), st.booleans())
def test_json_writes_no_text_shorter_than_it_is(text, ascii_only):
    written = json.dumps(text, ensure_ascii=ascii_only)
    assert len(written.encode("utf-8", "surrogatepass")) - 2 >= len(text.encode("utf-8", "surrogatepass"))


@FUZZ
@given(st.text(max_size=40), st.booleans())
@example("\U0001d160", False)
@example("\u0390\ufb2c", False)
@example("\ufdfa" * 3, False)
@example("\ufdfa" * 3, True)
def test_normalization_makes_no_text_longer_than_the_factors_say(text, ascii_only):
    written = json.dumps(text, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    for form, factor in (("NFC", 3), ("NFD", 3), ("NFKC", 11), ("NFKD", 11)):
        assert len(normalize(form, text).encode("utf-8", "surrogatepass")) <= factor * (len(written) - 2)


@FUZZ
@given(bounds(), WEIGHTS, st.data())
def test_what_keeps_to_its_bound_never_counts_more_than_is_held(bound, weights, data):
    used = data.draw(usages_within(bound))
    held = {unit: strict_demand(unit, weights, bound, 1).at(bound.output) for unit in Unit}
    assert weights.of(used) <= held[Unit.TOKENS]
    assert used.input <= held[Unit.INPUT_TOKENS]
    assert used.total - used.input <= held[Unit.OUTPUT_TOKENS]
    assert held[Unit.REQUESTS] == 1


@st.composite
def usages_within(draw: st.DrawFn, bound: Bound) -> Usage:
    """Any usage that keeps to the bound, as large as it in half of the cases."""
    tokens_in = draw(st.integers(0, bound.prompt) | st.just(bound.prompt))
    tokens_out = draw(st.integers(0, bound.all_output) | st.just(bound.all_output))
    cached, reasoning = draw(st.integers(0, tokens_in)), draw(st.integers(0, tokens_out))
    return Usage(tokens_in, tokens_out, cached, reasoning, tokens_in + tokens_out)


# Weights.


def test_weights_are_thousandths_and_each_kind_of_token_has_its_own():
    weights = Weights(input=1000, cached_input=100, output=2000, reasoning=3000)
    assert weights.of(Usage(100, 50, cached=60, reasoning=20, total=150)) == 40 + 6 + 60 + 60
    assert weights.of(Usage(1, 0, cached=1, total=1)) == 1  # a tenth, rounded up
    assert weights.of(Usage(0, 0)) == 0
    assert (weights.any_input, weights.any_output) == (1000, 3000)
    assert Weights(cached_input=1001, output=5).any_input == 1001


def test_tokens_that_only_the_total_knows_of_count_as_output():
    weights = Weights(output=3000, reasoning=7000)
    assert weights.of(Usage(10, 5, total=18)) == 10 + 3 * (5 + 3)


@FUZZ
@given(usages(10**7))
def test_with_even_weights_the_total_counts(usage):
    assert EVEN.of(usage) == usage.total


@FUZZ
@given(usages(), WEIGHTS)
def test_usage_counts_its_weighted_sum_rounded_up_once(usage, weights):
    further = usage.total - usage.input - usage.output
    exact = (
        Fraction(weights.input, 1000) * (usage.input - usage.cached)
        + Fraction(weights.cached_input, 1000) * usage.cached
        + Fraction(weights.output, 1000) * (usage.output - usage.reasoning + further)
        + Fraction(weights.reasoning, 1000) * usage.reasoning
    )
    assert weights.of(usage) == ceil(exact)
    assert type(weights.of(usage)) is int


@FUZZ
@given(usages(), WEIGHTS, st.sampled_from(["input", "output", "total"]), st.integers(0, 50))
def test_more_tokens_never_count_less(usage, weights, kind, more):
    larger = replace(usage, **{kind: getattr(usage, kind) + more}) if kind != "total" else usage
    larger = replace(larger, total=usage.total + more)
    assert weights.of(larger) >= weights.of(usage)


@FUZZ
@given(WEIGHTS, st.integers(0, 500), st.integers(0, 500), st.data())
def test_no_usage_counts_more_than_the_most_that_so_many_tokens_can(weights, prompt, output, data):
    used = data.draw(usages_within(Bound(prompt, output, 0)))
    assert weights.of(used) <= weights.at_most(prompt, output)
    exact = Fraction(weights.any_input * prompt + weights.any_output * output, 1000)
    assert weights.at_most(prompt, output) == ceil(exact)


# What is held.


@pytest.mark.parametrize(
    ("unit", "estimate", "bound"),
    [
        (Unit.TOKENS, Demand(1500 * 20 + 2500 * 30), Demand(1500 * 20, 2500 * 3)),
        (Unit.INPUT_TOKENS, Demand(20_000), Demand(20_000)),
        (Unit.OUTPUT_TOKENS, Demand(30_000), Demand(0, 3000)),
        (Unit.REQUESTS, Demand(2000), Demand(2000)),
    ],
)
def test_each_unit_demands_what_it_counts(unit, estimate, bound):
    weights = Weights(input=7, cached_input=1500, output=2500, reasoning=7)
    assert demand(unit, weights, Cost(20, 30), 2) == estimate
    assert strict_demand(unit, weights, Bound(20, 10, 5, choices=3), 2) == bound
    assert bound.at(10) == estimate.at(0) == estimate.at(10**6)


def test_a_demand_is_rounded_up():
    assert [Demand(fixed, 1).at(output) for fixed, output in ((0, 0), (0, 1), (999, 1), (999, 2))] == [0, 1, 1, 2]


@FUZZ
@given(FACTS, COSTINGS, COUNTED, LARGE_WEIGHTS, st.tuples(AMOUNTS, AMOUNTS))
def test_no_number_that_a_script_calculates_with_loses_a_digit(facts, costing, counted, weights, amounts):
    """What is used or held stays below the largest amount, but where a limit admits without looking at it."""
    bound = bound_of(facts, costing, counted)
    used, amount = amounts
    for unit in Unit:
        for wanted in (
            strict_demand(unit, weights, bound, 1),
            demand(unit, weights, estimated(facts, costing), 1),
        ):
            room = amount - used
            whole = wanted.fixed + wanted.slope * bound.output
            assert 0 <= whole < EXACT
            assert abs(room * 1000) + wanted.fixed < EXACT
            assert used + amount + wanted.at(bound.output) < EXACT
            # The very arithmetic of a script, in doubles.
            assert ceil(float(whole) / 1000.0) == wanted.at(bound.output)
            if wanted.slope:
                assert floor(float(room * 1000 - wanted.fixed) / float(wanted.slope)) == wanted.most(room)


@FUZZ
@given(LARGE_WEIGHTS, st.integers(0, 2**60), st.integers(0, 2**60))
def test_what_is_too_large_to_calculate_with_fits_into_no_limit(weights, prompt, output):
    wanted = demand(Unit.TOKENS, weights, Cost(prompt, output), 1)
    exact = weights.at_most(prompt, output)
    assert wanted.at(0) == exact or MAX_AMOUNT < wanted.at(0) < exact


@given(st.integers(0, 4 * 10**15), st.integers(1, MAX_WEIGHT * MAX_CHOICES), st.integers(-(10**12), 10**12))
@FUZZ
def test_lowering_an_output_bound_in_doubles_is_exact(fixed, slope, room):
    assert floor(float(room * 1000 - fixed) / float(slope)) == Demand(fixed, slope).most(room)
