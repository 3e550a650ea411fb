import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.learning import ENOUGH, LARGE_PROMPT_BYTES, WINDOW, Learned
from extproc.core.request.body import MAX_TOKENS
from tests.core.samples import FEWER

START = 256
RATIO = 3
LARGE = 10 * LARGE_PROMPT_BYTES


def observe(learned, model="m", **changes):
    sample = {
        "prompt_bytes": LARGE,
        "overhead_tokens": 8,
        "media_parts": 0,
        "prompt_tokens": LARGE // 4,
        "output_per_choice": 100,
        "bounded": False,
        "start_bytes_per_token": RATIO,
    }
    learned.observe(model, **(sample | changes))


def taught(outputs, **changes):
    learned = Learned()
    for output in outputs:
        observe(learned, output_per_choice=output, **changes)
    return learned


def estimate(learned, size=LARGE, model="m", overhead=8, start=RATIO):
    return learned.prompt_tokens(model, prompt_bytes=size, overhead_tokens=overhead, start_bytes_per_token=start)


# Typical output.


def test_of_an_unknown_model_the_typical_output_is_the_configured_one():
    assert Learned().typical_output("m", START) == START


def test_nine_in_ten_answers_stay_within_the_typical_output():
    outputs = [*range(300, 300 + WINDOW)]
    random.Random(1).shuffle(outputs)
    typical = taught(outputs).typical_output("m", START)
    assert sum(output > typical for output in outputs) == WINDOW // 10


def test_one_long_answer_among_many_does_not_move_the_typical_output():
    assert taught([300] * 100 + [MAX_TOKENS]).typical_output("m", START) == 300


