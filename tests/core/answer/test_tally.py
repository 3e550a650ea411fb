"""What readings add up to: which usage counts, and when what was counted counts instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple, replace

from extproc.core.answer import tally
from extproc.core.answer.reading import Reading
from extproc.core.answer.tally import Tally
from extproc.core.answer.usage_reader import Absence, DoubtfulUsage, Part
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates, Outcome
from extproc.core.quota.usage import Usage
from extproc.core.request.body import MAX_TOKENS
from tests.core.samples import FUZZ

HELD = Estimates(Cost(20, 30), bytes_per_token=4)


def tallied(*readings, held=HELD):
    found = Tally(held)
    for reading in readings:
        found.add(reading)
    return found


def piece(usage=Absence.MISSING, size=4, **fields):
    return Reading(usage, content_bytes=size, pieces=1, choices=True, **fields)


def part(*counts):
    return Reading(Part(*counts).usage(), part=Part(*counts))


def ends(found, *, complete=True):
    settlement = found.settlement(complete=complete)
    return settlement.outcome, settlement.usage, settlement.reason


OPENING = part(10, 1, 80, None)
ESTIMATED, SETTLED = Outcome.ESTIMATED, Outcome.SETTLED


@pytest.mark.parametrize(("complete", "reason"), [(True, "usage"), (False, "cut_off")])
def test_usage_in_parts_is_put_together(complete, reason):
    found = tallied(OPENING, piece(), piece(), part(None, 16, None, None))
    assert ends(found, complete=complete) == (SETTLED, Usage(90, 16, cached=80, total=106), reason)


def test_a_part_takes_nothing_back():
    for last in (part(None, None, None, None), part(0, 0, 0, 0)):
        found = tallied(OPENING, piece(), part(None, 16, None, 5), last)
        expected = Usage(95, 16, cached=80, total=111, cache_written=5)
        assert ends(found)[:2] == (SETTLED, expected)


@pytest.mark.parametrize(("complete", "reason"), [(True, "missing"), (False, "cut_off")])
def test_where_only_the_opening_came_the_output_is_what_was_counted(complete, reason):
    found = tallied(OPENING, *[piece() for _ in range(7)])
    assert ends(found, complete=complete) == (ESTIMATED, Usage(90, 7, cached=80, total=97), reason)
    assert found.settlement(complete=complete).charge == 50  # no more than was held
    assert found.settlement(complete=complete).capped


@pytest.mark.parametrize("complete", [True, False])
def test_where_the_opening_tells_more_than_was_counted_it_stands(complete):
    found = tallied(part(10, 3, None, None), piece())
    assert ends(found, complete=complete)[:2] == (SETTLED, Usage(10, 3, total=13))


def test_no_more_output_is_counted_than_was_held():
    assert ends(tallied(OPENING, piece(size=4000)))[1].output == 30


def test_content_after_the_last_usage_counts_where_it_is_more():
    stale = tallied(piece(Usage(10, 1, total=11)), piece(), piece())
    assert ends(stale, complete=False) == (ESTIMATED, Usage(10, 3, total=13), "cut_off")
    assert ends(tallied(piece(), piece(), Reading(Usage(10, 1, total=11))))[0] is SETTLED


@pytest.mark.parametrize(("complete", "reason"), [(True, "absurd"), (False, "cut_off")])
def test_no_output_for_content_is_absurd_and_the_prompt_is_believed(complete, reason):
    found = tallied(piece(size=12), Reading(Usage(10, 0, total=10)))
    assert ends(found, complete=complete) == (ESTIMATED, Usage(10, 3, total=13), reason)


def test_no_output_for_content_stands_where_none_was_to_come():
    echo = tallied(piece(size=12), Reading(Usage(10, 0, total=10)), held=Estimates(Cost(20, 0), 4))
    assert ends(echo) == (SETTLED, Usage(10, 0, total=10), "usage")


def test_what_the_total_knows_beyond_input_and_output_is_kept_when_output_is_counted():
    assert ends(tallied(Reading(Usage(10, 1, total=100)), piece(), piece()), complete=False)[1].total == 101


def test_counted_output_never_takes_the_total_over_the_bound():
    found = tallied(Reading(Usage(MAX_TOKENS - 1, 1, total=MAX_TOKENS)), piece(), piece())
    assert ends(found, complete=False)[1] == Usage(MAX_TOKENS - 1, 2, total=MAX_TOKENS)


@pytest.mark.parametrize("absence", [Absence.ABSURD, Absence.OTHER_UNIT])
def test_usage_that_can_not_be_is_the_reason_unless_other_usage_came(absence):
    assert ends(tallied(piece(), Reading(absence)))[2] == absence
    assert ends(tallied(Reading(Usage(10, 16, total=26)), Reading(absence)))[2] == "usage"


def test_what_is_no_json_in_a_stream_is_not_the_reason():
    assert ends(tallied(Reading(Absence.UNREADABLE, content_bytes=4, pieces=1)))[2] == "missing"


@pytest.mark.parametrize("complete", [True, False])
def test_an_error_releases_only_what_had_no_content(complete):
    error = Reading(Absence.MISSING, error=True)
    assert ends(tallied(error), complete=complete)[0] is Outcome.RELEASED
    assert ends(tallied(piece(), error), complete=complete)[0] is ESTIMATED
    audio = Reading(Absence.MISSING, pieces=1)
    assert tallied(audio, error).settlement(complete=complete).charge == 21


# Claims.


@pytest.mark.parametrize("complete", [True, False])
def test_a_claim_of_more_than_there_can_be_is_capped_marked_and_holds_no_more(complete):
    found = Tally(Estimates(Cost(20, 30), 4, bound=5))
    found.add(piece(), 4)
    found.add(Reading(Usage(10, 9_999_990, total=10_000_000)), 60)
    assert ends(found, complete=complete) == (ESTIMATED, Usage(10, 4106, total=4116), "implausible")
    assert found.settlement(complete=complete).charge == (4116 if complete else 50)
    assert found.output_tokens == 4106


def test_what_can_be_is_the_text_that_was_understood_else_all_that_came():
    assert tally.possible_tokens(piece(), 300) == 4
    assert tally.possible_tokens(Reading(Absence.MISSING, pieces=1), 300) == 300  # a sound
    assert tally.possible_tokens(Reading(Absence.MISSING), 300) == 300  # of a shape that nobody knows
    assert tally.possible_tokens(Reading(Absence.MISSING, choices=True), 300) == 0


# Counts that can't be.


@pytest.mark.parametrize(
    ("usage", "expected", "reason"),
    [
        (Usage(0, 9, total=9), Usage(20, 9, total=29), "partial"),
        (Usage(0, 9, total=12), Usage(20, 9, total=32), "partial"),
        (
            DoubtfulUsage(15, 9, cached=15, total=24, most_input=33),
            Usage(20, 9, cached=15, total=29),
            "implausible",
        ),
        (
            DoubtfulUsage(15, 9, cached=15, total=24, most_input=18),
            Usage(18, 9, cached=15, total=27),
            "implausible",
        ),
        (
            DoubtfulUsage(25, 9, cached=25, total=34, most_input=99),
            Usage(25, 9, cached=25, total=34),
            "implausible",
        ),
        (DoubtfulUsage(10, 9, total=19, most_input=10), Usage(10, 9, total=19), "implausible"),
    ],
)
def test_an_input_that_can_not_be_is_estimated_and_marked(usage, expected, reason):
    found = tallied(piece(), Reading(usage))
    outcome, told, why = ends(found)
    assert (outcome, why) == (ESTIMATED, reason)
    assert [getattr(told, name) for name in expected.__struct_fields__] == list(astuple(expected))
    assert found.settlement(complete=True).charge == expected.total
    assert found.settlement(complete=False).charge <= HELD.cost.total


@pytest.mark.parametrize(
    ("tokens", "size", "few"), [(0, 600, True), (1, 513, True), (1, 512, False), (16, 9000, False)]
)
def test_few_tokens_are_held_against_the_size_of_the_prompt(tokens, size, few):
    held = replace(HELD, prompt_bytes=size)
    outcome, usage, reason = ends(tallied(Reading(Usage(tokens, 5, total=tokens + 5)), held=held))
    assert (outcome, usage.input, reason) == ((ESTIMATED, 20, "partial") if few else (SETTLED, tokens, "usage"))


def test_an_input_of_nothing_stands_where_nothing_was_asked():
    held = Estimates(Cost(0, 30), 4)
    assert ends(tallied(Reading(Usage(0, 5, total=5)), held=held)) == (SETTLED, Usage(0, 5, total=5), "usage")


def test_few_tokens_are_held_against_the_size_of_the_answer():
    found = tallied(piece(size=4000), Reading(Usage(10, 1, total=11)))
    assert ends(found) == (ESTIMATED, Usage(10, 1000, total=1010), "absurd")
    assert found.settlement(complete=True).charge == 1010
    unknown = Reading(Absence.UNREADABLE, content_bytes=4000, pieces=1)
    assert ends(tallied(unknown, Reading(Usage(10, 1, total=11))))[0] is SETTLED


@pytest.mark.parametrize(
    ("size", "expected"),
    [(4, Usage(29, 1, total=30)), (48, Usage(18, 12, total=30)), (4000, Usage(20, 30, total=50))],
)
def test_of_a_total_alone_the_parts_are_estimated(size, expected):
    outcome, usage, reason = ends(tallied(piece(size=size), Reading(Usage(0, 0, total=30))))
    assert usage == expected
    assert (outcome, reason) == ((SETTLED, "usage") if expected.total == 30 else (ESTIMATED, "partial"))


def test_a_total_alone_is_all_input_where_nothing_is_generated():
    held = Estimates(Cost(20, 0), 4)
    assert ends(tallied(Reading(Usage(0, 0, total=30)), held=held)) == (SETTLED, Usage(30, 0, total=30), "usage")


def test_output_that_the_total_knows_is_not_charged_twice():
    assert ends(tallied(piece(size=12), Reading(Usage(10, 0, total=40)))) == (
        ESTIMATED,
        Usage(10, 3, total=40),
        "absurd",
    )


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (Usage(0, 9, total=9), Usage(10, 9, cached=4, total=19)),
        (Usage(10, 0, total=10), Usage(10, 5, total=15)),
        (Usage(0, 0, total=30), Usage(10, 20, cached=4, total=30)),
        (Usage(0, 0, total=3), Usage(10, 5, cached=4, total=15)),
        (Usage(0, MAX_TOKENS, total=MAX_TOKENS), Usage(10, MAX_TOKENS - 10, cached=4, total=MAX_TOKENS)),
        (Usage(12, 6, total=18), Usage(12, 6, total=18)),
    ],
)
def test_what_later_usage_does_not_say_was_said_before(later, expected):
    found = tallied(piece(), Reading(Usage(10, 5, cached=4, total=15)), Reading(later))
    assert found.reported == expected


# Output so far.


def test_output_so_far_is_what_was_reported_or_the_pieces():
    assert tallied().output_tokens == 0
    assert tallied(piece(), piece()).output_tokens == 2
    assert tallied(piece(Usage(10, 9, total=19)), piece()).output_tokens == 9
    assert tallied(OPENING, piece(), piece(), piece()).output_tokens == 3


# Usage of one choice each, as vLLM and SGLang report it on the way.


def of(index, output, prompt=10):
    return piece(Usage(prompt, output, total=prompt + output), choice=b"%d" % index)


def test_usage_that_each_choice_has_for_itself_is_summed_up():
    found = tallied(of(0, 1), of(1, 1), of(0, 2), of(1, 2), of(0, 3))
    assert found.output_tokens == 5
    assert ends(found, complete=False) == (SETTLED, Usage(10, 5, total=15), "cut_off")


def test_the_usage_of_all_choices_at_the_end_stands():
    last = Reading(Usage(10, 6, total=16))
    assert ends(tallied(of(0, 1), of(1, 1), of(0, 2), of(1, 2), of(0, 3), last))[1] == Usage(10, 6, total=16)


def test_usage_that_grows_over_all_choices_is_not_summed_up():
    assert ends(tallied(of(0, 1), of(1, 2), of(0, 3), of(1, 4)), complete=False)[1] == Usage(10, 4, total=14)


def test_a_choice_that_goes_on_for_itself_is_not_summed_up():
    assert ends(tallied(of(0, 1), of(0, 2), of(0, 2)), complete=False)[1] == Usage(10, 2, total=12)


def test_chunks_without_content_or_with_several_choices_tell_nothing_of_one():
    start = Reading(Usage(10, 0, total=10), choices=True, choice=b"1")
    several = Reading(Usage(10, 2, total=12), content_bytes=8, pieces=2, choices=True)
    assert ends(tallied(of(0, 1), start, several), complete=False)[1] == Usage(10, 2, total=12)


def test_the_memory_for_choices_is_bounded():
    found = tallied(*[of(index, 1) for index in range(3000)])
    assert len(found._outputs) == tally._MAX_CHOICES
    found.add(of(0, 5))
    assert found.reported.output == tally._MAX_CHOICES + 4


# Usage of each prompt's answer alone, as llama.cpp reports it.


def answer_to(index, prompt, output, **fields):
    return piece(Usage(prompt, output, total=prompt + output), choice=b"%d" % index, apart=True, **fields)


def test_the_usage_of_each_prompt_is_summed_up_however_the_answers_come():
    expected = (SETTLED, Usage(15, 5, total=20), "usage")
    assert ends(tallied(answer_to(0, 10, 1), answer_to(1, 5, 3), answer_to(0, 10, 2))) == expected
    assert ends(tallied(answer_to(1, 5, 3), answer_to(0, 10, 1), answer_to(0, 10, 2))) == expected


def test_usage_of_all_counts_before_that_of_each_prompt_when_it_comes_last():
    assert ends(tallied(answer_to(0, 10, 1), Reading(Usage(12, 4, total=16))))[1] == Usage(12, 4, total=16)


def test_sums_that_can_not_be_are_not_believed():
    found = tallied(answer_to(0, MAX_TOKENS, 0), answer_to(1, 1, 0))
    assert ends(found)[1].total <= MAX_TOKENS


def test_the_memory_for_prompts_is_bounded():
    found = tallied(*[answer_to(index, 1, 1) for index in range(3000)])
    assert found.reported.input == tally._MAX_CHOICES
    found.add(answer_to(0, 1, 5))
    assert found.reported.output == tally._MAX_CHOICES + 4


COUNT = st.none() | st.integers(0, MAX_TOKENS)
READINGS = st.builds(
    Reading,
    st.sampled_from(list(Absence))
    | st.builds(lambda i, o: Usage(i, o, total=max(1, i + o)), *[st.integers(0, 99)] * 2),
    content_bytes=st.integers(0, 99),
    pieces=st.integers(0, 3),
    choices=st.booleans(),
    error=st.booleans(),
    part=st.none() | st.builds(Part, COUNT, COUNT, COUNT, COUNT),
    choice=st.none() | st.sampled_from([b"0", b"1"]),
    apart=st.booleans(),
)


@FUZZ
@given(st.lists(READINGS, max_size=12), st.booleans())
def test_any_readings_end_in_a_settlement(readings, complete):
    found = tallied(*readings)
    settlement = found.settlement(complete=complete)
    assert 0 <= settlement.usage.total <= MAX_TOKENS
    assert settlement.charge >= 0
    assert complete or settlement.charge <= HELD.cost.total
    assert found.output_tokens >= found.pieces
