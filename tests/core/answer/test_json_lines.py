"""Answers of one JSON text in each line, whatever they are called and however they are cut."""

import json

import pytest

from extproc.core.answer.json_lines import MAX_FIRST_LINE_BYTES
from extproc.core.answer.reader import answer_reader, feed_in_steps
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates, Outcome
from extproc.core.request.endpoints import Endpoint

HELD = Estimates(Cost(20, 300), 4)
USAGE = {"prompt_tokens": 5000, "completion_tokens": 3000, "total_tokens": 8000}
CHUNKS = (
    *({"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Sev", "ern", ".")),
    {"choices": [], "usage": USAGE},
)
OLLAMA = (
    {"message": {"role": "assistant", "content": "Sev"}, "done": False},
    {"message": {"content": ""}, "done": True, "prompt_eval_count": 20, "eval_count": 10},
)
LABELS = ("application/x-ndjson", "application/json", "application/jsonlines", "text/event-stream", "")


def lines(values, end="\n"):
    return "".join(json.dumps(value) + end for value in values).encode()


def reader_of(label="application/x-ndjson", *, streams=True, bound=None):
    head = {"content-type": label} if label else {}
    chat = Endpoint.CHAT_COMPLETIONS
    return answer_reader(200, head, chat, HELD, hide_usage=False, output_bound=bound, streams=streams)


def read(body, size, label="application/x-ndjson", **options):
    """Feed an answer in pieces, and return its reader and its settlement."""
    reader = reader_of(label, **options)
    got = b"".join(reader.feed(body[at : at + size]) for at in range(0, len(body), size))
    assert got + reader.finish() == body
    return reader, reader.settlement(complete=True)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("size", [1, 7, 60, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \n"])
def test_lines_are_read_as_the_events_of_a_stream(label, size, end):
    settlement = read(lines(CHUNKS, end), size, label=label)[1]
    assert (settlement.outcome, settlement.charge, settlement.reason) == (Outcome.SETTLED, 8000, "usage")
    assert read(lines(OLLAMA, end), size, label=label)[1].charge == 30


def test_a_last_line_without_an_end_is_read():
    assert read(lines(CHUNKS).rstrip(), 50)[1].charge == 8000


def test_lines_that_come_one_by_one_are_counted_while_they_come():
    reader = reader_of()
    for number, line in enumerate(CHUNKS[:3]):
        reader.feed(lines([line]))
        reader.look()
        # Of a text that may be the whole answer as much as it has; of a second line on each line.
        assert reader.output_tokens == number + 1
    reader.estimates = Estimates(Cost(20, 600), 4)
    assert reader.reader.estimates.cost.output == 600
    reader.feed(lines([{"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": USAGE}]))
    reader.look()
    assert (reader.input_tokens, reader.output_tokens, reader.overran) == (5000, 3000, False)
    assert reader.settlement(complete=False).usage.output == 3000


def test_lines_without_usage_are_estimated_by_their_text():
    settlement = read(lines(CHUNKS[:3]), 40)[1]
    assert (settlement.charge, settlement.reason) == (20 + 3, "missing")


def test_lines_beyond_their_bound_are_told():
    assert read(lines(CHUNKS), 40, bound=100)[0].overran


@pytest.mark.parametrize("size", [1, 30, 10_000])
@pytest.mark.parametrize("indent", [None, 1])
def test_one_text_stays_one_answer(size, indent):
    whole = {"choices": [{"message": {"content": "a }\n{ b"}}, {"message": {"content": "c"}}], "usage": USAGE}
    body = json.dumps(whole, indent=indent).encode()
    assert read(body, size)[1].charge == 8000


def test_lines_where_no_stream_was_asked_for_are_no_stream():
    settlement = read(lines(CHUNKS), 1000, label="application/json", streams=False)[1]
    assert (settlement.outcome, settlement.reason) == (Outcome.ESTIMATED, "unreadable")


def test_no_more_than_the_first_line_is_kept_to_find_the_second():
    body = json.dumps(
        {"choices": [{"message": {"content": "a " * MAX_FIRST_LINE_BYTES}}], "usage": USAGE}
    ).encode()
    reader, settlement = read(body, 4096)
    assert settlement.charge == 8000
    assert reader.feed(b"x") == b"x"


def test_what_lacks_memory_for_the_first_line_is_read_as_one_text():
    reader = reader_of()
    reader.feed(lines(CHUNKS[:1]))
    kept = reader.kept_bytes
    assert reader.spill(b"out") == b"out"
    assert reader.kept_bytes < kept
    for _ in feed_in_steps(reader, lines(CHUNKS[1:])):
        pass
    reader.finish()
    assert reader.settlement(complete=True).outcome is Outcome.ESTIMATED
