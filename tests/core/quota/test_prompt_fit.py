import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.prompt_fit import Expected, PromptFit, PromptKind
from extproc.core.quota.recent import ENOUGH, WINDOW
from tests.core.samples import FEWER

EXPECTED = Expected(ratio=3000, ratio_low=1000, ratio_high=6000, fixed=8, fixed_low=8, fixed_high=2056)


def fitted(prompts, expected=EXPECTED):
    fit = PromptFit()
    for size, tokens in prompts:
        fit.add(size, tokens, expected)
    return fit


def needs(fit, size):
    ratio, fixed = fit.ratio.estimate(3000, 1, 2**32), fit.fixed.estimate(8, 0, 2**32)
    return size * 1000 / ratio + fixed


def line(per_token, fixed, sizes):
    return [(size, fixed + size // per_token) for size in sizes]


SIZES = [50 * 2 ** (number % 9) for number in range(ENOUGH)]


@pytest.mark.parametrize(("per_token", "fixed"), [(4, 8), (4, 70), (5, 300), (2, 20)])
def test_a_fit_finds_tokens_per_byte_and_for_each_prompt(per_token, fixed):
    fit = fitted(line(per_token, fixed, SIZES))
    for size in (60, 600, 6000, 60_000):
        assert needs(fit, size) == pytest.approx(fixed + size / per_token, rel=0.07)


def test_nine_in_ten_prompts_need_no_more_and_not_much_less():
    rng = random.Random(3)
    prompts = [
        (size, 20 + int(size / rng.uniform(3.5, 4.5))) for size in (rng.randrange(50, 9000) for _ in range(WINDOW))
    ]
    fit = fitted(prompts)
    over = sum(tokens > needs(fit, size) for size, tokens in prompts)
    assert WINDOW // 20 < over <= WINDOW // 10 + 1
    assert sum(needs(fit, size) for size, _ in prompts) < 1.2 * sum(tokens for _, tokens in prompts)


def test_prompts_of_one_size_are_met_at_that_size():
    fit = fitted([(1000, 260)] * ENOUGH)
    assert needs(fit, 1000) == pytest.approx(260, rel=0.04)


def test_an_odd_prompt_among_many_moves_little():
    usual = line(4, 20, SIZES)
    for odd in [(40, 100_000), (100_000, 1), (1000, 1), (1000, 50_000)]:
        fit = fitted([*usual, odd])
        for size in (100, 1000, 10_000):
            assert needs(fit, size) == pytest.approx(20 + size / 4, rel=0.07)


def test_only_the_latest_prompts_count():
    fit = fitted(line(2, 100, SIZES) * 4 + line(5, 10, SIZES) * (WINDOW // ENOUGH))
    assert needs(fit, 2000) == pytest.approx(410, rel=0.05)


def test_a_full_window_is_fitted_anew_after_some_more_prompts():
    fit = fitted(line(5, 10, SIZES) * (WINDOW // ENOUGH))
    before = needs(fit, 1000)
    for size, tokens in line(2, 10, SIZES):
        fit.add(size, tokens, EXPECTED)
    assert needs(fit, 1000) > before


def test_the_kind_of_a_prompt_is_what_it_is_measured_by_and_whether_it_has_tools():
    assert PromptKind.of(counted=False, tools=False) is PromptKind.BYTES
    assert PromptKind.of(counted=False, tools=True) is PromptKind.BYTES_WITH_TOOLS
    assert PromptKind.of(counted=True, tools=False) is PromptKind.TOKENS
    assert PromptKind.of(counted=True, tools=True) is PromptKind.TOKENS_WITH_TOOLS


@FEWER
@given(st.lists(st.tuples(st.integers(1, 2**70), st.integers(1, 2**70)), min_size=1, max_size=60))
def test_any_prompts_have_a_fit(prompts):
    fit = fitted(prompts)
    assert fit.ratio.estimate(3000, 1000, 6000) in range(1000, 6001)
    assert fit.fixed.estimate(8, 8, 2056) in range(8, 2057)
