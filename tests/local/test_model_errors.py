"""Requests that cannot be answered get an error in the protocol's shape, whatever they contain."""

import asyncio
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.local.model import SampleModel
from tests.sizes import examples

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
MODEL = "tokenweir-sample"
USER = [{"role": "user", "content": "ping"}]

APP = SampleModel(max_model_len=256)


def post(path, body, *, content_type="application/json"):
    async def once():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://model") as client:
            return await client.post(path, content=body, headers={"content-type": content_type})

    return asyncio.run(once())


def refused(response, status, kind, param=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["param"], error["code"]) == (kind, param, status)
    return error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"NaN", b'{"model": "a\\ud800"}', b'{"x":' + b"[" * 100_000],
    ids=lambda body: body[:9],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_what_is_not_json_is_malformed(path, body):
    refused(post(path, body), 400, "Bad Request")


def test_only_json_is_read():
    message = refused(post(CHAT, b"{}", content_type="text/plain"), 400, "Bad Request")
    assert "application/json" in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "ping"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["ping"]}, "messages"),
        ({"messages": [{"content": "ping"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop": 7}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(fields, param):
    body = json.dumps({"model": MODEL, "messages": USER} | fields).encode()
    refused(post(CHAT, body), 400, "Bad Request", param)


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(field):
    body = {"model": MODEL, "messages": USER}
    del body[field]
    refused(post(CHAT, json.dumps(body).encode()), 400, "Bad Request", field)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0."),
        ({"max_completion_tokens": -3}, "max_tokens", "max_tokens must be at least 1, got -3."),
        ({"max_tokens": 257}, "max_tokens", "max_tokens=257 cannot be greater than max_model_len=256."),
        ({"max_tokens": 10**30}, "max_tokens", "cannot be greater than max_model_len=256."),
        ({"max_tokens": 256}, "input_tokens", "maximum context length is 256 tokens"),
        (
            {"messages": [{"role": "user", "content": "a b " * 200}]},
            "input_tokens",
            "at least 256 input tokens",
        ),
        ({"n": 0}, "n", "between 1 and 128"),
        ({"n": 129}, "n", "between 1 and 128"),
        ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "less than or equal to max_tokens=8"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "up to 4"),
        ({"stop": ["a", ""]}, "stop", "empty"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(fields, param, words):
    body = json.dumps({"model": MODEL, "messages": USER} | fields).encode()
    assert words in refused(post(CHAT, body), 400, "BadRequestError", param)


def test_prompt_and_answer_may_fill_the_model_to_the_last_token():
    # "ping" takes 4 tokens with its template.
    body = json.dumps({"model": MODEL, "messages": USER, "ignore_eos": True, "max_tokens": 252}).encode()
    assert post(CHAT, body).json()["usage"]["total_tokens"] == 256
    body = json.dumps({"model": MODEL, "messages": USER, "max_tokens": 253}).encode()
    words = "you requested 253 output tokens and your prompt contains at least 4 input tokens"
    assert words in refused(post(CHAT, body), 400, "BadRequestError", "input_tokens")


@pytest.mark.parametrize("prompt", ["", [], ["a", ""]], ids=str)
def test_a_completion_needs_a_prompt(prompt):
    body = json.dumps({"model": MODEL, "prompt": prompt}).encode()
    refused(post(COMPLETION, body), 400, "Bad Request", "prompt")


def test_all_names_are_told_to_who_asks_for_an_unknown_model():
    body = json.dumps({"model": "gpt\u20ac", "messages": USER}).encode()
    message = refused(post(CHAT, body), 404, "NotFoundError", "model")
    assert message == f"The model `gpt\u20ac` does not exist. Valid aliases: {MODEL}."


async def test_other_paths_and_methods_are_refused_in_the_same_shape():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://model") as client:
        refused(await client.get("/v1/nothing"), 404, "Not Found")
        refused(await client.get(CHAT), 405, "Method Not Allowed")


@pytest.mark.parametrize(
    "options",
    [{"models": []}, {"max_model_len": 1}, {"ttft_s": -1.0}, {"tokens_per_second": -1.0}],
    ids=str,
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError):
        SampleModel(**options)


# Odd values of all JSON types, and among them those that get far.
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
parts = st.just({"type": "text", "text": "a"}) | values
content = st.text(max_size=30) | st.lists(parts, max_size=3) | values
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": content}
)
requests = st.fixed_dictionaries(
    {"model": st.just(MODEL) | values},
    optional={
        "messages": st.lists(turns, max_size=4) | values,
        "prompt": st.text(max_size=9) | st.lists(st.text(max_size=5), max_size=3) | values,
        "max_tokens": st.integers(-1, 300) | values,
        "min_tokens": st.integers(-1, 300) | values,
        "n": st.integers(0, 3) | values,
        "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=5) | values,
        "stream": st.booleans(),
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | values,
        "ignore_eos": st.booleans() | values,
        "seed": values,
    },
)


@given(st.sampled_from([CHAT, COMPLETION]), requests)
@examples(40, 300)
def test_any_json_gets_an_answer_or_an_error_of_the_client(path, request):
    response = post(path, json.dumps(request).encode())
    if response.status_code == 200:
        return
    assert response.status_code in {400, 404}
    assert list(response.json()["error"]) == ["message", "type", "param", "code"]


@given(st.binary(max_size=60))
@examples(15, 100)
def test_any_bytes_get_an_error_of_the_client(body):
    assert post(CHAT, body).status_code == 400
