"""A figure counts only if the ledger equals what the upstream served."""

import pytest

from benchmarks.accounting import NOTHING
from benchmarks.counts import Recorded
from benchmarks.errors import CannotRunError
from benchmarks.forms import Phase, Step
from benchmarks.measuring import Snapshot, known_limits, wrong_counts
from benchmarks.variants import choose

PEAK = Step(Phase.PEAK, 4, 1.0)
STREAM = Step(Phase.STREAM, 4, 1.0, chunks=10, chunk_rate=25)
TOKENWEIR, TALK = (choose([name], quick=True).run[0] for name in ("tokenweir-grpc-reserve-2", "talk-redis"))


def load(begun=100, failed=0, unsent=0):
    return {"begun": begun, "failed": failed, "unsent": unsent, "first_error": "status 503"}


def snapshot(requests=0, tokens=0, recorded=None):
    served = {"requests": requests, "tokens": tokens}
    return Snapshot({}, NOTHING, 0.0, 0.0, 0.0, 0.0, None, served, recorded, 0)


BEFORE = snapshot(recorded=Recorded(0, 0))


def wrong(variant, step, load, *, served, recorded):
    return wrong_counts(variant, step, load, BEFORE, snapshot(*served, Recorded(*recorded)))


def test_equal_counts_are_right():
    assert wrong(TOKENWEIR, PEAK, load(), served=(100, 3300), recorded=(100, 3300)) == []


@pytest.mark.parametrize(
    ("admitted", "charged", "why"),
    [
        (99, 3300, "the ledger has 99 entries of 100 admitted requests"),
        (101, 3300, "the ledger has 101 entries of 100 admitted requests"),
        (100, 3299, "3299 of 3300 tokens are recorded"),
        (100, 3301, "3301 of 3300 tokens are recorded"),
        (None, 3299, "3299 of 3300 tokens are recorded"),
    ],
)
def test_a_ledger_that_differs_by_one_is_wrong(admitted, charged, why):
    assert wrong(TOKENWEIR, PEAK, load(), served=(100, 3300), recorded=(admitted, charged)) == [why]


def test_a_wrong_answer_and_a_request_that_the_upstream_never_saw_are_wrong():
    found = wrong(TOKENWEIR, PEAK, load(failed=1), served=(99, 3267), recorded=(99, 3267))
    assert found == [
        "1 of 100 answers were wrong: status 503",
        "100 requests were sent, and the upstream served 99",
    ]


def test_without_a_ledger_the_upstream_is_compared_all_the_same():
    assert wrong_counts(TOKENWEIR, PEAK, load(), snapshot(), snapshot(requests=99)) != []


def test_only_the_compared_design_may_count_no_token_of_a_stream():
    assert wrong(TALK, STREAM, load(), served=(100, 3500), recorded=(100, 0)) == []
    assert wrong(TOKENWEIR, STREAM, load(), served=(100, 3500), recorded=(100, 0)) != []
    assert wrong(TALK, PEAK, load(), served=(100, 3300), recorded=(100, 0)) != []
    after = snapshot(100, 3500, Recorded(100, 0))
    assert known_limits(TALK, STREAM, load(), BEFORE, after) == ["this design counts no tokens of a stream"]


def test_a_rate_that_is_not_held_is_a_limit_and_no_fault():
    found = known_limits(TOKENWEIR, Step(Phase.RATE, 4, 1.0, rate=200), load(unsent=7), BEFORE, BEFORE)
    assert found == ["does not hold 200/s: 7 requests were not begun in time"]


def test_what_can_not_start_is_left_out_with_its_reason():
    chosen = choose(["envoy", "jwt"], quick=True).without({"jwt": "no such part"})
    assert [each.name for each in chosen.run] == ["envoy"]
    assert chosen.left_out == {"jwt": "no such part"}
    with pytest.raises(CannotRunError, match="envoy: nor this"):
        chosen.without({"envoy": "nor this"})
