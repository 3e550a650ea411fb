"""What goes upstream: bounds are never larger than told, nor than the client's own, and nothing else changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.bodies.rewriting import COMPLETION_DEFAULT_TOKENS
from extproc.core.request.body import RequestFacts, Rewriting, upstream_body
from extproc.core.request.endpoints import Endpoint, Target
from tests.core.samples import FEWER, VALUES

from .body_samples import LEAST, dumps, read, text_of

CHAT, COMPLETIONS = Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS
RESPONSES, MESSAGES = Endpoint.RESPONSES, Endpoint.MESSAGES
FIELDS = {
    CHAT: ("max_tokens", "max_completion_tokens", "n_predict"),
    COMPLETIONS: ("max_tokens", "n_predict"),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
}


GONE = "gone"


def bounded(endpoint, bound, bound_field=None, **fields):
    """The fields that came to be different, None where the body is the client's own."""
    text = text_of(endpoint, **fields)
    changed = upstream_body(
        Target(endpoint), text, Rewriting(add_usage=False, output_bound=bound, bound_field=bound_field)
    )
    if changed is None:
        return None
    before, after = json.loads(text), json.loads(changed)
    gone = {name: GONE for name in before if name not in after}
    return gone | {name: value for name, value in after.items() if name not in before or before[name] != value}


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("endpoint", "own", "changed"),
    [
        (CHAT, {}, {"max_tokens": 100}),
        (CHAT, {"max_tokens": None}, {"max_tokens": 100}),
        (CHAT, {"max_tokens": 500}, {"max_tokens": 100}),
        (CHAT, {"max_tokens": 100}, None),
        (CHAT, {"max_tokens": 50}, None),
        (CHAT, {"max_tokens": 500, "max_completion_tokens": 300}, {"max_tokens": 100, "max_completion_tokens": GONE}),
        (CHAT, {"max_tokens": 50, "max_completion_tokens": 300}, {"max_tokens": 100, "max_completion_tokens": GONE}),
        (CHAT, {"max_tokens": -1, "max_completion_tokens": 30}, {"max_tokens": 30, "max_completion_tokens": GONE}),
        (CHAT, {"max_tokens": 50, "max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": GONE}),
        (CHAT, {"max_tokens": 50, "max_completion_tokens": -1}, {"max_tokens": 100, "max_completion_tokens": GONE}),
        (CHAT, {"max_completion_tokens": 300}, {"max_tokens": 100, "max_completion_tokens": GONE}),
        (CHAT, {"max_completion_tokens": -1}, {"max_tokens": 100, "max_completion_tokens": GONE}),
        (CHAT, {"max_completion_tokens": 30}, {"max_tokens": 30, "max_completion_tokens": GONE}),
        (CHAT, {"max_completion_tokens": None}, {"max_tokens": 100}),
        (CHAT, {"max_tokens": 50, "n_predict": 900}, {"n_predict": 100}),
        (CHAT, {"n_predict": 900}, {"max_tokens": 100, "n_predict": 100}),
        (CHAT, {"max_tokens": -1}, {"max_tokens": 100}),
        (CHAT, {"max_tokens": 50, "n_predict": -1}, {"n_predict": 100}),
        (CHAT, {"max_tokens": 0}, None),
        (COMPLETIONS, {}, {"max_tokens": 16}),
        (COMPLETIONS, {"n_predict": -1}, {"n_predict": 100, "max_tokens": 100}),
        (COMPLETIONS, {"max_tokens": 500}, {"max_tokens": 100}),
        (COMPLETIONS, {"max_tokens": 0}, None),
        (COMPLETIONS, {"n_predict": 500}, {"n_predict": 100, "max_tokens": 100}),
        (RESPONSES, {}, {"max_output_tokens": 100}),
        (RESPONSES, {"max_output_tokens": 500}, {"max_output_tokens": 100}),
        (RESPONSES, {"max_output_tokens": 5}, None),
        (MESSAGES, {"max_tokens": ...}, {"max_tokens": 100}),
        (MESSAGES, {"max_tokens": 500}, {"max_tokens": 100}),
        (MESSAGES, {"max_tokens": 99}, None),
    ],
)  # fmt: skip
def test_each_bound_that_was_given_is_lowered_and_the_one_that_is_obeyed_is_written(endpoint, own, changed):
    assert bounded(endpoint, 100, **own) == changed


