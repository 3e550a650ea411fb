"""The end that a stream gets which went too far: what a client needs to see, for each choice that is open."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer.cutoff import OpenChoices
from tests.core.samples import FEWER, VALUES


def chunk(*choices, **fields):
    return json.dumps(
        {"id": "c-1", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": choices} | fields
    )


def closed(*chunks, passed=()):
    choices = OpenChoices()
    for text in chunks:
        finished = choices.see(text.encode())
        if text in passed:
            choices.finished(finished)
    return choices


def events(choices):
    parts = choices.closing().decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


DELTA = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}
TEXT = {"index": 0, "text": "a", "finish_reason": None}
END = {"index": 0, "delta": {}, "finish_reason": "stop"}


def test_an_open_choice_ends_for_its_length():
    assert events(closed(chunk(DELTA))) == [
        {
            "id": "c-1",
            "object": "chat.completion.chunk",
            "created": 5,
            "model": "m",
            "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
        }
    ]


def test_completions_end_with_text():
    (end,) = events(closed(chunk(TEXT, object="text_completion", system_fingerprint="f")))
    assert end["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    assert (end["object"], end["system_fingerprint"]) == ("text_completion", "f")


def test_each_open_choice_gets_its_end_in_order():
    choices = closed(chunk({**DELTA, "index": 2}), chunk(DELTA), chunk({**DELTA, "index": 1}))
    assert [end["choices"][0]["index"] for end in events(choices)] == [0, 1, 2]
    assert len(choices) == 3


def test_a_choice_is_open_until_the_client_got_its_end():
    assert not closed(chunk(DELTA), chunk(END), passed=[chunk(END)]).any
    assert closed(chunk(DELTA), chunk(END)).any
    late = closed(chunk(DELTA, {**DELTA, "index": 1}), chunk(END), chunk(DELTA), passed=[chunk(END)])
    assert [end["choices"][0]["index"] for end in events(late)] == [1]


@pytest.mark.parametrize(
    "text", ["[DONE]", "{}", "[]", '{"choices":null}', '{"choices":[5]}', '{"choices":[]}', "\ud800"]
)
def test_what_is_no_chunk_changes_nothing(text):
    choices = OpenChoices()
    choices.see(chunk(DELTA).encode())
    before = choices.closing()
    assert choices.see(text.encode("utf-8", "surrogatepass")) == frozenset()
    assert choices.closing() == before


def test_a_stream_that_showed_no_choice_has_none_to_end():
    choices = OpenChoices()
    assert (choices.any, len(choices), choices.closing()) == (False, 0, b"data: [DONE]\n\n")


@pytest.mark.parametrize("index", [-1, 1024, 2**63])
def test_an_index_that_no_request_asked_for_is_not_kept(index):
    assert len(closed(chunk({**DELTA, "index": index}))) == 0


def test_what_is_too_long_to_keep_is_left_out():
    (end,) = events(closed(chunk(DELTA, model="m" * 2000)))
    assert set(end) == {"id", "object", "created", "choices"}


CHOICES = st.fixed_dictionaries(
    {}, optional={"index": st.integers(-1, 5) | VALUES, "text": VALUES, "finish_reason": VALUES}
)


@FEWER
@given(
    st.lists(st.fixed_dictionaries({"choices": st.lists(CHOICES) | VALUES}, optional={"id": VALUES}), max_size=4)
)
def test_any_chunks_can_be_closed(chunks):
    choices = OpenChoices()
    for value in chunks:
        choices.finished(choices.see(json.dumps(value).encode()))
    assert all(end["choices"][0]["finish_reason"] == "length" for end in events(choices))


def test_a_chunk_of_more_objects_than_any_request_has_choices_changes_nothing():
    choices = OpenChoices()
    assert choices.see(chunk(*[{"index": 0}] * 600).encode()) == frozenset()
    assert len(choices) == 0
