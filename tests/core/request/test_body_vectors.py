"""What reads and generates nothing: texts are counted, and a query as often as it is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.body import MAX_CHOICES, Malformed, RequestFacts, prompt_texts, read_request
from extproc.core.request.endpoints import Endpoint, Target
from tests.core.samples import FEWER, VALUES, mutated

from .body_samples import LEAST, dumps, facts, problem, read, text_of

EMBEDDINGS, RERANK, SCORE = Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE
KINDS = (EMBEDDINGS, RERANK, SCORE)
DATA_URL = "data:image/png;base64," + "A" * 4000
IMAGE = {"type": "image_url", "image_url": {"url": DATA_URL}}


@pytest.mark.parametrize("endpoint", KINDS)
def test_no_output_is_to_be_held(endpoint):
    read = facts(endpoint, max_tokens=9, n=3, stream=True)
    assert (read.generates, read.counts_tokens, read.boundable) == (False, True, False)
    assert (read.output_bound, read.choices, read.stream, read.wants_usage) == (None, 1, False, True)


@pytest.mark.parametrize("endpoint", KINDS)
def test_no_kind_takes_a_field_twice(endpoint):
    for name in LEAST[endpoint]:
        twice = text_of(endpoint)[:-1] + f',"{name}":"x"}}'.encode()
        assert read(endpoint, twice) == Malformed(f"'{name}' is given more than once.", name, "duplicate_field")


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("form", [..., None, "float", "base64", "bytes", "bytes_only ", 5])
def test_most_forms_of_vectors_come_with_usage(form):
    assert facts(EMBEDDINGS, encoding_format=form).tells_usage


def test_bytes_alone_come_without_usage_however_the_name_is_written():
    assert not facts(EMBEDDINGS, encoding_format="bytes_only").tells_usage
    escaped = text_of(EMBEDDINGS)[:-1] + b',"encoding_format":"bytes\\u005fonly"}'
    assert not read(EMBEDDINGS, escaped).tells_usage
    twice = text_of(EMBEDDINGS)[:-1] + b',"encoding_format":"bytes_only","encoding_format":"float"}'
    assert read(EMBEDDINGS, twice).code == "duplicate_field"
    assert problem(EMBEDDINGS, Encoding_Format="bytes_only").param == "encoding_format"
    assert facts(RERANK, encoding_format="bytes_only").tells_usage


@pytest.mark.parametrize(
    ("value", "texts", "tokens"),
    [
        ("hi", 1, None),
        (["a", "b"], 2, None),
        ([1, 2, 3], 1, 3),
        ([[1, 2], [3]], 2, 3),
        ([[]], 1, 0),
        ([], 1, 0),
        ([{"content": []}, {"text": "x"}], 2, None),
        (["a", {"text": "x"}], 2, None),
        ({"text": "x"}, 1, None),
    ],
)
@pytest.mark.parametrize("name", ["input", "inputs", "texts", "content", "text", "input_ids"])
def test_texts_to_embed_are_counted_and_token_ids_exactly(value, texts, tokens, name):
    read = facts(EMBEDDINGS, **({"input": ...} | {name: value}))
    assert (read.messages, read.prompt_tokens) == (texts, tokens)
    assert read.prompt_bytes == len(dumps(value))
    assert json.loads(read.prompt) == {name: value}


def test_a_chat_to_embed_is_read_as_messages():
    read = facts(EMBEDDINGS, input=..., messages=[{"content": [IMAGE, {"text": "x"}]}, {}])
    assert (read.messages, read.media_parts, read.prompt_tokens) == (2, 1, None)
    assert read.prompt_bytes < 100
    assert problem(EMBEDDINGS, input=..., messages="hi").param == "messages"


def test_texts_in_several_fields_are_all_counted():
    read = facts(EMBEDDINGS, input=[1, 2], texts=["a", "b"])
    assert (read.messages, read.prompt_tokens) == (3, None)


def test_what_is_added_to_token_ids_makes_them_inexact():
    assert facts(EMBEDDINGS, input=[1, 2], instruction="find").prompt_tokens is None


@pytest.mark.parametrize("value", [5, True, [1, "a"], ["a", 1], [[1], "a"], [["a"]], [None], [1.5], [-1]])
def test_an_input_that_no_server_takes_is_refused(value):
    assert problem(EMBEDDINGS, input=value).param == "input"


def test_an_input_is_needed_and_bounded():
    assert problem(EMBEDDINGS, input=...).param == "input"
    assert problem(EMBEDDINGS, input=None).param == "input"
    assert facts(EMBEDDINGS, input=["a"] * MAX_CHOICES).messages == MAX_CHOICES
    assert problem(EMBEDDINGS, input=["a"] * (MAX_CHOICES + 1)).param == "input"


@pytest.mark.parametrize("field", ["chat_template", "mm_processor_kwargs", "media_io_kwargs"])
@pytest.mark.parametrize("endpoint", KINDS)
def test_what_may_make_the_prompt_longer_is_told(endpoint, field):
    assert facts(endpoint, **{field: {"x": 1}}).unbounded_prompt is True
    assert facts(endpoint, **{field: None}).unbounded_prompt is False


@pytest.mark.parametrize("endpoint", KINDS)
def test_a_template_of_the_clients_among_its_values_is_told(endpoint):
    assert facts(endpoint, chat_template_kwargs={"chat_template": "{{ x }}"}).unbounded_prompt is True
    assert facts(endpoint, chat_template_kwargs={"enable_thinking": True}).unbounded_prompt is False


# ---------------------------------------------------------------- rerank and score


@pytest.mark.parametrize(
    ("endpoint", "fields", "parts", "unbounded"),
    [
        (EMBEDDINGS, {"input": DATA_URL}, 1, True),
        (EMBEDDINGS, {"input": [DATA_URL, "text", DATA_URL]}, 2, True),
        (EMBEDDINGS, {"input": [{"image": DATA_URL}, {"text": "a", "image": "A" * 4000}]}, 2, False),
        (EMBEDDINGS, {"input": ..., "images": [DATA_URL]}, 1, False),
        (EMBEDDINGS, {"input": ..., "image_data": "A" * 4000}, 1, False),
        (EMBEDDINGS, {"input": ..., "images": None, "texts": ["a"]}, 0, False),
        (EMBEDDINGS, {"input": [1, 2], "images": [DATA_URL]}, 1, False),
        (EMBEDDINGS, {"input": ["a"], "video_data": "A" * 4000}, 1, True),
        (EMBEDDINGS, {"input": ..., "inputs": [{"content": [{"image_url": {"url": DATA_URL}}]}]}, 1, False),
        (RERANK, {"query": "q", "documents": [DATA_URL, "b"]}, 1, True),
        (RERANK, {"query": {"image": DATA_URL}, "documents": [{"image": DATA_URL}]}, 2, False),
    ],
)
def test_pictures_to_embed_or_compare_are_media_however_they_are_written(endpoint, fields, parts, unbounded):
    read = facts(endpoint, **fields)
    assert (read.media_parts, read.unbounded_prompt, read.prompt_tokens) == (parts, unbounded, None)
    assert read.prompt_bytes < 200
    texts = prompt_texts(Target(endpoint), read.prompt)
    assert texts is not None
    assert sum(map(len, texts)) < 100


@pytest.mark.parametrize(
    "text", ["data:", "see data:image/png;base64,AAAA", "data:text/plain,x", 'a "data:image/png;']
)
def test_a_text_that_is_no_data_url_stays_text(text):
    for value in (text, [text]):
        read = facts(EMBEDDINGS, input=value)
        assert (read.media_parts, read.unbounded_prompt) == (0, False)
        assert prompt_texts(Target(EMBEDDINGS), read.prompt) == [text]


LONG = "q" * 1000


@pytest.mark.parametrize(
    ("endpoint", "left", "right"),
    [
        (RERANK, "query", "documents"),
        (RERANK, "query", "texts"),
        (SCORE, "text_1", "text_2"),
        (SCORE, "data_1", "data_2"),
        (SCORE, "queries", "documents"),
        (SCORE, "queries", "items"),
        (SCORE, "query", "items"),
    ],
)
def test_a_query_is_counted_once_for_each_document(endpoint, left, right):
    def read(query, documents):
        least = dict.fromkeys(LEAST[endpoint], ...) | {"model": "m"}
        return facts(endpoint, **(least | {left: query, right: documents}))

    assert read(LONG, ["a", "b", "c"]).prompt_bytes == 3 * 1002 + len('["a","b","c"]')
    assert read(LONG, ["a", "b", "c"]).messages == 3
    assert read(LONG, "a").prompt_bytes == 1002 + 3
    assert read(LONG, []).prompt_bytes == 1002 + 2
    assert read(LONG, [{"text": "a"}, "b"]).prompt_bytes == 2 * 1002 + len('[{"text":"a"},"b"]')
    assert read([LONG], ["a", "b"]).prompt_bytes == 2 * 1004 + len('["a","b"]')
    assert read(LONG, {"content": [{"text": "a"}, {"text": "b"}]}).prompt_bytes >= 2 * 1002
    if left != "query":
        assert read([LONG, LONG], ["a", "b"]).prompt_bytes == 2 * 1002 + 3 + len('["a","b"]')
        assert read([LONG, LONG], ["a", "b"]).messages == 2


def test_a_query_of_many_parts_is_one_query():
    parts = [{"type": "text", "text": "x"}, IMAGE]
    read = facts(RERANK, query=parts, documents=["a", "b", "c"])
    assert (read.media_parts, read.messages) == (3, 3)
    assert 3 * 50 < read.prompt_bytes < 4 * 60 + 50


def test_images_in_documents_are_counted_once():
    remote = {"video_url": {"url": "https://example.com/a"}}
    read = facts(RERANK, documents=[{"content": [IMAGE]}, {"content": [remote]}])
    assert (read.media_parts, read.unbounded_prompt) == (2, True)
    assert facts(RERANK, documents=[[IMAGE], [{"text": "x"}]]).media_parts == 1


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (RERANK, {"query": ...}, "query"),
        (RERANK, {"documents": ...}, "documents"),
        (RERANK, {"documents": None}, "documents"),
        (RERANK, {"documents": 5}, "documents"),
        (RERANK, {"query": 5}, "query"),
        (RERANK, {"documents": ["a"] * (MAX_CHOICES + 1)}, "documents"),
        (SCORE, {"text_1": ...}, "query"),
        (SCORE, {"text_2": ...}, "documents"),
        (SCORE, {"text_1": [1, "a"]}, "text_1"),
    ],
)
def test_both_sides_are_needed_and_strict(endpoint, fields, param):
    assert problem(endpoint, **fields).param == param


# ---------------------------------------------------------------- requests without tokens


@pytest.mark.parametrize("endpoint", [Endpoint.PREDICT, Endpoint.INFER])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff\x00\x01", b'{"model":"other","stream":true}'])
def test_where_requests_are_counted_the_body_may_be_anything(endpoint, body):
    read = read_request(Target(endpoint, "iris"), body, "multipart/form-data")
    assert isinstance(read, RequestFacts)
    assert (read.model, read.stream, read.choices, read.prompt_bytes) == ("iris", False, 1, 0)
    assert (read.generates, read.counts_tokens, read.boundable, read.output_bound) == (False, False, False, None)


@pytest.mark.parametrize("name", ["", " ", "\t", "a\nb", "a\x00", "\u202e", "m" * 257])
def test_a_name_in_the_path_that_can_not_be_shown_is_refused(name):
    refused = read_request(Target(Endpoint.PREDICT, name), b"", "")
    assert refused == Malformed("The model that the path names must be 1 to 256 printable characters.", "model")
    assert isinstance(read_request(Target(Endpoint.PREDICT, "wörter/v2 x"), b"", ""), RequestFacts)


def test_what_has_no_body_of_its_own_is_one_request():
    for endpoint in (Endpoint.ROUTE, Endpoint.QUOTA):
        read = read_request(Target(endpoint), b"anything", "")
        assert isinstance(read, RequestFacts)
        assert (read.model, read.counts_tokens) == ("", False)


# ---------------------------------------------------------------- anything at all

TEXTS = st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=4)
BODIES = {
    EMBEDDINGS: st.fixed_dictionaries({"model": st.just("m"), "input": TEXTS | st.lists(st.integers(0, 9))}),
    RERANK: st.fixed_dictionaries({"model": st.just("m"), "query": st.text(), "documents": TEXTS, "x": VALUES}),
    SCORE: st.fixed_dictionaries({"model": st.just("m"), "text_1": TEXTS, "text_2": TEXTS}),
}


def finite(value: object) -> bytes:
    text = json.dumps(value).replace("NaN", "1e-400").replace("Infinity", "1e400")
    return text.encode(errors="replace")


@pytest.mark.parametrize("endpoint", KINDS)
@FEWER
@given(st.data())
def test_valid_bodies_are_read(endpoint, data):
    body = data.draw(BODIES[endpoint])
    found = read(endpoint, finite(body))
    assert isinstance(found, RequestFacts)
    assert found.model == "m"
    if endpoint is EMBEDDINGS:
        ids = isinstance(body["input"], list) and all(isinstance(item, int) for item in body["input"])
        assert found.prompt_tokens == (len(body["input"]) if ids else None)
    else:
        sides = [body.get("query", body.get("text_1")), body.get("documents", body.get("text_2"))]
        counts = [len(side) if isinstance(side, list) else 1 for side in sides]
        assert found.messages == max(1, *counts)


@pytest.mark.parametrize("endpoint", KINDS)
@FEWER
@given(st.data())
def test_any_bytes_give_facts_or_a_complaint(endpoint, data):
    text = data.draw(mutated(BODIES[endpoint].map(finite)) | BODIES[endpoint].map(finite))
    assert isinstance(read(endpoint, text), RequestFacts | Malformed)
    names = ["input", "messages", "texts", "query", "queries", "documents", "items", "data_1", "text_2", "model"]
    fields = data.draw(st.dictionaries(st.sampled_from(names), VALUES))
    assert isinstance(read(endpoint, finite(LEAST[endpoint] | fields)), RequestFacts | Malformed)
