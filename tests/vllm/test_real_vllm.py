"""What a real vLLM says of its own work, what its clients see and what the ledger has are the same.

`TOKENWEIR_VLLM_URL` names a vLLM that runs and that nobody else asks. Without it none of these tests is run.
"""

import asyncio
import contextlib
from collections import Counter

import anthropic
import openai
import pytest
import pytest_asyncio

from tests.system.callers import CHAT, Caller
from tests.system.marks import SYSTEM
from tests.system.stacks import records_of, running, session_fixture

from .server import URL, Server, Work, base_url

pytestmark = SYSTEM

MESSAGES = [{"role": "user", "content": "Name three rivers that have a weir."}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Tell the weather of a city.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
USAGE = {"stream_options": {"include_usage": True}}
CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
ENDLESS = {"ignore_eos": True}
LIMIT = 10**9


@session_fixture
async def server():
    url = base_url()
    if url is None:
        pytest.skip(f"{URL} is not set: it names a running vLLM")
    return await Server.at(url)


@session_fixture
async def gateway(server, tmp_path_factory):
    settings = {"TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": str(LIMIT), "TOKENWEIR_COST__LEARN": "false"}
    async with running(tmp_path_factory.mktemp("vllm"), upstream=server.url, settings=settings) as started:
        yield started


@session_fixture
async def ledger(gateway):
    async with records_of(gateway) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def asker(gateway, ledger, server):
    return Caller(gateway, ledger, model=server.model)


def needs(server, path):
    if path not in server.paths:
        pytest.skip(f"this vLLM does not serve {path}")


# Each call returns the input and output that its client saw, or None where it saw none.


def plain_chat(**fields):
    async def call(caller):
        asked = {"messages": MESSAGES, "max_tokens": 16} | fields
        answer = await caller.openai().chat.completions.create(model=caller.model, **asked)
        return answer.usage.prompt_tokens, answer.usage.completion_tokens

    return call


def streamed_chat(**fields):
    async def call(caller):
        asked = {"messages": MESSAGES, "max_tokens": 16, "stream": True} | fields
        return await _last_usage(await caller.openai().chat.completions.create(model=caller.model, **asked))

    return call


def plain_completion(**fields):
    async def call(caller):
        asked = {"prompt": "A river", "max_tokens": 12} | fields
        answer = await caller.openai().completions.create(model=caller.model, **asked)
        return answer.usage.prompt_tokens, answer.usage.completion_tokens

    return call


def streamed_completion(**fields):
    async def call(caller):
        asked = {"prompt": "A river", "max_tokens": 12, "stream": True} | fields
        return await _last_usage(await caller.openai().completions.create(model=caller.model, **asked))

    return call


async def _last_usage(stream):
    seen = None
    async for chunk in stream:
        if chunk.usage is not None:
            seen = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
    return seen


def plain_response(**fields):
    async def call(caller):
        asked = {"input": "Name three rivers.", "max_output_tokens": 16} | fields
        answer = await caller.openai().responses.create(model=caller.model, **asked)
        return answer.usage.input_tokens, answer.usage.output_tokens

    return call


def streamed_response(**fields):
    async def call(caller):
        asked = {"input": "Name three rivers.", "max_output_tokens": 16, "stream": True} | fields
        async for event in await caller.openai().responses.create(model=caller.model, **asked):
            if event.type in {"response.completed", "response.incomplete"}:
                usage = event.response.usage
        return usage.input_tokens, usage.output_tokens

    return call


def plain_message(**fields):
    async def call(caller):
        asked = {"messages": MESSAGES, "max_tokens": 16} | fields
        answer = await caller.anthropic().messages.create(model=caller.model, **asked)
        return _of_message(answer.usage)

    return call


def streamed_message(**fields):
    async def call(caller):
        asked = {"messages": MESSAGES, "max_tokens": 16} | fields
        async with caller.anthropic().messages.stream(model=caller.model, **asked) as stream:
            return _of_message((await stream.get_final_message()).usage)

    return call


def _of_message(usage):
    """Anthropic counts what came from the cache beside the input."""
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return usage.input_tokens + cached, usage.output_tokens


def posted(path, **fields):
    async def call(caller):
        answer = await caller.post({"model": caller.model} | fields, path=path)
        assert answer.status_code == 200, answer.text

    return call


def embedded(**fields):
    async def call(caller):
        answer = await caller.openai().embeddings.create(model=caller.model, **fields)
        return answer.usage.prompt_tokens, 0

    return call


NAMED = {"type": "function", "function": {"name": "weather"}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
# Name: path, call, and how often vLLM reads the prompt.
CALLS = {
    "chat": (CHAT, plain_chat(), 1),
    "chat without a bound": (CHAT, plain_chat(max_tokens=None, stop=["a", "e", " "]), 1),
    "chat, the newer bound": (CHAT, plain_chat(max_tokens=None, max_completion_tokens=5), 1),
    "chat, one token": (CHAT, plain_chat(max_tokens=1), 1),
    "chat, three choices": (CHAT, plain_chat(n=3), 3),
    "chat, tools": (CHAT, plain_chat(tools=TOOLS), 1),
    "chat, a tool it has to call": (CHAT, plain_chat(tools=TOOLS, tool_choice=NAMED, max_tokens=40), 1),
    "chat, log probabilities": (CHAT, plain_chat(logprobs=True, top_logprobs=3), 1),
    "chat, those of the prompt": (CHAT, plain_chat(extra_body={"prompt_logprobs": 2}), 1),
    "chat, stopped": (CHAT, plain_chat(stop=["e"], max_tokens=30), 1),
    "chat, a least length": (CHAT, plain_chat(max_tokens=20, extra_body={"min_tokens": 20}), 1),
    "chat, a schema": (CHAT, plain_chat(max_tokens=40, response_format=JSON_SCHEMA), 1),
    "chat, a choice": (CHAT, plain_chat(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}), 1),
    "chat, a prompt that is cut": (CHAT, plain_chat(extra_body={"truncate_prompt_tokens": 5}), 1),
    "chat, an answer to go on with": (
        CHAT,
        plain_chat(
            messages=[*MESSAGES, {"role": "assistant", "content": "The Severn"}],
            extra_body={"continue_final_message": True, "add_generation_prompt": False},
        ),
        1,
    ),
    "stream": (CHAT, streamed_chat(), 1),
    "stream, usage asked for": (CHAT, streamed_chat(**USAGE), 1),
    "stream, usage not wanted": (CHAT, streamed_chat(stream_options={"include_usage": False}), 1),
    "stream, usage in every chunk": (CHAT, streamed_chat(**CONTINUOUS), 1),
    "stream, half of that": (CHAT, streamed_chat(stream_options={"continuous_usage_stats": True}), 1),
    "stream, three choices": (CHAT, streamed_chat(n=3), 3),
    "stream, three choices, usage in every chunk": (CHAT, streamed_chat(n=3, **CONTINUOUS), 3),
    "stream, tools": (CHAT, streamed_chat(tools=TOOLS, **USAGE), 1),
    "stream, a tool it has to call": (CHAT, streamed_chat(tools=TOOLS, tool_choice=NAMED, max_tokens=40), 1),
    "stream, log probabilities": (CHAT, streamed_chat(logprobs=True, top_logprobs=3), 1),
    "stream, stopped": (CHAT, streamed_chat(stop=["e"], max_tokens=30, **USAGE), 1),
    "completion": ("/v1/completions", plain_completion(), 1),
    "completion without a bound": ("/v1/completions", plain_completion(max_tokens=None), 1),
    "completion, three prompts": ("/v1/completions", plain_completion(prompt=["A", "B river", "C D E"]), 1),
    "completion, token ids": ("/v1/completions", plain_completion(prompt=[1, 2, 3, 4]), 1),
    "completion, two of each": ("/v1/completions", plain_completion(prompt=[[1, 2, 3], [4, 5]], n=2), 2),
    "completion, echoed": ("/v1/completions", plain_completion(echo=True, logprobs=1), 1),
    "completion, echoed alone": ("/v1/completions", plain_completion(echo=True, max_tokens=0, logprobs=1), 1),
    "completion, streamed": ("/v1/completions", streamed_completion(), 1),
    "completion, streamed, two prompts": (
        "/v1/completions",
        streamed_completion(prompt=["A", "B river"], **USAGE),
        1,
    ),
    "completion, streamed, echoed": ("/v1/completions", streamed_completion(echo=True), 1),
    "response": ("/v1/responses", plain_response(), 1),
    "response, streamed": ("/v1/responses", streamed_response(), 1),
    "response, tools": ("/v1/responses", plain_response(tools=[{"type": "function", **FUNCTION}]), 1),
    "message": ("/v1/messages", plain_message(), 1),
    "message, streamed": ("/v1/messages", streamed_message(), 1),
    "message, tools": (
        "/v1/messages",
        plain_message(tools=[{"name": "weather", "input_schema": SCHEMA}], system="Be brief."),
        1,
    ),
    "many chats at once": (
        f"{CHAT}/batch",
        posted(f"{CHAT}/batch", messages=[MESSAGES, MESSAGES], max_tokens=5),
        1,
    ),
    "invocation": (CHAT, posted("/invocations", messages=MESSAGES, max_tokens=5), 1),
    "embedding": ("/v1/embeddings", embedded(input="A river"), 1),
    "embeddings": ("/v1/embeddings", embedded(input=["A river", "B"]), 1),
    "embeddings, token ids": ("/v1/embeddings", embedded(input=[[1, 2, 3], [4]]), 1),
    "embedding, base64": ("/v1/embeddings", embedded(input="x", encoding_format="base64"), 1),
    "embedding, bytes": ("/v1/embeddings", posted("/v1/embeddings", input="A river", encoding_format="bytes"), 1),
    "embedding, a text that is cut": (
        "/v1/embeddings",
        embedded(input="word " * 600, extra_body={"truncate_prompt_tokens": 5}),
        1,
    ),
    "embedding of a chat": ("/v1/embeddings", posted("/v1/embeddings", messages=MESSAGES), 1),
    "pooling": ("/pooling", posted("/pooling", input="A river"), 1),
    "score": ("/score", posted("/score", text_1="A", text_2=["B", "C D"]), 1),
    "rerank": ("/v1/rerank", posted("/v1/rerank", query="A", documents=["B", "C D"]), 1),
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_ledger_has_what_vllm_counts_and_what_its_client_sees(asker, server, name):
    path, call, readings = CALLS[name]
    needs(server, path)
    before = await server.work()
    seen = await call(asker)
    work = await server.work() - before
    entry = await asker.entry()
    usage = entry["usage"]
    assert (entry["state"], entry["reason"]) == ("settled", "usage")
    assert (usage["input"] * readings, usage["output"]) == (work.prompt, work.generated)
    assert entry["charge"] == usage["input"] + usage["output"] > 0
    assert seen in {None, (usage["input"], usage["output"])}


REFUSED = {
    "no output": (CHAT, {"messages": MESSAGES, "max_tokens": 0}),
    "more than the model can": (CHAT, {"messages": MESSAGES, "max_tokens": 9_000_000}),
    "too long a prompt": (CHAT, {"messages": [{"role": "user", "content": "word " * 300_000}]}),
    "no such model": (CHAT, {"messages": MESSAGES, "model": "another"}),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_vllm_refuses_costs_nothing(asker, server, name):
    path, fields = REFUSED[name]
    needs(server, path)
    before = await server.work()
    answer = await asker.post({"model": asker.model} | fields, path=path)
    assert answer.status_code in {400, 404}
    entry = await asker.entry()
    assert (entry["state"], entry["reason"], entry["charge"]) == ("released", "upstream_error", 0)
    assert await server.work() == before


async def left(caller, path, events, **fields):
    """Ask for a stream, and leave it after some events."""
    body = {"model": caller.model, "stream": True, "max_tokens": 1500} | fields
    seen = 0
    async with caller.http() as client, client.stream("POST", path, json=body) as answer:
        async for line in answer.aiter_lines():
            seen += line.startswith("data:")
            if seen == events:
                return


async def test_who_leaves_with_usage_in_every_chunk_is_charged_exactly_what_was_sent(asker, server):
    needs(server, CHAT)
    before = await server.work()
    # What tools make of the prompt is more than was estimated and held for it at first.
    await left(asker, CHAT, 10, messages=MESSAGES, tools=TOOLS, **ENDLESS, **CONTINUOUS)
    entry = await asker.entry()
    work = await server.work() - before
    assert (entry["state"], entry["reason"], entry["usage"]["input"]) == ("settled", "cut_off", work.prompt)
    assert 9 <= entry["usage"]["output"] <= work.generated
    assert entry["charge"] == entry["usage"]["input"] + entry["usage"]["output"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": MESSAGES, **ENDLESS}),
        ("/v1/completions", {"prompt": "A river", **ENDLESS}),
        ("/v1/messages", {"messages": MESSAGES}),
        ("/v1/responses", {"input": "A river", "max_output_tokens": 1500}),
    ],
)
async def test_who_leaves_is_charged_for_what_was_sent_and_never_above_the_hold(asker, server, path, fields):
    needs(server, path)
    await left(asker, path, 12, **fields)
    entry = await asker.entry()
    assert (entry["state"], entry["reason"]) == ("estimated", "cut_off")
    assert entry["usage"]["output"] > 0
    assert 0 < entry["charge"] <= entry["held"]


async def test_vllm_counts_a_prompt_for_nothing(asker, server):
    needs(server, "/v1/messages/count_tokens")
    before = await server.work()
    counted = await asker.anthropic().messages.count_tokens(model=asker.model, messages=MESSAGES)
    assert counted.input_tokens > 0
    assert await server.work() == before
    await plain_chat()(asker)
    await asker.entry()  # the only one is that of the chat


KINDS = (plain_chat(), streamed_chat(**USAGE), plain_completion(), plain_response(), plain_message())


@pytest.mark.parametrize("mode", ["strict", "reserve"])
async def test_of_two_hundred_at_once_every_token_is_counted_and_a_strict_limit_holds(asker, server, mode):
    needs(server, CHAT)
    limit = 8_000
    await asker.bind({"scope": "service_account", "window": "day", "amount": limit, "mode": mode})
    before = await server.work()
    ends = Counter()
    seen = Counter()

    async def one(number):
        try:
            tokens = await KINDS[number % len(KINDS)](asker)
        except (openai.RateLimitError, anthropic.RateLimitError):
            ends["denied"] += 1
        else:
            ends["served"] += 1
            seen.update(input=tokens[0], output=tokens[1])

    await asyncio.gather(*map(one, range(200)))
    work = await server.work() - before
    entries = [entry for entry in await asker.entries(200) if entry["state"] != "denied"]
    assert {(entry["state"], entry["reason"]) for entry in entries} == {("settled", "usage")}
    assert len(entries) == ends["served"] > 0
    assert Work(seen["input"], seen["output"]) == work
    charged = sum(entry["charge"] for entry in entries)
    assert charged == work.prompt + work.generated == await asker.settled()
    if mode == "strict":
        assert charged <= limit


# A body that each endpoint which generates would take.
ANY = {
    "messages": MESSAGES,
    "prompt": "A",
    "input": "A",
    "token_ids": [1, 2],
    "sampling_params": {"max_tokens": 2},
}
FURTHER = (
    *("/inference/v1/generate", "/v1/systemone", "/generate", "/v1/load_lora_adapter", "/v1/realtime"),
    *("/v1/messages/render", "/v1/responses/render", "/v1/completions/derender", "/v1/chat/completions/derender"),
)


async def test_no_path_that_vllm_serves_generates_for_free(asker, server):
    """Post to every path that it describes, and to those that it serves beside them."""
    posts = {path for path, methods in server.paths.items() if "post" in methods} | set(FURTHER)
    for path in sorted(posts):
        before = await server.work()
        answer = await asker.post({"model": asker.model, "max_tokens": 2} | ANY, path=path)
        work = await server.work() - before
        if work != Work(0, 0):
            with contextlib.suppress(AssertionError):
                await asker.entry(within_s=5)
            assert await asker.records.entries(asker.account), (path, answer.text)
            asker = Caller(asker.stack, asker.records, model=asker.model)


async def test_what_vllm_serves_beside_its_documentation_is_refused(asker, server):
    for path in ("/inference/v1/generate", "/v1/systemone", "/scale_elastic_ep"):
        answer = await asker.post({"model": asker.model, "max_tokens": 2} | ANY, path=path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "endpoint_not_metered")


async def test_what_only_reads_passes(asker, server):
    """Nothing is refused by us: what comes is the server's own answer, a 404 of its own included."""
    gets = {path for path, methods in server.paths.items() if "get" in methods}
    async with asker.http() as client:
        for path in sorted(gets | {"/v1/models", "/health", "/version", "/metrics", "/ping"}):
            answer = await client.get(path.replace("{response_id}", "resp_1"))
            assert answer.status_code in {200, 404}, (path, answer.text)
            assert b"endpoint_not_metered" not in answer.content
        for path in ("/ping", "/tokenize"):
            answer = await client.post(path, json={"model": asker.model, "prompt": "A river"})
            assert answer.status_code == 200, (path, answer.text)
