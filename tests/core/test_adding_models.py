"""A model that searches by itself is known by its name or its settings, and a strict limit refuses it."""

import json

import pytest

from extproc.core.events import RequestBody, Reserve
from extproc.core.exchange import Exchange
from extproc.core.quota.models import ModelProfile, Models
from tests.changing import replace

from .test_exchange import RULES, head

ADDING = (
    "org/m:online",
    "llama-3.1-huge-128k-online",
    "gpt-4o-search-preview",
    "gpt-4o-mini-search-preview-2025-03-11",
    "gpt-5-search-api",
    "o3-deep-research",
    "deep-research-pro-preview-12-2025",
    "grok-4-deepsearch",
    "sonar",
    "sonar-reasoning-pro",
    "perplexity/sonar-pro",
    "Perplexity/Sonar",
    "compound-beta-mini",
    "groq/compound",
    "groq/compound-mini",
    "@preset/p",
    "m@preset/p",
)
OTHERS = (
    "m",
    "gpt-4o",
    "deepseek-r1",
    "perplexity/r1-1776",
    "my-sonar",
    "online-7b",
    "research-8b",
    "onlinemodel",
)
PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
}


def is_unbounded(model, path="/v1/chat/completions", *, models=None, **fields):
    exchange = Exchange(replace(RULES, models=models or RULES.models))
    exchange.receive(head(__path=path))
    body = {"model": model} | PATHS.get(path, {"input": "hi"}) | fields
    (reserve,) = exchange.receive(RequestBody(json.dumps(body).encode(), end_of_stream=True))
    assert isinstance(reserve, Reserve)
    return reserve.ask.facts.unbounded_prompt


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", ADDING)
def test_a_model_that_searches_is_known_by_its_name(path, model):
    assert is_unbounded(model, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", OTHERS)
def test_any_other_model_is_not_taken_for_one(path, model):
    assert not is_unbounded(model, path)


def test_a_setting_of_the_model_decides_over_its_name():
    models = Models(
        ModelProfile(),
        [("mine-*", ModelProfile(adds_to_prompt=True)), ("sonar-mine", ModelProfile(adds_to_prompt=False))],
    )
    assert is_unbounded("mine-1", models=models)
    assert not is_unbounded("sonar-mine", models=models)
    assert is_unbounded("sonar-mine", models=models, web_search_options={"search_context_size": "low"})
    assert is_unbounded("sonar", models=models)
    assert not is_unbounded("m", models=models)


def test_vectors_are_not_generated_so_nothing_is_added():
    assert not is_unbounded("sonar", "/v1/embeddings")
