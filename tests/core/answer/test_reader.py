"""Reading answers in passing: the client loses nothing but the usage chunk, and the charge never depends on the cuts."""

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.core.answer import likeness, plain_answer, sse, stream_answer
from extproc.core.answer.labelled import LabelledAnswer
from extproc.core.answer.plain_answer import MAX_ANSWER_BYTES, JsonAnswer
from extproc.core.answer.reader import EncodedAnswer, ErrorAnswer, OpaqueAnswer, TokenlessAnswer, answer_reader
from extproc.core.answer.reading import read_answer
from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates, Outcome, Settlement, released
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.endpoints import Endpoint
from tests.core.samples import (
    CUTS,
    DONE,
    FEWER,
    FUZZ,
    LINE_ENDS,
    RECORDED_STREAMS,
    SAMPLES,
    Sample,
    bytewise,
    event,
    mutated,
    parts,
    piece,
    two_parts,
    usage_chunk,
)
from tests.recordings import recorded
from tests.sizes import sized

from .answer_samples import ANSWERS, counts, no_choices, text_chunk
from .answer_samples import STREAMS as SERVERS

HELD = Estimates(Cost(20, 30), bytes_per_token=4)


def run(reader, chunks, *, complete=True):
    out = b"".join([reader.feed(chunk) for chunk in chunks])
    return out + (reader.finish() if complete else b""), reader.settlement(complete=complete)


def stream(*, hide, estimates=HELD):
    return StreamAnswer(estimates, hide_usage=hide)


# ---------------------------------------------------------------- streams, however they are cut

STREAMS = {
    f"{name}, {end}": sample.with_line_ends(LINE_ENDS[end])
    for name, sample in SAMPLES.items()
    for end in LINE_ENDS
}


@pytest.mark.parametrize("sample", STREAMS.values(), ids=STREAMS)
def test_where_usage_is_hidden_the_client_gets_all_but_the_usage_chunks(sample):
    expected = (sample.without_usage, run(stream(hide=True), [sample.body])[1])
    for chunks in ([sample.body], bytewise(sample.body), *two_parts(sample.body)):
        assert run(stream(hide=True), chunks) == expected


@pytest.mark.parametrize("sample", STREAMS.values(), ids=STREAMS)
def test_where_usage_is_not_hidden_the_client_gets_every_byte_at_once_and_the_charge_is_the_same(sample):
    expected = run(stream(hide=True), [sample.body])[1]
    for chunks in ([sample.body], bytewise(sample.body), *two_parts(sample.body)):
        reader = stream(hide=False)
        assert all(reader.feed(chunk) is chunk for chunk in chunks)
        assert reader.finish() == b""
        assert reader.settlement(complete=True) == expected


@FUZZ
@given(st.lists(st.sampled_from(list(STREAMS.values())), max_size=3), CUTS)
def test_streams_one_after_the_other_are_read_the_same_however_they_are_cut(samples, cuts):
    together = Sample(tuple(e for s in samples for e in (*s.events, b"\n\n")))
    expected = run(stream(hide=True), [together.body])
    assert run(stream(hide=True), parts(together.body, cuts)) == expected
    assert run(stream(hide=False), parts(together.body, cuts)) == (together.body, expected[1])


@pytest.mark.parametrize(
    ("name", "usage_chunks"), [(name, int(name != RECORDED_STREAMS[0])) for name in RECORDED_STREAMS]
)
@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
def test_a_recorded_stream_is_hidden_and_charged_the_same_however_it_is_cut(name, usage_chunks, end):
    events = [e + b"\n\n" for e in recorded(f"{name}.body").split(b"\n\n")[:-1]]
    sample = Sample(tuple(events), frozenset(range(len(events) - 2, len(events) - 2 + usage_chunks)))
    sample = sample.with_line_ends(end)
    for chunks in ([sample.body], bytewise(sample.body), *two_parts(sample.body)):
        out, settlement = run(stream(hide=True), chunks)
        assert out == sample.without_usage
        if usage_chunks:
            assert settlement == Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage")
        else:
            assert (settlement.outcome, settlement.reason) == (Outcome.ESTIMATED, "missing")
            assert settlement.charge == 20 + 28


@pytest.mark.parametrize("hide", [True, False])
def test_an_unchanged_chunk_is_handed_back_as_the_same_object(hide):
    reader = stream(hide=hide)
    for chunk in (piece("a"), b": ping\n\n" + piece("b"), DONE, b""):
        assert reader.feed(chunk) is chunk


def test_an_event_reaches_the_client_with_the_chunk_that_completes_it():
    reader = stream(hide=True)
    first, second = piece("a"), piece("b")
    assert reader.feed(first[:20]) == b""
    assert reader.feed(first[20:] + second[:5]) == first
    assert reader.feed(second[5:]) == second


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
def test_an_event_too_large_to_read_reaches_the_client_all_the_same(monkeypatch, end):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 200)
    big = Sample((piece("a"), piece("x" * 300), usage_chunk(), DONE), frozenset({2})).with_line_ends(end)
    expected = Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage")
    for chunks in ([big.body], bytewise(big.body), *two_parts(big.body)):
        assert run(stream(hide=True), chunks) == (big.without_usage, expected)


def test_an_event_of_several_megabytes_passes():
    big = Sample((piece("x" * (3 << 20)), usage_chunk(), DONE), frozenset({1}))
    for size in (16_384, len(big.body)):
        chunks = [big.body[i : i + size] for i in range(0, len(big.body), size)]
        out, settlement = run(stream(hide=True), chunks)
        assert out == big.without_usage
        assert settlement.charge == 26


# ---------------------------------------------------------------- what a stream costs


@pytest.mark.parametrize(
    ("name", "outcome", "charge", "reason"),
    [
        ("openai", Outcome.SETTLED, 26, "usage"),
        ("usage twice", Outcome.SETTLED, 26, "usage"),
        ("continuous usage", Outcome.SETTLED, 12, "usage"),
        ("data over several lines", Outcome.SETTLED, 26, "usage"),
        ("usage without a blank line", Outcome.SETTLED, 26, "usage"),
        ("an error with usage", Outcome.ESTIMATED, 3 + 1, "absurd"),
        ("an error before content", Outcome.RELEASED, 0, "upstream_error"),
        ("an error and no content", Outcome.RELEASED, 0, "upstream_error"),
        ("an error after content", Outcome.ESTIMATED, 20 + 1, "missing"),
        ("absurd usage", Outcome.ESTIMATED, 20 + 1, "absurd"),
        ("no usage", Outcome.ESTIMATED, 20 + 2, "missing"),
        ("nothing at all", Outcome.ESTIMATED, 20, "missing"),
    ],
)
def test_a_complete_stream_is_charged(name, outcome, charge, reason):
    settlement = run(stream(hide=True), [SAMPLES[name].body])[1]
    assert (settlement.outcome, settlement.charge, settlement.reason) == (outcome, charge, reason)


def test_content_that_is_no_json_counts_but_empty_keep_alives_do_not():
    assert run(stream(hide=True), [event("hello world!")])[1].charge == 20 + 3
    assert run(stream(hide=True), [b"data:\n\n" * 50])[1].charge == 20


@pytest.mark.parametrize(
    ("chunks", "outcome", "charge", "reason"),
    [
        ([], Outcome.ESTIMATED, 20, "cut_off"),
        ([piece("a")[:-1]], Outcome.ESTIMATED, 20, "cut_off"),
        ([piece("")], Outcome.ESTIMATED, 20, "cut_off"),
        ([piece("a" * 18)], Outcome.ESTIMATED, 20 + 5, "cut_off"),
        ([piece("a" * 4000)], Outcome.ESTIMATED, 20 + 30, "cut_off"),
        ([piece("a"), usage_chunk()], Outcome.SETTLED, 26, "cut_off"),
        ([piece("a"), usage_chunk(10, 900)], Outcome.SETTLED, 50, "cut_off"),
        ([piece("a", usage={"prompt_tokens": 10, "completion_tokens": 1})], Outcome.SETTLED, 11, "cut_off"),
        ([event({"error": {"code": 500}})], Outcome.RELEASED, 0, "upstream_error"),
        ([piece("abcd"), event({"error": {"code": 500}})], Outcome.ESTIMATED, 20 + 1, "cut_off"),
    ],
)
def test_a_stream_that_is_cut_off_is_charged_what_was_seen_and_never_more_than_was_held(
    chunks, outcome, charge, reason
):
    settlement = run(stream(hide=False), chunks, complete=False)[1]
    assert (settlement.outcome, settlement.charge, settlement.reason) == (outcome, charge, reason)


