"""Whatever JSON an endpoint gets, it answers, or says what is wrong in its own words; it never fails."""

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.local.model import SampleModel
from tests.sizes import examples

from .model_calls import CALLS

APP = SampleModel(max_model_len=128)
JSON_CALLS = {name: call for name, call in CALLS.items() if not call.is_form}

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_near = st.sampled_from(
    ["text", "", ["a"], [1, 2], [[1], [2]], [{"role": "user", "content": "x"}], [{"text": "a"}], 1]
)
_fields = sorted(
    {key for call in JSON_CALLS.values() for key in call.body if key != "model"}
    | {"max_output_tokens", "instructions", "system", "stop_sequences", "best_of", "top_n", "text_1", "text_2"}
    | {
        "encoding_format",
        "dimensions",
        "size",
        "quality",
        "tokens",
        "return_token_strs",
        "response_format",
        "min_tokens",
    }
)
_changes = st.dictionaries(st.sampled_from(_fields), _near | _values, max_size=3)


def ask(path, body):
    async def once():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://model") as client:
            return await client.post(path, json=body)

    return asyncio.run(once())


@given(st.sampled_from(sorted(JSON_CALLS)), _changes, st.sets(st.sampled_from(_fields), max_size=2))
@examples(80, 500)
def test_any_change_of_a_request_gets_an_answer_or_an_error_of_the_client(name, changes, without):
    call = JSON_CALLS[name]
    body = {key: value for key, value in (call.body | changes).items() if key not in without}
    response = ask(call.path, body)
    assert response.status_code in {200, 400, 404}, response.text
    if response.status_code != 200:
        assert response.json()["error"]


@pytest.mark.parametrize("name", JSON_CALLS)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"x":' + b"[" * 100_000], ids=lambda body: body[:9])
async def test_what_is_no_object_is_refused(name, body):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://model") as client:
        headers = {"content-type": "application/json"}
        response = await client.post(JSON_CALLS[name].path, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]
