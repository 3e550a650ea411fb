"""What an event's likeness to the one before tells is what reading it tells, whatever the stream."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer import likeness as module
from extproc.core.answer.likeness import Likeness
from extproc.core.answer.reading import read_answer
from extproc.core.answer.usage_reader import Absence

SHAPES = {
    "chat": lambda text, other: {"id": other, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]},
    "reasoning": lambda text, other: {"id": "a", "choices": [{"index": 0, "delta": {"reasoning_content": text, "x": other}}]},
    "completion": lambda text, other: {"choices": [{"index": 0, "text": text, "logprobs": None}], "id": other},
    "tool call": lambda text, other: {
        "choices": [{"delta": {"tool_calls": [{"index": 0, "type": other, "function": {"arguments": text}}]}}]
    },
    "message": lambda text, other: {"type": "content_block_delta", "index": 0, "delta": {"type": other, "text": text}},
    "response": lambda text, other: {"type": "response.output_text.delta", "item_id": other, "delta": text},
    "ollama": lambda text, other: {"model": other, "message": {"role": "assistant", "content": text}, "done": False},
    "native": lambda text, other: {"content": text, "stop": False, "id_slot": other},
    "an error": lambda text, other: {"error": {"message": text}, "object": other},
    "kinds": lambda text, other: {"type": text, "object": other, "delta": "x"},
    "usage": lambda text, other: {"choices": [{"delta": {"content": text}}], "usage": {"prompt_tokens": len(other), "completion_tokens": 1, "total_tokens": 1 + len(other)}},
    "unknown": lambda text, other: {"what": text, "is": {"this": other}},
    "a list": lambda text, other: [{"content": text, "id": other}],
    "keys": lambda text, other: {text: 1, "choices": [{"delta": {"content": other}}]},
}  # fmt: skip
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
TEXTS = st.one_of(
    PLAIN,
    st.text(max_size=5),
    st.sampled_from(["", "null", '"', "\\", "\n", "é", "[DONE]", "error", "x" * 70, "usage"]),
)
EVENTS = st.tuples(st.sampled_from(sorted(SHAPES)), TEXTS, TEXTS, st.booleans())


def event(shape, text, other, ascii_only=True):
    return json.dumps(SHAPES[shape](text, other), ensure_ascii=ascii_only).encode(errors="surrogatepass")


@given(st.lists(EVENTS, max_size=12))
def test_events_of_any_shapes_in_any_order(events):
    likeness = Likeness()
    for each in events:
        data = event(*each)
        assert likeness.read(data) == read_answer(data), data


@given(
    st.sampled_from(sorted(SHAPES)),
    PLAIN,
    st.lists(st.tuples(TEXTS, PLAIN, st.booleans()), max_size=14),
    st.data(),
)
def test_events_of_one_shape_that_differ_here_and_there(shape, usual, texts, data):
    likeness = Likeness()
    for text, other, differs in texts:
        made = event(shape, text, other if differs else usual)
        if data.draw(st.integers(0, 9)) == 0:  # broken somewhere
            at = data.draw(st.integers(0, len(made)))
            made = made[:at] + data.draw(st.binary(max_size=3)) + made[at + data.draw(st.integers(0, 3)) :]
        assert likeness.read(made) == read_answer(made), made


@pytest.mark.parametrize(
    "shape", ["chat", "reasoning", "completion", "tool call", "message", "response", "ollama", "native"]
)
def test_most_events_of_a_stream_are_not_parsed(shape, monkeypatch):
    parsed = []
    monkeypatch.setattr(module, "read_answer", lambda data: parsed.append(data) or read_answer(data))
    likeness = Likeness()
    for text in ("One", " and", " two", ",", " and so on") * 20:
        data = event(shape, text, "same")
        assert likeness.read(data) == read_answer(data)
    assert len(parsed) <= 3
    for text in ('a "quote"', "größer", ""):
        data = event(shape, text, "same", ascii_only=False)
        assert likeness.read(data) == read_answer(data)
        assert parsed[-1] == data


@pytest.mark.parametrize("shape", ["chat", "reasoning", "tool call", "message", "response", "ollama", "native"])
def test_events_whose_texts_are_all_of_one_size_are_not_parsed_either(shape, monkeypatch):
    parsed = []
    monkeypatch.setattr(module, "read_answer", lambda data: parsed.append(data) or read_answer(data))
    likeness = Likeness()
    for number in range(100, 150):
        data = event(shape, f"at {number}", "same")
        assert likeness.read(data) == read_answer(data)
    assert len(parsed) <= 3
    data = event(shape, "of another size", "same")
    assert likeness.read(data) == read_answer(data)


def test_the_end_of_a_stream_is_read_after_events_that_were_alike():
    likeness = Likeness()
    for text in ("One", " and", " two"):
        likeness.read(event("chat", text, "same"))
    usage = event("usage", "", "12345")
    assert likeness.read(usage) == read_answer(usage)
    assert likeness.read(usage).usage is not Absence.MISSING


def test_a_stream_whose_events_differ_in_more_is_compared_for_a_while_only(monkeypatch):
    compared = []
    whole = module._string_in_which
    monkeypatch.setattr(module, "_string_in_which", lambda *pair: compared.append(pair) or whole(*pair))
    likeness = Likeness()
    for number in range(100):
        likeness.read(event("chat", "x" * (number % 7 + 1), f"id-{number}"))
    assert len(compared) <= 8


def test_what_is_kept_of_a_stream_is_bounded():
    likeness = Likeness()
    for size in range(1, 500):
        likeness.read(event("chat", "x" * size, "same"))
    assert len(likeness._readings) <= 64
    likeness = Likeness()
    likeness.read(event("chat", "x" * 10_000, "same"))
    assert likeness._last is None


def test_a_string_that_is_no_content_shows_nothing(monkeypatch):
    parsed = []
    monkeypatch.setattr(module, "read_answer", lambda data: parsed.append(data) or read_answer(data))
    likeness = Likeness()
    for other in ("a", "longer", "short", "the longest"):
        data = event("chat", "the same", other)
        assert likeness.read(data) == read_answer(data)
    assert len(parsed) == 4


@pytest.mark.parametrize(
    "pair",
    [
        (event("chat", "same", "of one size"), event("chat", "same", "of two size")),
        (b'{"choices":[{"delta":{"content":"a"}}],"n":1}', b'{"choices":[{"delta":{"content":"a"}}],"n":22}'),
        (event("chat", "a", "same"), event("chat", 'with a "quote"', "same")),
        (event("chat", "a", "same"), event("chat", "bb", "another")),
    ],
)
def test_a_pair_that_shows_no_place_is_read_as_it_is(pair):
    likeness = Likeness()
    for data in pair * 2:
        assert likeness.read(data) == read_answer(data)
    assert likeness._like is None
