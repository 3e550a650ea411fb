"""The requests of one tenant that are served at once, and what a tenant with too many of them is told."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.events import Finish, HeadReply, Inspect, Reject, RequestBody, StreamClosed
from extproc.core.exchange import Exchange
from extproc.core.phase import ExchangeRules
from extproc.core.rejections import DeniedStyle
from extproc.core.request.identity import IdentityRules
from extproc.core.request.in_flight import InFlight, Place
from tests.core.test_exchange import CLAIMS, head

OTHER = {"sub": "robot", "tenant": "other"}
PATHS = {
    "/v1/chat/completions": ("error", "message"),
    "/v1/messages": ("error", "message"),
    "/v2/models/m/infer": ("error",),
    "/v1/quota": ("error", "message"),
}


def rules_of(cap, **more):
    return ExchangeRules(IdentityRules(), in_flight=InFlight(cap), **more)


def opened(rules, *, claims=CLAIMS, path="/v1/chat/completions", method="POST"):
    """Return an exchange that was given its head, and the effects."""
    exchange = Exchange(rules)
    return exchange, exchange.receive(head(claims=claims, __path=path, __method=method))


def rejection_of(effects):
    reject, finish = effects
    assert (type(reject), finish) == (Reject, Finish())
    return reject.rejection


def test_each_tenant_has_its_own_places_and_one_without_requests_is_forgotten():
    refused = []
    in_flight = InFlight(2, refused.append)
    assert [in_flight.enter(tenant) for tenant in "aaab"] == [True, True, False, True]
    assert (refused, in_flight.tenants, in_flight.most()) == (["a"], 2, 2)
    in_flight.leave("a")
    assert in_flight.enter("a")
    for tenant in "aab":
        in_flight.leave(tenant)
    assert (in_flight.tenants, in_flight.most()) == (0, 0)


def test_a_place_is_given_back_once_and_only_if_it_was_taken():
    in_flight = InFlight(1)
    one, other = Place(in_flight), Place(in_flight)
    assert one.take("a")
    assert not other.take("a")
    other.leave()
    assert in_flight.most() == 1
    for _ in range(3):
        one.leave()
    assert in_flight.tenants == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9))), st.integers(1, 4))
def test_the_count_is_that_of_the_places_that_are_taken(steps, cap):
    in_flight, taken = InFlight(cap), []
    for tenant, number in steps:
        if number < 6:
            place = Place(in_flight)
            assert place.take(tenant) is ([t for t, _ in taken].count(tenant) < cap)
            if place._tenant is not None:
                taken.append((tenant, place))
        elif taken:
            taken.pop(number % len(taken))[1].leave()
        assert in_flight.tenants == len({t for t, _ in taken})
        assert in_flight.most() == max(([t for t, _ in taken].count(t) for t in "abc"), default=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("style", DeniedStyle)
def test_a_tenant_at_its_cap_gets_429_that_names_it_in_the_shape_of_the_api(path, style):
    rules = rules_of(1, denied_style=style)
    opened(rules)
    method = "GET" if path == "/v1/quota" else "POST"
    refused = rejection_of(opened(rules, path=path, method=method)[1])
    assert (refused.status, refused.reason) == (429, "in_flight")
    assert ("retry-after", "1") in refused.headers
    message = content = json.loads(refused.body)
    for key in PATHS[path]:
        message = message[key]
    assert "requests in flight: at most 1 at once" in message
    if path == "/v1/messages":
        assert content["error"]["type"] == "rate_limit_error"
    if path == "/v1/chat/completions":
        assert content["error"] | {"message": ""} == {
            "message": "",
            "type": "requests",
            "param": None,
            "code": "too_many_in_flight",
        }


def test_another_tenant_is_not_refused_and_a_place_is_free_again_when_a_stream_ends():
    rules = rules_of(1)
    first, effects = opened(rules)
    assert effects == []
    refused, effects = opened(rules)
    assert isinstance(effects[0], Reject)
    assert opened(rules, claims=OTHER)[1] == []
    refused.receive(StreamClosed())
    assert isinstance(opened(rules)[1][0], Reject)  # the refused one had no place
    first.receive(StreamClosed())
    assert opened(rules)[1] == []


def test_a_rejected_request_keeps_its_place_until_its_stream_ends():
    rules = rules_of(1)
    exchange, _ = opened(rules)
    assert isinstance(exchange.receive(RequestBody(b"{", end_of_stream=True))[0], Reject)
    assert rules.in_flight.most() == 1
    exchange.receive(StreamClosed())
    exchange.receive(StreamClosed())
    assert rules.in_flight.tenants == 0


def test_a_question_for_the_quota_has_a_place_and_a_path_that_is_not_metered_needs_none():
    rules = rules_of(1)
    _, (inspect,) = opened(rules, path="/v1/quota", method="GET")
    assert isinstance(inspect, Inspect)
    assert rules.in_flight.most() == 1
    assert opened(rules, path="/v1/models", method="GET")[1] == [HeadReply(), Finish()]
    assert rules.in_flight.most() == 1


def test_rules_share_one_count():
    rules = rules_of(1)
    assert replace(rules, max_body_bytes=1).in_flight is rules.in_flight
