"""The estimate of a prompt: what is measured of which request, and what its answer teaches."""

import json

import pytest

from extproc.core.quota.costs import Costing
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.prompt_fit import PromptKind
from extproc.core.quota.recent import ENOUGH
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.body import read_request
from extproc.core.request.endpoints import Endpoint, Target
from extproc.metering.estimator import Estimator, NoCounter
from extproc.observe.metrics import Metrics

CHAT = Endpoint.CHAT_COMPLETIONS
TEXT = "please tell me how many planets there are in the solar system "
TOOLS = [{"type": "function", "function": {"name": "f", "description": TEXT, "parameters": {"type": "object"}}}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgoAAAANS" * 2000}}


class Counter(NoCounter):
    """Counts each prompt as this many tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def knows(self, model):
        return True

    async def count(self, model, endpoint, prompt):
        return self.tokens


def estimator(counter=None, *, learn=True, **costing):
    return Estimator(Models(ModelProfile(Costing(**costing))), counter or NoCounter(), Metrics(), learn=learn)


def chat(text=TEXT, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}]} | more


async def estimated(estimating, body, endpoint=CHAT):
    facts = read_request(Target(endpoint), json.dumps(body).encode(), "application/json")
    return await estimating.estimate("t", endpoint, facts, strict=False)


async def prompt(estimating, body, endpoint=CHAT):
    return (await estimated(estimating, body, endpoint)).cost.prompt


async def teach(estimating, body, tokens, endpoint=CHAT, times=ENOUGH):
    for _ in range(times):
        lesson = (await estimated(estimating, body, endpoint)).lesson
        settlement = Settlement(Outcome.SETTLED, Usage(tokens, 5, total=tokens + 5), tokens + 5, "usage", 200)
        estimating.learn(lesson, settlement, bounded=True)


async def test_before_anything_is_learned_the_kind_of_text_counts():
    """Per byte, digits, code and base64 become more tokens than prose; the start is rather too high than too low."""
    each = {
        name: await prompt(estimator(), chat(text * (4000 // len(text))))
        for name, text in {"prose": TEXT, "digits": "1234567890", "base64": "aGVsbG8Wb3JsZDE5"}.items()
    }
    assert 4000 / 5 < each["prose"] < 4000 / 3
    assert each["digits"] > 3 * each["prose"]
    assert each["base64"] > 2 * each["prose"]


@pytest.mark.parametrize("text", ["你好世界今天天气很好", "привет как дела сегодня", "नमस्ते आप कैसे हैं"])
async def test_text_in_escapes_is_estimated_as_the_same_text_without_them(text):
    body = chat(text * 100)
    facts = [
        read_request(Target(CHAT), json.dumps(body, ensure_ascii=ascii_only).encode(), "application/json")
        for ascii_only in (True, False)
    ]
    escaped, plain = [(await estimator().estimate("t", CHAT, of, strict=False)).cost.prompt for of in facts]
    assert escaped == pytest.approx(plain, rel=0.03)


async def test_requests_with_tools_and_without_are_learned_apart():
    estimating = estimator()
    before = await prompt(estimating, chat())
    await teach(estimating, chat(tools=TOOLS), 900)
    assert await prompt(estimating, chat(tools=TOOLS)) == pytest.approx(900, rel=0.1)
    assert await prompt(estimating, chat()) == before
    assert await prompt(estimating, chat(tools=[])) == before


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, chat(tools=TOOLS)),
        (CHAT, chat(functions=[TOOLS[0]["function"]])),
        (Endpoint.RESPONSES, {"model": "m", "input": TEXT, "tools": [{"type": "function", "name": "f"}]}),
        (Endpoint.MESSAGES, chat(max_tokens=9, tools=[{"name": "f", "input_schema": {"type": "object"}}])),
    ],
)
async def test_tools_are_found_at_each_endpoint_that_takes_them(endpoint, body):
    assert (await estimated(estimator(), body, endpoint)).lesson.prompt.kind is PromptKind.BYTES_WITH_TOOLS
    assert (
        await estimated(estimator(Counter(9)), body, endpoint)
    ).lesson.prompt.kind is PromptKind.TOKENS_WITH_TOOLS
    for nothing in (None, []):
        without = {name: nothing if name in ("tools", "functions") else value for name, value in body.items()}
        assert (await estimated(estimator(), without, endpoint)).lesson.prompt.kind is PromptKind.BYTES


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, chat(web_search_options={})),
        (CHAT, chat(chat_template="{{ messages }}")),
        (CHAT, chat([{"type": "text", "text": TEXT}, PICTURE])),
        (Endpoint.RESPONSES, {"model": "m", "input": TEXT, "previous_response_id": "resp_1"}),
        (Endpoint.RESPONSES, {"model": "m", "input": TEXT, "tools": [{"type": "web_search"}]}),
        (Endpoint.MESSAGES, chat(max_tokens=9, mcp_servers=[{"url": "https://example.com"}])),
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": [1, 2, 3]}),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": [[1, 2], [3]]}),
    ],
)
async def test_prompts_that_say_nothing_about_their_text_teach_nothing(endpoint, body):
    estimating = estimator()
    before = await prompt(estimating, body, endpoint)
    await teach(estimating, body, 50_000, endpoint)
    assert await prompt(estimating, body, endpoint) == before


async def test_a_pictures_payload_is_no_text():
    plain = await prompt(estimator(), chat([{"type": "text", "text": TEXT}]))
    with_picture = await prompt(estimator(media_tokens=1000), chat([{"type": "text", "text": TEXT}, PICTURE]))
    assert plain + 1000 <= with_picture < plain + 1050


async def test_token_ids_are_counted_exactly():
    assert await prompt(estimator(), {"model": "m", "prompt": [5] * 70}, Endpoint.COMPLETIONS) == 78


async def test_what_a_tokenizer_counts_is_held_with_what_a_template_adds_to_each_message():
    one, three = chat(), chat() | {"messages": [{"role": "user", "content": TEXT}] * 3}
    assert await prompt(estimator(Counter(100)), one) == 100 + 4 + 8
    assert await prompt(estimator(Counter(100)), three) == 100 + 12 + 8
    assert await prompt(estimator(Counter(100)), {"model": "m", "input": TEXT}, Endpoint.EMBEDDINGS) == 100 + 2 + 8


async def test_of_a_counted_prompt_what_the_template_adds_is_learned():
    counter = Counter(100)
    estimating = estimator(counter)
    for counter.tokens in (20, 100, 900, 4000):
        await teach(estimating, chat(), counter.tokens + 70, times=ENOUGH // 4)
    for counter.tokens in (30, 300, 3000):
        assert await prompt(estimating, chat()) == pytest.approx(counter.tokens + 70, rel=0.05)


async def test_what_was_learned_of_counted_prompts_says_nothing_of_those_that_could_not_be_counted():
    counter = Counter(100)
    estimating = estimator(counter)
    await teach(estimating, chat(), 400)
    counter.tokens = None
    assert await prompt(estimating, chat()) == await prompt(estimator(), chat())


async def test_without_learning_only_what_is_configured_counts():
    estimating = estimator(learn=False)
    before = await estimated(estimating, chat())
    await teach(estimating, chat(), 5000)
    assert (await estimated(estimating, chat())).cost == before.cost
