"""The Responses API: plain and streamed say and count the same, in the shapes of a recorded vLLM."""

import pytest

from extproc.local.model import SampleModel
from tests.recordings import recorded_text as recorded

from .model_calls import CALLS, MODEL, Call, answer, calling, events_of, keys, post, stream

RESPONSES = CALLS["responses"]


def asking(**fields):
    return Call("responses", "/v1/responses", RESPONSES.body | fields, RESPONSES.stream)


@pytest.fixture
async def client():
    async with calling(SampleModel(max_model_len=2048)) as open_client:
        yield open_client


async def test_an_input_is_answered_and_counted(client):
    whole = await answer(client, RESPONSES)
    assert whole["output"][0]["content"][0]["text"] == "1 + 1 = 2"
    assert (whole["status"], whole["incomplete_details"]) == ("completed", None)
    usage = whole["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (9, 8, 17)


async def test_an_answer_that_is_cut_is_incomplete(client):
    whole = await answer(client, asking(max_output_tokens=3))
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["usage"]["output_tokens"] == 3
    assert whole["max_output_tokens"] == 3


async def test_a_stream_says_and_counts_what_a_plain_answer_does(client):
    request = asking(input="水は? tell me", ignore_eos=True, max_output_tokens=300)
    whole = await answer(client, request)
    events = await stream(client, request)
    said = "".join(document["delta"] for name, document in events if name == "response.output_text.delta")
    assert said == whole["output"][0]["content"][0]["text"]
    last = events[-1][1]["response"]
    for differs in ("id", "created_at", "output"):
        del whole[differs], last[differs]
    assert last == whole


async def test_events_are_named_and_numbered(client):
    events = await stream(client, RESPONSES)
    assert [document["sequence_number"] for _, document in events] == list(range(len(events)))
    assert all(name == document["type"] for name, document in events)


async def test_a_token_without_text_is_no_event(client):
    events = await stream(client, RESPONSES)
    deltas = [document["delta"] for name, document in events if name == "response.output_text.delta"]
    assert all(deltas)
    # The last token is the one that ends the text.
    assert len(deltas) == events[-1][1]["response"]["usage"]["output_tokens"] - 1


async def test_a_stream_has_the_recorded_shape(client):
    theirs = events_of(recorded("vllm-responses-stream.body"))
    request = asking(input="tell me a story", max_output_tokens=8, ignore_eos=True)
    ours = await stream(client, request)
    deltas = [event for event in ours if event[0] == "response.output_text.delta"]
    # One a token, but for those that bring no whole character.
    assert 1 <= len(deltas) <= 8
    their_deltas = [event for event in theirs if event[0] == "response.output_text.delta"]
    assert {str(keys(document)) for _, document in deltas} == {str(keys(document)) for _, document in their_deltas}
    others = [(name, keys(document)) for name, document in ours if (name, document) not in deltas]
    assert others == [(name, keys(document)) for name, document in theirs if (name, document) not in their_deltas]


async def test_a_plain_answer_has_the_shape_of_the_last_event(client):
    theirs = events_of(recorded("vllm-responses-stream.body"))[-1][1]["response"]
    assert keys(await answer(client, asking(max_output_tokens=8, ignore_eos=True))) == keys(theirs)


async def test_instructions_and_turns_are_read_and_counted(client):
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}]},
        {"type": "function_call_output", "call_id": "1", "output": "two"},
        {"role": "user", "content": "2 * 3"},
    ]
    whole = await answer(client, asking(input=turns))
    assert whole["output"][0]["content"][0]["text"] == "2 * 3 = 6"
    instructed = await answer(client, asking(input=turns, instructions="Be brief."))
    assert instructed["usage"]["input_tokens"] > whole["usage"]["input_tokens"] > 20
    assert instructed["instructions"] == "Be brief."


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": 7}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [{"role": "user"}]}, 400, "input"),
        ({"input": [{"role": "user", "content": [7]}]}, 400, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, 400, "input"),
        ({"max_output_tokens": 0}, 400, "max_output_tokens"),
        ({"max_output_tokens": 2049}, 400, "max_output_tokens"),
        ({"max_output_tokens": 2048}, 400, "input_tokens"),
        ({"max_output_tokens": "many"}, 400, "max_output_tokens"),
        ({"model": "nope"}, 404, "model"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_named(client, fields, status, param):
    response = await post(client, asking(**fields))
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_a_missing_input_is_named(client):
    response = await post(client, Call("responses", "/v1/responses", {"model": MODEL}))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")
