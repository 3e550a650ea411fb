import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.costs import Costing
from extproc.core.quota.learning import Learned, Start
from extproc.core.quota.prompt_fit import PromptKind, PromptSize
from extproc.core.quota.recent import ENOUGH, TENANTS, WINDOW
from extproc.core.request.body import MAX_TOKENS
from tests.changing import replace
from tests.core.samples import FEWER

START = 256
RATIO = 3
LARGE = 10_240
COSTING = Costing(
    prompt_bytes_per_token=RATIO,
    prompt_overhead_tokens=8,
    typical_output_tokens=START,
    learned_output_min_tokens=32,
    learned_output_max_tokens=4096,
    learned_bytes_per_token_min=1,
    learned_bytes_per_token_max=6,
)


def start_of(**changes):
    return Start.of(replace(COSTING, **changes))


def of_bytes(size):
    return PromptSize(PromptKind.BYTES, size)


def observe(learned, model="m", tenant="t", start=None, **changes):
    sample = {
        "prompt": of_bytes(changes.pop("prompt_bytes", LARGE)),
        "prompt_tokens": LARGE // 4,
        "output_per_choice": 100,
        "bounded": False,
    }
    learned.observe(tenant, model, start or start_of(), **(sample | changes))


def taught(outputs, learned=None, **changes):
    learned = Learned() if learned is None else learned
    for output in outputs:
        observe(learned, output_per_choice=output, **changes)
    return learned


def typical(learned, model="m", tenant="t", **changes):
    return learned.typical_output(tenant, model, start_of(**changes))


def estimate(learned, size=LARGE, model="m", tenant="t", kind=PromptKind.BYTES, **changes):
    return learned.prompt_tokens(tenant, model, start_of(**changes), PromptSize(kind, size))


# Typical output.


def test_of_an_unknown_model_the_typical_output_is_the_configured_one():
    assert typical(Learned()) == START


def test_nine_in_ten_answers_stay_within_the_typical_output():
    outputs = [*range(300, 300 + WINDOW)]
    random.Random(1).shuffle(outputs)
    held = typical(taught(outputs))
    assert sum(output > held for output in outputs) == WINDOW // 10


def test_one_long_answer_among_many_does_not_move_the_typical_output():
    assert typical(taught([300] * 100 + [MAX_TOKENS])) == 300


