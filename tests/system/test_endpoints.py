"""Every kind of endpoint once, plain and streamed, by the client that its users have: what is charged is what was served."""

import contextlib
import io
import wave

import anthropic
import openai
import pytest

from .callers import QUESTION
from .marks import SYSTEM

pytestmark = SYSTEM

MESSAGES = [{"role": "user", "content": QUESTION}]
DOCUMENTS = ["A weir measures.", "A dam holds back.", "Rain falls."]


def spoken(seconds=2):
    """A WAV of silence."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * 8000 * seconds))
    return ("speech.wav", written.getvalue(), "audio/wav")


async def drained(stream):
    return [event async for event in stream]


async def chat(caller, **fields):
    async with caller.openai() as client:
        answer = await client.chat.completions.create(model=caller.model, messages=MESSAGES, **fields)
        return await drained(answer) if fields.get("stream") else answer


async def completion(caller, **fields):
    async with caller.openai() as client:
        answer = await client.completions.create(model=caller.model, prompt=["One", "Two"], max_tokens=6, **fields)
        return await drained(answer) if fields.get("stream") else answer


async def response(caller, **fields):
    async with caller.openai() as client:
        answer = await client.responses.create(
            model=caller.model, input=QUESTION, instructions="Be brief.", **fields
        )
        return await drained(answer) if fields.get("stream") else answer


async def message(caller, **fields):
    async with caller.anthropic() as client:
        answer = await client.messages.create(
            model=caller.model, messages=MESSAGES, max_tokens=40, system="Be brief.", **fields
        )
        return await drained(answer) if fields.get("stream") else answer


async def embedding(caller):
    async with caller.openai() as client:
        return await client.embeddings.create(model=caller.model, input=DOCUMENTS)


async def image(caller):
    async with caller.openai() as client:
        return await client.images.generate(model=caller.model, prompt="A weir.", quality="low", n=2)


async def speech(caller):
    async with caller.openai() as client:
        return await client.audio.speech.create(model=caller.model, voice="alloy", input="A weir measures.")


async def transcription(caller, *, by_tokens, **fields):
    headers = {"x-sample-usage": "tokens"} if by_tokens else {}
    async with caller.openai() as client:
        answer = await client.audio.transcriptions.create(
            model=caller.model, file=spoken(), extra_headers=headers, **fields
        )
        return await drained(answer) if fields.get("stream") else answer


async def posted(caller, path, **fields):
    """Where no client library is common."""
    answer = await caller.post({"model": caller.model, **fields}, path=path)
    if answer.status_code == 429:
        raise openai.RateLimitError("denied", response=answer, body=answer.json()["error"])
    assert answer.status_code == 200, answer.text
    return answer


KINDS = {
    "chat_completions": chat,
    "chat_completions, streamed": lambda caller: chat(caller, stream=True),
    "completions": completion,
    "completions, streamed": lambda caller: completion(caller, stream=True),
    "responses": response,
    "responses, streamed": lambda caller: response(caller, stream=True),
    "messages": message,
    "messages, streamed": lambda caller: message(caller, stream=True),
    "embeddings": embedding,
    "rerank": lambda caller: posted(caller, "/v1/rerank", query="What measures?", documents=DOCUMENTS),
    "score": lambda caller: posted(caller, "/score", text_1="What measures?", text_2=DOCUMENTS),
    "audio_transcriptions": lambda caller: transcription(caller, by_tokens=True),
    "audio_transcriptions, streamed": lambda caller: transcription(caller, by_tokens=True, stream=True),
    "images": image,
}
READ_ONLY = ("embeddings", "rerank", "score")
# Their answers tell no tokens.
ESTIMATED = {
    "audio_transcriptions": lambda caller: transcription(caller, by_tokens=False),
    "audio_speech": speech,
}


def kind_of(name):
    return name.partition(",")[0]


async def served_by(stack, kind):
    """Prompt and completion tokens that the model server itself has counted for a kind of endpoint."""
    counted = (await stack.served())["by_endpoint"].get(kind, {})
    return counted.get("prompt_tokens", 0), counted.get("completion_tokens", 0)


@contextlib.asynccontextmanager
async def counting(stack, kind):
    """What the model server has served meanwhile."""
    before = await served_by(stack, kind)
    served = []
    yield served
    after = await served_by(stack, kind)
    served += [now - then for now, then in zip(after, before, strict=True)]


@pytest.mark.parametrize("name", KINDS)
async def test_what_is_charged_is_what_the_model_server_counted(caller, name):
    async with counting(caller.stack, kind_of(name)) as served:
        await KINDS[name](caller)
        entry = await caller.entry()
    assert (entry["endpoint"], entry["stream"]) == (kind_of(name), "streamed" in name)
    assert (entry["state"], entry["reason"], entry["model"]) == ("settled", "usage", caller.model)
    assert [entry["usage"]["input"], entry["usage"]["output"]] == served
    assert entry["charge"] == sum(served) > 0
    assert bool(served[1]) is (name not in READ_ONLY)
    assert await caller.settled() == entry["charge"]


@pytest.mark.parametrize("kind", ESTIMATED)
async def test_an_answer_that_tells_no_tokens_is_estimated_and_marked_so(caller, kind):
    await ESTIMATED[kind](caller)
    entry = await caller.entry()
    assert (entry["endpoint"], entry["state"]) == (kind, "estimated")
    assert entry["reason"] == {"audio_speech": "binary", "audio_transcriptions": "other_unit"}[kind]
    assert 0 < entry["charge"] <= entry["held"]
    assert await caller.settled() == entry["charge"]


@pytest.mark.parametrize("kind", READ_ONLY)
async def test_what_generates_nothing_holds_and_costs_its_prompt_only(caller, kind):
    await KINDS[kind](caller)
    entry = await caller.entry()
    assert (entry["cost"]["output"], entry["usage"]["output"]) == (0, 0)
    assert entry["held"] == entry["cost"]["prompt"] >= entry["charge"]


async def test_vectors_without_usage_cost_what_their_prompt_does(caller):
    headers = {"x-sample-fault": "no-usage"}
    body = {"model": caller.model, "input": DOCUMENTS}
    answer = await caller.post(body, path="/v1/embeddings", headers=headers)
    assert len(answer.json()["data"]) == len(DOCUMENTS)
    entry = await caller.entry()
    assert (entry["state"], entry["usage"]["output"]) == ("estimated", 0)
    assert entry["charge"] == entry["held"] == entry["cost"]["prompt"]


@pytest.mark.parametrize("name", [*KINDS, *ESTIMATED])
async def test_denied_is_said_in_the_shape_of_the_endpoints_api(caller, name):
    await caller.limit(sa_limit=1)
    ask = KINDS.get(name) or ESTIMATED[name]
    kind = anthropic.RateLimitError if name.startswith("messages") else openai.RateLimitError
    async with counting(caller.stack, kind_of(name)) as served:
        with pytest.raises(kind) as caught:
            await ask(caller)
    answer = caught.value.response
    error = answer.json()["error"]
    assert error["message"].startswith("Usage over limit -- serviceAccount. Limit 1 tokens per day: 0 used, ")
    if kind is anthropic.RateLimitError:
        assert answer.json()["type"] == "error"
        assert error["type"] == "rate_limit_error"
    else:
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert answer.headers["x-ratelimit-limit-tokens"] == "1"
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers  # it would never fit
    assert served == [0, 0]
    entry = await caller.entry()
    assert (entry["state"], entry["endpoint"], entry["charge"]) == ("denied", kind_of(name), 0)


async def test_the_anthropic_client_does_not_ask_again_before_the_window_ends(caller):
    await caller.limit(sa_limit=1)
    async with caller.anthropic(max_retries=2) as client:
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(model=caller.model, messages=MESSAGES, max_tokens=16)
    # The ledger is written in order: had it asked again, there would be more than this one and the next.
    await caller.post(max_tokens=16)
    assert [entry["endpoint"] for entry in await caller.entries(2)] == ["messages", "chat_completions"]


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith(("chat", "messages", "embed"))])
async def test_what_is_left_is_told_on_plain_and_streamed_answers(caller, name):
    await caller.bind(sa_limit=9000, ratelimitEachSAPerMinute=50)
    seen = []

    async def remember(answer):
        seen.append(answer)

    make = caller.anthropic if name.startswith("messages") else caller.openai
    with_hook = {"hooks": {"response": [remember]}}
    await KINDS[name](_With(caller, make, with_hook))
    (answer,) = seen
    held = (await caller.entry())["held"]
    headers = answer.headers
    assert headers["x-ratelimit-limit-tokens"] == "9000"
    assert headers["x-ratelimit-remaining-tokens"] == str(9000 - held)
    assert headers["x-ratelimit-limit-requests"] == "50"
    assert headers["x-ratelimit-remaining-requests"] == "49"
    for unit in ("tokens", "requests"):
        assert headers[f"x-ratelimit-reset-{unit}"].endswith("s")


class _With:
    """A caller whose client libraries are made with further options."""

    def __init__(self, caller, make, options):
        self.model = caller.model
        self.openai = self.anthropic = lambda: make(**options)


FREE = {
    "models": ("GET", "/v1/models", None),
    "one model": ("GET", "/v1/models/tokenweir-sample", None),
    "tokenize": ("POST", "/tokenize", {"prompt": "A weir measures."}),
    "detokenize": ("POST", "/detokenize", {"tokens": [1, 2, 3]}),
    "count_tokens": ("POST", "/v1/messages/count_tokens", {"messages": MESSAGES}),
    "ready": ("GET", "/v2/health/ready", None),
}


@pytest.mark.parametrize("what", FREE)
async def test_looking_and_counting_is_free(caller, what):
    await caller.bind(sa_limit=400, ratelimitEachSAPerMinute=1)
    method, path, body = FREE[what]
    async with caller.http() as client:
        for _ in range(3):  # more than requests may be made
            answer = await client.request(method, path, json=body and {"model": caller.model, **body})
            assert answer.status_code == 200, answer.text
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert await caller.nothing_recorded_but(0) == []


PREDICTORS = {
    "predict": ("/v1/models/tokenweir-sample:predict", {"instances": [[1, 2], [3, 4]]}),
    "infer": (
        "/v2/models/tokenweir-sample/infer",
        {"inputs": [{"name": "x", "shape": [2], "datatype": "FP64", "data": [1, 2]}]},
    ),
}


@pytest.mark.parametrize("kind", PREDICTORS)
async def test_models_without_tokens_count_as_requests(caller, kind):
    path, body = PREDICTORS[kind]
    # Nothing is left of tokens: these need none.
    await caller.bind(sa_limit=0, ratelimitIPPerMinute=2)
    # Five are more than two, even where the minute ends in between.
    answers = [await caller.post(body, path=path) for _ in range(5)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[0] == 200
    assert set(statuses) == {200, 429}
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    denied = next(answer for answer in answers if answer.status_code == 429)
    assert list(denied.json()) == ["error"]
    assert denied.json()["error"].startswith("Usage over limit -- IP. Limit 2 requests per minute: 2 used. ")
    assert 0 < int(denied.headers["retry-after"]) <= 60
    assert "x-should-retry" not in denied.headers
    entries = await caller.entries(5)
    assert [entry["state"] == "denied" for entry in entries] == [status == 429 for status in statuses]
    assert {(entry["endpoint"], entry["charge"], entry["held"], entry["model"]) for entry in entries} == {
        (kind, 0, 0, caller.model)
    }
    assert [entry["reason"] for entry in entries if entry["state"] == "settled"] == ["request"] * statuses.count(
        200
    )


async def test_a_limit_on_one_kind_of_endpoint_leaves_the_others_alone(caller):
    limit = {
        "scope": "service_account",
        "window": "day",
        "amount": 1,
        "unit": "requests",
        "endpoint": "embeddings",
    }
    await caller.bind(limit, sa_limit=9000)
    await embedding(caller)
    with pytest.raises(openai.RateLimitError, match="Limit 1 requests per day"):
        await embedding(caller)
    await chat(caller)


async def test_details_of_usage_are_on_record_and_weighted(caller):
    await caller.bind(
        sa_limit=90_000, weights={"input": 1, "cached_input": 0.1, "output": 3, "reasoning": 2}, timezone="UTC"
    )
    async with caller.openai() as client:
        answer = await client.chat.completions.create(
            model=caller.model,
            messages=MESSAGES,
            max_tokens=9,
            extra_body={"ignore_eos": True},
            extra_headers={"x-sample-usage": "cached=5, reasoning=4"},
        )
    entry = await caller.entry()
    usage = answer.usage
    assert (entry["usage"]["cached"], entry["usage"]["reasoning"]) == (5, 4)
    exact = 1000 * (usage.prompt_tokens - 5) + 100 * 5 + 3000 * 5 + 2000 * 4
    assert entry["charge"] == -(-exact // 1000)
    assert await caller.settled() == entry["charge"]
