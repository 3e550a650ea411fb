"""A request is bound to its buckets, or refused before anybody asks them."""

import pytest

from extproc.core.quota.binding import Policy, bind
from extproc.core.quota.costs import EVEN, NO_COST, Bound, Cost, Weights
from extproc.core.quota.drafting import Ask, Caller, Drafter, is_recorded
from extproc.core.quota.hits import Hit
from extproc.core.quota.limits import Limit, Mode, Scope, Subject, Unit, Window
from extproc.core.quota.reservation import Suspended, Unbounded, Unnamed
from extproc.core.quota.routes import Route, RouteLimit
from extproc.core.request.body import UNNAMED, RequestFacts
from extproc.core.request.endpoints import Endpoint
from tests.changing import replace
from tests.core.samples import BERLIN, CALLER, NOW

DAILY = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 1000)
STRICT = replace(DAILY, mode=Mode.STRICT)
REQUESTS = Limit(Scope.CLIENT_IP, Window.MINUTE, 60, unit=Unit.REQUESTS)
DRAFTER = Drafter("here", ttl_s=60.0)


def policy(*limits, **fields):
    return Policy(CALLER.tenant, limits, BERLIN, **fields)


def ask(route=None, **facts):
    given = {"model": "m", "stream": True, "choices": 1, "output_bound": 5, "prompt_bytes": 5, "media_parts": 0}
    request = RequestFacts(**(given | {"wants_usage": False} | facts))
    ask = Ask(CALLER, Endpoint.CHAT_COMPLETIONS, request, "q1")
    return ask if route is None else replace(ask, route=route)


def draft(of, asked=None, drafter=DRAFTER):
    return drafter.draft(asked or ask(), of, NOW, "r1")


def test_a_request_is_bound_to_the_buckets_of_its_tenant_and_of_its_route():
    of, route = policy(DAILY, REQUESTS), Route("chat", (Limit(Scope.TENANT, Window.HOUR, 9),))
    made = draft(of, ask(route))
    own = bind(of, CALLER, NOW, Subject("m", Endpoint.CHAT_COMPLETIONS))
    assert made.reservation.buckets == (*own, *route.buckets(CALLER, NOW, BERLIN))
    assert (made.refusal, made.strict, made.weights) == (None, False, None)


def test_a_draft_knows_the_request_but_not_its_cost():
    made = draft(policy(DAILY)).reservation
    assert (made.id, made.request_id, made.identity, made.model, made.stream) == ("r1", "q1", CALLER, "m", True)
    assert (made.replica, made.cost, made.admitted_at, made.date) == ("here", NO_COST, NOW, "2026-03-04")
    assert made.deadline == NOW.timestamp() + 60


def test_a_suspended_caller_is_refused_and_bound_to_nothing():
    made = draft(policy(STRICT, suspended="unpaid"), ask(unbounded_prompt=True))
    assert (made.refusal, made.refused_for) == (Suspended("unpaid"), "suspended")
    assert made.reservation.buckets == ()


@pytest.mark.parametrize(
    ("limit", "refuses"),
    [
        (STRICT, True),
        (replace(STRICT, shadow=True), False),
        (replace(STRICT, unit=Unit.REQUESTS), False),
        (DAILY, False),
    ],
)
def test_a_prompt_that_nothing_bounds_is_refused_only_by_a_strict_limit_on_tokens(limit, refuses):
    made = draft(policy(limit), ask(unbounded_prompt=True))
    assert isinstance(made.refusal, Unbounded) is refuses
    assert (made.reservation.buckets == ()) is refuses
    if refuses:
        assert made.refused_for == "unbounded_prompt"


def test_a_prompt_that_nothing_bounds_is_admitted_where_the_settings_say_so():
    made = draft(policy(STRICT), ask(unbounded_prompt=True), replace(DRAFTER, refuse_unbounded=False))
    assert made.refusal is None
    assert made.strict


BY_MODEL = replace(DAILY, scope=Scope.SERVICE_ACCOUNT_MODEL)


