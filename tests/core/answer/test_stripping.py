"""Usage is taken out of a chunk, and every other byte stays."""

import json

import pytest

from extproc.core.answer.stripping import without_usage

USAGE = b'{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":3}}'


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b'{"id":"a","choices":[],"usage":%b}', b'{"id":"a","choices":[]}'),
        (b'{"id":"a", "usage": %b, "choices": []}', b'{"id":"a", "choices": []}'),
        (b'{"usage" :  %b , "id":"a"}', b'{"id":"a"}'),
        (b'{"usage":%b}', b"{}"),
        (b'{"usage":null,"id":"a"}', b'{"id":"a"}'),
        (b'{"id":"a","usage":null}', b'{"id":"a"}'),
        (b'{"text":"\\"usage\\":1","usage":%b,"x":1}', b'{"text":"\\"usage\\":1","x":1}'),
    ],
)
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_the_member_is_taken_out_with_its_comma(data, wanted, end):
    data = data % USAGE if b"%b" in data else data
    out = without_usage(b"id: 7\ndata: " + data + end, data)
    assert out == b"id: 7\ndata: " + wanted + end
    json.loads(wanted)


@pytest.mark.parametrize(
    "data",
    [
        b'{"id":"a"}',
        b'{"choices":[{"usage":{"completion_tokens":1}}]}',  # Moonshot's: of one choice
        b'{"text":"usage"}',
        b'{"text":"the \\"usage\\": of it"}',
        b'{"usage":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"usage":{"x":1}',
        b"usage",
        b'["usage"]',
    ],
)
def test_what_has_no_usage_of_its_own_passes_as_the_same_object(data):
    raw = b"data: " + data + b"\n\n"
    assert without_usage(raw, data) is raw


def test_usage_over_several_lines_stays():
    raw = b'data: {"usage":\ndata: {"completion_tokens":1}}\n\n'
    assert without_usage(raw, b'{"usage":\n{"completion_tokens":1}}') is raw