def test_the_configured_output_fades_out_with_the_first_answers():
    seen = [typical(taught([512] * count)) for count in range(ENOUGH + 1)]
    assert seen[0] == START
    assert seen[ENOUGH // 2] == (START + 512) // 2
    assert seen[ENOUGH] == 512
    assert seen == sorted(seen)


def test_a_first_answer_of_any_length_counts_as_one_of_the_longest_that_are_learned():
    assert typical(taught([MAX_TOKENS])) == (START * (ENOUGH - 1) + 4096) // ENOUGH


def test_only_the_latest_answers_count():
    assert typical(taught([2000] * 500 + [300] * WINDOW)) == 300


def test_old_answers_leave_in_the_order_in_which_they_came():
    learned = taught([300] * WINDOW + [400] * (WINDOW // 2))
    assert typical(learned) == 400
    taught([300] * (WINDOW // 2), learned)
    assert typical(learned) == 400
    taught([300] * (WINDOW // 2), learned)
    assert typical(learned) == 300


def test_answers_to_requests_with_a_bound_teach_nothing_of_those_without():
    assert typical(taught([900] * WINDOW, bounded=True)) == START


def test_an_answer_without_output_teaches_nothing_of_outputs():
    assert typical(taught([0] * WINDOW + [-7] * WINDOW)) == START


@pytest.mark.parametrize("outputs", [[1], [1] * WINDOW, [300] * WINDOW + [1] * WINDOW])
def test_a_tenants_own_answers_never_lower_its_typical_output_below_the_configured_one(outputs):
    assert typical(taught(outputs)) == START


@pytest.mark.parametrize("outputs", [[MAX_TOKENS] * WINDOW, [2**80] * WINDOW])
def test_answers_teach_no_more_output_than_is_configured(outputs):
    assert typical(taught(outputs)) == 4096
    assert typical(taught(outputs), learned_output_max_tokens=700) == 700


def test_the_configured_output_is_possible_whatever_may_be_learned():
    learned = taught([1] * WINDOW + [MAX_TOKENS] * WINDOW)
    for output in (1, 5000, MAX_TOKENS):
        assert typical(learned, typical_output_tokens=output) == max(output, 4096)
        assert typical(Learned(), typical_output_tokens=output, learned_output_min_tokens=6000) == output


def test_the_typical_output_is_a_token_count_for_any_start():
    assert typical(taught([1] * WINDOW), typical_output_tokens=1) == 1
    assert typical(taught([MAX_TOKENS] * WINDOW), typical_output_tokens=MAX_TOKENS) == MAX_TOKENS
    assert typical(Learned(), typical_output_tokens=0) == 1


def test_requests_whose_prompts_say_nothing_teach_of_outputs_all_the_same():
    assert typical(taught([300] * WINDOW, prompt=None)) == 300


# Other tenants.


def teach_tenants(learned, values, **changes):
    for number, value in enumerate(values):
        taught([value] * ENOUGH, learned, tenant=f"tenant {number}", **changes)


@pytest.mark.parametrize("count", [1, 3, 13, WINDOW])
@pytest.mark.parametrize("output", [1, MAX_TOKENS])
def test_one_tenant_moves_no_estimate_of_another(count, output):
    learned = Learned()
    taught([output] * count, learned, tenant="neighbour", prompt_tokens=LARGE)
    taught([output] * count, learned, tenant="neighbour", prompt_bytes=60, prompt_tokens=3000)
    assert typical(learned) == START
    assert estimate(learned) == estimate(Learned())
    assert estimate(learned, 60) == estimate(Learned(), 60)


def test_from_enough_other_tenants_on_their_median_takes_the_place_of_the_configured_output():
    for tenants in range(TENANTS + 3):
        learned = Learned()
        teach_tenants(learned, [100 + number for number in range(tenants)])
        median = START if tenants < TENANTS else 100 + tenants // 2
        assert typical(learned) == median
        taught([700] * (ENOUGH // 2), learned)
        assert typical(learned) == (median + 700) // 2


def test_a_tenant_counts_from_enough_answers_on():
    learned = Learned()
    for number in range(TENANTS):
        taught([100] * (ENOUGH - 1), learned, tenant=f"tenant {number}")
    assert typical(learned) == START
    for number in range(TENANTS):
        assert typical(learned) == START
        taught([100], learned, tenant=f"tenant {number}")
    assert typical(learned) == 100


def test_what_the_other_tenants_show_stays_within_its_bounds():
    learned = Learned()
    teach_tenants(learned, [1] * TENANTS)
    assert typical(learned) == 32
    assert typical(learned, learned_output_min_tokens=200) == 200
    learned = Learned()
    teach_tenants(learned, [MAX_TOKENS] * TENANTS)
    assert typical(learned) == 4096
    assert typical(learned, learned_output_max_tokens=1) == START


@pytest.mark.parametrize("own", [1, 99, 100, 101, 500, 900])
def test_what_a_tenant_holds_at_least_does_not_depend_on_its_own_answers(own):
    """The other tenants' median counts, wherever the tenant's own figure stands among theirs."""
    learned = Learned()
    teach_tenants(learned, [98, 99, 100, 500, 900])
    taught([own] * WINDOW, learned)
    assert typical(learned) == max(100, own)


@pytest.mark.parametrize("lie", [1, MAX_TOKENS])
def test_a_minority_of_tenants_moves_the_median_only_between_figures_of_the_others(lie):
    learned = Learned()
    teach_tenants(learned, [300, 310, 320, lie, lie])
    assert 300 <= typical(learned) <= 320


def test_a_tenants_figure_follows_its_answers():
    learned = Learned()
    teach_tenants(learned, [100] * TENANTS)
    for number in range(TENANTS):
        taught([200] * WINDOW, learned, tenant=f"tenant {number}")
    assert typical(learned) == 200


def teach_prompts(learned, tenant="t", *, per_token=5, fixed=48, kind=PromptKind.BYTES):
    for number in range(ENOUGH):
        size = 100 * 2 ** (number % 8)
        observe(learned, tenant=tenant, prompt=PromptSize(kind, size), prompt_tokens=fixed + size // per_token)


def test_prompts_of_other_tenants_show_bytes_per_token_and_what_a_template_adds():
    learned = Learned()
    for number in range(TENANTS - 1):
        teach_prompts(learned, f"tenant {number}")
    assert estimate(learned) == estimate(Learned())
    teach_prompts(learned, "one more")
    assert estimate(learned) == pytest.approx(48 + LARGE // 5, rel=0.05)
    assert estimate(learned, 500) == pytest.approx(48 + 100, rel=0.05)
    assert estimate(learned, learned_bytes_per_token_max=4) == pytest.approx(48 + LARGE // 4, rel=0.05)
    assert estimate(learned, kind=PromptKind.BYTES_WITH_TOOLS) == estimate(Learned())


# Prompts.


def test_of_an_unknown_model_a_prompt_is_estimated_from_what_is_configured():
    assert estimate(Learned(), 3000) == 1008
    assert estimate(Learned(), 3001) == 1009


def test_nine_in_ten_large_prompts_are_not_underestimated():
    rng = random.Random(2)
    learned = Learned()
    prompts = [(rng.randrange(1024, 50_000), rng.randrange(35, 55)) for _ in range(WINDOW)]
    sizes = [(size, 8 + size * 10 // per_token) for size, per_token in prompts]
    for size, tokens in sizes:
        observe(learned, prompt_bytes=size, prompt_tokens=tokens)
    short = sum(estimate(learned, size) < tokens for size, tokens in sizes)
    assert short <= WINDOW // 10 + 1
    assert sum(estimate(learned, size) for size, _ in sizes) < 1.3 * sum(tokens for _, tokens in sizes)


@pytest.mark.parametrize("seed", range(5))
def test_the_estimate_finds_a_models_bytes_per_token_and_its_overhead(seed):
    rng = random.Random(seed)
    learned = Learned()

    def prompt():
        size = rng.choice([rng.randrange(40, 800), rng.randrange(1024, 40_000)])
        return size, 12 + int(size / rng.gauss(4.2, 0.15))

    for _ in range(4 * WINDOW):
        size, tokens = prompt()
        observe(learned, prompt_bytes=size, prompt_tokens=tokens)
    errors = [(estimate(learned, size) - tokens, tokens) for size, tokens in (prompt() for _ in range(300))]
    assert sum(error < 0 for error, _ in errors) < 300 * 0.2
    assert all(-0.15 * tokens <= error <= 0.2 * tokens + 12 for error, tokens in errors)


def test_what_is_configured_for_prompts_fades_out_with_the_first_of_them():
    learned, seen = Learned(), []
    for _ in range(ENOUGH + 1):
        seen.append(estimate(learned))
        observe(learned, prompt_tokens=8 + LARGE // 5)
    assert seen[0] == 8 + -(-LARGE // RATIO)
    assert seen[ENOUGH // 2] == pytest.approx(8 + LARGE // 4, rel=0.02)
    assert seen[ENOUGH] == pytest.approx(8 + LARGE // 5, rel=0.02)
    assert seen == sorted(seen, reverse=True)


def test_what_a_template_adds_of_its_own_is_learned():
    learned = Learned()
    teach_prompts(learned, per_token=4, fixed=76)
    assert estimate(learned, 60) == pytest.approx(76 + 15, rel=0.08)
    assert estimate(learned, 60_000) == pytest.approx(76 + 15_000, rel=0.08)


def test_small_prompts_teach_too():
    learned = Learned()
    for size in range(40, 40 + 8 * WINDOW, 8):
        observe(learned, prompt_bytes=size, prompt_tokens=10 + size // 4)
    assert estimate(learned, 80) == pytest.approx(30, rel=0.1)
    assert estimate(learned, 800) == pytest.approx(210, rel=0.05)


@pytest.mark.parametrize("kind", PromptKind)
def test_each_kind_of_prompt_is_learned_apart(kind):
    learned = Learned()
    teach_prompts(learned, per_token=2, kind=kind)
    for other in PromptKind:
        assert (estimate(learned, kind=other) == estimate(Learned(), kind=other)) == (other is not kind)


def test_a_counted_prompt_is_held_as_counted_and_with_what_the_template_adds():
    learned = Learned()
    assert estimate(learned, 100, kind=PromptKind.TOKENS) == 108
    teach_prompts(learned, kind=PromptKind.TOKENS, per_token=1, fixed=3)
    assert estimate(learned, 1000, kind=PromptKind.TOKENS) == pytest.approx(1003, abs=3)
    assert estimate(learned, 20, kind=PromptKind.TOKENS) == pytest.approx(23, abs=2)


@pytest.mark.parametrize(("kind", "least"), [(PromptKind.TOKENS, 1000), (PromptKind.TOKENS_WITH_TOOLS, 500)])
def test_prompts_teach_no_less_than_was_counted_and_tools_no_less_than_half(kind, least):
    learned = Learned()
    teach_prompts(learned, kind=kind, per_token=9, fixed=1)
    assert least <= estimate(learned, 1000, kind=kind) <= least + 5


@pytest.mark.parametrize(
    "changes",
    [{"prompt": None}, {"prompt_tokens": 0}, {"prompt_tokens": -5}, {"prompt_bytes": 0}, {"prompt_bytes": -1}],
)
@pytest.mark.parametrize("size", [60, LARGE])
def test_a_request_that_says_nothing_about_text_does_not_calibrate(changes, size):
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, **({"prompt_bytes": size, "prompt_tokens": size} | changes))
    assert estimate(learned) == estimate(Learned())


@pytest.mark.parametrize(
    ("configured", "tokens", "per_token"),
    [
        ({}, MAX_TOKENS, 1),  # never less than a byte per token
        ({}, 9, 6),
        ({"learned_bytes_per_token_max": 16}, 1, 16),  # never more than 16
        ({"learned_bytes_per_token_min": 2}, MAX_TOKENS, 2),
        ({"prompt_bytes_per_token": 8}, 9, 8),  # the configured value is always possible
        ({"prompt_bytes_per_token": 1, "learned_bytes_per_token_min": 4}, MAX_TOKENS, 1),
    ],
)
def test_what_prompts_teach_stays_within_the_configured_bytes_per_token(configured, tokens, per_token):
    learned, start = Learned(), start_of(**configured)
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=LARGE, prompt_tokens=tokens, start=start)
    more = estimate(learned, 9 * LARGE, **configured) - estimate(learned, 8 * LARGE, **configured)
    assert more == pytest.approx(LARGE / per_token, abs=1)


def test_what_a_template_may_add_is_bounded():
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=60, prompt_tokens=MAX_TOKENS)
    assert estimate(learned, 60) == 60 + 8 + 2048


def test_a_start_out_of_range_is_brought_into_it():
    assert estimate(Learned(), 100, prompt_bytes_per_token=0) == 108
    assert estimate(Learned(), 1600, prompt_bytes_per_token=99) == 108
    learned = Learned()
    observe(learned, start=start_of(prompt_bytes_per_token=0))
    observe(learned, prompt_bytes=60, start=start_of(prompt_bytes_per_token=-4))
    assert estimate(learned, 100, prompt_bytes_per_token=0) >= 1


# All of it.

ANY = st.integers(-(2**70), 2**70) | st.integers(0, 5000)
STARTS = st.builds(
    start_of,
    prompt_bytes_per_token=st.integers(-2, 40),
    prompt_overhead_tokens=ANY,
    typical_output_tokens=ANY,
    learned_output_min_tokens=ANY,
    learned_output_max_tokens=ANY,
    learned_bytes_per_token_min=st.integers(-2, 40),
    learned_bytes_per_token_max=st.integers(-2, 40),
)
OBSERVATIONS = st.lists(
    st.fixed_dictionaries(
        {
            "tenant": st.sampled_from("xyz"),
            "model": st.sampled_from("ab"),
            "start": STARTS,
            "prompt": st.builds(PromptSize, st.sampled_from(PromptKind), ANY) | st.none(),
            "prompt_tokens": ANY,
            "output_per_choice": ANY,
            "bounded": st.booleans(),
        }
    ),
    max_size=60,
)


@FEWER
@given(OBSERVATIONS, STARTS, st.lists(st.integers(0, 2**27), max_size=6))
def test_estimates_are_token_counts_and_grow_with_the_prompt_whatever_was_observed(seen, start, sizes):
    learned = Learned(profiles=3)
    for observation in seen:
        learned.observe(**observation)
    for model in ("a", "b", "never seen"):
        held = learned.typical_output("x", model, start)
        assert 1 <= start.output_low <= start.output <= held <= start.output_high <= MAX_TOKENS
        for kind in PromptKind:
            estimates = [
                learned.prompt_tokens("x", model, start, PromptSize(kind, size)) for size in sorted(sizes)
            ]
            assert estimates == sorted(estimates)
            assert all(1 <= tokens <= MAX_TOKENS for tokens in estimates)


@FEWER
@given(OBSERVATIONS)
def test_the_same_observations_give_the_same_estimates(seen):
    one, other = Learned(), Learned()
    for observation in seen:
        one.observe(**observation)
        other.observe(**observation)
        typical(one, model="b", tenant="x")  # reading changes nothing
        estimate(one, model="a", tenant="x")
    for tenant in "xyz":
        for model in "ab":
            assert typical(one, model, tenant) == typical(other, model, tenant)
            assert estimate(one, model=model, tenant=tenant) == estimate(other, model=model, tenant=tenant)


@FEWER
@given(st.lists(st.integers(1, 2000), min_size=ENOUGH, max_size=3 * WINDOW))
def test_the_typical_output_is_the_ninth_decile_of_the_window_or_the_configured_one(outputs):
    window = sorted(outputs[-WINDOW:])
    assert typical(taught(outputs)) == max(window[len(window) - 1 - len(window) // 10], START)


# Room.


def test_models_are_learned_one_by_one():
    learned = taught([300] * WINDOW)
    for _ in range(WINDOW):
        observe(learned, "other", output_per_choice=900, prompt_tokens=LARGE)
    assert typical(learned) == 300
    assert typical(learned, "other") == 900
    assert estimate(learned, model="other") > estimate(learned, model="m")


@pytest.mark.parametrize("of", ["model", "tenant"])
def test_a_flood_of_names_neither_grows_without_bound_nor_pushes_out_what_was_learned(of):
    learned = Learned(profiles=40)
    taught([900] * ENOUGH, learned, model="real")
    for number in range(10_000):
        observe(learned, **{of: f"made up {number}"})
    assert len(learned) == 11
    assert typical(learned, "real") == 900


def test_a_tenants_flood_of_models_that_are_all_learned_takes_no_profile_of_another_tenant():
    learned = Learned(profiles=40)  # room for thirty that are known
    for model in ("a", "b", "c"):
        taught([900] * ENOUGH, learned, model=model)
    for number in range(200):
        taught([700] * ENOUGH, learned, model=f"made up {number}", tenant="flood")
    assert [typical(learned, model) for model in "abc"] == [900, 900, 900]
    assert typical(learned, "made up 199", "flood") == 700
    assert len(learned) == 30


def test_of_a_tenants_many_models_the_one_that_was_observed_least_lately_is_forgotten():
    learned = Learned(profiles=4)  # room for three
    for model in ("a", "b", "c"):
        taught([900] * ENOUGH, learned, model=model)
    observe(learned, "a", output_per_choice=900)
    taught([900] * ENOUGH, learned, model="d")
    assert len(learned) == 3
    assert [typical(learned, model) for model in "abcd"] == [900, START, 900, 900]


def test_of_many_new_models_the_one_that_was_observed_least_lately_is_forgotten():
    learned = Learned(profiles=8)  # room for two
    for model in ("a", "b", "a", "c"):
        observe(learned, model, output_per_choice=900)
    assert [typical(learned, model) > START for model in "abc"] == [True, False, True]


def test_there_is_room_for_a_model_however_little_was_asked_for():
    learned = Learned(profiles=0)
    for model in ("a", "b"):
        taught([900] * ENOUGH, learned, model=model)
    assert [typical(learned, model) for model in "ab"] == [START, 900]


def test_what_a_forgotten_profile_showed_does_not_count_any_more():
    learned = Learned(profiles=8)  # room for six
    teach_tenants(learned, [100] * TENANTS)
    for number in range(TENANTS):
        teach_prompts(learned, f"tenant {number}")
    assert typical(learned) == 100
    assert estimate(learned, 0) > estimate(Learned(), 0)
    for number in range(3):
        taught([700] * ENOUGH, learned, model="other", tenant=f"other {number}")
    assert typical(learned) == START
    assert estimate(learned, 0) == estimate(Learned(), 0)
    for number in range(3, 6):
        taught([700] * ENOUGH, learned, model="other", tenant=f"other {number}")
    assert len(learned._shared) == 1
    assert typical(learned, "other") == 700