OPENING = event({"type": "message_start", "message": {"usage": {"input_tokens": 12, "output_tokens": 3}}})
OVERLOADED = event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
TEXT_OF_MESSAGE = event(
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a river"}}
)
CLOSING = event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}})
NOTHING_YET = event(
    {
        "choices": [{"index": 0, "delta": {"role": "assistant"}}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 0},
    }
)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("chunks", "charge"),
    [
        ([OPENING, OVERLOADED], 0),
        ([NOTHING_YET, OVERLOADED], 0),
        ([OPENING, TEXT_OF_MESSAGE, OVERLOADED], 12 + 3),
        ([OPENING, CLOSING, OVERLOADED], 12 + 5),
        ([OPENING], 12 + 3),
        ([usage_chunk(12, 5), OVERLOADED], 12 + 5),
    ],
)
def test_an_error_before_content_is_released_though_the_stream_opened_with_usage(chunks, charge, complete):
    settlement = run(stream(hide=False), chunks, complete=complete)[1]
    assert (settlement.outcome is Outcome.RELEASED, settlement.charge) == (charge == 0, charge)


@pytest.mark.parametrize("packed", [False, True])
def test_the_input_that_was_reported_is_told_on_the_way_and_at_the_end(packed):
    whole = b'{"usage":{"prompt_tokens":12,"completion_tokens":5},"choices":[{"message":{"content":"a river"}}]}'
    head = JSON | ({"content-encoding": "gzip"} if packed else {})
    read = answer_reader(200, head, Endpoint.CHAT_COMPLETIONS, ROOMY, hide_usage=False)
    assert read.input_tokens == 0
    read.feed(gzip.compress(whole) if packed else whole)
    read.look()
    assert read.input_tokens == 12
    read.finish()
    assert read.input_tokens == 12


def test_usage_of_what_generates_nothing_is_charged_whatever_else_the_answer_tells():
    answer = b'{"data": [], "errors": [{"index": 1}], "usage": {"prompt_tokens": 12, "total_tokens": 12}}'
    read = reader_of(JSON, Endpoint.EMBEDDINGS, Estimates(Cost(20, 0), 4))
    assert run(read, [answer])[1].charge == 12


def test_a_complete_stream_is_charged_what_was_used_even_above_what_was_held():
    assert run(stream(hide=False), [usage_chunk(10, 900)])[1].charge == 910


@FEWER
@given(
    st.sampled_from(list(STREAMS.values())),
    st.integers(0, 2000),
    st.builds(Estimates, st.builds(Cost, st.integers(0, 50), st.integers(0, 50)), st.integers(1, 8)),
    CUTS,
)
def test_wherever_a_stream_is_cut_off_the_charge_is_within_what_was_held(sample, at, estimates, cuts):
    chunks = parts(sample.body[:at], cuts)
    settlement = run(stream(hide=True, estimates=estimates), chunks, complete=False)[1]
    assert 0 <= settlement.charge <= estimates.cost.total
    assert settlement == run(stream(hide=False, estimates=estimates), [sample.body[:at]], complete=False)[1]


def test_once_content_was_sent_the_charge_is_never_zero():
    body = SAMPLES["no usage"].body
    for at in range(len(piece("abc")), len(body) + 1):
        for complete in (True, False):
            settlement = run(
                stream(hide=True, estimates=Estimates(Cost(0, 30), 4)), [body[:at]], complete=complete
            )[1]
            assert settlement.charge > 0


# ---------------------------------------------------------------- plain answers

PLAIN = b'{"choices":[{"message":{"content":"Gr\xc3\xbc\xc3\x9fe"}}],"usage":{"prompt_tokens":10,"completion_tokens":16}}'


def test_a_plain_answer_passes_untouched_and_is_charged_the_same_however_it_is_cut():
    for body in (PLAIN, recorded("vllm-chat.body")):
        for chunks in ([body], bytewise(body), *two_parts(body)):
            reader = JsonAnswer(HELD)
            assert all(reader.feed(chunk) is chunk for chunk in chunks)
            assert reader.finish() == b""
            assert reader.settlement(complete=True) == Settlement(
                Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage"
            )


@pytest.mark.parametrize(
    ("body", "outcome", "charge", "reason"),
    [
        (b"", Outcome.ESTIMATED, 20, "empty"),
        (PLAIN + b"\n", Outcome.SETTLED, 26, "usage"),
        (PLAIN + b"x", Outcome.ESTIMATED, 45, "unreadable"),
        (PLAIN[:-1], Outcome.ESTIMATED, 45, "unreadable"),
        (b"<html>", Outcome.ESTIMATED, 22, "unreadable"),
        (b'{"error":{"message":"no"}}', Outcome.RELEASED, 0, "upstream_error"),
        (b'{"error":null,"choices":[{"message":{"content":"abcd"}}]}', Outcome.ESTIMATED, 21, "missing"),
        (b'{"error":{},"choices":[{"message":{"content":"abcd"}}]}', Outcome.ESTIMATED, 21, "missing"),
        (
            b'{"choices":[{"message":{"content":"abcd"}}],"usage":{"prompt_tokens":0}}',
            Outcome.ESTIMATED,
            21,
            "absurd",
        ),
        (b"{}", Outcome.ESTIMATED, 21, "missing"),
        (b"[]", Outcome.ESTIMATED, 21, "unreadable"),
    ],
)
def test_a_plain_answer_is_charged(body, outcome, charge, reason):
    settlement = run(JsonAnswer(HELD), [body])[1]
    assert (settlement.outcome, settlement.charge, settlement.reason) == (outcome, charge, reason)


@pytest.mark.parametrize(
    ("body", "outcome", "charge"),
    [
        (b"", Outcome.ESTIMATED, 20),
        (PLAIN[:8], Outcome.ESTIMATED, 20),
        (PLAIN[: PLAIN.index(b"}")], Outcome.ESTIMATED, 20 + 2),
        (PLAIN[: PLAIN.index(b"16")], Outcome.ESTIMATED, 20 + 2),
        (PLAIN[:-1], Outcome.SETTLED, 26),
        (PLAIN, Outcome.SETTLED, 26),
        (PLAIN.replace(b"16", b"1600"), Outcome.SETTLED, 50),
        (b'{"error":{}}', Outcome.RELEASED, 0),
    ],
)
def test_a_plain_answer_that_is_cut_off_is_charged_within_what_was_held(body, outcome, charge):
    settlement = run(JsonAnswer(Estimates(Cost(20, 30), 4)), [body], complete=False)[1]
    assert (settlement.outcome, settlement.charge) == (outcome, charge)
    assert settlement.reason == ("upstream_error" if outcome is Outcome.RELEASED else "cut_off")


def test_a_plain_answer_too_large_to_keep_passes_and_is_estimated():
    reader = JsonAnswer(Estimates(Cost(20, 5_000_000), 4))
    chunk = b"x" * (1 << 20)
    assert all(reader.feed(chunk) is chunk for _ in range(9))
    assert reader.kept_bytes == 0
    reader.finish()
    assert reader.settlement(complete=True) == Settlement(
        Outcome.ESTIMATED, Usage(20, 9 << 18, total=20 + (9 << 18)), 20 + (9 << 18), "unreadable", capped=True
    )


def test_a_plain_answer_of_the_largest_size_is_read():
    reader = JsonAnswer(HELD)
    reader.feed(PLAIN)
    reader.feed(b" " * (MAX_ANSWER_BYTES - len(PLAIN)))
    assert reader.settlement(complete=True).charge == 26


# ---------------------------------------------------------------- errors, and what can't be read


@pytest.mark.parametrize("complete", [True, False])
def test_an_upstream_error_passes_and_is_released(complete):
    out, settlement = run(ErrorAnswer(), [b"no", b"pe"], complete=complete)
    assert (out, settlement) == (b"nope", Settlement(Outcome.RELEASED, NO_USAGE, 0, "upstream_error"))


@pytest.mark.parametrize("complete", [True, False])
def test_a_compressed_answer_passes_and_is_estimated_from_its_size(complete):
    out, settlement = run(OpaqueAnswer(HELD), [b"\x1f\x8b", b"x" * 15], complete=complete)
    assert out == b"\x1f\x8b" + b"x" * 15
    assert settlement == Settlement(Outcome.ESTIMATED, Usage(20, 5, total=25), 25, "encoded", capped=True)
    assert run(OpaqueAnswer(HELD), [], complete=complete)[1].charge == 20


