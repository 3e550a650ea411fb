"""After 32 requests of a tenant and a model, the estimates of prompts are as good as docs/limits.md says."""

import asyncio
from pathlib import Path

import pytest

from tests.estimates.__main__ import table
from tests.estimates.corpus import CHAT, MESSAGES, RESPONSES, corpus, tenants
from tests.estimates.judging import Errors, counts, judged


@pytest.fixture(scope="module")
def found():
    async def all_of_them():
        return [request async for request in judged()]

    return asyncio.run(all_of_them())


def errors(found, **of):
    """The errors of a part of the estimates: of a kind of endpoint, with tools or without, counted or not."""
    counted = of.pop("counted")
    return Errors.of(
        [
            request
            for request in found
            if request.counted is counted
            and all(getattr(request.tenant, key) == value for key, value in of.items())
        ]
    )


def same_texts():
    """The kinds of text that tenants of all three endpoints send."""
    kinds = [
        {(t.kinds, t.tools) for t in tenants() if t.endpoint is endpoint}
        for endpoint in (CHAT, MESSAGES, RESPONSES)
    ]
    return set.intersection(*kinds)


def test_the_corpus_is_large_and_always_the_same():
    first, second = list(corpus()), list(corpus())
    assert len(first) == len(counts()) >= 2000
    assert [request.sent for request in first] == [request.sent for request in second]


@pytest.mark.parametrize("endpoint", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("tools", [False, True])
def test_without_a_tokenizer_half_the_estimates_are_within_15_percent_and_most_within_60(found, endpoint, tools):
    of = errors(found, counted=False, endpoint=endpoint, tools=tools)
    assert of.median <= 0.15
    assert of.p95 <= 0.60


@pytest.mark.parametrize("family", ["o200k", "qwen3", "llama3", "gpt-oss"])
def test_each_family_of_tokenizers_is_estimated_as_well(found, family):
    of = Errors.of([request for request in found if request.family == family and not request.counted])
    assert of.median <= 0.15
    assert of.p95 <= 0.60


@pytest.mark.parametrize("endpoint", [CHAT, MESSAGES, RESPONSES])
def test_with_a_tokenizer_and_no_tools_most_estimates_are_within_10_percent(found, endpoint):
    assert errors(found, counted=True, endpoint=endpoint, tools=False).p95 <= 0.10


@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES])
@pytest.mark.parametrize("counted", [False, True])
def test_the_same_texts_are_estimated_no_worse_at_other_endpoints_than_at_chat(found, endpoint, counted):
    same = [request for request in found if (request.tenant.kinds, request.tenant.tools) in same_texts()]
    chat, other = errors(same, counted=counted, endpoint=CHAT), errors(same, counted=counted, endpoint=endpoint)
    assert other.median <= chat.median + 0.01
    assert other.p95 <= chat.p95 + 0.01


@pytest.mark.parametrize("counted", [False, True])
def test_about_nine_in_ten_holds_suffice(found, counted):
    assert Errors.of([request for request in found if request.counted is counted]).exceeded <= 0.12


def test_the_table_of_the_docs_is_what_is_measured(found):
    # Printed by: python -m tests.estimates
    page = Path(__file__).parents[2] / "docs" / "limits.md"
    assert "\n".join(table(found)) in page.read_text(encoding="utf-8")
