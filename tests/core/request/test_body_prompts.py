"""The texts of a prompt, for a tokenizer: all that becomes prompt, and no payload of media."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.bodies.prompts import MAX_TEXT_CHARS, MAX_TEXTS
from extproc.core.request.body import RequestFacts, prompt_texts
from extproc.core.request.endpoints import Endpoint, Target
from tests.core.samples import FEWER, VALUES, mutated

from .body_samples import LEAST, facts, read

CHAT, RESPONSES, MESSAGES = Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES
DATA_URL = "data:image/png;base64," + "A" * 4000


def texts(endpoint: Endpoint, **fields: object) -> list[str] | None:
    return prompt_texts(Target(endpoint), facts(endpoint, **fields).prompt)


@pytest.mark.parametrize("endpoint", list(LEAST))
def test_each_kind_gives_its_texts(endpoint):
    expected = {Endpoint.RERANK: ["q", "q", "a", "b"], Endpoint.SCORE: ["q", "q", "a", "b"]}
    expected |= {Endpoint.TRANSCRIPTIONS: []}
    assert texts(endpoint) == expected.get(endpoint, ["hi"])


def test_all_that_a_template_writes_of_a_message_is_text():
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "ä\n"}, {"type": "image_url", "image_url": {"url": DATA_URL}}]},
        {"role": "assistant", "reasoning_content": "hm", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "my own role", "content": None, "name": "bob"},
    ]  # fmt: skip
    assert texts(CHAT, messages=messages) == [
        *("be kind", "ä\n", "hm", "c1", "f", '{"a":1}', "c1", "3", "my own role", "bob")
    ]


def test_what_a_template_writes_as_json_is_text_as_it_stands():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert texts(CHAT, tools=tools, documents=[{"text": "d"}]) == [
        "hi",
        json.dumps(tools, separators=(",", ":")),
        '[{"text":"d"}]',
    ]
    assert texts(RESPONSES, text={"format": {}}, instructions="be kind") == ["hi", "be kind", '{"format":{}}']


def test_the_arguments_of_a_tool_are_text_with_their_names_and_numbers():
    use = {"type": "tool_use", "name": "f", "input": {"n": 5, "file": "x"}}
    assert texts(MESSAGES, messages=[{"role": "assistant", "content": [use]}]) == ["f", '{"n":5,"file":"x"}']


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"type": "base64", "media_type": "image/png", "data": "A" * 4000}, []),
        ({"type": "url", "url": "https://example.com"}, []),
        ({"type": "file", "file_id": "f"}, []),
        ({"type": "text", "media_type": "text/plain", "data": "a document"}, ["text/plain", "a document"]),
        ({"type": "content", "content": [{"type": "text", "text": "a part"}]}, ["a part"]),
        ({"type": "new", "data": "who knows"}, ["who knows"]),
        ("a text", ["a text"]),
    ],
)
def test_a_document_that_is_text_is_text(source, expected):
    document = {"type": "document", "source": source}
    assert texts(MESSAGES, messages=[{"role": "user", "content": [document]}], system="s") == ["s", *expected]


def test_what_only_looks_like_media_is_text():
    message = {"role": "user", "image_url": "a", "content": [{"type": "text", "text": {"image_url": "b"}}]}
    assert texts(CHAT, messages=[message]) == ["a", "b"]
    assert texts(CHAT, messages=[{"x": {"content": [{"image_url": "c"}]}}]) == ["c"]
    assert texts(CHAT, messages=[{"type": "x" * 65}]) == ["x" * 65]


def test_token_ids_are_no_text():
    assert texts(Endpoint.COMPLETIONS, prompt=[1, 2, 3], suffix="end") == ["end"]
    assert texts(Endpoint.EMBEDDINGS, input=[[1], [2]]) == []


def test_a_query_stands_there_once_for_each_document_that_it_is_compared_with():
    score = Endpoint.SCORE
    assert texts(score, text_1=["q"], text_2=["a", "b"]) == ["q", "q", "a", "b"]
    assert texts(score, text_1=["q", "r"], text_2=["a", "b"]) == ["q", "r", "a", "b"]
    assert texts(score, text_1="q", text_2="a") == ["q", "a"]
    assert texts(score, text_1="q", text_2=[]) == ["q"]
    parts = [{"text": "q"}, {"text": "r"}]
    assert texts(Endpoint.RERANK, query=parts, documents=["a", "b"]) == ["q", "r", "q", "r", "a", "b"]


def test_too_much_to_count_is_told():
    rerank = Endpoint.RERANK
    query = "q" * (MAX_TEXT_CHARS // 1000)
    assert texts(rerank, query=query, documents=["a"] * 990) is not None
    assert texts(rerank, query=query, documents=["a"] * 1001) is None
    parts = [{"text": "q"}] * 100
    assert texts(rerank, query=parts, documents=["a"] * (MAX_TEXTS // 101 + 1)) is None


@pytest.mark.parametrize("prompt", [b"", b"{", b"[]", b"null", b"\xff", b'{"messages":[', b'{"tools":"\xff"}'])
def test_what_is_no_prompt_can_not_be_told(prompt):
    assert prompt_texts(Target(CHAT), prompt) is None


def test_nesting_of_any_depth_gives_texts_or_none():
    for depth in (10, 900, 3000):
        prompt = b'{"messages":' + b"[" * depth + b'"x"' + b"]" * depth + b"}"
        assert prompt_texts(Target(CHAT), prompt) in (["x"], None)


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [text for item in value.values() for text in strings(item)] if isinstance(value, dict) else []


def finite(value: object) -> bytes:
    text = json.dumps(value).replace("NaN", "1e-400").replace("Infinity", "1e400")
    return text.encode(errors="replace")


@FEWER
@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.just("user")},
            optional={"content": st.lists(VALUES) | st.text(), "name": st.text(), "x": VALUES},
        ),
        max_size=4,
    )
)
def test_no_string_of_a_message_is_lost(messages):
    found = read(CHAT, finite({"model": "m", "messages": messages}))
    if not isinstance(found, RequestFacts):
        return
    texts = prompt_texts(Target(CHAT), found.prompt)
    assert texts is not None
    wanted = [text for message in json.loads(found.prompt)["messages"] for text in strings(message)]
    for _ in messages:
        wanted.remove("user")
    assert sorted(texts) == sorted(wanted)
    assert sum(len(text.encode()) for text in texts) <= found.prompt_bytes


@FEWER
@given(st.sampled_from(Endpoint), mutated(st.sampled_from([b'{"messages":[{"content":[{"source":{"type":"text"}}]}]}', b'{"query":"q","documents":["a"]}'])) | st.dictionaries(st.sampled_from(["messages", "query", "documents", "input", "file"]), VALUES).map(finite))  # fmt: skip
def test_any_bytes_give_texts_or_none(endpoint, prompt):
    texts = prompt_texts(Target(endpoint), prompt)
    assert texts is None or all(isinstance(text, str) for text in texts)
