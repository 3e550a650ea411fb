"""A body that is read in another process: the same facts, the same body for the upstream, and little to send back."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.apart import (
    MAX_TEXT_BYTES,
    BodyFacts,
    Reading,
    packed,
    perform,
    prepared,
    unpacked,
)
from extproc.core.request.bodies.facts import Malformed
from extproc.core.request.bodies.prompts import MAX_TEXTS
from extproc.core.request.body import Rewriting, prompt_texts, read_request, upstream_body, upstream_parts
from extproc.core.request.endpoints import Endpoint, Target
from extproc.core.request.layout import MAX_KEPT_BYTES, layout_of
from tests.core.samples import CUTS, parts

from .body_samples import JSON, LEAST, dumps, text_of

CHAT = Endpoint.CHAT_COMPLETIONS
SPACES = st.text(" \t\r\n", max_size=3)


def read(endpoint, text, content_type=JSON, *, allowed=(), wants_prompt=False):
    reading = Reading(Target(endpoint), content_type, frozenset(allowed), wants_prompt)
    return unpacked(prepared()(packed(reading), text))


@pytest.mark.parametrize("endpoint", LEAST)
def test_the_facts_are_those_of_reading_it_here(endpoint):
    text = text_of(endpoint, stream=True, max_tokens=7, n=2)
    here = read_request(Target(endpoint), text, JSON)
    found = read(endpoint, text)
    if isinstance(here, Malformed):
        assert found == here
        return
    assert isinstance(found, BodyFacts)
    assert found.facts.prompt == b""
    for name in here.__slots__:
        assert name == "prompt" or getattr(found.facts, name) == getattr(here, name)
    assert (found.layout is not None) is here.boundable


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"model":"m"}', b"\xff", b'{"model":"m","messages":[],"n":0}']
)
def test_an_error_is_that_of_reading_it_here(text):
    found = read(CHAT, text)
    assert isinstance(found, Malformed)
    assert found == read_request(Target(CHAT), text, JSON)


def test_a_result_without_facts_and_without_an_error_is_an_error():
    assert isinstance(unpacked(msgspec.msgpack.encode({})), Malformed)


def test_only_texts_are_sent_back_and_only_if_they_are_wanted_and_few():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "héllo"}, picture]}]
    text = text_of(CHAT, messages=messages)
    assert read(CHAT, text).facts.prompt == b""
    prompt = read(CHAT, text, wants_prompt=True).facts.prompt
    assert len(prompt) < 100
    assert prompt_texts(Target(CHAT), prompt) == ["héllo"]
    for much in ("x" * (MAX_TEXT_BYTES + 1), "\x01" * (MAX_TEXT_BYTES // 2)):
        text = text_of(CHAT, messages=[{"role": "user", "content": much}])
        assert read(CHAT, text, wants_prompt=True).facts.prompt == b""
    text = text_of(CHAT, messages=[{"role": "user", "content": [[]] * (MAX_TEXTS + 1)}])
    assert read(CHAT, text, wants_prompt=True).facts.prompt == b""  # not built to be counted


@pytest.mark.parametrize("endpoint", [Endpoint.RERANK, Endpoint.SCORE, Endpoint.RESPONSES, Endpoint.EMBEDDINGS])
def test_the_texts_of_all_kinds_stay_what_they_are(endpoint):
    text = text_of(endpoint)
    prompt = read(endpoint, text, wants_prompt=True).facts.prompt
    here = read_request(Target(endpoint), text, JSON)
    assert prompt_texts(Target(endpoint), prompt) == prompt_texts(Target(endpoint), here.prompt)


@pytest.mark.parametrize("name", ["stream_options", "thinking", "min_tokens"])
def test_a_field_that_may_be_rewritten_is_small(name):
    text = text_of(CHAT, **{name: {"x": "y" * MAX_KEPT_BYTES}})
    assert read(CHAT, text).param == name


def written(draw, fields):
    """A JSON object with these members, with white space and escapes as a client may write them."""
    parts = []
    for name, value in fields:
        key = json.dumps(name) if draw(st.booleans()) else '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'
        parts.append(f"{draw(SPACES)}{key}{draw(SPACES)}:{draw(SPACES)}{json.dumps(value)}{draw(SPACES)}")
    return (draw(SPACES) + "{" + ",".join(parts) + "}" + draw(SPACES)).encode()


@given(st.data())
def test_the_body_for_the_upstream_says_the_same_as_one_that_is_parsed_again(data):
    endpoint = data.draw(st.sampled_from([CHAT, Endpoint.COMPLETIONS, Endpoint.MESSAGES, Endpoint.RESPONSES]))
    extra = {
        "max_tokens": st.integers(1, 99),
        "max_output_tokens": st.integers(1, 99),
        "stream_options": st.sampled_from([None, {}, {"include_usage": True}, {"continuous_usage_stats": True}]),
        "min_tokens": st.one_of(st.integers(0, 99), st.text(max_size=3)),
        "thinking": st.sampled_from([{"type": "enabled", "budget_tokens": 5000}, "x"]),
        "stop": st.text(max_size=5),
        'a"b\\': st.lists(st.text(max_size=3), max_size=2),
        "stream": st.just(True),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(extra)), unique=True))
    fields = [*LEAST[endpoint].items(), *((name, data.draw(extra[name])) for name in chosen)]
    fields = list(dict(data.draw(st.permutations(fields))).items())
    body = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + written(data.draw, fields)
    target = Target(endpoint)
    found = read(endpoint, body)
    if isinstance(found, Malformed):
        assert found == read_request(target, body, JSON)
        return
    wanted = Rewriting(
        add_usage=data.draw(st.booleans()),
        output_bound=data.draw(st.one_of(st.none(), st.integers(1, 50))),
        bound_field=data.draw(st.sampled_from([None, "max_completion_tokens"])),
    )
    again = upstream_body(target, body, wanted)
    apart = None
    if found.layout is not None:
        apart = upstream_parts(target, parts(body, data.draw(CUTS)), found.layout, wanted)
    assert (apart is None) is (again is None)
    if again is not None:
        assert json.loads(b"".join(apart)) == json.loads(again)


def test_all_other_values_keep_their_bytes():
    kept = b'"messages" : [ {"content" : "Gr\\u00fc\\/"} ],"t":1.10'
    body = b' {"stream_options":{}, "model":"m",' + kept + b',"max_tokens": 9 ,"x":[ ] } '
    layout = layout_of(body, {"stream_options", "max_tokens"})
    for size in range(1, len(body) + 1):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        changed = b"".join(layout.changed(pieces, {"max_tokens": msgspec.Raw(b"5")}))
        assert changed == b'{"model":"m",' + kept + b',"x":[ ],"max_tokens":5}'
    assert layout_of(dumps({"a": 1}), {"a"}).spans == ()


def test_parameters_that_are_allowed_pass():
    text = text_of(CHAT, priority=1)
    assert read(CHAT, text).code == "parameter_not_allowed"
    assert isinstance(read(CHAT, text, allowed=["priority"]), BodyFacts)


def test_performing_raises_nothing_for_a_body_that_is_nested_too_deeply():
    assert isinstance(unpacked(perform(packed(Reading(Target(CHAT), JSON)), b"[" * 100_000)), Malformed)
