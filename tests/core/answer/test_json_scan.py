"""A scan of an answer that passes: usage at the top level wherever it stands, text and nothing else as text."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer.json_scan import MAX_KEPT_BYTES, MAX_VALUE_BYTES, JsonScan
from extproc.core.answer.passing_over import PassingOver
from extproc.core.answer.reading import read_answer
from extproc.core.quota.usage import Usage
from tests.core.samples import CUTS, FUZZ, VALUES, parts

from .answer_samples import ANSWERS

FOUND = {"prompt_tokens": 10, "total_tokens": 10}


def scanned(body, size=1 << 16):
    scan = JsonScan()
    for at in range(0, len(body), size):
        scan.feed(body[at : at + size])
    return scan


def text(**fields):
    return json.dumps(fields).encode()


def choice(**message):
    return {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}


def seen(scan):
    """All that a scan knows, to be compared."""
    return (
        scan.kept,
        scan.ended,
        (scan.text.size, scan.text.words, scan.unknown.size, scan.unknown.words),
        (scan.media_bytes, scan.sealed_bytes, scan.tokens),
        (scan.complete, scan.overfull, scan.unread_bytes, scan.bytes),
    )


# ---------------------------------------------------------------- what counts as text


@pytest.mark.parametrize(
    ("fields", "size", "words", "tokens"),
    [
        ({"choices": [choice(content="Two words")]}, 9, 2, 0),
        ({"choices": [choice(content="a"), choice(content=" b c ")]}, 6, 3, 0),
        ({"choices": [choice(content=None, reasoning_content="hm", refusal="no")]}, 4, 2, 0),
        ({"choices": [choice(tool_calls=[{"id": "c-1", "function": {"name": "f", "arguments": "{}"}}])]}, 3, 2, 0),
        (
            {"choices": [{"text": "abc", "logprobs": {"tokens": ["a", "bc"], "top_logprobs": [{"a": -1}]}}]},
            3,
            1,
            2,
        ),
        (
            {"choices": [choice(content="a") | {"logprobs": {"content": [{"token": "a", "bytes": [97]}] * 3}}]},
            1,
            1,
            3,
        ),
        ({"choices": [choice(content="") | {"token_ids": [1, 2, 3, 4]}]}, 0, 0, 4),
        ({"choices": [choice(content="") | {"token_ids": []}]}, 0, 0, 0),
        ({"choices": [choice(content="") | {"token_ids": {"a": [1, 2]}}]}, 0, 0, 0),
        ({"choices": [choice(content="a") | {"logprobs": {"content": {"a": 1}}}]}, 1, 1, 0),
        ({"choices": [choice(content="a") | {"logprobs": {"text_offset": [0, 1]}}]}, 1, 1, 0),
        ({"content": [{"type": "text", "text": "abc"}, {"type": "tool_use", "id": "t", "name": "de"}]}, 5, 2, 0),
        (
            {"choices": [choice(content="a") | {"token_ids": [1, 2], "logprobs": {"content": [{}, {}, {}]}}]},
            1,
            1,
            3,
        ),
        ({"content": [{"type": "thinking", "thinking": "abc", "signature": "A" * 99}]}, 3, 1, 0),
        ({"content": "llama.cpp's own", "prompt": "all of it", "tokens": [1, 2]}, 15, 2, 2),
        ({"content": "a", "completion_probabilities": [{"token": "a"}, {"token": "b"}]}, 1, 1, 2),
        (
            {
                "output": [
                    {"type": "message", "content": [{"type": "output_text", "text": "abc", "logprobs": [{}]}]}
                ],
                "instructions": "be brief",
                "text": {"format": {"type": "text"}},
                "tools": [{"type": "function", "name": "f"}],
            },
            3,
            1,
            1,
        ),
        ({"text": "said", "segments": [{"text": "said", "tokens": [5, 6]}], "words": [{"word": "said"}]}, 4, 1, 0),
        ({"message": {"role": "assistant", "content": "abc"}}, 3, 1, 0),
        ({"message": "a notice"}, 0, 0, 0),
        ({"response": "abc", "thinking": "de"}, 5, 2, 0),
        ({"prompt_logprobs": [None, {"1": {"decoded_token": "abc"}}], "prompt_token_ids": [1, 2]}, 0, 0, 0),
        ({"data": [{"embedding": [0.5, 1.5]}], "usage": FOUND}, 0, 0, 0),
    ],
)
def test_text_and_tokens_are_counted_and_nothing_else(fields, size, words, tokens):
    for body in (text(**fields), json.dumps(fields, separators=(",", ":")).encode()):
        for step in (1, 2, 3, 1 << 16):
            scan = scanned(body, step)
            assert (scan.text.size, scan.text.words, scan.tokens, scan.complete) == (size, words, tokens, True)
            assert scan.unread_bytes == 0


@pytest.mark.parametrize(
    ("body", "size", "words"),
    [
        (b'{"content":[{"type":"tool_use","input":{"url":["a b"],"id":{"prompt":"c"}}}]}', 34, 2),
        (b'{"message":{"tool_calls":[{"function":{"arguments":{"url":"a b"}}}]}}', 12, 2),
        (b'{"content":[{"type":"text","text":"a"},{"input":{"status":"c d e"}}]}', 18, 4),
        (b'{"content":[{"input":"a b"},{"input":[]},{"input":{}},{"input":[[1, 2]]}]}', 12, 6),
    ],
)
def test_what_a_model_writes_for_a_tool_is_text_whatever_its_caller_has_named_it(body, size, words):
    for step in (1, 2, 3, 1 << 16):
        scan = scanned(body, step)
        assert (scan.text.size, scan.text.words, scan.complete) == (size, words, True)


def test_pictures_sounds_and_what_is_encrypted_are_apart():
    picture = scanned(text(data=[{"b64_json": "QUJD" * 100, "revised_prompt": "a weir"}]))
    assert (picture.media_bytes, picture.text.size) == (400, 6)
    assert scanned(text(choices=[choice(audio={"data": "QUJD", "transcript": "hm"})])).media_bytes == 4
    assert scanned(text(data=[{"url": "https://a/b"}])).media_bytes == 11
    assert scanned(text(choices=[choice(images=[{"image_url": {"url": "data:x"}}])])).media_bytes == 6
    assert scanned(text(output=[{"type": "reasoning", "encrypted_content": "AAAA"}])).sealed_bytes == 4


def test_strings_of_members_that_nobody_knows_are_apart():
    scan = scanned(
        text(generated_text="one two", results=[{"said": "three"}], picture={"url": "x"}, logprobs=[{}, {}])
    )
    assert (scan.unknown.size, scan.unknown.words, scan.text.size) == (12, 3, 0)


def test_escapes_are_part_of_the_text_and_end_no_string():
    body = rb'{"choices":[{"text":"a \"b\" \\"}],"note":"\\\"","usage":{"a":"}\\\"{"}}'
    for step in (1, 2, 3, 5, 99):
        scan = scanned(body, step)
        assert (scan.text.size, scan.unknown.size, scan.complete) == (10, 4, True)
        assert scan.kept == {b"usage": rb'{"a":"}\\\"{"}'}


# ---------------------------------------------------------------- usage


PAD = [{"1": {"logprob": -1.5, "decoded_token": '}"]'}}] * 300


@pytest.mark.parametrize("name", ["prompt_logprobs", "choices", "data", "unknown", "text"])
def test_usage_before_between_and_behind_is_kept(name):
    for fields in (
        {"usage": FOUND, name: PAD},
        {name: PAD, "usage": FOUND},
        {name: PAD, "usage": FOUND, "x": PAD},
    ):
        for step in (7, 997, 1 << 20):
            scan = scanned(text(**fields), step)
            assert json.loads(scan.kept[b"usage"]) == FOUND
            assert scan.complete


@pytest.mark.parametrize(
    "body",
    [
        text(other={"usage": FOUND}, more=[{"usage": FOUND}]),
        text(note='{"usage": {"prompt_tokens": 10}}', more='","usage":{"prompt_tokens": 10}'),
        text(**{'a","usage': FOUND}),
        text(content=[{"usage": FOUND}], message={"usage": FOUND}),
        text(prompt_logprobs=[{"usage": FOUND}]),
        b"[" + text(usage=FOUND),
    ],
)
def test_usage_that_stands_elsewhere_is_not_kept(body):
    assert b"usage" not in scanned(body).kept or not scanned(body).complete


def test_counts_that_stand_alone_and_the_usage_of_a_choice_are_kept():
    body = text(tokens_evaluated=10, tokens_predicted=16, timings={"cache_n": 4}, error=None, type="message")
    assert scanned(body).kept == {
        b"tokens_evaluated": b"10",
        b"tokens_predicted": b"16",
        b"timings": b'{"cache_n": 4}',
        b"error": b"null",
        b"type": b'"message"',
    }
    body = text(choices=[choice(content="a") | {"usage": FOUND}])
    assert json.loads(scanned(body).kept[b"choices"]) == [{"usage": FOUND}]


def test_of_a_list_of_answers_each_is_kept_for_itself():
    scan = scanned(json.dumps([{"text": "a", "meta_info": {"prompt_tokens": n}} for n in (1, 2)]).encode(), 5)
    assert [json.loads(members[b"meta_info"]) for members in scan.ended] == [{"prompt_tokens": n} for n in (1, 2)]
    assert (scan.text.size, scan.complete) == (2, True)
    assert scanned(b"[[1, [2]], [3]]").complete


def test_what_is_kept_is_bounded():
    large = scanned(text(usage={"a": "x" * MAX_VALUE_BYTES}, type="x"))
    assert large.overfull
    assert large.kept == {b"type": b'"x"'}
    half = "x" * (MAX_VALUE_BYTES // 2)
    many = scanned(b"{" + b",".join(b'"error":"%b"' % half.encode() for _ in range(100)) + b"}")
    assert many.overfull
    assert many._kept_bytes <= 110 * MAX_VALUE_BYTES
    assert sum(map(len, many.kept.values())) <= MAX_KEPT_BYTES
    assert len(scanned(text(**{"n" * 100_000: "x"}))._name) <= 65


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(
            ["data", "usage", "meta", "a", ',"usage":{"prompt_tokens":3}', "choices", "content", "error"]
        ),
        VALUES
        | st.fixed_dictionaries({"usage": st.just(FOUND)})
        | st.just(FOUND)
        | st.just([{"b": 1, "usage": FOUND, "text": 'x"}\\'}]),
    ),
    CUTS,
    st.sampled_from([None, (",", ":"), (" ,\n", "\t: ")]),
)
def test_any_answer_is_scanned_the_same_however_it_is_cut_and_its_members_are_as_they_are(
    answer, cuts, separators
):
    body = json.dumps(answer, separators=separators).encode()
    scan = JsonScan()
    for part in parts(body, cuts):
        scan.feed(part)
    assert seen(scan) == seen(scanned(body))
    assert scan.complete
    for name, value in scan.kept.items():
        if name != b"choices":
            assert value == json.dumps(answer[name.decode()], separators=separators).encode()


OBJECTS = {name: sample for name, sample in ANSWERS.items() if sample.body.lstrip().startswith(b"{")}


@pytest.mark.parametrize("sample", OBJECTS.values(), ids=OBJECTS)
def test_what_is_kept_of_any_servers_answer_has_the_usage_of_the_whole(sample):
    scan = scanned(sample.body, 11)
    document = b"{%b}" % b",".join(b'"%b":%b' % member for member in scan.kept.items())
    assert read_answer(document).usage == read_answer(sample.body).usage
    assert scan.complete
    assert isinstance(sample.usage, Usage) or not isinstance(read_answer(document).usage, Usage)


# ---------------------------------------------------------------- what is no JSON, and what has too much structure


@pytest.mark.parametrize(
    "body", [b"{}}", b"{} x", b"{]", b"[}", b'{"a":1', b'{"a":"', b"{}{", b'{"a":[}', b"}", b'"']
)
def test_what_is_no_json_is_never_complete_and_is_the_same_however_it_is_cut(body):
    assert not scanned(body).complete
    assert seen(scanned(body, 1)) == seen(scanned(body))


def test_white_space_may_follow():
    assert scanned(b"{} \r\n\t", 1).complete


def test_text_is_not_looked_for_in_too_much_structure_but_usage_is_found_behind_it():
    body = b'{"choices":[{"text":"abc"},' + b"{}," * 100_000 + b'{}],"usage":{"prompt_tokens":10}}'
    scan = scanned(body)
    assert scan.kept == {b"usage": b'{"prompt_tokens":10}'}
    assert scan.unread_bytes > 250_000
    assert (scan.text.size, scan.complete) == (3, True)


def test_of_too_many_members_the_rest_is_not_read():
    scan = scanned(b'{"usage":{"prompt_tokens":10}' + b',"a":1' * 100_000 + b"}")
    assert scan.kept == {b"usage": b'{"prompt_tokens":10}'}
    assert not scan.complete
    assert scan.unread_bytes > 500_000


def test_what_is_nested_deeper_than_any_text_is_passed_over():
    scan = scanned(b'{"choices":' + b"[" * 100 + b'"abc"' + b"]" * 100 + b',"usage":{}}')
    assert (scan.text.size, scan.complete, scan.kept) == (0, True, {b"usage": b"{}"})


SHAPES = {
    "prompt_logprobs": b'{"prompt_logprobs":[%b],"usage":{}}' % (b'{"12":{"logprob":-1.25,"decoded_token":" a"}},' * 40_000)[:-1],
    "text": b'{"choices":[{"text":"%b"}]}' % (b"word " * 400_000),
    "escapes": b'{"choices":[{"text":"%b"}]}' % (b'\\"' * 1_000_000),
    "empty objects": b'{"choices":[%b{}]}' % (b"{}," * 600_000),
    "empty strings": b'{"choices":[%b""]}' % (b'"",' * 600_000),
    "nesting": b'{"choices":%b%b}' % (b"[" * 1_000_000, b"]" * 1_000_000),
    "nesting that is passed over": b'{"bytes":%b%b}' % (b"[" * 1_000_000, b"]" * 1_000_000),
    "up and down": b'{"bytes":[%b1]}' % (b"[[]],[],[[[]]]," * 130_000),
    "members": b'{%b"a":1}' % (b'"a":1,' * 300_000),
    "members that are objects": b'{%b"a":1}' % (b'"a":{"b":[1]},' * 140_000),
    "members that are kept": b'{%b"a":1}' % (b'"usage":{},' * 180_000),
    "commas": b'{"choices":[%b1]}' % (b"," * 2_000_000),
    "a list": b"[%b{}]" % (b'{"text":"a"},' * 150_000),
    "a list of lists": b"[%b1]" % (b"[]," * 600_000),
    "tokens": b'{"choices":[{"logprobs":{"content":[%b1]}}]}' % (b"{}," * 600_000),
    "numbers": b'{"choices":[{"token_ids":[%b1]}]}' % (b"1," * 1_000_000),
    "a name": b'{"%b":1}' % (b"n" * 2_000_000),
    "backslashes": b'{"choices":["%b"]}' % (b"\\\\" * 1_000_000),
    "a string that never ends": b'{"a":"' + b"x" * 2_000_000,
    "garbage behind it": b"{}" + b"]" * 2_000_000,
}  # fmt: skip


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_a_slice_of_any_answer_takes_little_time(body):
    """16 KiB is what Envoy hands over at once. On an idle core the worst shape takes 4 ms, real ones under 0.5."""
    scan, worst = JsonScan(), []
    for at in range(0, len(body), 1 << 14):
        start = time.thread_time()
        scan.feed(body[at : at + (1 << 14)])
        worst.append(time.thread_time() - start)
    # The median of each kind of slice: one slice may be slow because the machine is busy.
    assert sorted(worst)[-3 if len(worst) > 9 else -1] < 0.03
    assert sum(worst) / len(body) < 1 / 2e6  # two megabytes a second at the least, on a busy machine


# ---------------------------------------------------------------- passing over


@FUZZ
@given(VALUES.filter(lambda value: isinstance(value, (dict, list))), CUTS, st.binary(max_size=9))
def test_the_end_of_what_is_passed_over_is_found_however_it_is_cut(value, cuts, behind):
    body = json.dumps(value).encode()
    over, done, passed = PassingOver(), False, 0
    for part in parts(body[1:] + behind, cuts):
        end, done = over.feed(part, 0)
        passed += end
        if done:
            break
    assert done
    assert passed == len(body) - 1
