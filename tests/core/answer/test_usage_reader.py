"""Usage out of answers: what is believed, what is not, and what is counted in its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer.reading import MAX_OBJECTS, Reading, is_dense, read_answer
from extproc.core.answer.usage_reader import Absence, DoubtfulUsage, Part
from extproc.core.quota.usage import Usage, estimated_output
from extproc.core.request.body import MAX_TOKENS
from tests.changing import replace
from tests.core.samples import FUZZ, SAMPLES, VALUES, mutated
from tests.recordings import recorded

from .answer_samples import ANSWERS, STREAMS, counts


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
        ({"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": 24}, Usage(10, 16, total=26)),
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
        ({"prompt_tokens": 10, "total_tokens": 26}, Usage(10, 16, total=26)),
        ({"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 26}, Usage(10, 0, total=26)),
        ({"completion_tokens": 16, "total_tokens": 26}, Usage(10, 16, total=26)),
        ({"prompt_tokens": 0, "completion_tokens": 16, "total_tokens": 26}, Usage(10, 16, total=26)),
        ({"completion_tokens": 16}, Usage(0, 16, total=16)),
        ({"total_tokens": 26}, Usage(0, 0, total=26)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 26}, Usage(0, 0, total=26)),
        (
            {"prompt_tokens": 10, "completion_tokens": 16, "completion_tokens_details": {"reasoning_tokens": 120}},
            Usage(10, 16, reasoning=16, total=26),
        ),
        (
            {"input_tokens": 10, "output_tokens": 16, "output_tokens_details": {"thinking_tokens": 12}},
            Usage(10, 16, reasoning=12, total=26),
        ),
        ({"input_tokens": 0, "output_tokens": 16, "cache_read_input_tokens": 10}, Usage(10, 16, 10, total=26)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 16,
                "total_tokens": 106,
                "prompt_tokens_details": {"cached_tokens": 80},
            },
            Usage(90, 16, cached=80, total=106),
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
        # Bedrock's Converse, and the AI SDK.
        ({"inputTokens": 20, "outputTokens": 10, "totalTokens": 30}, Usage(20, 10, total=30)),
        (
            {"inputTokens": 20, "outputTokens": 10, "cacheReadInputTokens": 60, "cacheWriteInputTokens": 40},
            Usage(120, 10, cached=60, total=130, cache_written=40),
        ),
        (
            {"inputTokens": 120, "outputTokens": 10, "cachedInputTokens": 60, "reasoningTokens": 4},
            Usage(120, 10, cached=60, reasoning=4, total=130),
        ),
        ({"promptTokens": 20, "completionTokens": 10, "totalTokens": 30}, Usage(20, 10, total=30)),
    ],
)
def test_usage_is_believed(usage, expected):
    assert reading(usage).usage == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # More from the cache than went in: the input is between the two, and their sum.
        (
            {"prompt_tokens": 18, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}},
            DoubtfulUsage(80, 5, cached=80, total=85, most_input=98),
        ),
        (
            {"prompt_tokens": 18, "completion_tokens": 5, "total_tokens": 23, "cached_tokens": 80},
            DoubtfulUsage(80, 5, cached=80, total=85, most_input=98),
        ),
        (
            {"prompt_tokens": 0, "completion_tokens": 5, "prompt_cache_hit_tokens": 80},
            DoubtfulUsage(80, 5, cached=80, total=85, most_input=MAX_TOKENS),
        ),
        # Nothing is said of what did not come from the cache.
        (
            {"cache_read_input_tokens": 80, "output_tokens": 5},
            DoubtfulUsage(80, 5, cached=80, total=85, most_input=MAX_TOKENS),
        ),
        # A total that is less than its parts.
        (
            {"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": 3},
            DoubtfulUsage(10, 16, total=26, most_input=10),
        ),
        # A total that is no count.
        (
            {"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": -1},
            DoubtfulUsage(10, 16, total=26, most_input=10),
        ),
        (
            {"input_tokens": 10, "output_tokens": 16, "total_tokens": "26", "cache_read_input_tokens": 80},
            DoubtfulUsage(90, 16, cached=80, total=106, most_input=90),
        ),
        ({"prompt_tokens": 10, "total_tokens": "10"}, DoubtfulUsage(10, 0, total=10, most_input=10)),
        ({"prompt_tokens": 10.5, "total_tokens": 2**64}, DoubtfulUsage(11, 0, total=11, most_input=11)),
        # Without an input there is nothing that an estimate of it would have to stay below.
        ({"completion_tokens": 16, "total_tokens": []}, Usage(0, 16, total=16)),
    ],
)
def test_counts_that_contradict_each_other_are_doubted(usage, expected):
    assert reading(usage).usage == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 20.0, "completion_tokens": 10.0, "total_tokens": 30.0}, Usage(20, 10, total=30)),
        ({"prompt_tokens": 20.5, "completion_tokens": 9.4, "total_tokens": 29.9}, Usage(21, 10, total=31)),
        ({"total_tokens": 38326.4}, Usage(0, 0, total=38327)),
        ({"input_tokens": 6412.2, "output_tokens": 41}, Usage(6413, 41, total=6454)),
        (
            {"input_tokens": 6412.2, "output_tokens": 41, "cache_read_input_tokens": 31872.0},
            Usage(6413 + 31872, 41, cached=31872, total=6413 + 31872 + 41),
        ),
        ({"prompt_tokens": 1e2, "completion_tokens": 0.1}, Usage(100, 1, total=101)),
        ({"prompt_tokens": -0.0, "completion_tokens": 5}, Usage(0, 5, total=5)),
        (
            {"prompt_tokens": 9.5, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 7.5}},
            Usage(10, 5, cached=8, total=15),
        ),
        (
            {"input_tokens": 3, "output_tokens": 1, "iterations": [{"input_tokens": 4.5}] * 2},
            Usage(10, 1, total=11),
        ),
        ({"tokens": {"input_tokens": 9.5, "output_tokens": 2.0}}, Usage(10, 2, total=12)),
    ],
)
def test_fractions_of_tokens_are_rounded_up(usage, expected):
    assert reading(usage).usage == expected


def test_fractions_beside_the_answer_are_rounded_up():
    assert read_answer(b'{"tokens_evaluated":9.5,"tokens_predicted":2.0}').usage == Usage(10, 2, total=12)
    start = read_answer(b'{"type":"message_start","message":{"usage":{"input_tokens":9.5,"output_tokens":1.0}}}')
    assert start.part == Part(10, 1, None, None)


def test_thinking_of_messages_is_reasoning_in_a_stream_too():
    usage = {"output_tokens": 40, "output_tokens_details": {"thinking_tokens": 30}}
    part = reading(usage, type="message_delta").part
    assert part.after(Part(10, 1, None, None)).usage() == Usage(10, 40, reasoning=30, total=50)
    assert part.after(Part(10, 1, None, None, 5)).usage().reasoning == 30
    assert Part(None, 50, None, None).after(Part(10, 40, None, None, 30)).usage().reasoning == 30
    assert Part(10, 5, None, None, 30).usage().reasoning == 5


@pytest.mark.parametrize(
    ("earlier", "later", "read", "cached"),
    [
        # (input, output, cached, written to the cache) of two events, what went in, and what of it was cached
        ((3602, 0, None, None), (None, 878, 3604, 0), 3604, 3604),  # first the whole, then the cached part of it
        ((3602, 0, None, None), (None, 878, 2000, 0), 3602, 2000),
        ((3602, 0, 0, 0), (0, 878, 2000, 500), 3602, 2000),
        ((8834, 0, None, None), (18, 426, 8831, 0), 8849, 8831),  # first the whole, then in parts
        ((18, 0, 8831, 0), (8849, 426, None, None), 8849, 8831),  # first in parts, then the whole
        ((18, 0, 8831, 0), (8849, 426, 0, 0), 8849, 8831),
        ((27, 1, 100, None), (27, 47, 100, 0), 127, 100),  # said twice
        ((27, 1, 100, None), (27, 47, None, None), 127, 100),
        ((27, 1, 100, None), (29, 47, None, None), 129, 100),
        ((27, 1, 100, None), (None, 47, 100, None), 127, 100),
        ((10, 1, None, 80), (10, 47, 80, None), 90, 80),  # written at first, then called read
        ((10, 1, 80, 5), (10, 47, 80, None), 95, 80),
        ((10, 1, 80, None), (None, 47, None, 5), 95, 80),  # each says what the other does not
        ((0, 0, None, None), (4522, 5, None, 4511), 9033, 0),
        ((25, 1, None, None), (None, 15, None, None), 25, 0),
        ((None, 1, None, None), (None, 15, 7, None), 7, 7),
    ],
)
def test_what_is_said_twice_in_a_stream_is_never_added_up(earlier, later, read, cached):
    part = Part(*later).after(Part(*earlier))
    assert (part.read, part.cached or 0) == (read, cached)


def test_where_details_say_so_the_cache_of_a_stream_is_a_part_of_its_input():
    usage = {
        "input_tokens": 90,
        "output_tokens": 1,
        "cache_read_input_tokens": 80,
        "input_tokens_details": {"cached_tokens": 80},
    }
    part = read_answer(json.dumps({"type": "message_start", "message": {"usage": usage}}).encode()).part
    assert (part.read, part.cached) == (90, 80)


@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize(
    "number",
    [
        "-1",
        "-0.5",
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
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": MAX_TOKENS, "completion_tokens": 1},
        {"input_tokens": 10, "output_tokens": 16, "cache_read_input_tokens": -1},
        {"prompt_tokens": 10, "completion_tokens": "16", "total_tokens": 26},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": "26"},
        {"total_tokens": "26"},
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
        b"\xef\xbb\xbf",
        b"{}\xef\xbb\xbf",
        b"[{}]",
        b'[{"tokens_evaluated":1}, 5]',
        b'[{"tokens_evaluated":1}, {}]',
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
        ('[{"delta":{"content":[{"type":"text","text":"a"}]}}]', 1, 1),
        ('[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"abc"}]}]}}]', 3, 1),
        ('[{"delta":{"content":[{"type":"image_url","image_url":{"url":"data:"}}]}}]', 1, 1),
        ('[{"delta":{"content":{"a":1}}}]', 7, 1),
        ('[{"delta":{"reasoning":"abc"}}]', 3, 1),
        ('[{"delta":{"reasoning_content":"abc"}}]', 3, 1),
        ('[{"delta":{"refusal":"no"}}]', 2, 1),
        ('[{"delta":{"tool_calls":[{"index":0,"id":"call_1"}]}}]', 0, 0),
        ('[{"delta":{"tool_calls":[{"index":0,"id":"call_1","function":{"name":"f","arguments":""}}]}}]', 1, 1),
        ('[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{a"}}]}}]', 2, 1),
        ('[{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}},{}]}}]', 8, 1),
        ('[{"message":{"tool_calls":[{"custom":{"name":"f","input":"abc"}}]}}]', 4, 1),
        ('[{"message":{"content":"ab","tool_calls":[{"function":{"name":"f"}}],"function_call":null}}]', 3, 1),
        ('[{"delta":{"tool_calls":5}}]', 1, 1),
        ('[{"delta":{"function_call":{"name":"f"}}}]', 1, 1),
        ('[{"delta":{"function_call":"f"}}]', 3, 1),
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


# Servers as they are.


@pytest.mark.parametrize("sample", ANSWERS.values(), ids=ANSWERS)
def test_usage_is_read_as_the_server_writes_it(sample):
    assert read_answer(sample.body).usage == sample.usage


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("vllm-chat.body", Usage(10, 16, total=26)),
        ("vllm-completions-batch.body", Usage(2, 16, total=18)),
    ],
)
def test_usage_is_read_of_a_recorded_answer(name, usage):
    assert read_answer(recorded(name)).usage == usage


TOTALS = ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"]
INPUT_PARTS = ["cache_read_input_tokens", "cache_creation_input_tokens"]
SIDES = [*INPUT_PARTS, "prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "reasoning_tokens"]
# Of the details, one field that is odd, another that is a count, and where that shows.
DETAILED = [
    ("prompt_tokens_details", "cached_tokens", "audio_tokens", "audio_input"),
    ("prompt_tokens_details", "audio_tokens", "cached_tokens", "cached"),
    ("prompt_token_details", "audio_tokens", "cached_tokens", "cached"),
    ("input_tokens_details", "cache_write_tokens", "cached_tokens", "cached"),
    ("input_token_details", "cache_creation_tokens", "cache_write_tokens", "cache_written"),
    ("prompt_tokens_details", "created_cache_tokens", "cache_creation_tokens", "cache_written"),
    ("completion_tokens_details", "reasoning_tokens", "audio_tokens", "audio_output"),
    ("output_tokens_details", "audio_tokens", "reasoning_tokens", "reasoning"),
    ("output_token_details", "audio_tokens", "reasoning_tokens", "reasoning"),
]
NO_COUNTS = [-1, -1.5, 1e300, "5", "0", True, 2**63, MAX_TOKENS + 1, [], {}]


@pytest.mark.parametrize("number", NO_COUNTS)
@pytest.mark.parametrize("field", TOTALS)
def test_a_total_that_is_no_count_makes_any_usage_absurd_that_has_no_other(field, number):
    usage = reading(counts() | {field: number}).usage
    if field == "total_tokens":
        assert usage == DoubtfulUsage(10, 16, total=26, most_input=10)
    else:
        assert usage is Absence.ABSURD
    for place in ({"x_groq": {"usage": {field: number}}}, {"choices": [{"usage": {field: number}}]}):
        assert read_answer(json.dumps(place).encode()).usage is Absence.ABSURD
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 1, field: number}}}
    assert read_answer(json.dumps(start).encode()).usage is Absence.ABSURD
    assert read_answer(json.dumps({"type": "message_delta", "usage": {field: number}}).encode()).part is None


@pytest.mark.parametrize("number", [None, *NO_COUNTS])
@pytest.mark.parametrize("field", SIDES)
def test_what_is_no_count_beside_the_totals_is_left_out(field, number):
    assert reading(counts(**{field: number})).usage == Usage(10, 16, total=26)
    assert reading(counts(**{field: number}, prompt_tokens_details={"cached_tokens": 4})).usage.cached == 4


@pytest.mark.parametrize("number", NO_COUNTS)
@pytest.mark.parametrize("field", INPUT_PARTS)
def test_where_it_is_a_part_of_the_input_that_nothing_else_counts_usage_is_absurd(field, number):
    usage = {"input_tokens": 10, "output_tokens": 16, field: number}
    assert reading(usage, type="message").usage is Absence.ABSURD
    assert reading(usage, type="message_delta").usage is Absence.ABSURD
    start = {"type": "message_start", "message": {"usage": usage}}
    assert read_answer(json.dumps(start).encode()).usage is Absence.ABSURD
    assert reading(usage | {"total_tokens": 26}).usage == Usage(10, 16, total=26)


@pytest.mark.parametrize("number", [None, *NO_COUNTS])
@pytest.mark.parametrize(("details", "field", "other", "attribute"), DETAILED)
def test_what_is_no_count_among_the_details_is_left_out_and_what_is_one_stays(
    details, field, other, attribute, number
):
    assert reading(counts(**{details: {field: number}})).usage == Usage(10, 16, total=26)
    expected = replace(Usage(10, 16, total=26), **{attribute: 4})
    assert reading(counts(**{details: {field: number, other: 4}})).usage == expected


@pytest.mark.parametrize("value", [5, "x", True, [], [{"modality": "TEXT", "token_count": 10}]])
@pytest.mark.parametrize("details", sorted({row[0] for row in DETAILED}))
def test_details_that_are_no_details_are_left_out(details, value):
    assert reading(counts(**{details: value})).usage == Usage(10, 16, total=26)
    kept = counts(**{details: value}, cached_tokens=3, reasoning_tokens=5)
    assert reading(kept).usage == Usage(10, 16, cached=3, reasoning=5, total=26)


PASSES = [
    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
    {"type": "message", "input_tokens": 23_000, "output_tokens": 1000, "cache_read_input_tokens": 7},
]


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        (PASSES, Usage(203_007, 4500, cached=7, total=207_507)),
        ([*PASSES, {"type": "advisor_message", "input_tokens": 5, "output_tokens": 1}], 207_513),
        ([PASSES[1]], Usage(23_007, 1000, cached=7, total=24_007)),
        ([*PASSES, {}], 207_507),
        ([*PASSES, {"input_tokens": None}], 207_507),
        ([{"input_tokens": 1, "output_tokens": 1}], 24_000),  # less than what was counted elsewhere
        ([{"input_tokens": MAX_TOKENS, "output_tokens": 0}, PASSES[0]], Absence.ABSURD),
        *[(odd, 24_000) for odd in ([], None, 2, "x", {}, [5], [*PASSES, {"input_tokens": -1}])],
    ],
)
def test_where_the_model_ran_several_times_all_its_passes_count(passes, expected):
    usage = {"input_tokens": 23_000, "output_tokens": 1000, "iterations": passes}
    for found in (reading(usage, type="message").usage, reading(usage, type="message_delta").usage):
        assert expected == (found.total if isinstance(expected, int) else found)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tokens_evaluated": 10, "tokens_predicted": 16, "tokens_cached": 25}, Usage(10, 16, total=26)),
        ({"tokens_evaluated": 10, "tokens_predicted": 16, "timings": {"prompt_n": 1}}, Usage(10, 16, total=26)),
        ({"tokens_evaluated": 10, "tokens_predicted": 16, "timings": {"cache_n": -1}}, Usage(10, 16, total=26)),
        ({"tokens_evaluated": 10, "tokens_predicted": 16, "timings": 5}, Usage(10, 16, total=26)),
        ({"tokens_evaluated": 10}, Usage(10, 0, total=10)),
        ({"tokens_predicted": 16}, Usage(0, 16, total=16)),
        ({"tokens_evaluated": 10, "tokens_predicted": -1}, Absence.ABSURD),
        ({"tokens_evaluated": "10"}, Absence.ABSURD),
        ({"tokens_evaluated": 0, "tokens_predicted": 0}, Absence.ABSURD),
        ({"prompt_eval_count": 10}, Usage(10, 0, total=10)),
        ({"prompt_eval_count": 10, "prompt_eval_cached_count": "8"}, Usage(10, 0, total=10)),
        ({"eval_count": 16}, Usage(0, 16, total=16)),
        ({"prompt_eval_count": "1.5", "eval_count": 16}, Absence.ABSURD),
        ({"tokens_evaluated": 10, "tokens_predicted": 16, "usage": counts(1, 2)}, Usage(1, 2, total=3)),
        ({"tokens_evaluated": 10, "tokens_predicted": 16, "type": "ping"}, Absence.MISSING),
        ({"tokens_evaluated": 10, "tokens_predicted": 16, "choices": [{}]}, Absence.MISSING),
    ],
)
def test_counts_beside_the_answer_stand_where_there_is_no_usage(fields, expected):
    assert read_answer(json.dumps(fields).encode()).usage == expected


@pytest.mark.parametrize(
    ("index", "expected"), [("0", b"0"), ("7", b"7"), ("12345678", None), ('"a long one"', None), (None, None)]
)
def test_the_prompt_that_llama_cpp_answers_is_told_by_its_index(index, expected):
    place = "" if index is None else f',"index":{index}'
    read = read_answer(f'{{"tokens_evaluated":10,"tokens_predicted":1{place}}}'.encode())
    assert (read.choice, read.apart) == (expected, expected is not None)
    assert not read_answer(b'{"index":0}').apart


def test_a_list_of_answers_is_summed_up():
    one = {"content": "abc", "tokens_evaluated": 10, "tokens_predicted": 16, "timings": {"cache_n": 4}}
    two = {"content": "de", "tokens_evaluated": 1, "tokens_predicted": 2}
    read = read_answer(json.dumps([one, two]).encode())
    assert read.usage == Usage(11, 18, cached=4, total=29)
    assert (read.content_bytes, read.pieces) == (5, 2)
    much = {"tokens_evaluated": MAX_TOKENS // 2 + 1}
    assert read_answer(json.dumps([much, much]).encode()).usage is Absence.ABSURD


def test_a_text_with_too_many_objects_is_told_from_one_that_can_be_read_at_once():
    one = b'{"tokens_evaluated":1}'
    most = b"[" + b",".join([one] * MAX_OBJECTS) + b"]"
    assert not is_dense(most)
    assert read_answer(most).usage.total == MAX_OBJECTS
    assert is_dense(b"[" + b",".join([one] * (MAX_OBJECTS + 1)) + b"]")


@pytest.mark.parametrize(
    ("usage", "total"),
    [
        (b'{"input_tokens":3,"iterations":[' + b",".join([b'{"input_tokens":9}'] * 256) + b"]}", 9 * 256),
        (b'{"prompt_tokens":3,"iterations":[' + b",".join([b'{"input_tokens":9}'] * 257) + b"]}", None),
        (b'{"prompt_tokens":3,"iterations":[5,' + b",".join([b"{}"] * 257) + b"]}", None),
        (b'{"prompt_tokens":3,"x":"' + b"x" * 16_000 + b'"}', 3),
        (b'{"prompt_tokens":3,"x":"' + b"x" * 17_000 + b'"}', None),
        (b'{"prompt_tokens":3,"prompt_tokens_details":{"x":"' + b"x" * 17_000 + b'"}}', None),
    ],
)
def test_usage_of_a_size_that_no_server_writes_is_absurd(usage, total):
    read = read_answer(b'{"usage":' + usage + b"}").usage
    assert read is Absence.ABSURD if total is None else total in (read.total, read.input)


def test_passes_count_beside_what_is_odd():
    usage = {"input_tokens": 3, "output_tokens": 1, "cached_tokens": -1, "iterations": [{"input_tokens": 9}] * 2}
    assert reading(usage).usage == Usage(18, 1, total=19)


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b" \r\n\t", b"\n\xef\xbb\xbf ", b"\xef\xbb\xbf\r\n"])
def test_a_byte_order_mark_and_white_space_before_an_answer_are_seen_through(before):
    for text in (b'{"usage":{"prompt_tokens":1}}', b'[{"usage":{"prompt_tokens":1}}]'):
        assert read_answer(before + text) == read_answer(text)
        assert read_answer(before + text).usage == Usage(1, 0, total=1)


@pytest.mark.parametrize("value", [5, "x", [], [5], {"usage": None}, {"usage": {}}, {}])
@pytest.mark.parametrize(
    "field", ["meta", "x_groq", "response", "message", "type", "object", "content_block", "delta"]
)
def test_what_has_another_shape_where_usage_could_be_is_no_usage(field, value):
    for kind in ("", "message_start", "content_block_start", "response.completed"):
        found = read_answer(json.dumps({"type": kind, field: value}).encode()).usage
        assert found in (Absence.MISSING, Absence.ABSURD)
        assert found is Absence.MISSING or value == {"usage": {}}


def test_parts_are_no_more_than_the_whole():
    details = {
        "prompt_tokens_details": {"cached_tokens": 8, "created_cache_tokens": 8, "audio_tokens": 80},
        "completion_tokens_details": {"reasoning_tokens": 80, "audio_tokens": 80},
    }
    expected = Usage(10, 16, 8, 16, 26, audio_input=10, audio_output=16, cache_written=2)
    assert reading(counts(**details)).usage == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"total_tokens": 15, "completion_tokens": 5}, Usage(10, 5, total=15)),
        ({"total_tokens": 0}, Absence.ABSURD),
        ({"total_tokens": 5, "completion_tokens": 6}, Usage(0, 6, total=6)),
        ({"input_tokens": MAX_TOKENS, "cache_read_input_tokens": 1, "output_tokens": 0}, Absence.ABSURD),
        ({"tokens": 5}, Absence.ABSURD),
        ({"billed_units": 5}, Absence.ABSURD),
        ({"billed_units": {"images": 1}}, Absence.OTHER_UNIT),
        ({"billed_units": {"classifications": 2}}, Absence.OTHER_UNIT),
        ({"billed_units": {"input_tokens": 0, "images": 1}}, Absence.OTHER_UNIT),
        ({"billed_units": {"images": 1, "image_tokens": 258}}, Usage(258, 0, total=258)),
        ({"billed_units": {"images": 1, "image_tokens": -1}}, Absence.OTHER_UNIT),
        ({"billed_units": {"input_tokens": 2, "image_tokens": 512}}, Usage(514, 0, total=514)),
        ({"input_tokens": 512, "image_tokens": 510}, Usage(512, 0, total=512)),
        ({"tokens": {"tokens": {"input_tokens": 5}}}, Absence.ABSURD),
        ({"type": "tokens"}, Absence.ABSURD),
    ],
)
def test_what_is_left_out_follows_from_the_rest_or_makes_usage_absurd(usage, expected):
    assert reading(usage).usage == expected


def test_usage_in_parts_that_is_too_large_is_absurd():
    start = {"input_tokens": MAX_TOKENS, "cache_read_input_tokens": 1}
    text = json.dumps({"type": "message_start", "message": {"usage": start}}).encode()
    assert read_answer(text).usage is Absence.ABSURD


def test_only_a_chunk_with_nothing_else_is_a_usage_chunk():
    assert reading(counts(), choices=[]).only_usage
    assert reading(counts()).only_usage
    assert reading({"prompt_tokens": -1}, choices=[]).only_usage
    for other in (
        {"choices": [{}]},
        {"error": "no"},
        {"type": "message_delta"},
        {"response": "a"},
        {"usage": None},
    ):
        assert not reading(**{"usage": counts(), "choices": []} | other).only_usage


def test_the_end_of_a_stream_says_nothing():
    assert read_answer(b"[DONE]") == Reading(Absence.MISSING)


# Content of other shapes than choices.


@pytest.mark.parametrize(
    ("value", "content_bytes", "pieces"),
    [
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "abc"}}, 3, 1),
        ({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "ab"}}, 2, 1),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}, 1, 1),
        ({"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "xyz"}}, 0, 0),
        ({"type": "content_block_delta", "delta": "abc"}, 5, 1),
        ({"type": "content_block_delta"}, 0, 0),
        ({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, 0, 0),
        ({"type": "content_block_start", "content_block": {"type": "redacted_thinking", "data": "abcd"}}, 0, 1),
        ({"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f", "input": {}}}, 1, 1),
        (
            {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f", "input": {"a": 1}}},
            8,
            1,
        ),
        ({"type": "content_block_start", "content_block": {"type": "compaction", "content": ""}}, 0, 0),
        ({"type": "content_block_delta", "delta": {"type": "compaction_delta", "content": "abc"}}, 3, 1),
        ({"type": "content_block_start", "content_block": {"content": [{"type": "x", "text": "found"}]}}, 0, 0),
        ({"type": "response.output_text.delta", "delta": "abc"}, 3, 1),
        ({"type": "response.output_text.delta", "delta": ""}, 0, 0),
        ({"type": "response.mcp_call_arguments.delta", "delta": {"a": 1}}, 7, 1),
        ({"type": "response.output_text.done", "text": "abc"}, 0, 0),
        ({"type": "response.completed", "response": {"output": ["abc"]}}, 0, 0),
        ({"type": "response.output_item.done", "item": {"content": "abc"}}, 0, 0),
        ({"type": "transcript.text.done", "text": "abc"}, 0, 0),
        ({"type": "transcription.text.delta", "text": "abc"}, 3, 1),
        ({"type": "speech.audio.delta", "audio": "abcdefgh"}, 0, 1),
        ({"type": "message", "content": [{"type": "text", "text": "a"}]}, 1, 1),
        ({"object": "response", "output": ["abc"], "text": {"format": {}}}, 3, 1),
        ({"text": "abc"}, 3, 1),
        ({"response": "abc"}, 3, 1),
        ({"response": {"a": 1}}, 0, 0),
        ({"response": "ab", "thinking": "c"}, 3, 1),
        ({"thinking": {"budget": 1}}, 0, 0),
        ({"content": "abc", "stop": False}, 3, 1),
        ({"content": "", "stop": True}, 0, 0),
        ({"message": {"role": "assistant", "content": "abc"}, "done": False}, 3, 1),
        ({"message": {"content": "abc", "thinking": "de"}}, 5, 1),
        ({"message": {"content": "", "tool_calls": [{"function": 1}]}}, 16, 1),
        ({"message": {"content": ""}, "done": True}, 0, 0),
        ({"message": "not found"}, 0, 0),
        ({"message": {"audio": 5}}, 11, 1),
        ({"type": "message_start", "message": {"content": "abc"}}, 0, 0),
        ({"choices": [{"message": {"thinking": "abc"}}]}, 3, 1),
        ({"data": ["abc"]}, 0, 0),
        ({"choices": [{"text": "abc"}]}, 3, 1),
        ({"choices": [{"delta": {"audio": {"data": "abcdefgh"}}}]}, 0, 1),
        ({"choices": [{"delta": {"audio": {"data": "abcdefgh", "transcript": "ab"}}}]}, 2, 1),
        ({"choices": [{"delta": {"audio": {"id": "a", "expires_at": 1}}}]}, 0, 0),
    ],
)
def test_content_is_counted_in_every_shape_and_only_once(value, content_bytes, pieces):
    read = read_answer(json.dumps(value, separators=(",", ":")).encode())
    assert (read.content_bytes, read.pieces) == (content_bytes, pieces)


@pytest.mark.parametrize(
    ("value", "again"),
    [
        ({"type": "response.output_text.done", "text": "abc"}, 3),
        ({"type": "transcript.text.done", "text": "abc"}, 3),
        ({"type": "response.output_item.done", "item": {"content": "abc"}}, 0),
        ({"type": "response.completed", "response": {"output": [{"content": [{"text": "abcd"}]}]}}, 4),
        ({"type": "response.completed", "response": {"output": [], "instructions": "x"}}, 0),
        ({"type": "response.completed", "response": 5}, 0),
        ({"type": "response.completed", "response": {"output": ["a"], "usage": counts()}}, 0),
        ({"type": "response.output_text.delta", "delta": "abc", "text": "x"}, 0),
    ],
)
def test_text_that_may_repeat_what_came_before_is_measured_apart(value, again):
    assert read_answer(json.dumps(value).encode()).again == again


@pytest.mark.parametrize(
    "value",
    [
        {"type": "error", "error": {"type": "overloaded_error"}},
        {"type": "error", "code": "server_error", "message": "no"},
        {"type": "response.failed", "response": {"error": {"code": "server_error"}}},
        {"object": "error", "message": "no", "code": 400},
        {"choices": None, "usage": {"total_tokens": 0}, "base_resp": {"status_code": 1008, "status_msg": "no"}},
        {"error_code": 336003, "error_msg": "no"},
        {"success": False, "errors": [{"code": 7009}], "result": None},
        {"success": False, "code": 500, "msg": "no"},
        {"success": False, "base_resp": {"status_code": 0}, "errors": []},
    ],
)
def test_an_error_is_told_in_every_shape(value):
    read = read_answer(json.dumps(value).encode())
    assert (read.error, read.pieces) == (True, 0)


@pytest.mark.parametrize(
    "value",
    [
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"base_resp": {}},
        {"base_resp": None},
        {"base_resp": 5},
        {"error_code": 0},
        {"error_code": "0", "errors": []},
        {"errors": {}},
        {"success": True, "code": 200},
        {"success": None},
    ],
)
def test_what_says_that_there_is_no_error_is_none(value):
    assert not read_answer(json.dumps(value).encode()).error


def test_the_choice_of_a_chunk_is_told_where_there_is_just_one():
    def choice(*choices):
        return read_answer(json.dumps({"choices": choices}).encode()).choice

    assert choice({"index": 3}) == b"3"
    assert choice({}) == b""
    assert choice({"index": "a long one"}) is None
    assert choice({"index": 0}, {"index": 1}) is None


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
        assert 0 <= usage.audio_input <= usage.input
        assert 0 <= usage.audio_output <= usage.output
        assert 0 <= usage.cache_written <= usage.input - usage.cached
        assert 0 < usage.input + usage.output <= usage.total <= MAX_TOKENS or usage.total > 0
    else:
        assert isinstance(read.usage, Absence)


EVENTS = [e for s in (*SAMPLES.values(), *STREAMS.values()) for e in s.events]
DATA = st.sampled_from([e.rpartition(b"data: ")[2].strip() for e in EVENTS] + [a.body for a in ANSWERS.values()])


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
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "iterations",
            "image_tokens",
            "billed_units",
            "tokens",
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
        {},
        optional={
            "usage": VALUES | COUNTS,
            "choices": VALUES | PIECES,
            "error": VALUES,
            "id": VALUES,
            "type": VALUES | st.sampled_from(["message_start", "message_delta", "response.completed", "x.delta"]),
            "message": VALUES | st.fixed_dictionaries({"usage": VALUES | COUNTS}),
            "response": VALUES | st.fixed_dictionaries({"usage": VALUES | COUNTS}),
            "meta": VALUES | COUNTS,
            "index": VALUES,
            "tokens_evaluated": VALUES,
            "tokens_predicted": VALUES,
            "timings": VALUES | st.fixed_dictionaries({"cache_n": VALUES}),
            "eval_count": VALUES,
        },
    )
)
def test_any_value_in_any_field_gives_a_reading(answer):
    sane(read_answer(json.dumps(answer).encode()))
    sane(read_answer(json.dumps([answer, answer]).encode()))
    sane(read_answer(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")))


def test_choices_beyond_all_measure_are_not_taken_apart():
    reading = read_answer(
        b'{"choices":[' + b"{}," * (1 << 18) + b'{}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    )
    assert (reading.usage.total, reading.pieces) == (3, 1)
