"""Embeddings, rerank and score: vectors and scores that depend on the tokens alone, and counts of them."""

import math
import struct
from base64 import b64decode

import pytest

from extproc.local.model import SampleModel

from .model_calls import CALLS, MODEL, Call, answer, calling, post

EMBED = CALLS["embeddings"]


def embedding(**fields):
    return Call("embeddings", "/v1/embeddings", {"model": MODEL} | fields)


def ranking(path="/v1/rerank", **fields):
    return Call("rerank", path, CALLS["rerank"].body | fields)


def scoring(path="/v1/score", **fields):
    return Call("score", path, {"model": MODEL} | fields)


@pytest.fixture
async def client():
    async with calling(SampleModel(max_model_len=64)) as open_client:
        yield open_client


def read(whole):
    """The prompt tokens, once the rest of the usage agrees with them."""
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"]
    assert usage.get("completion_tokens", 0) == 0
    return usage["prompt_tokens"]


async def test_each_input_gets_its_vector_and_all_are_counted(client):
    whole = await answer(client, EMBED)
    assert [item["index"] for item in whole["data"]] == [0, 1]
    parts = [await answer(client, embedding(input=text)) for text in EMBED.body["input"]]
    assert [item["embedding"] for item in whole["data"]] == [part["data"][0]["embedding"] for part in parts]
    assert read(whole) == sum(map(read, parts))
    for item in whole["data"]:
        assert math.isclose(sum(value * value for value in item["embedding"]), 1)


async def test_tokens_are_taken_as_they_are(client):
    text = "a river"
    tokens = (await answer(client, Call("tokenize", "/tokenize", {"model": MODEL, "prompt": text})))["tokens"]
    by_text, by_tokens = [await answer(client, embedding(input=given)) for given in (text, tokens)]
    assert by_text["data"] == by_tokens["data"]
    assert read(by_text) == read(by_tokens) == len(tokens)
    several = await answer(client, embedding(input=[tokens, tokens[:2]]))
    assert len(several["data"]) == 2
    assert read(several) == len(tokens) + 2


async def test_base64_packs_the_same_vector(client):
    plain = (await answer(client, embedding(input="x", dimensions=20)))["data"][0]["embedding"]
    packed = (await answer(client, embedding(input="x", dimensions=20, encoding_format="base64")))["data"][0]
    assert struct.unpack("<20f", b64decode(packed["embedding"])) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": "a b " * 200}, "input_tokens"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
    ids=str,
)
async def test_what_cannot_be_embedded_is_refused(client, fields, param):
    response = await post(client, embedding(**fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_documents_are_ranked_and_all_are_counted(client, path):
    whole = await answer(client, ranking(path))
    assert [result["index"] for result in whole["results"]] == [1, 0]
    assert whole["results"][0]["document"]["text"] == "the river"
    scores = [result["relevance_score"] for result in whole["results"]]
    assert 1 >= scores[0] > scores[1] >= 0
    assert list(whole) == ["id", "model", "usage", "results"]
    assert list(whole["usage"]) == ["prompt_tokens", "total_tokens"]
    cut = await answer(client, ranking(path, top_n=1))
    assert [result["index"] for result in cut["results"]] == [1]
    # What is left out was read all the same.
    assert read(cut) == read(whole)


async def test_documents_may_be_objects(client):
    plain = await answer(client, ranking(documents=["a weir"]))
    wrapped = await answer(client, ranking(documents=[{"text": "a weir"}]))
    assert wrapped["results"] == plain["results"]


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
async def test_pairs_are_scored_however_they_are_named(client, path, first, second):
    whole = await answer(client, scoring(path, **{first: "a river", second: ["a river", "a weir", "x"]}))
    scores = [item["score"] for item in whole["data"]]
    assert scores[0] == 1 > scores[1] > scores[2] == 0
    singles = [
        await answer(client, scoring(path, **{first: ["a river"], second: text}))
        for text in ("a river", "a weir", "x")
    ]
    assert read(whole) == sum(map(read, singles))


async def test_as_many_queries_as_documents_are_paired(client):
    whole = await answer(client, scoring(queries=["a", "b"], documents=["a", "c"]))
    assert [item["score"] for item in whole["data"]] == [1, 0]


@pytest.mark.parametrize(
    "call",
    [
        ranking(query=7),
        ranking(documents=[]),
        ranking(documents=[{"title": "x"}]),
        ranking(documents=["a b " * 99]),
        ranking(top_n=-1),
        scoring(queries="a"),
        scoring(queries=["a", "b"], documents=["a", "b", "c"]),
        scoring(queries="a", documents=[]),
    ],
    ids=str,
)
async def test_what_cannot_be_compared_is_refused(client, call):
    assert (await post(client, call)).status_code == 400


@pytest.mark.parametrize("call", [embedding(input="a"), ranking(), scoring(text_1="a", text_2="b")], ids=str)
async def test_a_model_that_is_not_served_is_not_found(client, call):
    response = await post(client, Call(call.endpoint, call.path, call.body | {"model": "nope"}))
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
