"""Answers over HTTP: plain and streamed say and count the same, in the shapes of a recorded vLLM."""

import json

import httpx
import pytest

from extproc.local.model import SampleModel
from tests.recordings import recorded_text as recorded

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
MODEL = "tokenweir-sample"
USAGE = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture
def app():
    return SampleModel(max_model_len=2048)


@pytest.fixture
async def client(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model") as open_client:
        yield open_client


def chat(question="tell me a story", **fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], **fields}


def chunks_of(body):
    events = body.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def streamed_text(chunks, index=0):
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices)


async def answer(client, request, path=CHAT):
    response = await client.post(path, json=request)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client, request, path=CHAT):
    response = await client.post(path, json={**request, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return chunks_of(response.text)


async def test_a_chat_is_answered_and_counted(client):
    whole = await answer(client, chat("1 + 1 =?"))
    assert whole["choices"][0]["message"]["content"] == "1 + 1 = 2"
    assert whole["choices"][0]["finish_reason"] == "stop"
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 8, 17)


@pytest.mark.parametrize(
    "fields",
    [{}, {"max_tokens": 5}, {"n": 3}, {"stop": [" the", "."]}, {"ignore_eos": True, "max_tokens": 90}],
    ids=str,
)
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_a_stream_says_and_counts_what_a_plain_answer_does(client, path, fields):
    request = chat(**fields) if path == CHAT else {"model": MODEL, "prompt": ["one", "two"], **fields}
    whole = await answer(client, request, path)
    chunks = await stream(client, {**request, "stream_options": USAGE}, path)
    for choice in whole["choices"]:
        said = choice["text"] if path == COMPLETION else choice["message"]["content"]
        assert streamed_text(chunks, choice["index"]) == said
    last = chunks[-1]
    assert last["choices"] == []
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][key] for key in counts] == [whole["usage"][key] for key in counts]
    # One chunk a token, besides those that open a chat's choices and the usage.
    openings = len(whole["choices"]) if path == CHAT else 0
    assert len(chunks) == openings + last["usage"]["completion_tokens"] + 1


async def test_without_the_option_a_stream_tells_no_usage(client):
    assert not [chunk for chunk in await stream(client, chat()) if "usage" in chunk]


async def test_continuous_usage_needs_usage_to_be_included(client):
    only = {"continuous_usage_stats": True, "include_usage": False}
    assert not [chunk for chunk in await stream(client, chat(stream_options=only)) if "usage" in chunk]


async def test_continuous_usage_counts_up_for_each_choice(client):
    chunks = await stream(client, chat(n=2, max_tokens=4, stream_options=CONTINUOUS))
    counted = {0: [], 1: []}
    for chunk in chunks[:-1]:
        counted[chunk["choices"][0]["index"]].append(chunk["usage"]["completion_tokens"])
    assert counted == {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4]}
    assert chunks[-1]["usage"]["completion_tokens"] == 8


async def test_max_completion_tokens_goes_before_max_tokens(client):
    whole = await answer(client, chat(max_tokens=9, max_completion_tokens=3))
    assert whole["usage"]["completion_tokens"] == 3
    assert whole["choices"][0]["finish_reason"] == "length"


async def test_without_a_bound_ignoring_the_end_fills_the_model(client):
    whole = await answer(client, chat(ignore_eos=True))
    assert whole["usage"]["total_tokens"] == 2048


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_the_fingerprint_is_on_the_last_chunk_only(client, path):
    request = chat("ping") if path == CHAT else {"model": MODEL, "prompt": "ping"}
    for options in (None, USAGE, CONTINUOUS):
        chunks = await stream(client, {**request, "stream_options": options}, path)
        signed = ["system_fingerprint" in chunk for chunk in chunks]
        assert signed == [False] * (len(chunks) - 1) + [True]


async def test_the_keys_of_chunks_are_in_order(client):
    opening, token, *_, last = await stream(client, chat("ping"))
    head = ["id", "object", "created", "model", "choices"]
    assert list(opening) == [*head, "prompt_token_ids", "prompt_text"]
    assert list(token) == head
    assert list(last) == [*head, "system_fingerprint"]
    common = ["index", "delta", "logprobs", "finish_reason"]
    assert list(opening["choices"][0]) == common
    assert list(token["choices"][0]) == [*common, "token_ids"]
    assert list(last["choices"][0]) == [*common, "stop_reason", "token_ids"]


