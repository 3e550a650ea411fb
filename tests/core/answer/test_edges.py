"""Usage at the edges of an answer too large to keep: only where it stands at the top level, and in no string."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer.edges import EDGE_BYTES, Edges
from extproc.core.answer.reading import read_answer
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.usage import Usage
from tests.core.samples import FUZZ, VALUES, parts

FOUND = {"prompt_tokens": 10, "total_tokens": 10}
TEN = Usage(10, 0, total=10)
PAD = "0" * (3 * EDGE_BYTES)


def usage_of(text, size=50_000):
    edges = Edges()
    for at in range(0, len(text), size):
        edges.feed(text[at : at + size])
    return edges.usage()


def text(**fields):
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "body",
    [
        text(data=PAD, usage=FOUND),
        text(data=PAD, usage=FOUND, model="m", more={"a": [1]}),
        text(data=PAD, usage=FOUND) + b" \r\n",
        text(data=PAD, usage=FOUND).replace(b", ", b"\n,\n").replace(b":", b" : "),
        text(embeddings=PAD, total_duration=1, prompt_eval_count=10),
        text(embeddings=PAD, meta={"billed_units": {"input_tokens": 10}}, response_type="x"),
        text(data=PAD, usage=FOUND, note='see "usage"'),
        text(data=PAD, usage={**FOUND, "inner": {"a": 1, "usage": {"prompt_tokens": 5}}}),
        text(model="m", usage=FOUND, data=PAD),
        text(usage=FOUND, results=PAD),
        b"\n" + text(usage=FOUND, embeddings=PAD),
        text(usage={"prompt_tokens": 5}, data=PAD)[:-1] + b"," + text(usage=FOUND)[1:],
    ],
)
@pytest.mark.parametrize("size", [50_000, 997, 1 << 30])
def test_usage_at_an_edge_is_read_however_the_answer_is_cut(body, size):
    assert usage_of(body, size) == TEN


@pytest.mark.parametrize(
    "body",
    [
        text(data=PAD),
        text(data=PAD, other={"a": 1, "usage": FOUND}),
        text(data=PAD, other={"usage": FOUND}),
        text(data=[PAD, {"a": 1, "usage": FOUND}]),
        text(data=PAD, note=json.dumps({"a": 1, "usage": FOUND})),
        text(data=PAD, note=', "usage": {"prompt_tokens": 10}}'),
        text(data=PAD, note="x", **{'a,"usage': FOUND}),
        text(data=PAD, note="usage"),
        text(data=PAD, usage=None),
        text(data=PAD, usage={}, x={"a": 1, "usage": FOUND}, y=1),
        text(other={"usage": FOUND, "data": PAD}),
        text(note='{"usage": {"prompt_tokens": 10}, "data"', more=PAD),
        text(inner=[{"a": 1, "usage": FOUND}, {"b": 1, "data": 1}], more=PAD),
        json.dumps([PAD, {"a": 1, "usage": FOUND}]).encode(),
        text(data=PAD, usage=FOUND)[:-1],
        text(data=PAD, usage=FOUND, more=PAD),
        text(usage=FOUND, data=PAD).replace(b', "data"', b'x "data"'),
        b"",
    ],
)
def test_what_stands_elsewhere_is_no_usage(body):
    assert usage_of(body) in (Absence.UNREADABLE, Absence.ABSURD)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [({"prompt_tokens": -1}, Absence.ABSURD), ({"type": "duration", "seconds": 3}, Absence.OTHER_UNIT)],
)
def test_usage_that_can_not_be_is_the_reason(usage, expected):
    assert usage_of(text(data=PAD, usage=usage)) == expected


def test_what_is_kept_is_bounded():
    edges = Edges()
    for _ in range(100):
        edges.feed(b"x" * 50_000)
        assert len(edges._head) <= EDGE_BYTES
        assert len(edges._tail) <= 2 * EDGE_BYTES
    edges.feed(b"x" * 10_000_000)
    assert len(edges._tail) <= 2 * EDGE_BYTES


def test_a_name_that_stands_everywhere_is_tried_a_few_times_only():
    body = text(data=PAD, usage=FOUND, **{f"k{n}": {"a": 1, "usage": 5} for n in range(50)})
    assert usage_of(body) is Absence.UNREADABLE
    assert usage_of(text(data=PAD, usage=FOUND, k={"a": 1, "usage": 5})) == TEN


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["data", "usage", "meta", "a", ',"usage":{"prompt_tokens":3}', "embeddings"]),
        VALUES
        | st.fixed_dictionaries({"usage": st.just(FOUND)})
        | st.just(FOUND)
        | st.just([{"b": 1, "usage": FOUND}]),
    ),
    st.lists(st.integers(0, 1 << 12), max_size=4),
)
def test_of_any_answer_nothing_is_read_but_what_stands_at_the_top_level(answer, cuts):
    edges = Edges()
    for part in parts(text(**answer), cuts):
        edges.feed(part)
    usage = edges.usage()
    members = [read_answer(text(**{name: value})).usage for name, value in answer.items()]
    assert not isinstance(usage, Usage) or usage in members
