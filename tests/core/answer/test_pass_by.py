"""A chunk that passes by its likeness is read as one that is fed, whatever came before and whatever comes next."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates

ESTIMATES = Estimates(Cost(10, 20), 4)
OPTIONS = st.fixed_dictionaries(
    {
        "hide_usage": st.booleans(),
        "strip_usage": st.booleans(),
        "whole": st.booleans(),
        "output_bound": st.sampled_from([None, None, 3]),
    }
)


def chat(text, **further):
    return {"id": "a", "choices": [{"index": 0, "delta": {"content": text}}], **further}


def usage(output):
    return {"prompt_tokens": 9, "completion_tokens": output, "total_tokens": 9 + output}


TEXT = st.one_of(st.text("ab c.", min_size=1, max_size=6), st.sampled_from(["é", '"', "\n", "", "x" * 70]))
EVENT = st.one_of(
    TEXT.map(lambda text: b"data: %b\n\n" % json.dumps(chat(text)).encode()),
    TEXT.map(lambda text: b"data: %b\n\n" % json.dumps(chat(text)).encode()),
    TEXT.map(lambda text: b"data:%b\r\n\r\n" % json.dumps(chat(text)).encode()),
    TEXT.map(lambda text: b"data: {\ndata: %b\n\n" % json.dumps(chat(text)).encode()[1:]),
    TEXT.map(lambda text: b"event: message\ndata: %b\n\n" % json.dumps(chat(text)).encode()),
    TEXT.map(lambda text: b"data: %b\n" % json.dumps(chat(text)).encode()),
    TEXT.map(
        lambda text: (
            b"data: %b\n\n"
            % json.dumps({"type": "response.output_text.delta", "item_id": "a" * 30, "delta": text}).encode()
        )
    ),
    st.integers(0, 9).map(lambda n: b"data: %b\n\n" % json.dumps(chat("a", usage=usage(n))).encode()),
    st.integers(0, 9).map(lambda n: b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage(n)}).encode()),
    st.sampled_from(
        [
            b": comment\n\n",
            b"data: [DONE]\n\n",
            b"\n",
            b'data: {"error": {"message": "x"}}\n\n',
            b'data: {"type": "message_delta", "usage": {}, "choices": [{"delta": {"content": "a"}}]}\n\n',
        ]
    ),
)


def split(stream, cuts, joined):
    """The events, but those whose number is cut are in two chunks, and those that are joined are with the next."""
    waiting = b""
    for number, event in enumerate(stream):
        if number in joined:
            waiting += event
        elif number in cuts:
            yield from (waiting + event[: len(event) // 2], event[len(event) // 2 :])
            waiting = b""
        else:
            yield waiting + event
            waiting = b""
    yield waiting


NUMBERS = st.sets(st.integers(0, 14), max_size=6)


@given(st.lists(EVENT, max_size=14), NUMBERS, NUMBERS, OPTIONS, st.booleans())
def test_what_passes_by_is_read_as_what_is_fed(events, cuts, joined, options, complete):
    passing, fed = StreamAnswer(ESTIMATES, **options), StreamAnswer(ESTIMATES, **options)
    for chunk in split(events, cuts, joined):
        out = fed.feed(chunk)
        if passing.pass_by(chunk):
            assert out is chunk
        else:
            assert passing.feed(chunk) == out
        assert passing.pieces <= passing.output_tokens == fed.output_tokens
        assert passing.kept_bytes == fed.kept_bytes
    assert passing.finish() == fed.finish()
    assert passing.settlement(complete=complete) == fed.settlement(complete=complete)


def line(text):
    return b"data: %b\n\n" % json.dumps(chat(text)).encode()


@pytest.mark.parametrize("options", [{}, {"hide_usage": True}, {"hide_usage": True, "whole": True}])
def test_nearly_every_chunk_of_a_stream_passes_by(options):
    stream = StreamAnswer(ESTIMATES, **{"hide_usage": False} | options)
    passed = [
        stream.pass_by(chunk) or not stream.feed(chunk) for chunk in map(line, ("a", "bcd", "ef", "ghij", "k"))
    ]
    assert passed == [False, False, True, True, True]
    assert stream.pieces == 5


def test_a_chunk_of_several_such_events_passes_by_and_one_that_has_another_among_them_does_not():
    stream, fed = (StreamAnswer(ESTIMATES, hide_usage=False) for _ in range(2))
    for text in ("a", "bcd"):
        stream.feed(line(text))
        fed.feed(line(text))
    chunk = b"".join(map(line, ("ef", "ghij", "k")))
    assert stream.pass_by(chunk)
    assert fed.feed(chunk) is chunk
    assert stream.pieces == fed.pieces == 5
    for other in (b"data: [DONE]\n\n", b": comment\n\n", b"\n", line("")):
        chunk = line("ef") + other + line("k")
        assert not stream.pass_by(chunk)
        assert not stream.pass_by(line("ef") + other)
    assert stream.pieces == 5
    assert stream.settlement(complete=True) == fed.settlement(complete=True)


def test_events_without_choices_pass_by_too():
    stream, fed = (StreamAnswer(ESTIMATES, hide_usage=False) for _ in range(2))
    for text in ("a", "bcd", "ef", "ghij"):
        chunk = (
            b"data: %b\n\n"
            % json.dumps({"type": "response.output_text.delta", "item_id": "a" * 30, "delta": text}).encode()
        )
        fed.feed(chunk)
        passes = stream.pass_by(chunk)
        assert passes is (text in ("ef", "ghij"))
        if not passes:
            stream.feed(chunk)
    assert stream.settlement(complete=True) == fed.settlement(complete=True)


@pytest.mark.parametrize("options", [{"output_bound": 9}, {"strip_usage": True}])
def test_nothing_passes_by_where_events_may_be_changed(options):
    stream = StreamAnswer(ESTIMATES, hide_usage=False, **options)
    assert not any(stream.pass_by(chunk) or not stream.feed(chunk) for chunk in map(line, ("a", "bcd", "ef", "g")))


def test_nothing_passes_by_behind_an_event_that_is_not_whole():
    stream = StreamAnswer(ESTIMATES, hide_usage=False)
    for chunk in map(line, ("a", "bcd")):
        stream.feed(chunk)
    stream.feed(line("ef")[:-1])
    assert not stream.pass_by(line("gh"))
    assert stream.feed(line("gh"))
    assert stream.pass_by(line("ij"))


def test_events_of_several_lines_do_not_pass_by():
    stream = StreamAnswer(ESTIMATES, hide_usage=False)
    texts = [json.dumps(chat(text)).encode() for text in ("a", "bcd", "ef")]
    for text in texts:
        chunk = b"data: {\ndata: %b\n\n" % text[1:]
        assert not stream.pass_by(chunk)
        stream.feed(chunk)
    # The same JSON, with a line end that no stream of events has there.
    assert not stream.pass_by(b"data: {\n%b\n\n" % texts[0][1:])
