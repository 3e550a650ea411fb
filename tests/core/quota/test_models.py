"""What is known of models: found by their names, priced in whole billionths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.costs import Costing
from extproc.core.quota.models import FREE, MAX_PRICE, ModelProfile, Models, Prices
from extproc.core.quota.usage import Usage
from tests.core.samples import FUZZ

SMALL = ModelProfile(Costing(typical_output_tokens=1))
LARGE = ModelProfile(Costing(typical_output_tokens=2))
OTHER = ModelProfile(Costing(typical_output_tokens=3))


def test_the_first_entry_that_matches_counts_and_all_others_have_the_default():
    models = Models(OTHER, [("llama-*-8b", SMALL), ("llama-*", LARGE)])
    found = [models.profile(name) for name in ("llama-3-8b", "llama-3-70b", "qwen", "")]
    assert found == [SMALL, LARGE, OTHER, OTHER]
    assert models.profile("llama-3-8b") is SMALL  # as the second time
    assert Models(OTHER).profile("llama-3-8b") is OTHER


def test_names_that_are_made_up_leave_nothing_behind():
    models = Models(OTHER, [("llama-*", LARGE)])
    for number in range(5000):
        assert models.profile(f"x{number}") is OTHER
    assert len(models._found) <= 1024
    assert models.profile("llama-1") is LARGE


@pytest.mark.parametrize(
    ("prices", "usage", "billionths"),
    [
        (Prices(250_000, 25_000, 1_000_000), Usage(1_000_000, 1_000_000, total=2_000_000), 1_250_000_000),
        (Prices(250_000, 25_000, 1_000_000), Usage(1000, 0, cached=1000, total=1000), 25_000),
        (Prices(250_000, 25_000, 1_000_000), Usage(1000, 10, cached=400, total=1010), 150_000 + 10_000 + 10_000),
        (Prices(output=1_000_000), Usage(10, 10, total=25), 15_000),  # what only the total knows of is output
        (Prices(499), Usage(1, 0, total=1), 0),
        (Prices(500), Usage(1, 0, total=1), 1),
        (FREE, Usage(10**7, 10**7, total=10**7), 0),
    ],
)
def test_a_price_is_whole_billionths_of_the_currency(prices, usage, billionths):
    assert prices.of(usage) == billionths


@FUZZ
@given(st.integers(0, MAX_PRICE), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_no_price_is_negative_or_beyond_64_bits(price, tokens_in, tokens_out, cached):
    usage = Usage(tokens_in, tokens_out, cached=min(cached, tokens_in), total=tokens_in + tokens_out)
    assert 0 <= Prices(price, price, price).of(usage) < 2**63