def test_a_release_charges_nothing_and_says_why():
    assert released("not_forwarded") == Settlement(Outcome.RELEASED, NO_USAGE, 0, "not_forwarded")


# ---------------------------------------------------------------- work


def listened(monkeypatch):
    """What is parsed from now on."""
    parsed = []
    for module in (likeness, plain_answer, stream_answer):
        monkeypatch.setattr(module, "read_answer", lambda text: parsed.append(text) or read_answer(text))
    return parsed


@pytest.mark.parametrize("step", [1, 9, 100_000])
@pytest.mark.parametrize("hide", [True, False])
def test_every_event_is_parsed_once_at_the_most_however_it_is_cut(monkeypatch, step, hide):
    parsed = listened(monkeypatch)
    body = SAMPLES["openai"].body * 20
    run(stream(hide=hide), [body[i : i + step] for i in range(0, len(body), step)])
    events = iter([text[6:] for text in body.split(b"\n\n")[:-1] if text != b"data: [DONE]"])
    assert parsed
    assert all(each in events for each in parsed), "in their order, none twice"


@pytest.mark.parametrize("step", [1, 50])
def test_a_plain_answer_is_parsed_once_however_it_is_cut(monkeypatch, step):
    parsed = listened(monkeypatch)
    run(JsonAnswer(HELD), [PLAIN[i : i + step] for i in range(0, len(PLAIN), step)])
    assert parsed == [PLAIN]


# ---------------------------------------------------------------- servers as they are

ROOMY = Estimates(Cost(1000, 5000), bytes_per_token=4)
SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


def reader_of(
    headers=JSON,
    endpoint=Endpoint.CHAT_COMPLETIONS,
    estimates=ROOMY,
    *,
    status=200,
    hide=False,
    bound=None,
    streams=False,
):
    return answer_reader(
        status, headers, endpoint, estimates, hide_usage=hide, output_bound=bound, streams=streams
    )


@pytest.mark.parametrize("sample", SERVERS.values(), ids=SERVERS)
def test_a_stream_of_any_server_is_settled_on_its_usage_however_it_is_cut(sample):
    expected = Settlement(Outcome.SETTLED, sample.usage, sample.usage.total, "usage")
    hidden = sample.without_usage if sample.endpoint is Endpoint.CHAT_COMPLETIONS else sample.body
    if sample.endpoint is Endpoint.COMPLETIONS:
        hidden = sample.without_usage
    for chunks in ([sample.body], bytewise(sample.body), *two_parts(sample.body)):
        assert run(reader_of(SSE, sample.endpoint, hide=True), chunks) == (hidden, expected)
    for chunks in ([sample.body], bytewise(sample.body)):
        reader = reader_of(SSE, sample.endpoint)
        assert all(reader.feed(chunk) is chunk for chunk in chunks)
        assert (reader.finish(), reader.settlement(complete=True)) == (b"", expected)


@FEWER
@given(st.sampled_from(list(SERVERS.values())), CUTS)
def test_a_stream_of_any_server_is_settled_the_same_cut_at_random(sample, cuts):
    reader = reader_of(SSE, sample.endpoint, bound=10_000)
    out, settlement = run(reader, parts(sample.body, cuts))
    assert out == sample.body
    assert (settlement.usage, reader.overran) == (sample.usage, False)


@pytest.mark.parametrize("sample", SERVERS.values(), ids=SERVERS)
def test_wherever_a_stream_of_any_server_ends_early_the_charge_grows_with_it_and_stays_within_the_hold(sample):
    tight = Estimates(Cost(5, 30), bytes_per_token=4)
    for at in range(0, len(sample.body) + 1, 7):
        reader = reader_of(SSE, sample.endpoint, tight)
        settlement = run(reader, [sample.body[:at]], complete=False)[1]
        assert 0 <= settlement.charge <= 35
        pieces = reader.output_tokens
        assert settlement.charge > 0 or not pieces


@pytest.mark.parametrize(
    ("name", "usage"),
    [("vllm-anthropic-stream", Usage(10, 8, total=18)), ("vllm-responses-stream", Usage(9, 8, total=17))],
)
def test_a_recorded_stream_of_another_api_is_settled_on_its_usage_however_it_is_cut(name, usage):
    body = recorded(f"{name}.body")
    expected = (body, Settlement(Outcome.SETTLED, usage, usage.total, "usage"))
    endpoint = Endpoint.MESSAGES if "anthropic" in name else Endpoint.RESPONSES
    for chunks in ([body], bytewise(body), *([body[:at], body[at:]] for at in range(0, len(body), sized(37, 11)))):
        reader = reader_of(SSE, endpoint, hide=True)
        assert run(reader, chunks) == expected
        assert reader.output_tokens == 8


def test_a_recorded_stream_of_messages_that_ends_early_is_charged_for_what_came():
    events = recorded("vllm-anthropic-stream.body").split(b"\n\n")
    body = b"\n\n".join(events[:7]) + b"\n\n"  # the opening and five deltas, of 3, 3, 5, 7 and 7 bytes
    reader = reader_of(SSE, Endpoint.MESSAGES)
    settlement = run(reader, [body], complete=False)[1]
    assert (settlement.outcome, settlement.reason) == (Outcome.ESTIMATED, "cut_off")
    assert settlement.usage.input == 10
    assert reader.output_tokens == 5 <= settlement.usage.output <= 8


@pytest.mark.parametrize("name", RECORDED_STREAMS[2:])
def test_continuous_usage_is_exact_to_the_last_chunk_seen(name):
    events = recorded(f"{name}.body").split(b"\n\n")
    for count in range(1, 18):
        settlement = run(reader_of(SSE), [b"\n\n".join(events[:count]) + b"\n\n"], complete=False)[1]
        expected = Usage(10, count - 1, total=9 + count)
        assert settlement == Settlement(Outcome.SETTLED, expected, 9 + count, "cut_off", capped=True)


@pytest.mark.parametrize("name", RECORDED_STREAMS[2:])
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_usage_that_only_we_asked_for_in_every_chunk_is_read_and_taken_out(name, cut):
    body = recorded(f"{name}.body")
    pieces = [body[i : i + cut] for i in range(0, len(body), cut)]
    plain = run(reader_of(SSE), pieces)[1]
    for hide in (False, True):
        reader = answer_reader(200, SSE, Endpoint.CHAT_COMPLETIONS, ROOMY, hide_usage=hide, strip_usage=True)
        assert reader.changes_body
        out, settlement = run(reader, pieces)
        assert settlement == plain
        before, after = ([line for line in text.split(b"\n\n") if line] for text in (body, out))
        assert len(before) - len(after) == hide
        for old, new in zip(before, after, strict=False):
            chunk = old.removeprefix(b"data: ")
            if chunk.startswith(b"{") and json.loads(chunk)["choices"]:
                wanted = {name: value for name, value in json.loads(chunk).items() if name != "usage"}
                assert json.loads(new.removeprefix(b"data: ")) == wanted


@pytest.mark.parametrize("sample", ANSWERS.values(), ids=ANSWERS)
def test_a_plain_answer_of_any_server_is_settled_on_its_usage(sample):
    for chunks in ([sample.body], bytewise(sample.body)):
        out, settlement = run(reader_of(), chunks)
        assert out == sample.body
        if isinstance(sample.usage, Usage):
            usage = sample.usage if sample.usage.input else replace(sample.usage, input=sample.usage.total)
            assert settlement == Settlement(Outcome.SETTLED, usage, usage.total, "usage")
        else:
            assert (settlement.outcome, settlement.reason) == (Outcome.ESTIMATED, sample.usage)


# ---------------------------------------------------------------- the reader for an answer


