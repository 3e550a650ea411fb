"""How much more is held for an answer that outgrows its hold."""

import pytest

from extproc.core.quota.costs import Cost, Weights
from extproc.core.quota.growth import beyond, enough, grown
from extproc.core.request.body import RequestFacts
from tests.core.samples import reservation

FACTS = RequestFacts("tiny", True, 1, None, 80, 0, True)


@pytest.mark.parametrize(
    ("weights", "as_output"),
    [
        (Weights(), 130),
        (Weights(2000, 2000, 1000, 1000), 260),
        (Weights(1000, 1000, 3000, 3000), 44),
        (Weights(1000, 1000, 0, 0), 0),
    ],
)
def test_a_prompt_beyond_its_estimate_is_held_at_its_weight(weights, as_output):
    held = reservation(Cost(20, 30), weights=weights)
    assert beyond(held, 150) == as_output
    larger = grown(held, 40 + as_output, as_output)
    assert larger.output_held == as_output + 40 + max(64, 30 - as_output)
    assert larger.cost == held.cost


def test_no_more_is_held_where_the_hold_suffices_for_the_prompt_and_the_output():
    held = reservation(Cost(20, 30))
    assert beyond(held, 15) == beyond(held, 20) == 0
    assert enough(held, FACTS) == 29
    assert grown(held, 10 + beyond(held, 40), beyond(held, 40)).extra_output == 20 + 10 - 30 + 64
