"""What OpenAI's client sees, and what is recorded, when nothing goes wrong."""

import asyncio

import openai
import pytest

from tests.plaintext import WITHOUT_TLS, plaintext_client

from .callers import CHAT, QUESTION, chat
from .marks import SYSTEM

pytestmark = SYSTEM

MESSAGES = [{"role": "user", "content": QUESTION}]


async def direct(stack, **fields):
    """The same request, sent to the model server past Envoy."""
    async with plaintext_client() as client:
        answer = await client.post(f"{stack.upstream}{CHAT}", json=chat(**fields))
        return answer.json()


async def test_a_plain_answer_is_charged_what_it_says(caller):
    async with caller.openai() as client:
        answer = await client.chat.completions.create(model=caller.model, messages=MESSAGES)
    assert answer.choices[0].message.content == "1 + 1 = 2"
    entry = await caller.entry()
    assert (entry["state"], entry["reason"], entry["status"]) == ("settled", "usage", 200)
    assert entry["charge"] == answer.usage.total_tokens > 0
    assert entry["usage"]["input"] == answer.usage.prompt_tokens
    assert entry["usage"]["output"] == answer.usage.completion_tokens
    assert (entry["tenant_id"], entry["clientIP"], entry["model"]) == (caller.tenant, "127.0.0.1", caller.model)
    assert entry["stream"] is False
    assert await caller.settled() == entry["charge"]


async def test_an_answer_differs_from_the_model_servers_own_in_its_id_and_time_only(caller):
    through = (await caller.post(max_tokens=5)).json()
    own = await direct(caller.stack, max_tokens=5)
    for document in (through, own):
        del document["id"], document["created"]
    assert through == own


async def test_the_synchronous_client_works_just_so(caller):
    def ask():
        http = openai.DefaultHttpxClient(trust_env=False, verify=WITHOUT_TLS)
        url = f"{caller.stack.gateway}/v1"
        with openai.OpenAI(base_url=url, api_key=caller.token, http_client=http) as client:
            plain = client.chat.completions.create(model=caller.model, messages=MESSAGES)
            stream = client.chat.completions.create(model=caller.model, messages=MESSAGES, stream=True)
            return plain, list(stream)

    plain, chunks = await asyncio.to_thread(ask)
    assert plain.choices[0].message.content == "1 + 1 = 2"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "1 + 1 = 2"
    entries = await caller.entries(2)
    assert [entry["charge"] for entry in entries] == [plain.usage.total_tokens] * 2


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"continuous_usage_stats": True}])
async def test_a_stream_shows_no_usage_unasked_and_is_charged_exactly(caller, options):
    wanted = {} if options is None else {"stream_options": options}
    async with caller.openai() as client:
        stream = await client.chat.completions.create(
            model=caller.model, messages=MESSAGES, stream=True, max_tokens=24, **wanted
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "1 + 1 = 2"
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    entry = await caller.entry()
    usage = (await direct(caller.stack, max_tokens=24))["usage"]
    assert (entry["state"], entry["stream"]) == ("settled", True)
    assert entry["charge"] == usage["total_tokens"]
    assert (entry["usage"]["input"], entry["usage"]["output"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


async def test_a_stream_ends_with_its_usage_for_those_who_ask(caller):
    async with caller.openai() as client:
        stream = await client.chat.completions.create(
            model=caller.model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *others, last = chunks
    assert last.choices == []
    assert all(chunk.usage is None for chunk in others)
    entry = await caller.entry()
    assert entry["charge"] == last.usage.total_tokens


async def test_continuous_usage_reaches_those_who_ask(caller):
    answer = await caller.post(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert answer.text.count('"usage":{') == answer.text.count("data: {")
    assert (await caller.entry())["state"] == "settled"


async def test_all_choices_are_charged(caller):
    async with caller.openai() as client:
        answer = await client.chat.completions.create(
            model=caller.model, messages=MESSAGES, n=2, max_tokens=4, extra_body={"ignore_eos": True}
        )
    assert len(answer.choices) == 2
    assert answer.usage.completion_tokens == 8
    entry = await caller.entry()
    assert entry["charge"] == answer.usage.total_tokens
    assert entry["held"] >= entry["charge"]


async def test_a_bound_on_the_output_is_what_is_held(caller):
    for bound in ({"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_tokens": 7, "n": 3}):
        assert (await caller.post(**bound)).status_code == 200
    one, other, threefold = await caller.entries(3)
    assert one["held"] == other["held"] == threefold["held"] - 14


async def test_the_client_is_told_what_is_left(caller):
    await caller.limit(sa_limit=5000, ip_limit=400)
    answer = await caller.post(max_tokens=16)
    held = (await caller.entry())["held"]
    assert answer.headers["x-ratelimit-limit-tokens"] == "400"
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(400 - held)
    assert answer.headers["x-ratelimit-reset-tokens"].endswith("s")


async def test_daily_usage_is_the_sum_of_the_ledger(caller):
    for stream in (True, False, True):
        assert (await caller.post(stream=stream, max_tokens=9)).status_code == 200
    entries = await caller.entries(3)
    (day,) = await caller.records.daily(caller.account)
    assert day["usage"] == sum(entry["charge"] for entry in entries)
    assert (day["requests"], day["clientIP"], day["tenant_id"]) == (3, "127.0.0.1", caller.tenant)
    assert day["date"] == entries[0]["date"]
    assert await caller.settled() == day["usage"]


async def test_the_ledger_names_the_request_as_the_client_was_told(caller):
    answer = await caller.post()
    assert (await caller.entry())["request_id"] in answer.json()["id"]
