"""Events too large to keep: their usage and their text count all the same, however they are cut."""

import json

import pytest

from extproc.core.answer import sse
from extproc.core.answer.large_event import LargeEvent, read_large
from extproc.core.answer.reading import Reading, is_dense
from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates, Outcome
from extproc.core.quota.usage import Usage
from tests.core.samples import DONE, LINE_ENDS, parts, piece, usage_chunk

LONG = "water " * 10_000
SIZE = len(LONG)
FOUND = {"prompt_tokens": 10, "completion_tokens": 16}
TOLD = {"input_tokens": 10, "output_tokens": 16}
BOTH = Usage(10, 16, total=26)
OUTPUT = [{"type": "message", "content": [{"type": "output_text", "text": LONG}]}]


def choice(**fields):
    return {"choices": [{"index": 0, "delta": fields}]}


EVENTS = {
    "an image": ({"type": "image_generation.completed", "b64_json": LONG, "usage": TOLD}, BOTH, 0),
    "a response": ({"type": "response.completed", "response": {"output": OUTPUT, "usage": TOLD}}, BOTH, 0),
    "a response after its number": (
        {
            "type": "response.completed",
            "sequence_number": 9,
            "response": {"id": "r", "output": OUTPUT, "usage": TOLD},
        },
        BOTH,
        0,
    ),
    "a response before its type": (
        {"response": {"id": "r", "output": OUTPUT, "usage": TOLD}, "type": "response.completed"},
        BOTH,
        0,
    ),
    "a response between small values": (
        {"sequence_number": 9, "final": True, "response": {"output": OUTPUT, "usage": TOLD}, "type": "x"},
        BOTH,
        0,
    ),
    "a response that has just begun": (
        {"type": "response.created", "response": {"instructions": LONG, "usage": None}},
        Absence.MISSING,
        0,
    ),
    "text that came before": ({"type": "response.output_text.done", "text": LONG}, Absence.MISSING, 0),
    "an item that came before": (
        {"type": "response.output_item.done", "item": OUTPUT[0]},
        Absence.MISSING,
        0,
    ),
    "a delta of a response": ({"type": "response.output_text.delta", "delta": LONG}, Absence.MISSING, SIZE),
    "a delta of messages": (
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": LONG}},
        Absence.MISSING,
        SIZE,
    ),
    "a choice": (choice(content=LONG), Absence.MISSING, SIZE),
    "a choice with usage": (choice(content=LONG) | {"usage": FOUND}, BOTH, SIZE),
    "a choice with a tool call": (
        choice(tool_calls=[{"index": 0, "function": {"arguments": LONG}}]),
        Absence.MISSING,
        SIZE,
    ),
    "text and usage": ({"response": LONG, "usage": FOUND}, BOTH, SIZE),
}


@pytest.mark.parametrize(("event", "usage", "size"), EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("step", [1 << 30, 4096, 997])
def test_what_a_large_event_said_does_not_depend_on_how_it_is_cut(event, usage, size, step):
    data = json.dumps(event).encode()
    large = LargeEvent()
    for at in range(0, len(data), step):
        large.feed(data[at : at + step])
    assert large.reading() == Reading(usage, content_bytes=size, pieces=int(size > 0), choices=size > 0)


def test_an_error_is_told():
    assert read_large(json.dumps({"error": {"message": "no"}, "x": LONG}).encode()).error


@pytest.mark.parametrize(
    "data", [LONG.encode(), b'{"choices":[' + LONG.encode(), b"[{}]" + LONG.encode(), b"[" * 999]
)
def test_what_can_not_be_read_counts_whole(data):
    assert read_large(data) == Reading(Absence.UNREADABLE, content_bytes=len(data), pieces=1)


def test_usage_larger_than_any_server_writes_counts_whole():
    data = b'{"usage":{"prompt_tokens":1,"iterations":[' + b",".join([b"{}"] * 50_000) + b"]}}"
    assert read_large(data) == Reading(Absence.UNREADABLE, content_bytes=len(data), pieces=1)


def test_what_is_kept_is_bounded():
    large = LargeEvent()
    for _ in range(300):
        large.feed(b'[{"usage":{"prompt_tokens":1}},' * 1000)
    assert len(large._scan.ended) == len(large._scan.kept) == 0


# ---------------------------------------------------------------- as a part of a stream


def stream(chunks, *, hide=True, complete=True):
    reader = StreamAnswer(Estimates(Cost(20, 100_000), 4), hide_usage=hide)
    out = b"".join([reader.feed(chunk) for chunk in chunks])
    assert reader.kept_bytes <= sse.MAX_EVENT_BYTES + 2
    return out + (reader.finish() if complete else b""), reader.settlement(complete=complete)


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("step", [1 << 30, 4096, 101])
def test_a_large_event_passes_and_counts_among_others(end, step):
    events = [b"\n\n", piece("a"), b"event: x\n" + piece(LONG), piece("b"), usage_chunk(), DONE]
    body = b"".join(events).replace(b"\n", end)
    expected = b"".join([*events[:4], DONE]).replace(b"\n", end)
    out, settlement = stream(parts(body, list(range(0, len(body), step))))
    assert (out, settlement.usage) == (expected, Usage(10, 16, total=26))
    events.remove(usage_chunk())
    body = b"".join(events).replace(b"\n", end)
    settlement = stream(parts(body, list(range(0, len(body), step))))[1]
    assert (settlement.outcome, settlement.usage.output) == (Outcome.ESTIMATED, -(-(SIZE + 2) // 4))


def test_a_client_that_leaves_within_a_large_event_pays_for_what_came_of_it():
    body = piece(LONG)[:-100]
    settlement = stream(parts(body, list(range(0, len(body), 4096))), complete=False)[1]
    assert settlement.usage.output >= (SIZE - 100 - sse.MAX_EVENT_BYTES) // 4


def test_an_event_without_data_that_is_too_large_is_no_content():
    body = b": " + b"x" * 100_000 + b"\n\n" + piece("abcd")
    for step in (1 << 30, 4096):
        out, settlement = stream(parts(body, list(range(0, len(body), step))))
        assert (out, settlement.usage.output) == (body, 1)


def test_an_event_of_many_objects_is_scanned():
    alternatives = [{"token": "x", "logprob": -1.0, "bytes": [120]} for _ in range(600)]
    event = choice(content="abcd") | {"usage": FOUND}
    event["choices"][0]["logprobs"] = {"content": [{"token": "x", "top_logprobs": alternatives[:200]}]}
    event["x"] = alternatives[:400]
    data = json.dumps(event, separators=(",", ":")).encode()
    assert is_dense(data) is (data.count(b"{") > 512)
    assert read_large(data).usage == BOTH


def test_the_readings_that_are_remembered_are_bounded_and_no_event_is_read_for_another():
    events = [b'data: {"text":"%d"}\n\n' % (n % 400) for n in range(1200)]
    reader = StreamAnswer(Estimates(Cost(20, 100_000), 4), hide_usage=False)
    reader.feed(b"".join(events))
    assert len(reader._read) <= 256
    size = sum(len(event) - len(b'data: {"text":""}\n\n') for event in events)
    assert reader.settlement(complete=True).usage.output == max(1200, -(-size // 4))