def test_the_configured_output_fades_out_with_the_first_answers():
    seen = [taught([512] * count).typical_output("m", START) for count in range(ENOUGH + 1)]
    assert seen[0] == START
    assert seen[ENOUGH // 2] == (START + 512) // 2
    assert seen[ENOUGH] == 512
    assert seen == sorted(seen)


def test_only_the_latest_answers_count():
    learned = taught([2000] * 500 + [300] * WINDOW)
    assert learned.typical_output("m", START) == 300


def test_old_answers_leave_in_the_order_in_which_they_came():
    learned = taught([300] * WINDOW + [400] * (WINDOW // 2))
    assert learned.typical_output("m", START) == 400
    for _ in range(WINDOW // 2):
        observe(learned, output_per_choice=300)
    assert learned.typical_output("m", START) == 400
    for _ in range(WINDOW // 2):
        observe(learned, output_per_choice=300)
    assert learned.typical_output("m", START) == 300


def test_answers_to_requests_with_a_bound_teach_nothing_of_those_without():
    assert taught([5] * WINDOW, bounded=True).typical_output("m", START) == START


def test_an_answer_without_output_teaches_nothing_of_outputs():
    assert taught([0] * WINDOW + [-7] * WINDOW).typical_output("m", START) == START


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [([1] * WINDOW, START // 8), ([MAX_TOKENS] * WINDOW, START * 16), ([2**80] * WINDOW, START * 16)],
)
def test_what_answers_teach_stays_near_the_configured_output(outputs, expected):
    assert taught(outputs).typical_output("m", START) == expected


def test_the_typical_output_is_a_token_count_for_any_start():
    assert taught([1] * WINDOW).typical_output("m", 1) == 1
    assert taught([MAX_TOKENS] * WINDOW).typical_output("m", MAX_TOKENS) == MAX_TOKENS
    assert Learned().typical_output("m", 0) == 1


def test_media_requests_teach_of_outputs_all_the_same():
    assert taught([300] * WINDOW, media_parts=1).typical_output("m", START) == 300


# Prompts.


def test_of_an_unknown_model_a_prompt_is_estimated_from_what_is_configured():
    assert estimate(Learned(), 3000) == 1008
    assert estimate(Learned(), 3001) == 1009


def test_nine_in_ten_large_prompts_are_not_underestimated():
    rng = random.Random(2)
    learned = Learned()
    prompts = [(rng.randrange(LARGE_PROMPT_BYTES, 50_000), rng.randrange(35, 55)) for _ in range(WINDOW)]
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
        size = rng.choice([rng.randrange(40, 800), rng.randrange(LARGE_PROMPT_BYTES, 40_000)])
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
    assert seen[ENOUGH // 2] == 8 + LARGE // 4
    assert seen[ENOUGH] == 8 + LARGE // 5
    assert seen == sorted(seen, reverse=True)


def test_what_a_template_adds_of_its_own_is_learned_from_small_prompts():
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=60, prompt_tokens=20 + 8 + 68)
    assert estimate(learned, 60) == 96
    assert estimate(learned, LARGE) == 8 + 68 + -(-LARGE // RATIO)


def test_small_prompts_do_not_change_bytes_per_token():
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=LARGE_PROMPT_BYTES - 1, prompt_tokens=100)
    assert estimate(learned) == estimate(Learned())
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=LARGE_PROMPT_BYTES, prompt_tokens=8 + 256)
    assert estimate(learned) == 8 + LARGE // 4


def test_small_prompts_are_measured_by_the_bytes_per_token_that_were_learned():
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, prompt_tokens=8 + LARGE // 4)
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=400, prompt_tokens=8 + 100 + 30)
    assert estimate(learned, 400) == 138


@pytest.mark.parametrize(
    "changes",
    [{"media_parts": 1}, {"prompt_tokens": 0}, {"prompt_tokens": -5}, {"prompt_bytes": 0}, {"prompt_bytes": -1}],
)
@pytest.mark.parametrize("size", [60, LARGE])
def test_a_request_that_says_nothing_about_text_does_not_calibrate(changes, size):
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, **({"prompt_bytes": size, "prompt_tokens": size} | changes))
    assert estimate(learned) == estimate(Learned())


@pytest.mark.parametrize(
    ("start", "tokens", "per_token"),
    [
        (3, MAX_TOKENS, 1),  # never less than a byte per token
        (3, 9, 12),  # four times what is configured
        (8, MAX_TOKENS, 2),  # a quarter of it
        (16, 9, 16),  # never more than 16
    ],
)
def test_what_prompts_teach_stays_near_the_configured_bytes_per_token(start, tokens, per_token):
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=LARGE, prompt_tokens=tokens, start_bytes_per_token=start)
    assert estimate(learned, start=start) == 8 + -(-LARGE // per_token)


def test_what_a_template_may_add_is_bounded():
    learned = Learned()
    for _ in range(WINDOW):
        observe(learned, prompt_bytes=60, prompt_tokens=MAX_TOKENS)
    assert estimate(learned, 60) == 20 + 8 + 2048


def test_a_start_out_of_range_is_brought_into_it():
    assert estimate(Learned(), 100, start=0) == 108
    assert estimate(Learned(), 1600, start=99) == 108
    learned = Learned()
    observe(learned, start_bytes_per_token=0)
    observe(learned, prompt_bytes=60, start_bytes_per_token=-4)
    assert estimate(learned, 100, start=0) >= 1


# All of it.

ANY = st.integers(-(2**70), 2**70) | st.integers(0, 5000)
OBSERVATIONS = st.lists(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from("ab"),
            "prompt_bytes": ANY,
            "overhead_tokens": ANY,
            "media_parts": st.integers(0, 1),
            "prompt_tokens": ANY,
            "output_per_choice": ANY,
            "bounded": st.booleans(),
            "start_bytes_per_token": st.integers(-2, 40),
        }
    ),
    max_size=60,
)


@FEWER
@given(OBSERVATIONS, st.integers(1, MAX_TOKENS), st.integers(1, 16), st.lists(st.integers(0, 2**27), max_size=6))
def test_estimates_are_token_counts_and_grow_with_the_prompt_whatever_was_observed(seen, start, ratio, sizes):
    learned = Learned()
    for observation in seen:
        learned.observe(**observation)
    for model in ("a", "b", "never seen"):
        typical = learned.typical_output(model, start)
        assert max(1, start // 8) <= typical <= min(MAX_TOKENS, start * 16)
        estimates = [estimate(learned, size, model, start=ratio) for size in sorted(sizes)]
        assert estimates == sorted(estimates)
        assert all(1 <= tokens <= MAX_TOKENS for tokens in estimates)


@FEWER
@given(OBSERVATIONS)
def test_the_same_observations_give_the_same_estimates(seen):
    one, other = Learned(), Learned()
    for observation in seen:
        one.observe(**observation)
        other.observe(**observation)
        one.typical_output("b", START)  # reading changes nothing
        estimate(one, model="a")
    assert [one.typical_output(model, START) for model in "ab"] == [
        other.typical_output(model, START) for model in "ab"
    ]
    assert estimate(one, model="a") == estimate(other, model="a")


@FEWER
@given(st.lists(st.integers(1, 2000), min_size=ENOUGH, max_size=3 * WINDOW))
def test_the_typical_output_is_the_ninth_decile_of_the_window(outputs):
    window = sorted(outputs[-WINDOW:])
    expected = min(max(window[len(window) - 1 - len(window) // 10], START // 8), START * 16)
    assert taught(outputs).typical_output("m", START) == expected


def test_models_are_learned_one_by_one():
    learned = taught([300] * WINDOW)
    for _ in range(WINDOW):
        observe(learned, "other", output_per_choice=900, prompt_tokens=LARGE)
    assert learned.typical_output("m", START) == 300
    assert learned.typical_output("other", START) == 900
    assert estimate(learned, model="other") > estimate(learned, model="m")


def test_a_flood_of_names_neither_grows_without_bound_nor_pushes_out_what_was_learned():
    learned = Learned(models=40)
    for _ in range(ENOUGH):
        observe(learned, "real", output_per_choice=900)
    for number in range(10_000):
        observe(learned, f"made up {number}")
    assert len(learned) == 11
    assert learned.typical_output("real", START) == 900


def test_of_many_known_models_the_one_that_was_observed_least_lately_is_forgotten():
    learned = Learned(models=4)  # room for three
    for model in ("a", "b", "c"):
        for _ in range(ENOUGH):
            observe(learned, model, output_per_choice=900)
    observe(learned, "a", output_per_choice=900)
    for _ in range(ENOUGH):
        observe(learned, "d", output_per_choice=900)
    assert len(learned) == 3
    assert [learned.typical_output(model, START) for model in "abcd"] == [900, START, 900, 900]


def test_of_many_new_models_the_one_that_was_observed_least_lately_is_forgotten():
    learned = Learned(models=8)  # room for two
    for model in ("a", "b", "a", "c"):
        observe(learned, model, output_per_choice=900)
    assert [learned.typical_output(model, START) > START for model in "abc"] == [True, False, True]


def test_there_is_room_for_a_model_however_little_was_asked_for():
    learned = Learned(models=0)
    for model in ("a", "b"):
        for _ in range(ENOUGH):
            observe(learned, model, output_per_choice=900)
    assert [learned.typical_output(model, START) for model in "ab"] == [START, 900]