@pytest.mark.parametrize(
    ("headers", "endpoint", "status", "kind"),
    [
        (JSON, Endpoint.CHAT_COMPLETIONS, 200, LabelledAnswer),
        ({}, Endpoint.CHAT_COMPLETIONS, 201, LabelledAnswer),
        (SSE | {"content-encoding": "identity"}, Endpoint.CHAT_COMPLETIONS, 200, LabelledAnswer),
        (SSE | {"content-encoding": ""}, Endpoint.CHAT_COMPLETIONS, 200, LabelledAnswer),
        (SSE | {"content-encoding": "GZIP"}, Endpoint.CHAT_COMPLETIONS, 200, EncodedAnswer),
        (JSON | {"content-encoding": "identity, deflate"}, Endpoint.CHAT_COMPLETIONS, 200, EncodedAnswer),
        (JSON | {"content-encoding": "br"}, Endpoint.CHAT_COMPLETIONS, 200, OpaqueAnswer),
        (JSON | {"content-encoding": "zstd"}, Endpoint.CHAT_COMPLETIONS, 200, OpaqueAnswer),
        (JSON | {"content-encoding": "gzip, gzip"}, Endpoint.CHAT_COMPLETIONS, 200, OpaqueAnswer),
        (JSON, Endpoint.PREDICT, 200, TokenlessAnswer),
        (SSE, Endpoint.INFER, 200, TokenlessAnswer),
        (SSE, Endpoint.CHAT_COMPLETIONS, 500, ErrorAnswer),
        (JSON, Endpoint.INFER, 404, ErrorAnswer),
        (JSON, Endpoint.CHAT_COMPLETIONS, 304, ErrorAnswer),
    ],
)
def test_the_head_of_an_answer_decides_whether_it_is_read(headers, endpoint, status, kind):
    assert type(reader_of(headers, endpoint, status=status)) is kind


def test_usage_is_hidden_only_where_the_api_has_a_chunk_for_it_and_it_can_be_taken_out():
    def changes(endpoint=Endpoint.CHAT_COMPLETIONS, headers=SSE, **options):
        return reader_of(headers, endpoint, **options).changes_body

    assert changes(hide=True)
    assert changes(Endpoint.COMPLETIONS, hide=True)
    assert changes(bound=5)
    assert not changes()
    assert not changes(Endpoint.RESPONSES, hide=True)
    assert not changes(headers=SSE | {"content-encoding": "gzip"}, hide=True, bound=5)
    assert not changes(headers=SSE | {"content-encoding": "br"}, hide=True, bound=5)
    assert not changes(headers=JSON, bound=5)
    assert changes(headers=JSON, hide=True)
    assert changes(headers=JSON, bound=5, streams=True)
    assert not changes(Endpoint.MESSAGES, headers=JSON, hide=True)
    assert not changes(status=500, hide=True, bound=5)


@pytest.mark.parametrize("complete", [True, False])
def test_the_answer_of_a_model_without_tokens_is_settled_with_none(complete):
    reader = reader_of(endpoint=Endpoint.PREDICT)
    out, settlement = run(reader, [b'{"predictions":[1]}'], complete=complete)
    assert out == b'{"predictions":[1]}'
    assert (settlement.outcome, settlement.usage, settlement.charge) == (Outcome.SETTLED, NO_USAGE, 0)


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE])
@pytest.mark.parametrize("complete", [True, False])
def test_what_generates_nothing_costs_its_prompt_where_there_is_no_usage(endpoint, complete):
    for body in (b'{"data":[0.25]}', b'[{"index":0,"score":0.5}]', b'{"content":"abc"}', b"x" * 100):
        settlement = run(reader_of(endpoint=endpoint), [body], complete=complete)[1]
        assert (settlement.outcome, settlement.usage) == (Outcome.ESTIMATED, Usage(1000, 0, total=1000))


def test_a_binary_answer_is_estimated_and_nothing_of_it_is_kept():
    for reader in (reader_of({"content-type": "audio/mpeg"}, Endpoint.SPEECH), reader_of({}, Endpoint.SPEECH)):
        chunk = b"ID3\x04" + bytes(100)
        assert all(reader.feed(chunk) is chunk for _ in range(50))
        assert not getattr(reader, "_parts", [])
        reader.finish()
        settlement = reader.settlement(complete=True)
        assert (settlement.outcome, settlement.usage.output) == (Outcome.ESTIMATED, 50 * 104 // 4)
        assert settlement.reason == ("binary" if isinstance(reader.reader, OpaqueAnswer) else "unreadable")
        assert not reader.overran


@pytest.mark.parametrize("before", [b"\r\n\n \t", b"\xef\xbb\xbf", b"\n\xef\xbb\xbf \n"])
def test_neither_white_space_nor_a_byte_order_mark_before_a_plain_answer_hides_it(before):
    for body in (before + PLAIN, before + b"[" + PLAIN + b"]"):
        for chunks in ([body], bytewise(body), *two_parts(body), [b"", body]):
            out, settlement = run(reader_of(), chunks)
            assert (out, settlement.usage) == (body, Usage(10, 16, total=26))
    assert run(reader_of(), bytewise(before))[1].reason == "empty"


# ---------------------------------------------------------------- estimates without usage

WORDS = "The river has a weir. " * 20  # 440 bytes, 100 words: 110 tokens
SEALED = "gAAAAAB" * 600
ITEM = {"type": "message", "id": "msg_" + "0" * 50, "content": [{"type": "output_text", "text": WORDS}]}
BLOCK = {"type": "text", "text": WORDS}


def response(*items):
    return {"object": "response", "id": "resp_" + "0" * 50, "output": [*items], "instructions": "x" * 9000}


def message(*blocks):
    return {"type": "message", "id": "msg_" + "0" * 20, "content": [*blocks]}


PLAIN_ESTIMATES = {
    "a response": (response(ITEM), 110),
    "encrypted reasoning": (response({"type": "reasoning", "encrypted_content": SEALED}, ITEM), 110),
    "a picture": (response({"type": "image_generation_call", "result": "A" * 9000}, ITEM), 110),
    "a call": (
        response({"type": "function_call", "call_id": "x" * 90, "name": "find", "arguments": '{"a":1}'}),
        4,
    ),
    "definitions of tools": (response({"type": "mcp_list_tools", "tools": [{"description": WORDS}]}, ITEM), 110),
    "files": (response({"type": "file_search_call", "results": [{"text": WORDS}]}, ITEM), 110),
    "logs": (response({"type": "code_interpreter_call", "code": "", "outputs": [{"logs": WORDS}]}, ITEM), 110),
    "a message": (message(BLOCK), 110),
    "a signature": (message({"type": "thinking", "thinking": "hm", "signature": SEALED}, BLOCK), 111),
    "thinking that is not shown": (message({"type": "redacted_thinking", "data": SEALED}, BLOCK), 110),
    "a tool": (message({"type": "tool_use", "id": "x" * 90, "name": "find", "input": {"a": 1}}), 3),
    "what a search found": (
        message(
            {
                "type": "web_search_tool_result",
                "tool_use_id": "srvtoolu_1",
                "content": [{"url": "https://" + "x" * 900, "title": WORDS, "encrypted_content": SEALED}] * 3,
            },
            BLOCK,
        ),
        110,
    ),
    "what a tool said": (
        message(
            {"type": "mcp_tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": WORDS}]}, BLOCK
        ),
        110,
    ),
    "compaction": (message({"type": "compaction", "content": WORDS}), 110),
    "a transcript": ({"text": WORDS, "segments": [{"text": WORDS}], "words": [{"word": "The"}]}, 110),
}


@pytest.mark.parametrize(("answer", "tokens"), PLAIN_ESTIMATES.values(), ids=PLAIN_ESTIMATES)
def test_a_plain_answer_without_usage_is_measured_by_its_text(answer, tokens):
    body = json.dumps(answer).encode()
    for chunks in ([body], bytewise(body)):
        settlement = run(reader_of(), chunks)[1]
        assert (settlement.outcome, settlement.reason) == (Outcome.ESTIMATED, "missing")
        assert abs(settlement.usage.output - tokens) <= 4
    bounded = replace(ROOMY, bound=2)
    assert run(reader_of(estimates=bounded), [body])[1].usage.output == 2


@pytest.mark.parametrize(
    "item", [{"type": "image_generation_call", "result": "A" * 900_000}, {"encrypted_content": SEALED}]
)
def test_of_what_nobody_can_measure_as_much_as_was_held_counts(item):
    held = replace(ROOMY, cost=Cost(1000, 50), bound=50)
    assert run(reader_of(estimates=held), [json.dumps(response(item)).encode()])[1].usage.output == 50


def typed(kind, **fields):
    return f"event: {kind}\n".encode() + event({"type": kind, **fields})


def calls(**fields):
    return event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **fields}]}}]})