async def test_a_stop_string_is_named(client):
    choice = (await answer(client, chat("1 + 1 =?", stop="=")))["choices"][0]
    assert choice["message"]["content"] == "1 + 1 "
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "=")


async def test_the_seed_and_the_model_change_the_text():
    app = SampleModel(models=["a", "b"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model") as client:
        said = [
            (await answer(client, chat() | fields))["choices"][0]["message"]["content"]
            for fields in ({"model": "a"}, {"model": "b"}, {"model": "a", "seed": 1}, {"model": "a"})
        ]
    assert len(set(said)) == 3
    assert said[0] == said[3]


async def test_fields_it_does_not_know_are_ignored(client):
    extra = {
        "temperature": 2,
        "top_p": 0.1,
        "user": "me",
        "tools": [],
        "response_format": {},
        "metadata": [1],
    }
    assert (await answer(client, chat() | extra))["choices"] == (await answer(client, chat()))["choices"]


async def test_content_in_parts_and_tool_messages_are_taken(client):
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "1 + 1"}, {"type": "image_url", "image_url": {}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    whole = await answer(client, {"model": MODEL, "messages": messages})
    assert whole["choices"][0]["message"]["content"] == "1 + 1 = 2"
    assert whole["usage"]["prompt_tokens"] == 1 + 4 + 1 + 3 * 4


async def test_an_id_from_outside_goes_into_the_answer(client):
    response = await client.post(CHAT, json=chat("ping"), headers={"x-request-id": "abc"})
    assert response.json()["id"] == "chatcmpl-abc"


async def test_what_is_served_is_counted_by_model(app, client):
    first = (await answer(client, chat("ping", n=2)))["usage"]
    second = (await stream(client, chat("ping", stream_options=USAGE)))[-1]["usage"]
    expected = {
        "requests": 2,
        **{key: first[key] + second[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "aborted": 0,
        "audio_seconds": 0,
    }
    told = (await client.get("/admin/usage")).json()
    assert told == {**expected, "by_model": {MODEL: expected}, "by_endpoint": {"chat_completions": expected}}
    assert app.ledger.report() == told
    assert (await client.post("/admin/reset")).json()["requests"] == 0
    assert (await client.get("/admin/usage")).json()["total_tokens"] == 0


async def test_the_small_endpoints(client):
    card = (await client.get("/v1/models")).json()["data"][0]
    assert (card["id"], card["max_model_len"], card["object"]) == (MODEL, 2048, "model")
    health = await client.get("/health")
    assert (health.status_code, health.content) == (200, b"")
    assert list((await client.get("/version")).json()) == ["version"]


# Shapes, against answers recorded from a real vLLM.


def keys(value):
    """The nested keys of a document in their order; of values only whether they are null."""
    if isinstance(value, dict):
        return [(key, keys(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [keys(inner) for inner in value]
    return None if value is None else type(value).__name__


async def test_a_plain_chat_has_the_recorded_shape(client):
    theirs = json.loads(recorded("vllm-chat.body"))
    assert keys(await answer(client, chat(max_tokens=16, ignore_eos=True))) == keys(theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vllm-chat-stream.body", None),
        ("vllm-chat-stream-usage.body", USAGE),
        ("vllm-chat-stream-continuous.body", CONTINUOUS),
    ],
)
async def test_a_streamed_chat_has_the_recorded_shape(client, name, options):
    theirs = chunks_of(recorded(name))
    request = chat(max_tokens=16, ignore_eos=True, stream_options=options)
    assert [keys(chunk) for chunk in await stream(client, request)] == [keys(chunk) for chunk in theirs]


async def test_a_batch_of_completions_has_the_recorded_shape(client):
    theirs = json.loads(recorded("vllm-completions-batch.body"))
    request = {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 8, "ignore_eos": True}
    assert keys(await answer(client, request, COMPLETION)) == keys(theirs)


async def test_too_many_tokens_are_refused_in_the_recorded_words(client):
    theirs = json.loads(recorded("vllm-400-too-long.body"))
    response = await client.post(CHAT, json=chat(max_tokens=99999))
    assert (response.status_code, response.json()) == (400, theirs)
    assert list(response.json()["error"]) == list(theirs["error"])


async def test_an_unknown_model_is_refused_in_the_recorded_words():
    theirs = recorded("vllm-404.body").strip()
    transport = httpx.ASGITransport(SampleModel(models=["tiny"]))
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
        response = await client.post(CHAT, json=chat() | {"model": "nope"})
    assert (response.status_code, response.text) == (404, theirs)