@pytest.mark.parametrize(
    ("limit", "refuses"),
    [
        (BY_MODEL, True),
        (replace(BY_MODEL, unit=Unit.REQUESTS), True),
        (replace(BY_MODEL, endpoints=(Endpoint.CHAT_COMPLETIONS,)), True),
        (replace(DAILY, model="gpt-*"), True),
        (replace(DAILY, model="*"), False),
        (replace(BY_MODEL, endpoints=(Endpoint.EMBEDDINGS,)), False),
        (replace(BY_MODEL, shadow=True), False),
        (DAILY, False),
    ],
)
def test_a_request_without_a_model_is_refused_only_by_a_limit_that_needs_it(limit, refuses):
    made = draft(policy(REQUESTS, limit), ask(model=UNNAMED))
    assert isinstance(made.refusal, Unnamed) is refuses
    assert (made.reservation.buckets == ()) is refuses
    if refuses:
        assert made.refused_for == "unnamed_model"
    assert draft(policy(REQUESTS, limit), ask(model="gpt-5")).refusal is None


def test_a_suspended_caller_is_not_asked_for_a_model():
    assert draft(policy(BY_MODEL, suspended="unpaid"), ask(model=UNNAMED)).refusal == Suspended("unpaid")


def test_a_request_without_a_model_is_refused_for_that_before_its_prompt_is_judged():
    made = draft(policy(BY_MODEL, STRICT), ask(model=UNNAMED, unbounded_prompt=True))
    assert made.refusal == Unnamed()


@pytest.mark.parametrize(
    ("limit", "strict"),
    [(STRICT, True), (replace(STRICT, shadow=True), True), (replace(STRICT, unit=Unit.REQUESTS), False)],
)
def test_a_bound_is_needed_where_a_strict_limit_counts_tokens_shadows_included(limit, strict):
    assert draft(policy(limit, DAILY)).strict is strict


def test_the_tenants_own_weights_go_before_the_models():
    dear, cheap = Weights(input=2), Weights(input=1)
    cost, bound = Cost(3, 4), Bound(3, 4, 1)
    own = draft(policy(DAILY, weights=(("m", dear),))).priced(cost, bound, cheap)
    assert (own.weights, own.cost, own.bound) == (dear, cost, bound)
    assert draft(policy(DAILY)).priced(cost, None, cheap).weights == cheap
    assert draft(policy(DAILY)).reservation.weights == EVEN


def test_a_hit_is_bound_by_limits_on_requests_and_by_its_routes_own():
    extra = RouteLimit(REQUESTS, ("a", "b"))
    made = DRAFTER.draft_hit(Hit(CALLER, None, 3, (extra,)), policy(DAILY, REQUESTS), NOW, "r1")
    assert [bucket.limit for bucket in made.reservation.buckets] == [REQUESTS, REQUESTS]
    assert (made.reservation.requests, made.reservation.endpoint) == (3, Endpoint.ROUTE)
    assert made.refusal is None


def test_a_hit_of_a_suspended_caller_is_refused():
    made = DRAFTER.draft_hit(Hit(CALLER, "m", 1), policy(REQUESTS, suspended="unpaid"), NOW, "r1")
    assert (made.refusal, made.reservation.buckets) == (Suspended("unpaid"), ())


def test_the_ends_of_hits_do_not_go_to_the_ledger():
    assert is_recorded(draft(policy(DAILY)).reservation)
    assert not is_recorded(DRAFTER.draft_hit(Hit(CALLER, "m", 1), policy(), NOW, "r1").reservation)


def test_a_request_whose_body_was_not_read_is_bound_without_its_cost():
    made = DRAFTER.draft_unread(Caller(CALLER, Endpoint.EMBEDDINGS, None, "q-1"), policy(DAILY), NOW, "r1")
    assert made.refusal is None
    reservation = made.reservation
    assert [bucket.limit for bucket in reservation.buckets] == [DAILY]
    assert (reservation.model, reservation.endpoint, reservation.request_id) == ("", Endpoint.EMBEDDINGS, "q-1")
    assert (reservation.held, reservation.replica) == (0, DRAFTER.replica)
    caller = Caller(CALLER, Endpoint.CHAT_COMPLETIONS, "m", "q-1")
    made = DRAFTER.draft_unread(caller, policy(DAILY, suspended="unpaid"), NOW, "r1")
    assert (made.refusal, made.reservation.buckets, made.reservation.model) == (Suspended("unpaid"), (), "m")
