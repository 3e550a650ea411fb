"""What a template can make of JSON is bounded: the proof that strict mode needs, against json's own writer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.rendering import rendering_bytes
from tests.core.samples import FUZZ

TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=5),
    max_leaves=25,
)


def compact(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


@FUZZ
@given(TREES)
def test_no_template_writes_more_than_is_added(tools):
    prompt = compact({"tools": tools})
    for indent in (None, 2, 4):
        written = json.dumps(tools, indent=indent, ensure_ascii=False).encode("utf-8", "replace")
        assert len(written) <= len(prompt) + rendering_bytes(prompt)


@pytest.mark.parametrize(
    "tools",
    [[1e15] * 500, [1e-7] * 100, [[[[[[[[1]]]]]]]] * 50, {"a": {"b": {"c": [1, 2, {"d": "e,e,e:e{e"}]}}}, []],
)
def test_hostile_numbers_and_depths_are_covered(tools):
    prompt = compact({"tools": tools}).replace(b"1000000000000000.0", b"1e15")
    assert len(json.dumps(tools, indent=4)) <= len(prompt) + rendering_bytes(prompt)


def test_arguments_that_are_json_in_a_string_are_covered():
    arguments = {"a": [1, {"b": [2, 3]}], "c": "d"}
    call = {"function": {"name": "f", "arguments": json.dumps(arguments, separators=(",", ":"))}}
    prompt = compact({"messages": [{"role": "assistant", "tool_calls": [call]}]})
    taken_apart = {"function": {"name": "f", "arguments": arguments}}
    assert len(json.dumps([taken_apart], indent=4)) <= len(prompt) + rendering_bytes(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        b"",
        b"{}",
        compact({"messages": [{"role": "user", "content": 'my "tools": [1,2,3]'}]}),
        b'{"input":["a","b"]}',
    ],
)
def test_where_nothing_is_written_as_json_nothing_is_added(prompt):
    assert rendering_bytes(prompt) == 0


def test_text_of_messages_adds_nothing_however_much_it_looks_like_code():
    code = "if a[0] == {'b': \"c\"}:\n    return [1, 2]\n" * 6000
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": code}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    plain = compact({"messages": messages, "tools": [tool]})
    assert len(plain) > 250_000
    assert rendering_bytes(plain) < 2000


def test_blocks_of_tool_use_in_content_are_covered():
    used = [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": [1, 2, {"b": [3]}]}}]
    prompt = compact({"messages": [{"role": "assistant", "content": used}]})
    assert len(json.dumps(used, indent=4)) <= len(prompt) + rendering_bytes(prompt)
    escaped = prompt.replace(b"tool_use", rb"tool\u005fuse")
    assert len(json.dumps(used, indent=4)) <= len(escaped) + rendering_bytes(escaped)


def test_a_name_that_is_written_with_escapes_is_found():
    prompt = compact({"messages": [{"tool_calls": [[[[1, 2, 3]]]]}]})
    escaped = prompt.replace(b"tool_calls", rb"tool\u005fcalls")
    assert rendering_bytes(escaped) == rendering_bytes(prompt) > 0


def test_what_can_not_be_read_counts_whole():
    chats = compact({"messages": [[{"tool_calls": [[1, 2]]}], [{"content": "a,b"}]]})  # a batch of them
    assert rendering_bytes(chats) > rendering_bytes(compact({"messages": [{"tool_calls": [[1, 2]]}]}))
    assert rendering_bytes(b"[1,2,") > 0


def test_text_in_strings_adds_nothing_where_no_string_is_taken_apart():
    short, long = (compact({"tools": [{"d": "a, b: c" * n}]}) for n in (1, 1000))
    assert rendering_bytes(short) == rendering_bytes(long)


def test_more_brackets_than_are_looked_at_count_as_the_deepest():
    flat = b'{"tools":[' + b"[]," * 20_000 + b"1]}"
    assert rendering_bytes(flat) > 4000 * 60_000
    assert rendering_bytes(b'{"tools":[' + b"[]," * 9000 + b"1]}") < 40 * 30_000
    assert rendering_bytes(b'{"tools":["' + b"a,b" * 9 + b'"]}') < 100
    assert rendering_bytes(b'{"tools":[' + b'"a,b",' * 10_001 + b"1]}") > 4000 * 20_000
    assert rendering_bytes(b'{"tools":"' + b"[" * 100 + b"]" * 100 + b'",' + b'"arguments":1}') > 400 * 200


@FUZZ
@given(st.binary(max_size=60))
def test_anything_at_all_has_a_bound(rest):
    assert rendering_bytes(b'{"tools":' + rest) >= 0
    assert rendering_bytes(rest) >= 0
