"""Reading answers in passing: the client loses nothing but the usage chunk, and the charge never depends on the cuts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core import answers, sse
from extproc.core.answers import MAX_ANSWER_BYTES, ErrorAnswer, JsonAnswer, OpaqueAnswer, StreamAnswer
from extproc.core.quota import Cost
from extproc.core.settlement import Estimates, Outcome, Settlement, released
from extproc.core.usage import NO_USAGE, Usage

from .samples import (
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
    parts,
    piece,
    recorded,
    two_parts,
    usage_chunk,
)

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
        ("an error with usage", Outcome.SETTLED, 3, "usage"),
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
        ([piece("a"), usage_chunk(10, 9000)], Outcome.SETTLED, 50, "cut_off"),
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


def test_a_complete_stream_is_charged_what_was_used_even_above_what_was_held():
    assert run(stream(hide=False), [usage_chunk(10, 9000)])[1].charge == 9010


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
        (PLAIN[:8], Outcome.ESTIMATED, 22),
        (PLAIN[:-1], Outcome.ESTIMATED, 20 + 25),
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
    assert sum(map(len, reader._parts)) <= MAX_ANSWER_BYTES
    assert reader.settlement(complete=True) == Settlement(
        Outcome.ESTIMATED, Usage(20, 9 << 18, total=20 + (9 << 18)), 20 + (9 << 18), "unreadable"
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
    assert settlement == Settlement(Outcome.ESTIMATED, Usage(20, 5, total=25), 25, "encoded")
    assert run(OpaqueAnswer(HELD), [], complete=complete)[1].charge == 20


def test_a_release_charges_nothing_and_says_why():
    assert released("not_forwarded") == Settlement(Outcome.RELEASED, NO_USAGE, 0, "not_forwarded")


# ---------------------------------------------------------------- work


@pytest.mark.parametrize("step", [1, 9, 100_000])
@pytest.mark.parametrize("hide", [True, False])
def test_every_event_is_parsed_once_however_it_is_cut(monkeypatch, step, hide):
    parsed = []
    monkeypatch.setattr(
        answers, "read_answer", lambda text, read=answers.read_answer: parsed.append(text) or read(text)
    )
    body = SAMPLES["openai"].body * 20
    run(stream(hide=hide), [body[i : i + step] for i in range(0, len(body), step)])
    assert parsed == [text[6:] for text in body.split(b"\n\n")[:-1] if text != b"data: [DONE]"]


@pytest.mark.parametrize("step", [1, 50])
def test_a_plain_answer_is_parsed_once_however_it_is_cut(monkeypatch, step):
    parsed = []
    monkeypatch.setattr(
        answers, "read_answer", lambda text, read=answers.read_answer: parsed.append(text) or read(text)
    )
    run(JsonAnswer(HELD), [PLAIN[i : i + step] for i in range(0, len(PLAIN), step)])
    assert parsed == [PLAIN]
