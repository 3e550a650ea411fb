"""What usage tells is what the server counts itself, and the details that were asked for are parts of it."""

import pytest

from extproc.local.model import SampleModel

from .model_calls import CALLS, MODEL, STREAMS, Call, answer, calling, post, stream

PROMPT, COMPLETION, SECONDS = "prompt_tokens", "completion_tokens", "audio_seconds"


@pytest.fixture
def app():
    return SampleModel()


@pytest.fixture
async def client(app):
    async with calling(app) as open_client:
        yield open_client


def totals(usage):
    """Prompt and completion tokens by any API's usage."""
    if "prompt_tokens" in usage:
        return usage["prompt_tokens"], usage.get("completion_tokens", 0)
    cached = usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)
    return usage["input_tokens"] + cached, usage["output_tokens"]


@pytest.mark.parametrize("usage", ["", "cached=2, cache-write=1, reasoning=3, audio-in=1, audio-out=2", "tokens"])
@pytest.mark.parametrize("name", CALLS)
async def test_what_is_told_is_what_is_counted(app, client, name, usage):
    response = await post(client, CALLS[name], usage=usage)
    assert response.status_code == 200, response.text
    report = app.ledger.report()
    counted = report["by_endpoint"][name]
    assert {key: report[key] for key in counted} == counted
    assert (counted["requests"], counted["aborted"]) == (1, 0)
    assert counted["total_tokens"] == counted[PROMPT] + counted[COMPLETION]
    told = response.json().get("usage") if name != "audio_speech" else None
    if told is not None and told.get("type") == "duration":
        assert told["seconds"] == counted[SECONDS]
    elif told is not None:
        assert totals(told) == (counted[PROMPT], counted[COMPLETION])
        assert told.get("total_tokens", counted["total_tokens"]) == counted["total_tokens"]


async def test_the_sums_of_endpoints_and_models_are_the_totals():
    app = SampleModel(models=[MODEL, "b"])
    async with calling(app) as client:
        for call in CALLS.values():
            for model in (MODEL, "b"):
                path = call.path.replace(MODEL, model)
                assert (
                    await post(client, Call(call.endpoint, path, call.body | {"model": model}))
                ).status_code == 200
    report = app.ledger.report()
    groups = report.pop("by_endpoint"), report.pop("by_model")
    assert set(groups[0]) == set(CALLS)
    assert set(groups[1]) == {MODEL, "b"}
    for group in groups:
        assert {key: sum(part[key] for part in group.values()) for key in report} == report
    assert report["requests"] == 2 * len(CALLS)


async def test_chats_tell_the_details_asked_for(client):
    usage = "cached=5, cache-write=2, reasoning=3, audio-in=4, audio-out=1"
    plain = (await answer(client, CALLS["chat_completions"], usage=usage))["usage"]
    assert plain["prompt_tokens_details"] == {
        "cached_tokens": 5,
        "created_cache_tokens": 2,
        "multimodal_tokens": {"audio": 4},
        "audio_tokens": 4,
    }
    assert plain["completion_tokens_details"] == {"reasoning_tokens": 3, "audio_tokens": 1}
    streamed = (await stream(client, STREAMS["chat_completions"], done=True, usage=usage))[-1][1]["usage"]
    assert streamed["prompt_tokens_details"] == {"cached_tokens": 5, "created_cache_tokens": 2, "audio_tokens": 4}
    assert streamed["completion_tokens_details"] == plain["completion_tokens_details"]
    assert totals(plain) == totals(streamed)


async def test_completions_tell_the_details_asked_for(client):
    plain = (await answer(client, CALLS["completions"], usage="cached=5,reasoning=3"))["usage"]
    assert plain["prompt_tokens_details"]["cached_tokens"] == 5
    assert plain["completion_tokens_details"] == {"reasoning_tokens": 3}
    streamed = (await stream(client, STREAMS["completions"], done=True, usage="cached=5"))[-1][1]["usage"]
    assert streamed["prompt_tokens_details"] == {"cached_tokens": 5}
    assert "completion_tokens_details" not in streamed


