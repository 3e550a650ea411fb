"""Anthropic's Messages API: plain and streamed say and count the same, in the shapes of a recorded vLLM."""

import pytest

from extproc.local.model import SampleModel
from tests.recordings import recorded_text as recorded

from .model_calls import CALLS, MODEL, TURNS, Call, answer, calling, events_of, keys, post, stream

MESSAGES = CALLS["messages"]


def asking(path="/v1/messages", **fields):
    return Call("messages", path, MESSAGES.body | fields, MESSAGES.stream)


@pytest.fixture
async def client():
    async with calling(SampleModel(max_model_len=2048)) as open_client:
        yield open_client


async def test_a_message_is_answered_and_counted(client):
    whole = await answer(client, MESSAGES)
    assert whole["content"] == [{"type": "text", "text": "1 + 1 = 2"}]
    assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "end_turn")
    assert whole["usage"] == {
        "input_tokens": 9,
        "output_tokens": 8,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


@pytest.mark.parametrize(
    ("fields", "stop"),
    [
        ({"max_tokens": 3}, {"stop_reason": "max_tokens", "stop_sequence": None}),
        ({"stop_sequences": ["="]}, {"stop_reason": "stop_sequence", "stop_sequence": "="}),
        ({}, {"stop_reason": "end_turn", "stop_sequence": None}),
        ({"max_tokens": 300, "ignore_eos": True}, {"stop_reason": "max_tokens", "stop_sequence": None}),
    ],
    ids=str,
)
async def test_a_stream_says_and_counts_what_a_plain_answer_does(client, fields, stop):
    whole = await answer(client, asking(**fields))
    events = await stream(client, asking(**fields))
    said = "".join(document["delta"]["text"] for name, document in events if name == "content_block_delta")
    assert [{"type": "text", "text": said}] == whole["content"]
    (delta,) = [document for name, document in events if name == "message_delta"]
    assert delta["usage"] == whole["usage"]
    assert delta["delta"] == stop
    # What is null is left out of a plain answer.
    assert {key: whole.get(key) for key in stop} == stop
    assert events[-1] == ("message_stop", {"type": "message_stop"})


async def test_a_stream_has_the_recorded_shape(client):
    theirs = events_of(recorded("vllm-anthropic-stream.body"))
    ours = await stream(
        client, asking(messages=[{"role": "user", "content": "ping"}], max_tokens=8, ignore_eos=True)
    )
    text = "content_block_delta"
    assert {str(keys(document)) for name, document in ours if name == text} == {
        str(keys(document)) for name, document in theirs if name == text
    }
    ours, theirs = ([event for event in events if event[0] != text] for events in (ours, theirs))
    assert [(name, keys(document)) for name, document in ours] == [
        (name, keys(document)) for name, document in theirs
    ]


async def test_an_answer_without_text_has_no_block(client):
    events = await stream(client, asking(stop_sequences=["1"]))
    assert [name for name, _ in events] == ["message_start", "message_delta", "message_stop"]
    assert (await answer(client, asking(stop_sequences=["1"])))["content"] == []


async def test_the_system_prompt_and_content_blocks_are_counted(client):
    blocks = [{"role": "user", "content": [{"type": "text", "text": "1 + 1 =?"}]}]
    assert (await answer(client, asking(messages=blocks)))["usage"]["input_tokens"] == 9
    told = [
        (await answer(client, asking(system=system)))["usage"]["input_tokens"]
        for system in ("Be brief.", [{"type": "text", "text": "Be brief."}])
    ]
    assert told[0] == told[1] > 9


async def test_counting_tokens_tells_what_a_message_would_cost_and_costs_nothing():
    app = SampleModel()
    async with calling(app) as client:
        request = {"model": MODEL, "messages": TURNS, "system": "Be brief."}
        counted = await answer(client, Call("messages", "/v1/messages/count_tokens", request))
        assert app.ledger.report()["total_tokens"] == 0
        whole = await answer(client, asking(system="Be brief."))
    assert counted["input_tokens"] == whole["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "nope"}, 404, "does not exist"),
        ({"messages": []}, 400, "at least one"),
        ({"max_tokens": 0}, 400, "at least 1"),
        ({"max_tokens": None}, 400, "max_tokens"),
        ({"max_tokens": 4096}, 400, "max_model_len"),
        ({"stop_sequences": [""]}, 400, "stop_sequences"),
    ],
    ids=str,
)
async def test_errors_have_anthropics_shape(client, fields, status, words):
    response = await post(client, asking(**fields))
    assert response.status_code == status
    body = response.json()
    assert (list(body), body["type"]) == (["type", "error"], "error")
    assert list(body["error"]) == ["type", "message"]
    assert words in body["error"]["message"]


@pytest.mark.parametrize("field", ["model", "messages", "max_tokens"])
async def test_what_is_required_is_missed(client, field):
    body = {key: value for key, value in MESSAGES.body.items() if key != field}
    response = await post(client, Call("messages", "/v1/messages", body))
    assert (response.status_code, response.json()["type"]) == (400, "error")
    assert field in response.json()["error"]["message"]


async def test_other_methods_and_mistakes_in_headers_are_refused_in_the_same_shape(client):
    assert (await client.get("/v1/messages")).json()["type"] == "error"
    assert (await post(client, MESSAGES, fault="no-such")).json()["type"] == "error"
