"""The text of the sample model: the same for the same question, cut where the limits say."""

import pytest

from extproc.local.model.generator import Prompt, Sampling, generate
from extproc.local.model.replies import SENTENCES, known_answer
from extproc.local.model.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer()


def steps(question, *, index=0, identity=None, **limits):
    sampling = Sampling(**{"max_tokens": 500, **limits})
    return list(generate(Prompt(identity or question, question, 0, sampling), index, TOKENIZER))


def text_of(made):
    return "".join(step.text for step in made)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("1 + 1 =?", "1 + 1 = 2"),
        ("What is 12*12?", "12 * 12 = 144"),
        ("7 - 9", "7 - 9 = -2"),
        ("ping", "pong"),
        ("Hello there!", "Hello! How can I help you today?"),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Please count to 4.", "1, 2, 3, 4"),
        ("Say this is a test", "This is a test."),
    ],
)
def test_a_known_question_gets_its_answer(question, answer):
    made = steps(question)
    assert text_of(made) == answer
    assert made[-1].finish_reason == "stop"
    # The end of the text is a token too.
    assert len(made) == len(TOKENIZER.encode(answer)) + 1


@pytest.mark.parametrize("question", ["tell me a story", "v1.2-3", "hello" + "o" * 50, "count to 9999"])
def test_other_questions_are_not_taken_for_known_ones(question):
    assert known_answer(question) is None


def test_lengths_depend_on_the_question_and_stay_in_their_range():
    lengths = [len(steps(f"story number{chr(65 + number % 26)}{number}")) - 1 for number in range(300)]
    assert min(lengths) >= 8
    assert max(lengths) <= 60
    assert len(set(lengths)) > 15


def test_no_sentence_is_longer_than_the_range_of_lengths_allows():
    assert max(len(TOKENIZER.encode(f" {sentence}")) for sentence in SENTENCES) <= 15


def test_the_same_is_said_again_and_another_choice_says_otherwise():
    assert steps("a story") == steps("a story")
    assert text_of(steps("a story")) != text_of(steps("a story", index=1))
    assert text_of(steps("a story")) != text_of(steps("a story", identity="another seed"))


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_limit_cuts_after_exactly_so_many_tokens(limit):
    whole = steps("a story")
    made = steps("a story", max_tokens=limit)
    assert len(made) == limit
    assert made[-1].finish_reason == "length"
    assert text_of(whole).startswith(text_of(made))


def test_a_text_that_ends_at_the_limit_has_not_ended_by_itself():
    exact = len(TOKENIZER.encode("1 + 1 = 2"))
    assert steps("1 + 1 =?", max_tokens=exact)[-1].finish_reason == "length"
    assert steps("1 + 1 =?", max_tokens=exact + 1)[-1].finish_reason == "stop"


def test_ignoring_the_end_goes_on_to_the_limit():
    made = steps("1 + 1 =?", ignore_eos=True, max_tokens=300)
    assert len(made) == 300
    assert made[-1].finish_reason == "length"
    assert text_of(made).startswith("1 + 1 = 2 ")


def test_a_minimum_keeps_the_text_from_ending():
    made = steps("1 + 1 =?", min_tokens=50)
    assert len(made) > 50
    assert made[-1].finish_reason == "stop"
    assert text_of(made).startswith("1 + 1 = 2 ")


def test_a_stop_string_cuts_the_text_before_it_and_is_counted():
    made = steps("1 + 1 =?", stop=("= 2",))
    assert text_of(made) == "1 + 1 "
    assert (made[-1].finish_reason, made[-1].stop_reason) == ("stop", "= 2")
    assert len(made) == len(TOKENIZER.encode("1 + 1 = 2"))


def test_the_earliest_of_several_stop_strings_counts():
    assert text_of(steps("1 + 1 =?", stop=("2", "+", "nowhere"))) == "1 "
    # Also when one token completes two of them, whatever their order.
    assert TOKENIZER.piece(TOKENIZER.encode("The capital of France")[-1]) == b" France"
    for stop in (("ce", "ra"), ("ra", "ce")):
        assert text_of(steps("capital of France", stop=stop)) == "The capital of F"


def test_a_stop_string_that_never_comes_loses_no_text():
    assert text_of(steps("1 + 1 =?", stop=("= 3", "2 and so on"))) == "1 + 1 = 2"


def test_what_may_begin_a_stop_string_is_held_back():
    made = steps("1 + 1 =?", stop=("= 3",))
    shown = ""
    said = b""
    for step, token in zip(made, TOKENIZER.encode("1 + 1 = 2"), strict=False):
        shown += step.text
        said += TOKENIZER.piece(token)
        assert len(shown) == max(0, len(said.decode()) - 2)


def test_a_stop_string_within_the_minimum_does_not_stop():
    made = steps("1 + 1 =?", stop=("+", "1"), min_tokens=5)
    assert text_of(made).startswith("1 + 1 =")
    assert len(made) > 5


def test_characters_are_shown_only_when_complete():
    # Of the boat's emoji, each of the first tokens completes nothing, but is a step of its own.
    question = next(f"boats {number}" for number in range(2000) if "🛶" in text_of(steps(f"boats {number}")))
    made = steps(question)
    said = b"".join(map(TOKENIZER.piece, TOKENIZER.encode(text_of(made))))
    assert said.decode() == text_of(made)
    assert "\ufffd" not in text_of(made)
    assert "" in [step.text for step in made[:-1]]


def test_a_character_cut_by_the_limit_is_dropped():
    question = next(f"boats {number}" for number in range(2000) if "🛶" in text_of(steps(f"boats {number}")))
    whole = steps(question)
    empty = next(at for at, step in enumerate(whole) if not step.text)
    made = steps(question, max_tokens=empty + 1)
    assert len(made) == empty + 1
    assert text_of(made) == text_of(whole[: empty + 1])
    assert "\ufffd" not in text_of(made)