async def test_responses_tell_the_details_asked_for(client):
    usage = (await answer(client, CALLS["responses"], usage="cached=5,cache-write=2,reasoning=3"))["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 5
    assert usage["input_tokens_details"]["cache_write_tokens"] == 2
    assert usage["output_tokens_details"]["reasoning_tokens"] == 3
    assert (usage["input_tokens"], usage["output_tokens"]) == (9, 8)


async def test_what_the_cache_had_is_no_part_of_a_messages_input_tokens(client):
    whole = await answer(client, CALLS["messages"], usage="cached=5,cache-write=1")
    assert whole["usage"] == {
        "input_tokens": 3,
        "output_tokens": 8,
        "cache_creation_input_tokens": 1,
        "cache_read_input_tokens": 5,
    }
    events = await stream(client, STREAMS["messages"], usage="cached=5,cache-write=1")
    told = [
        (document.get("usage") or document["message"]["usage"])
        for _, document in events
        if "usage" in str(document)
    ]
    # At the start it isn't known yet.
    assert told == [{"input_tokens": 9, "output_tokens": 0}, whole["usage"]]


async def test_details_are_never_more_than_their_totals(client):
    asked = "cached=99, cache-write=99, reasoning=99, audio-in=99, audio-out=99"
    usage = (await answer(client, CALLS["chat_completions"], usage=asked))["usage"]
    assert usage["prompt_tokens_details"] == {
        "cached_tokens": 9,
        "created_cache_tokens": 0,
        "multimodal_tokens": {"audio": 9},
        "audio_tokens": 9,
    }
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 8, "audio_tokens": 8}
    assert (await answer(client, CALLS["messages"], usage=asked))["usage"]["input_tokens"] == 0


@pytest.mark.parametrize(
    "usage", ["cashed=5", "cached", "cached=-1", "cached=x", "tokens=1", "cached=5;reasoning=1"]
)
async def test_a_misspelt_detail_is_refused(client, usage):
    response = await post(client, CALLS["chat_completions"], usage=usage)
    assert response.status_code == 400
    assert "cached=N" in response.json()["error"]["message"]


async def test_all_of_the_best_are_counted_and_only_some_are_shown(app, client):
    body = CALLS["completions"].body | {"n": 2, "best_of": 5, "max_tokens": 4, "ignore_eos": True}
    body |= {"prompt": ["a", "b"]}
    whole = await answer(client, Call("completions", "/v1/completions", body))
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["usage"]["completion_tokens"] == 2 * 5 * 4 == app.ledger.report()["completion_tokens"]
    shown = await answer(client, Call("completions", "/v1/completions", body | {"best_of": None}))
    assert [choice["text"] for choice in shown["choices"]] == [choice["text"] for choice in whole["choices"]]


@pytest.mark.parametrize(
    "fields", [{"best_of": 1, "n": 2}, {"best_of": 0}, {"best_of": 129}, {"best_of": 2, "stream": True}], ids=str
)
async def test_what_cannot_be_the_best_is_refused(client, fields):
    response = await post(client, Call("completions", "/v1/completions", CALLS["completions"].body | fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "best_of")


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("ab", 2), (["ab", "ab"], 4), ([1, 5000, 6000], 3), ([[1, 5000], [6000]], 3)], ids=str
)
async def test_prompts_are_texts_or_tokens_one_or_many(client, prompt, tokens):
    whole = await answer(client, Call("completions", "/v1/completions", {"model": MODEL, "prompt": prompt}))
    assert whole["usage"]["prompt_tokens"] == tokens
    assert len(whole["choices"]) == (2 if len(prompt) == 2 and isinstance(prompt, list) else 1)


@pytest.mark.parametrize("prompt", [[1, "a"], ["a", [1]], [[]], [131_072], [-1]], ids=str)
async def test_prompts_that_are_neither_are_refused(client, prompt):
    response = await post(client, Call("completions", "/v1/completions", {"model": MODEL, "prompt": prompt}))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
