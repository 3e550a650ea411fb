"""Usage out of answers: what is believed, what is not, and what is counted in its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.requests import MAX_TOKENS
from extproc.core.usage import Absence, Reading, Usage, estimated_output, read_answer

from .samples import FUZZ, SAMPLES, VALUES, mutated, recorded


def reading(usage, **fields) -> Reading:
    return read_answer(json.dumps({"usage": usage, **fields}).encode())


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": 26}, Usage(10, 16, total=26)),
        ({"prompt_tokens": 10, "completion_tokens": 16}, Usage(10, 16, total=26)),
        ({"prompt_tokens": 10}, Usage(10, 0, total=10)),
        ({"prompt_tokens": 10, "completion_tokens": None, "total_tokens": None}, Usage(10, 0, total=10)),
        ({"prompt_tokens": 0, "completion_tokens": 5}, Usage(0, 5, total=5)),
        ({"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": 40}, Usage(10, 16, total=40)),
        ({"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": 3}, Usage(10, 16, total=26)),
        ({"prompt_tokens": MAX_TOKENS}, Usage(MAX_TOKENS, 0, total=MAX_TOKENS)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 16,
                "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 12},
            },
            Usage(10, 16, cached=8, reasoning=12, total=26),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 16,
                "prompt_tokens_details": {"cached_tokens": 80},
                "completion_tokens_details": {"reasoning_tokens": 120},
            },
            Usage(10, 16, cached=10, reasoning=16, total=26),
        ),
        (
            {
                "prompt_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": None},
                "completion_tokens_details": None,
            },
            Usage(10, 0, total=10),
        ),
        ({"prompt_tokens": 10, "queue_time": 0.003, "x": ["y"]}, Usage(10, 0, total=10)),
    ],
)
def test_usage_is_believed(usage, expected):
    assert reading(usage).usage == expected


@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens", "total_tokens"])
@pytest.mark.parametrize(
    "number",
    [
        "-1",
        "1.5",
        "26.0",
        "1e2",
        "1e400",
        "2e9",
        str(2**63),
        str(2**64),
        str(MAX_TOKENS + 1),
        '"16"',
        "true",
        "[]",
        "{}",
    ],
)
def test_a_number_that_can_not_be_a_count_of_tokens_makes_usage_absurd(field, number):
    counts = {"prompt_tokens": "10", "completion_tokens": "16", "total_tokens": "26"} | {field: number}
    text = ",".join(f'"{name}":{value}' for name, value in counts.items())
    assert read_answer(f'{{"usage":{{{text}}}}}'.encode()).usage is Absence.ABSURD


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "0x10", "016", "+1", "1_0", "1e"])
def test_a_number_that_is_not_json_makes_the_answer_unreadable(number):
    assert read_answer(f'{{"usage":{{"prompt_tokens":{number}}}}}'.encode()).usage is Absence.UNREADABLE


@pytest.mark.parametrize(
    "usage",
    [
        {},
        [1],
        5,
        True,
        False,
        "lots",
        {"prompt_tokens": None},
        {"completion_tokens": 5, "total_tokens": 5},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": MAX_TOKENS, "completion_tokens": 1},
        {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens": 10, "prompt_tokens_details": 5},
    ],
)
def test_usage_that_can_not_be_is_absurd(usage):
    assert reading(usage).usage is Absence.ABSURD


@pytest.mark.parametrize("text", [b"{}", b'{"usage":null}', b'{"usage":""}', b'{"usage":[]}', b'{"id":"x"}'])
def test_no_usage_is_missing(text):
    assert read_answer(text) == Reading(Absence.MISSING)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"x",
        b"[]",
        b"null",
        b"5",
        b'"usage"',
        b'{"usage":',
        b"\xff",
        b"{} {}",
        b'{"a":"\\ud800"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_object_is_unreadable_and_all_of_it_counts(text):
    assert read_answer(text) == Reading(Absence.UNREADABLE, content_bytes=len(text), pieces=1)


@pytest.mark.parametrize(
    "opening", [b"[", b'{"a":', b'{"usage":', b'{"choices":[', b'{"choices":[{"delta":', b'{"error":[']
)
def test_nesting_without_end_is_unreadable(opening):
    assert read_answer(b'{"x":' + opening * 100_000).usage is Absence.UNREADABLE


def test_nesting_that_a_field_can_not_hold_is_no_fault():
    for depth in (10, 500, 900, 1100, 100_000):
        nested = b"[" * depth + b"]" * depth
        for field in (b"usage", b"choices", b"error"):
            assert isinstance(read_answer(b'{"' + field + b'":' + nested + b"}"), Reading)


def test_of_usage_given_twice_the_last_counts():
    text = b'{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}}'
    assert read_answer(text).usage == Usage(2, 0, total=2)


# Content.


@pytest.mark.parametrize(
    ("choices", "content_bytes", "pieces"),
    [
        ("[]", 0, 0),
        ("[ ]", 0, 0),
        ("null", 0, 0),
        ("[{}]", 0, 0),
        ('[{"delta":{}}]', 0, 0),
        ('[{"delta":null,"message":null}]', 0, 0),
        ('[{"delta":{"role":"assistant","content":""}}]', 0, 0),
        ('[{"delta":{"content":null,"tool_calls":[],"refusal":null}}]', 0, 0),
        ('[{"delta":{"content":"abc"}}]', 3, 1),
        ('[{"message":{"content":"abc"}}]', 3, 1),
        ('[{"delta":{"content":"abc"}},{"delta":{"content":""}},{"delta":{"content":"d"}}]', 4, 2),
        ('[{"delta":{"content":[{"text":"a"}]}}]', 14, 1),
        ('[{"delta":{"reasoning":"abc"}}]', 3, 1),
        ('[{"delta":{"reasoning_content":"abc"}}]', 3, 1),
        ('[{"delta":{"refusal":"no"}}]', 2, 1),
        ('[{"delta":{"tool_calls":[{"index":0}]}}]', 13, 1),
        ('[{"delta":{"function_call":{"name":"f"}}}]', 12, 1),
        ('[{"delta":{"content":"abc","reasoning":"d"}}]', 4, 1),
        ('"abc"', 5, 1),
        ("[5]", 3, 1),
        ('[{"delta":"abc"}]', 17, 1),
        ('{"0":1}', 7, 1),
    ],
)
def test_content_is_counted_as_json_text_whatever_its_shape(choices, content_bytes, pieces):
    read = read_answer(f'{{"choices":{choices}}}'.encode())
    assert (read.content_bytes, read.pieces) == (content_bytes, pieces)
    assert read.choices == (choices not in ("[]", "[ ]", "null"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [("null", False), ('""', False), ("[]", False), ('"no"', True), ('{"message":"no"}', True), ("{}", True)],
)
def test_an_error_is_told_from_none(error, expected):
    assert read_answer(f'{{"error":{error}}}'.encode()).error is expected


def test_a_recorded_answer_is_read():
    read = read_answer(recorded("vllm-chat.body"))
    assert (read.usage, read.pieces, read.choices, read.error) == (Usage(10, 16, total=26), 1, True, False)


def test_a_recorded_error_is_an_error_without_content():
    for name in ("vllm-404.body", "vllm-400-too-long.body"):
        assert read_answer(recorded(name)) == Reading(Absence.MISSING, error=True)


# Estimates.


@pytest.mark.parametrize(
    ("content_bytes", "pieces", "per_token", "tokens"),
    [
        (0, 0, 4, 0),
        (1, 0, 4, 1),
        (4, 1, 4, 1),
        (5, 1, 4, 2),
        (5, 9, 4, 9),
        (10**12, 1, 4, MAX_TOKENS),
        (0, 10**9, 4, MAX_TOKENS),
    ],
)
def test_output_is_estimated_from_the_bytes_and_at_least_a_token_a_piece(content_bytes, pieces, per_token, tokens):
    assert estimated_output(content_bytes, pieces, per_token) == tokens


# Anything at all.


def sane(read: Reading) -> None:
    assert read.content_bytes >= 0
    assert (read.pieces > 0) >= (read.content_bytes > 0)
    if isinstance(read.usage, Usage):
        usage = read.usage
        assert all(type(n) is int for n in (usage.input, usage.output, usage.cached, usage.reasoning, usage.total))
        assert 0 <= usage.cached <= usage.input
        assert 0 <= usage.reasoning <= usage.output
        assert 0 < usage.input + usage.output <= usage.total <= MAX_TOKENS or usage.total > 0
    else:
        assert isinstance(read.usage, Absence)


DATA = st.sampled_from([e.removeprefix(b"data: ").strip() for s in SAMPLES.values() for e in s.events])


@FUZZ
@given(st.binary() | mutated(DATA))
def test_any_bytes_give_a_reading(text):
    sane(read_answer(text))


COUNTS = st.fixed_dictionaries(
    {},
    optional={
        name: VALUES | st.integers(0, 40)
        for name in (
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
            "prompt_tokens_details",
            "completion_tokens_details",
        )
    },
)
PIECES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"delta": VALUES | st.fixed_dictionaries({"content": VALUES}), "message": VALUES}
    ),
    max_size=3,
)


@FUZZ
@given(
    st.fixed_dictionaries(
        {}, optional={"usage": VALUES | COUNTS, "choices": VALUES | PIECES, "error": VALUES, "id": VALUES}
    )
)
def test_any_value_in_any_field_gives_a_reading(answer):
    sane(read_answer(json.dumps(answer).encode()))
    sane(read_answer(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")))