STREAMED_ESTIMATES = {
    "calls of tools": (
        [
            calls(id="call_" + "0" * 40, type="function", function={"name": "find", "arguments": ""}),
            *[calls(function={"arguments": '{"a'}) for _ in range(9)],
        ],
        10,
    ),
    "parts of content": (
        [event({"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "ab"}]}}]})] * 9,
        9,
    ),
    "a transcript that comes at once": ([typed("transcript.text.done", text=WORDS)], 110),
    "a response that comes at once": (
        [typed("response.created", response={}), typed("response.completed", response=response(ITEM))],
        110,
    ),
    "text that is repeated": (
        [
            typed("response.output_text.delta", delta=WORDS),
            typed("response.output_text.done", text=WORDS),
            typed("response.completed", response=response(ITEM)),
        ],
        110,
    ),
    "a tool of messages": (
        [
            typed("content_block_start", content_block={"type": "tool_use", "id": "x" * 90, "name": "find"}),
            *[typed("content_block_delta", delta={"type": "input_json_delta", "partial_json": '{"a'})] * 9,
        ],
        10,
    ),
    "compaction": ([typed("content_block_delta", delta={"type": "compaction_delta", "content": WORDS})], 110),
}


@pytest.mark.parametrize(("events", "tokens"), STREAMED_ESTIMATES.values(), ids=STREAMED_ESTIMATES)
def test_a_stream_without_usage_is_measured_by_its_text(events, tokens):
    body = b"".join(events)
    for chunks in ([body], bytewise(body)):
        settlement = run(reader_of(SSE), chunks)[1]
        assert (settlement.outcome, settlement.reason, settlement.usage.output) == (
            Outcome.ESTIMATED,
            "missing",
            tokens,
        )


# ---------------------------------------------------------------- streams that are called something else


@pytest.mark.parametrize("name", ["azure", "anthropic", "responses", "openrouter", "llama.cpp's own"])
@pytest.mark.parametrize("before", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_stream_that_nobody_asked_for_passes_whole_and_is_settled_on_its_usage(name, before):
    sample = SERVERS[name]
    body = before + sample.body
    expected = Settlement(Outcome.SETTLED, sample.usage, sample.usage.total, "usage")
    for chunks in ([body], bytewise(body), *([body[:at], body[at:]] for at in range(0, len(body), sized(37, 11)))):
        reader = reader_of(JSON, sample.endpoint, bound=10)
        assert not reader.changes_body
        assert all(reader.feed(chunk) is chunk for chunk in chunks)
        assert (reader.finish(), reader.settlement(complete=True)) == (b"", expected)
        assert (reader.output_tokens, reader.overran) == (sample.usage.output, True)


def test_a_stream_that_is_called_json_and_ends_early_is_charged_for_what_came():
    body = piece("abcd") + piece("efgh") + piece("ijkl")[:-2]
    settlement = run(reader_of(estimates=HELD), [body], complete=False)[1]
    assert (settlement.outcome, settlement.charge, settlement.reason) == (Outcome.ESTIMATED, 22, "cut_off")
    settlement = run(reader_of(estimates=HELD), [body], complete=True)[1]  # an end without a line end is one
    assert (settlement.charge, settlement.reason) == (23, "missing")


@pytest.mark.parametrize("text", [b"dear reader", b"empty: yes\n\n", b": nothing\n\n"])
def test_what_only_begins_as_a_stream_is_estimated_from_its_size(text):
    for chunks in ([text], bytewise(text)):
        for headers in (JSON, {}, {"content-type": "text/plain"}):
            settlement = run(reader_of(headers, estimates=HELD), chunks)[1]
            assert (settlement.charge, settlement.reason) == (20 + -(-len(text) // 4), "unreadable")


@pytest.mark.parametrize(("text", "tokens"), [(b"Hello, reader", 4), (b"Hello\n\n" + piece("abcdefgh"), 2)])
def test_what_does_not_begin_as_the_stream_that_it_is_called_is_text_until_an_event_comes(text, tokens):
    for chunks in ([text], bytewise(text)):
        reader = reader_of(SSE, estimates=HELD)
        out, settlement = run(reader, chunks)
        assert (out, settlement.charge) == (text, 20 + tokens)


LABELS = {
    "json": JSON,
    "text": {"content-type": "text/plain; charset=utf-8"},
    "nothing": {},
    "bytes": {"content-type": "application/octet-stream"},
    "a sound": {"content-type": "audio/mpeg"},
}


@pytest.mark.parametrize("headers", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", ["azure", "anthropic", "responses", "openrouter"])
def test_a_stream_that_was_asked_for_is_read_as_one_whatever_it_is_called(name, headers):
    sample = SERVERS[name]
    hide = sample.endpoint is Endpoint.CHAT_COMPLETIONS
    expected = Settlement(Outcome.SETTLED, sample.usage, sample.usage.total, "usage")
    for before in (b"", b"\n\n", b"\xef\xbb\xbf"):
        body = before + sample.body
        for chunks in ([body], bytewise(body), *([body[:at], body[at:]] for at in range(40))):
            reader = reader_of(headers, sample.endpoint, hide=hide, streams=True)
            assert reader.changes_body is hide
            out = before + (sample.without_usage if hide else sample.body)
            assert run(reader, chunks) == (out, expected)
            assert reader.output_tokens == sample.usage.output


@pytest.mark.parametrize("headers", LABELS.values(), ids=LABELS)
def test_a_stream_that_goes_beyond_its_bound_ends_there_whatever_it_is_called(headers):
    body = b"".join(piece("ab") for _ in range(200)) + DONE
    reader = reader_of(headers, bound=20, streams=True)
    out, _ = run(reader, [body[at : at + 50] for at in range(0, len(body), 50)])
    assert len(out) < len(body) // 2
    assert out.endswith(DONE)
    assert reader.overran


@pytest.mark.parametrize("headers", [SSE, *LABELS.values()], ids=["events", *LABELS])
@pytest.mark.parametrize("encoded", [False, True])
def test_json_is_read_as_json_whatever_it_is_called(headers, encoded):
    for body in (PLAIN, b"\n" * 40 + PLAIN, b"[ \n" + PLAIN + b"]"):
        for chunks in ([body], bytewise(body), *two_parts(body)):
            if encoded:
                packed = gzip.compress(b"".join(chunks))
                reader = reader_of(headers | {"content-encoding": "gzip"}, hide=True)
                assert run(reader, bytewise(packed)) == (
                    packed,
                    Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage"),
                )
                break
            out, settlement = run(reader_of(headers, hide=True), chunks)
            assert (out, settlement.usage, settlement.reason) == (body, Usage(10, 16, total=26), "usage")


def test_events_without_blank_lines_pass_as_they_come_and_the_usage_chunk_is_hidden():
    events = [e[:-1] for e in (piece("ab"), piece("cd"), piece("ef"), usage_chunk(), DONE)]
    reader = reader_of(SSE, hide=True)
    assert [reader.feed(e) for e in events[:4]] == [b"", events[0] + events[1], events[2], b""]
    assert reader.feed(events[4]) + reader.finish() == events[4]
    assert reader.settlement(complete=True).usage == Usage(10, 16, total=26)


def test_an_error_that_is_called_a_stream_is_released():
    assert run(reader_of(SSE), [b'{"error":{"message":"no"}}'])[1].outcome is Outcome.RELEASED


@pytest.mark.parametrize(
    "body",
    [
        b"\x89PNG\r\n\x1a\n",
        b"ID3\x04\x00",
        b"RIFF$\x00\x00\x00WAVE",
        b"{\x00\x01\x02" * 30,
        b"[\x7f\xff",
        b"{" + b" " * 100 + b"x",
        b"{",
        b"da",
        b"",
    ],
)
@pytest.mark.parametrize("headers", [LABELS["bytes"], LABELS["a sound"]], ids=["bytes", "a sound"])
def test_what_is_neither_stays_binary(headers, body):
    for chunks in ([body], bytewise(body)):
        for complete in (True, False):
            out, settlement = run(reader_of(headers, Endpoint.SPEECH), chunks, complete=complete)
            assert out == body
            assert (settlement.reason, settlement.usage.output) == ("binary", -(-len(body) // 4))


def test_of_a_binary_answer_that_seems_to_be_a_stream_the_size_counts():
    body = b": " + bytes(398)
    reader = reader_of(LABELS["bytes"], Endpoint.SPEECH)
    assert reader.feed(body) is body
    reader.look()
    reader.estimates = HELD
    assert reader.reader.estimates is HELD
    stream = reader_of(SSE)
    stream.feed(piece("a"))
    stream.estimates = HELD
    assert (stream.estimates, stream.reader.estimates) == (HELD, HELD)
    reader.finish()
    assert (reader.estimates, reader.overran, reader.output_tokens) == (HELD, False, 0)
    assert reader.settlement(complete=True).usage == Usage(20, 30, total=50)


def test_the_first_bytes_of_what_may_be_a_stream_are_held_back_until_they_decide():
    reader = reader_of({}, hide=True)
    assert (reader.feed(b"\n"), reader.feed(b"\nda"), reader.kept_bytes) == (b"\n", b"\n", 2)
    assert (reader.spill(b"x"), reader.output_tokens, reader.overran, reader.look()) == (b"x", 0, False, None)
    reader.estimates = HELD
    assert (reader.feed(b"ta: "), reader.kept_bytes) == (b"", 6)
    rest = piece("abcd")[6:]
    assert reader.feed(rest) == b"data: " + rest
    assert reader.spill(b"x") == b"x"
    assert reader.estimates is HELD
    assert reader.settlement(complete=True).charge == 21


def test_what_generates_nothing_is_not_read_as_a_stream():
    body = piece("abc" * 100)
    assert run(reader_of(endpoint=Endpoint.EMBEDDINGS, estimates=HELD), [body])[1].charge == 20


# ---------------------------------------------------------------- too large to keep


def large(before="", after="", pad=MAX_ANSWER_BYTES):
    data = b'"data":[%s0.5]' % (b"0.25," * (pad // 5))
    return b"{" + b",".join(part for part in (before.encode(), data, after.encode()) if part) + b"}"


USAGE = '"usage":{"prompt_tokens":10,"total_tokens":10}'
EDGED = {
    "after the data": large(after=f'"model":"m",{USAGE}'),
    "before the data": large(before=f'"object":"list",{USAGE}'),
}


@pytest.mark.parametrize("body", EDGED.values(), ids=EDGED)
@pytest.mark.parametrize("size", [1 << 14, 100_003, 1 << 30])
def test_of_a_plain_answer_too_large_to_keep_the_usage_is_read_all_the_same(body, size):
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    out, settlement = run(reader_of(endpoint=Endpoint.EMBEDDINGS), chunks)
    assert out == body
    assert settlement == Settlement(Outcome.SETTLED, Usage(10, 0, total=10), 10, "usage")


def test_of_a_large_answer_that_is_cut_off_usage_counts_once_it_was_seen():
    body = EDGED["after the data"]
    settlement = run(reader_of(endpoint=Endpoint.EMBEDDINGS), [body[:-9]], complete=False)[1]
    assert (settlement.outcome, settlement.usage) == (Outcome.ESTIMATED, Usage(1000, 0, total=1000))
    settlement = run(reader_of(endpoint=Endpoint.EMBEDDINGS), [body], complete=False)[1]
    assert (settlement.outcome, settlement.usage) == (Outcome.SETTLED, Usage(10, 0, total=10))


def test_a_large_answer_that_counts_no_output_for_its_text_is_estimated():
    body = large(before='"choices":[{"text":"' + "word " * 90_000 + '"}]', after=USAGE)
    settlement = run(reader_of(), [body])[1]
    expected = (Outcome.ESTIMATED, "absurd", 5 * 90_000 // 4)
    assert (settlement.outcome, settlement.reason, settlement.usage.output) == expected


BEHIND = b'{"choices":[{"message":{"content":"' + b"word " * 400 + b'"}}],%b}'
LOGPROBS = b'"prompt_logprobs":[%bnull]' % (b'{"12":{"logprob":-1.25,"rank":1,"decoded_token":" a"}},' * 320_000)
COUNTED = b'"usage":{"prompt_tokens":10,"completion_tokens":350,"total_tokens":360}'


@pytest.mark.parametrize("size", [1 << 14, 1 << 30])
def test_usage_is_found_behind_17_mb_that_compress_to_little(size):
    plain = BEHIND % (LOGPROBS + b"," + COUNTED)
    for headers, body in ((JSON, plain), (SSE, b"data: " + plain + b"\n\n" + DONE)):
        packed = gzip.compress(body, 1)
        assert len(packed) < len(body) // 100
        reader = reader_of(headers | {"content-encoding": "gzip"})
        chunks = [packed[at : at + size] for at in range(0, len(packed), size)]
        assert run(reader, chunks)[1] == Settlement(Outcome.SETTLED, Usage(10, 350, total=360), 360, "usage")
        assert reader.kept_bytes <= MAX_ANSWER_BYTES


@pytest.mark.parametrize("rest", [LOGPROBS + b"," + COUNTED, COUNTED + b"," + LOGPROBS], ids=["behind", "before"])
def test_usage_is_found_behind_and_before_17_mb_of_something_else_in_bounded_memory(rest):
    body = BEHIND % rest
    assert len(body) > 17_000_000
    reader, most = reader_of(), 0
    for at in range(0, len(body), 1 << 16):
        reader.feed(body[at : at + (1 << 16)])
        most = max(most, reader.kept_bytes)
    assert most <= MAX_ANSWER_BYTES
    reader.finish()
    assert reader.settlement(complete=True) == Settlement(Outcome.SETTLED, Usage(10, 350, total=360), 360, "usage")


@pytest.mark.parametrize(("complete", "reason"), [(True, "missing"), (False, "cut_off")])
def test_without_usage_a_large_answer_is_estimated_from_its_text(complete, reason):
    settlement = run(reader_of(), [BEHIND % LOGPROBS], complete=complete)[1]
    assert (settlement.outcome, settlement.usage.output, settlement.reason) == (Outcome.ESTIMATED, 500, reason)


def test_text_that_could_not_be_looked_for_counts_as_there_is_elsewhere():
    body = b'{"choices":[{"text":"' + b"word " * 400 + b'"},' + b'{"a":1},' * 20_000 + b'{"text":"'
    reader = reader_of()
    reader.feed(body)
    assert 500 < reader.output_tokens < len(body) / 4
    bounded = reader_of(estimates=Estimates(Cost(20, 30), 4, bound=30))
    bounded.feed(body)
    assert bounded.output_tokens == 30


@pytest.mark.parametrize("structure", [1, 9000])
def test_an_answer_of_middle_size_is_parsed_once_unless_it_has_too_much_structure(monkeypatch, structure):
    parsed = listened(monkeypatch)
    body = b'{"choices":[{"text":"' + b"word " * 2000 + b'"},' + b"{}," * structure + b"{}]," + COUNTED + b"}"
    settlement = run(reader_of(), [body[at : at + 5000] for at in range(0, len(body), 5000)])[1]
    assert settlement.usage == Usage(10, 350, total=360)
    assert (body in parsed) == (structure == 1)


def test_a_small_answer_that_is_compressed_and_left_is_charged_for_its_text():
    reader = reader_of(JSON | {"content-encoding": "gzip"})
    reader.feed(gzip.compress(b'{"choices":[{"text":"' + b"word " * 400)[:-8])
    assert reader.output_tokens == 0
    reader.look()
    assert reader.output_tokens == 500


def test_a_large_list_of_answers_has_the_usage_of_all_of_them():
    one = {"text": "word " * 40, "meta_info": {"prompt_tokens": 5, "completion_tokens": 41}}
    body = json.dumps([one] * 2000).encode()
    assert len(body) > MAX_ANSWER_BYTES
    for answer, outcome, output in (
        (body, Outcome.SETTLED, 82_000),
        (body[:-1] + b",{}]", Outcome.ESTIMATED, 100_000),  # its text is known
        (body[:-1], Outcome.ESTIMATED, 5000),
    ):
        settlement = run(reader_of(), [answer[at : at + 9999] for at in range(0, len(answer), 9999)])[1]
        assert (settlement.outcome, settlement.usage.output) == (outcome, output)


def test_usage_too_large_to_be_one_is_unreadable():
    body = b'{"choices":[{"text":"abc"}],"usage":{"a":"%b"},"x":"%b"}' % (b"x" * 20_000, b"x" * MAX_ANSWER_BYTES)
    assert run(reader_of(), [body])[1].reason == "unreadable"


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (b'{"data":[{"b64_json":"' + b"QUJD" * 2000, 30),  # as much as was held
        (b'{"data":[{"b64_json":"' + b"QUJD" * 12_800, 100),
        (b'{"data":[{"url":"https://a/b"', 30),
        (b'{"data":[{"embedding":[0.5,', 0),
        (b'{"output":[{"type":"compaction","encrypted_content":"QUJD', 30),
        (b'{"output":[{"type":"reasoning","encrypted_content":"QUJD"},{"text":"' + b"abcd" * 7, 7),
        (b'{"predictions":["' + b"abcd" * 7, 7),
        (b'{"id":"chatcmpl-0123456789","object":"chat.completion","choices":[', 0),
    ],
)
def test_what_was_delivered_of_an_answer_that_is_left_is_charged_by_what_it_is(body, output):
    reader = reader_of(estimates=Estimates(Cost(20, 30), 4))
    for piece_of in parts(body, [9, 99, 999]):
        reader.feed(piece_of)
    reader.look()
    reader.estimates = Estimates(Cost(20, max(30, reader.output_tokens)), 4)  # as it grows
    assert reader.settlement(complete=False).usage == Usage(20, output, total=20 + output)


def test_text_that_is_no_json_counts_while_it_passes_and_a_sound_does_not():
    reader = reader_of({"content-type": "text/plain"}, Endpoint.TRANSCRIPTIONS)
    reader.feed(b"word " * 400)
    assert reader.output_tokens == 500
    sound = reader_of({}, Endpoint.SPEECH)
    sound.feed(b"ID3\x04\0" + b"x" * 4000)
    assert sound.output_tokens == 0
    assert reader_of().output_tokens == 0


def test_usage_holds_as_much_as_it_tells_before_the_answer_ends():
    reader = reader_of()
    reader.feed(b'{"choices":[{"text":"abc"}],"usage":{"prompt_tokens":10,"completion_tokens":350}')
    assert reader.output_tokens == 0  # small answers are not looked at before they end
    reader.look()
    assert reader.output_tokens == 350
    reader = reader_of()
    reader.feed(b'{"content":"abc","tokens_predicted":350,')  # the rest of it is still to come
    reader.look()
    assert reader.output_tokens == 1
    silent = reader_of(endpoint=Endpoint.EMBEDDINGS)
    silent.feed(b'{"content":"abc","usage":{"prompt_tokens":10,"completion_tokens":350}')
    silent.look()
    assert silent.output_tokens == 0


DESCRIBED = '{"id":"e-1","data":[{"index":0}],"usage":{"prompt_tokens":7,"total_tokens":7}}'


@pytest.mark.parametrize("complete", [True, False])
def test_vectors_as_bytes_are_charged_what_the_header_says(complete):
    headers = {"content-type": "application/octet-stream", "metadata": DESCRIBED}
    reader = reader_of(headers, Endpoint.EMBEDDINGS)
    reader.estimates = ROOMY
    out, settlement = run(reader, [bytes(4096)], complete=complete)
    assert out == bytes(4096)
    assert settlement == Settlement(
        Outcome.SETTLED, Usage(7, 0, total=7), 7, "usage" if complete else "cut_off", capped=not complete
    )


@pytest.mark.parametrize("said", [{}, {"metadata": "x"}, {"metadata": '{"usage":{"prompt_tokens":-1}}'}])
def test_vectors_as_bytes_without_usage_are_estimated(said):
    headers = {"content-type": "application/octet-stream"} | said
    assert run(reader_of(headers, Endpoint.EMBEDDINGS), [bytes(4096)])[1].reason == "binary"


def test_a_header_of_something_else_is_not_believed():
    headers = {"content-type": "audio/mpeg", "metadata": DESCRIBED}
    assert run(reader_of(headers, Endpoint.SPEECH), [bytes(4096)])[1].reason == "binary"


@pytest.mark.parametrize(("bound", "output"), [(None, 6000), (100, 100)])
def test_of_what_stops_inflating_the_rest_is_as_the_part_that_was_read(bound, output):
    packed = gzip.compress(b'{"choices":[{"text":"' + b"word " * 1600)
    roomy = Estimates(Cost(20, 9000), 4, bound=bound)
    reader = reader_of(JSON | {"content-encoding": "gzip"}, estimates=roomy)
    settlement = run(reader, [packed, b"\xff" * 2 * len(packed)], complete=False)[1]
    assert (settlement.reason, settlement.usage.output, reader.output_tokens) == ("encoded", output, output)


def test_a_large_answer_that_is_compressed_is_read_too():
    body = EDGED["after the data"]
    packed = gzip.compress(body)
    chunks = [packed[at : at + 4096] for at in range(0, len(packed), 4096)]
    reader = reader_of(JSON | {"content-encoding": "gzip"}, Endpoint.EMBEDDINGS)
    assert run(reader, chunks)[1].usage == Usage(10, 0, total=10)


def test_a_hold_that_grew_bounds_the_estimate_of_every_reader():
    body = b"x" * 400
    zipped = JSON | {"content-encoding": "gzip"}
    for headers, chunk in (
        (JSON, body),
        (SSE, event(body.decode())),
        (JSON, event(body.decode())),
        (zipped, body),
        ({"content-type": "audio/x"}, body),
    ):
        for hold, output in ((10, 10), (60, 60)):
            reader = reader_of(headers, estimates=Estimates(Cost(20, 10), 4))
            reader.feed(chunk)
            reader.finish()
            reader.estimates = Estimates(Cost(20, hold), 4)
            assert reader.estimates.cost.output == hold
            assert reader.settlement(complete=False).usage.output == output
    error = reader_of(status=500)
    error.estimates = HELD
    assert error.estimates is HELD
    truncated = reader_of(zipped, estimates=Estimates(Cost(20, 10), 4))
    truncated.feed(gzip.compress(b'{"choices":[{"text":"%s"}]}' % body))
    truncated.estimates = Estimates(Cost(20, 60), 4)
    assert truncated.settlement(complete=False).usage.output == 60


# ---------------------------------------------------------------- compressed


CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("name", ["azure", "anthropic", "responses"])
def test_a_compressed_stream_passes_and_is_settled_on_its_usage_however_it_is_cut(coding, name):
    sample = SERVERS[name]
    body = CODINGS[coding](sample.body)
    expected = Settlement(Outcome.SETTLED, sample.usage, sample.usage.total, "usage")
    for chunks in ([body], bytewise(body), *two_parts(body)):
        reader = reader_of(SSE | {"content-encoding": coding}, sample.endpoint, hide=True)
        assert all(reader.feed(chunk) is chunk for chunk in chunks)
        assert (reader.finish(), reader.settlement(complete=True)) == (b"", expected)
        assert reader.output_tokens == sample.usage.output


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_plain_answer_passes_and_is_settled_on_its_usage(coding):
    body = CODINGS[coding](PLAIN)
    for chunks in ([body], bytewise(body)):
        reader = reader_of(JSON | {"content-encoding": coding}, bound=10)
        assert run(reader, chunks) == (body, Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage"))
        assert reader.overran


@pytest.mark.parametrize("complete", [True, False])
def test_what_is_corrupt_is_estimated_from_its_size(complete):
    body = gzip.compress(SERVERS["azure"].body)
    body = body[:-8] + bytes(8)
    out, settlement = run(reader_of(SSE | {"content-encoding": "gzip"}), [body], complete=complete)
    assert out == body
    assert (settlement.outcome, settlement.reason) == (Outcome.ESTIMATED, "encoded")
    assert settlement.usage.output == -(-len(body) // 4)


def test_a_compressed_answer_that_ends_early_is_charged_for_what_was_read():
    body = gzip.compress(PLAIN)
    settlement = run(reader_of(JSON | {"content-encoding": "gzip"}), [body[:-20]], complete=True)[1]
    assert (settlement.outcome, settlement.reason) == (Outcome.ESTIMATED, "unreadable")
    stream = SERVERS["azure"].body
    settlement = run(reader_of(SSE | {"content-encoding": "gzip"}), [gzip.compress(stream)[:-8]], complete=False)[
        1
    ]
    assert (settlement.outcome, settlement.usage) == (Outcome.SETTLED, Usage(10, 16, total=26))


def test_a_bomb_passes_and_is_estimated_from_its_compressed_size():
    body = gzip.compress(bytes(40 << 20))
    for headers in (JSON, SSE):
        reader = reader_of(headers | {"content-encoding": "gzip"}, bound=5)
        out, settlement = run(reader, [body])
        assert out is body or out == body
        assert (settlement.reason, settlement.usage.output) == ("encoded", min(5000, -(-len(body) // 4)))


# ---------------------------------------------------------------- beyond the bound


def chunks_of(count, *, start=1, **fields):
    return [text_chunk("a", usage=counts(10, n), **fields) for n in range(start, start + count)]


def closing(*indexes):
    last = [text_chunk("", "length", index) for index in indexes]
    return b"".join(last) + DONE


def test_a_stream_ends_at_its_bound_and_is_still_read_however_it_is_cut():
    sent = chunks_of(9)
    body = b"".join([*sent, text_chunk("", "stop"), no_choices(usage=counts(10, 9)), DONE])
    expected = b"".join(sent[:5]) + closing(0)
    for hide in (True, False):
        for chunks in ([body], bytewise(body), *two_parts(body)):
            reader = reader_of(SSE, bound=5, hide=hide)
            out, settlement = run(reader, chunks)
            assert out == expected
            assert reader.overran
            assert settlement.usage == Usage(10, 9, total=19)
            assert reader.output_tokens == 9


@pytest.mark.parametrize("hide", [True, False])
def test_without_usage_on_the_way_pieces_count_and_a_few_more_are_let_pass(hide):
    sent = [text_chunk("a") for _ in range(30)]
    usage = no_choices(usage=counts(10, 30))
    reader = reader_of(SSE, bound=5, hide=hide)
    out, settlement = run(reader, [*sent, text_chunk("", "stop"), usage, DONE])
    assert out == b"".join(sent[:13]) + closing(0)
    assert settlement.usage == Usage(10, 30, total=40)


def test_each_choice_may_have_a_few_pieces_more_and_gets_its_own_end():
    sent = [text_chunk("a", index=n % 2) for n in range(40)]
    out, _ = run(reader_of(SSE, bound=4), [*sent, DONE])
    assert out == b"".join(sent[:20]) + closing(0, 1)


def test_a_choice_that_has_ended_gets_no_second_end():
    sent = [text_chunk("a", index=1, usage=counts(10, 1)), text_chunk("", "stop", index=1), *chunks_of(9, start=2)]
    out, _ = run(reader_of(SSE, bound=4), [*sent, DONE])
    assert out == b"".join(sent[:5]) + closing(0)


def test_a_stream_within_its_bound_passes_whole():
    for sample in (SERVERS["azure"], SERVERS["completions"]):
        reader = reader_of(SSE, bound=16)
        assert run(reader, bytewise(sample.body))[0] == sample.body
        assert not reader.overran


def test_what_is_known_only_at_the_end_flags_the_stream_and_takes_nothing_away():
    for sample in (
        SERVERS["azure"],
        SERVERS["completions"],
        SERVERS["gemini: usage as it grows, and a total that knows more"],
    ):
        reader = reader_of(SSE, bound=15)
        out = run(reader, [sample.body])[0]
        assert reader.overran
        assert (out == sample.body) == (sample.hidden != frozenset())


@pytest.mark.parametrize("name", ["anthropic", "responses", "cloudflare's own, text with the usage"])
def test_a_stream_of_another_shape_is_flagged_and_passes(name):
    sample = SERVERS[name]
    reader = reader_of(SSE, sample.endpoint, bound=3)
    assert run(reader, bytewise(sample.body))[0] == sample.body
    assert reader.overran
    assert not reader_of(SSE, sample.endpoint).overran


def test_after_the_end_nothing_comes_through_not_even_what_has_the_same_size():
    reader = reader_of(SSE, bound=1)
    sent = chunks_of(3)
    reader.feed(sent[0])
    assert reader.feed(sent[1]) == closing(0)
    for chunk in (sent[2], b": ping\n\n", b"\n", DONE, b"data: half"):
        assert reader.feed(chunk) == b""
    assert reader.finish() == b""


def test_an_end_of_the_size_of_the_chunk_that_it_replaces_is_not_taken_for_it():
    ending = closing(0, 1)
    over = text_chunk("a", usage=counts(10, 9))
    over = over.replace(b'"a"', b'"' + b"a" * (len(ending) - len(over) + 1) + b'"')
    assert len(over) == len(ending)
    reader = reader_of(SSE, bound=1)
    assert reader.feed(first := text_chunk("a", index=1)) is first
    assert reader.feed(over) == ending


def test_the_line_feed_after_the_last_event_is_cut_off_with_it():
    body = b"".join(chunks_of(9)).replace(b"\n", b"\r\n")
    for parts_of in (bytewise(body), [body]):
        out = run(reader_of(SSE, bound=5), parts_of)[0]
        assert out == b"".join(chunks_of(5)).replace(b"\n", b"\r\n") + closing(0)


def test_a_last_event_beyond_the_bound_that_has_no_end_is_replaced_too():
    body = b"".join(chunks_of(6))[:-1]
    assert run(reader_of(SSE, bound=5), [body])[0] == b"".join(chunks_of(5)) + closing(0)


def test_a_plain_answer_beyond_the_bound_is_flagged_and_passes():
    for bound, overran in ((15, True), (16, False), (None, False)):
        reader = reader_of(bound=bound)
        assert not reader.overran
        assert run(reader, [PLAIN])[0] == PLAIN
        assert (reader.overran, reader.output_tokens) == (overran, 16)
    unknown = reader_of(bound=1)
    run(unknown, [b"{}"])
    assert not unknown.overran


# ---------------------------------------------------------------- anything at all


@FUZZ
@given(
    st.binary(max_size=60) | mutated(st.sampled_from([s.body for s in SERVERS.values()])),
    st.sampled_from(list(Endpoint)),
    st.sampled_from([SSE, JSON, {}, {"content-type": "audio/mpeg"}]),
    st.sampled_from(["", "gzip", "deflate", "br"]),
    st.none() | st.integers(0, 20),
    st.booleans(),
    CUTS,
)
def test_any_bytes_are_read_by_any_reader(body, endpoint, headers, coding, bound, hide, cuts):  # noqa: PLR0917
    whole = CODINGS[coding](body) if coding in CODINGS and cuts else body
    results = []
    for chunks in ([whole], parts(whole, cuts)):
        reader = reader_of(headers | {"content-encoding": coding}, endpoint, HELD, hide=hide, bound=bound)
        out, settlement = run(reader, chunks)
        assert reader.changes_body or out == whole
        assert settlement.charge >= 0
        results.append((out, settlement, reader.overran, reader.output_tokens))
    assert results[0] == results[1]


def test_the_events_that_are_read_grow_in_proportion_to_the_stream(monkeypatch):
    parsed = listened(monkeypatch)
    work = []
    for times in (10, 40):
        parsed.clear()
        body = gzip.compress(SERVERS["azure"].body * times)
        run(reader_of(SSE | {"content-encoding": "gzip"}), bytewise(body))
        run(reader_of(SSE, bound=1), bytewise(SERVERS["azure"].body * times))
        work.append((len(parsed), sum(map(len, parsed))))
    assert work[1] == (4 * work[0][0], 4 * work[0][1])


# ---------------------------------------------------------------- streams of a shape that nobody knows


@pytest.mark.parametrize(
    "shape",
    [
        {"token": {"text": "x"}},
        {"type": "content-delta", "delta": {"message": {"content": {"text": "x"}}}},
        {"choices": [{"index": 0, "delta": {"of_tomorrow": "x"}}]},
    ],
)
def test_a_stream_that_nobody_understands_is_counted_by_its_events(shape):
    reader = stream(hide=True)
    chunks = [event(shape)] * 12
    assert reader.feed(b"".join(chunks[:2])) == b"".join(chunks[:2])
    assert reader.output_tokens == 0  # an opening and an end are no content
    out, settlement = run(reader, chunks[2:])
    assert out == b"".join(chunks[2:])
    assert reader.output_tokens == 10
    assert (settlement.outcome, settlement.charge) == (Outcome.ESTIMATED, 20 + 10)


@pytest.mark.parametrize(
    ("further", "charge"), [(usage_chunk(10, 16), 26), (piece("four"), 21), (event({"error": {"code": 500}}), 0)]
)
def test_what_is_understood_counts_before_what_is_not(further, charge):
    reader = stream(hide=False)
    assert run(reader, [event({"of": "tomorrow"}) * 12, further])[1].charge == charge


def test_a_complete_answer_whose_content_is_understood_is_charged_in_full_unless_strictly():
    content = b'{"choices":[{"message":{"content":"%s"}}]}' % (b"x" * 400)
    for headers, body in ((JSON, content), (SSE, b"data: " + content + b"\n\n")):
        for strict, charge in ((False, 20 + 100), (True, 20 + 10)):
            reader = reader_of(headers, estimates=Estimates(Cost(20, 10), 4, strict=strict, all_strict=strict))
            reader.feed(body)
            reader.finish()
            assert reader.settlement(complete=True).charge == charge


def test_what_can_not_be_read_is_never_charged_above_its_hold():
    held = Estimates(Cost(20, 10), 4)
    for headers, body in ((JSON, b'{"choices":[{"text":"' + b"x" * 900), (SSE, piece("a") + event("x" * 900))):
        reader = reader_of(headers, estimates=held)
        reader.feed(body)
        reader.finish()
        assert reader.settlement(complete=True).charge == 30
