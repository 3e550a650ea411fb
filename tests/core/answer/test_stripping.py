"""Usage is taken out of a chunk, and every other byte stays."""

import json

import pytest

from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.answer.stripping import carries_more, without_usage
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates

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


# ---------------------------------------------------------------- what a usage chunk carries besides

TOLD = b'"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3}'
ENVELOPE = (
    b'"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"system_fingerprint":"f"'
)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (b'"timings":{"predicted_per_second":35.4}', True),
        (b'"citations":["https://example.com"]', True),
        (b'"request_id":"r1"', True),
        (b'"citations":[],"timings":null,"note":""', False),
        (b'"service_tier":"default"', False),
    ],
)
def test_a_usage_chunk_that_carries_more_stays_without_its_usage(more, told):
    event = b"data: {%b,%b,%b}\n\n" % (ENVELOPE, TOLD, more)
    reader = StreamAnswer(Estimates(Cost(20, 30), bytes_per_token=4), hide_usage=True)
    text = b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    out = b"".join(map(reader.feed, (text, event, b"data: [DONE]\n\n"))) + reader.finish()
    kept = b"data: {%b,%b}\n\n" % (ENVELOPE, more) if told else b""
    assert out == text + kept + b"data: [DONE]\n\n"
    assert reader.settlement(complete=True).charge == 3


def test_what_is_no_object_carries_nothing_more():
    assert carries_more(b'["usage"]') is False