def test_a_completion_that_asks_for_nothing_gets_what_the_api_gives_it_and_no_more():
    assert bounded(COMPLETIONS, 5) == {"max_tokens": 5}
    assert bounded(COMPLETIONS, 9999) == {"max_tokens": COMPLETION_DEFAULT_TOKENS}


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ({}, {"max_completion_tokens": 100}),
        ({"max_completion_tokens": 500}, {"max_completion_tokens": 100}),
        ({"max_completion_tokens": 50}, None),
        ({"max_tokens": 500}, {"max_completion_tokens": 100, "max_tokens": GONE}),
        ({"max_tokens": 50}, {"max_completion_tokens": 50, "max_tokens": GONE}),
        ({"max_tokens": 50, "max_completion_tokens": 40}, {"max_tokens": GONE}),
    ],
)
def test_an_upstream_that_obeys_another_name_gets_that_one(own, changed):
    assert bounded(CHAT, 100, "max_completion_tokens", **own) == changed


def test_an_unheard_of_name_is_written_over_whatever_the_client_put_there():
    assert bounded(CHAT, 100, "limit") == {"limit": 100}
    assert bounded(CHAT, 100, "limit", limit=7, max_tokens=50) is None
    assert bounded(CHAT, 100, "limit", limit="x", max_tokens=50) == {"limit": 50}


@pytest.mark.parametrize("endpoint", [COMPLETIONS, RESPONSES, MESSAGES])
def test_apis_with_one_name_keep_it(endpoint):
    changed = bounded(endpoint, 7, "max_completion_tokens")
    assert changed == {FIELDS[endpoint][0]: 7}


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("least", "changed"), [(50, None), (100, None), (101, 100), (10**9, 100), ("x", None), (None, None)]
)
def test_the_least_number_of_tokens_is_lowered_with_the_bound(endpoint, least, changed):
    expected = {"max_tokens": 100} | ({} if changed is None else {"min_tokens": changed})
    assert bounded(endpoint, 100, max_tokens=500, min_tokens=least) == expected


def test_the_least_is_lowered_to_what_is_written():
    own = {"max_completion_tokens": 30, "min_tokens": 50}
    assert bounded(CHAT, 100, **own) == {"max_tokens": 30, "min_tokens": 30, "max_completion_tokens": GONE}


def test_a_bound_that_stays_leaves_the_least_alone():
    assert bounded(CHAT, 100, max_tokens=50, min_tokens=70) is None


@pytest.mark.parametrize(
    ("bound", "thinking", "changed"),
    [
        (4000, {"type": "enabled", "budget_tokens": 2000}, None),
        (4000, {"type": "enabled", "budget_tokens": 3999}, None),
        (4000, {"type": "enabled", "budget_tokens": 4000, "display": "x"}, {"type": "enabled", "budget_tokens": 3999, "display": "x"}),
        (1025, {"type": "enabled", "budget_tokens": 8000}, {"type": "enabled", "budget_tokens": 1024}),
        (1024, {"type": "enabled", "budget_tokens": 8000}, {"type": "disabled"}),
        (5, {"type": "enabled", "budget_tokens": 8000}, {"type": "disabled"}),
        (5, {"type": "disabled"}, None),
        (5, {"type": "adaptive"}, None),
        (5, {"type": "enabled", "budget_tokens": "8000"}, None),
        (5, None, None),
        (5, "enabled", None),
        (5, [], None),
    ],
)  # fmt: skip
def test_thinking_stays_within_the_bound_or_is_turned_off(bound, thinking, changed):
    expected = {"max_tokens": bound} | ({} if changed is None else {"thinking": changed})
    assert bounded(MESSAGES, bound, max_tokens=10_000, thinking=thinking) == expected


def test_without_a_bound_of_ours_thinking_is_the_clients():
    assert bounded(MESSAGES, 9000, max_tokens=5000, thinking={"type": "enabled", "budget_tokens": 8000}) is None


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_usage_is_asked_for_in_streams_of_chunks(endpoint):
    text = text_of(endpoint, stream=True)
    changed = upstream_body(Target(endpoint), text, Rewriting(add_usage=True, output_bound=None))
    assert json.loads(changed) == json.loads(text) | {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("endpoint", sorted(set(Endpoint) - {CHAT, COMPLETIONS}))
def test_other_kinds_are_not_asked(endpoint):
    assert (
        upstream_body(Target(endpoint), b'{"stream":true}', Rewriting(add_usage=True, output_bound=None)) is None
    )


@pytest.mark.parametrize("endpoint", sorted(set(Endpoint) - set(FIELDS)))
def test_kinds_that_can_not_be_bounded_stay_as_they_are(endpoint):
    assert upstream_body(Target(endpoint), b"\xff", Rewriting(add_usage=True, output_bound=5)) is None


@pytest.mark.parametrize("endpoint", Endpoint)
def test_where_nothing_is_asked_nothing_changes(endpoint):
    assert upstream_body(Target(endpoint), b"{}", Rewriting(add_usage=False, output_bound=None)) is None


def test_usage_and_a_bound_go_together_and_every_other_value_keeps_its_bytes():
    kept = b'"messages":[ {"content" : "Gr\\u00fc\\/\xc3\x9fe"} ],"seed":123456789012345678901234567890,"t":1.10,"e":1E+2'
    text = b'{"model":"m","m\\u0061x_tokens":900,' + kept + b',"stream":true}'
    changed = upstream_body(Target(CHAT), text, Rewriting(add_usage=True, output_bound=5))
    assert changed == (
        b'{"model":"m","max_tokens":5,' + kept + b',"stream":true,"stream_options":{"include_usage":true}}'
    )


# ---------------------------------------------------------------- always

OWN = st.integers(1, 2000) | st.none()
OPTIONAL = {
    "max_tokens": OWN,
    "max_completion_tokens": OWN,
    "max_output_tokens": OWN,
    "n_predict": OWN,
    "min_tokens": VALUES | st.integers(0, 2000),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": VALUES})
    | st.none(),
    "thinking": VALUES | st.fixed_dictionaries({"budget_tokens": st.integers(0, 5000)}),
    "x": VALUES,
    "seed": st.integers(2**60, 2**90),
}


class Number(str):
    """A number as it was written."""

    __slots__ = ()


def exact(text: bytes):
    return json.loads(text, parse_int=Number, parse_float=Number)


def finite(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False).replace("NaN", "1e-400").replace("Infinity", "1e400")
    return text.encode(errors="replace")


@pytest.mark.parametrize("endpoint", list(FIELDS))
@FEWER
@given(
    st.fixed_dictionaries({}, optional=OPTIONAL),
    st.integers(1, 3000),
    st.booleans(),
    st.sampled_from([None, "max_completion_tokens", "max_tokens"]),
)
def test_a_bound_is_never_larger_than_told_nor_than_the_clients_own(
    endpoint, fields, bound, add_usage, bound_field
):
    text = finite(LEAST[endpoint] | fields)
    before = read(endpoint, text)
    if not isinstance(before, RequestFacts):
        return
    changed = upstream_body(
        Target(endpoint), text, Rewriting(add_usage=add_usage, output_bound=bound, bound_field=bound_field)
    )
    changed = text if changed is None else changed
    after = read(endpoint, changed)
    assert isinstance(after, RequestFacts), after
    assert after.output_bound <= bound
    assert before.output_bound is None or after.output_bound <= before.output_bound
    names = FIELDS[endpoint]
    if endpoint is CHAT and bound_field is not None:
        names = (bound_field, *names)
    old, new = exact(text), exact(changed)
    assert new[names[0]] is not None
    if endpoint is CHAT:
        other = "max_tokens" if names[0] == "max_completion_tokens" else "max_completion_tokens"
        assert new.pop(other, None) is None
        newer = old.get("max_completion_tokens")
        if newer is not None and int(newer) >= 0:
            old[names[0]] = newer  # servers that read both go by it
        elif newer is not None:
            old.pop(names[0], None)  # no bound
        old.pop(other, None)
    for name in names:
        mine, theirs = new.pop(name, None), old.pop(name, None)
        if mine is not None:
            assert int(mine) <= bound
            assert theirs is None or int(mine) <= int(theirs)
        else:
            assert theirs is None
    for name in ("min_tokens", "thinking", *(["stream_options"] if add_usage else [])):
        old.pop(name, None), new.pop(name, None)
    assert new == old
    if add_usage and endpoint in (CHAT, COMPLETIONS):
        assert after.wants_usage is True


def test_the_least_bodies_are_read():
    for endpoint, body in LEAST.items():
        assert isinstance(read(endpoint, dumps(body)), RequestFacts)
