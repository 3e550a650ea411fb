"""What a route brings along in the metadata of its stream: a name and limits."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.limits import MAX_AMOUNT, Limit, Scope, Unit, Window
from extproc.core.quota.routes import MAX_ROUTE_LIMITS, NO_ROUTE, BadRoute, Route, limit_from, read_route
from extproc.core.request.addresses import UNKNOWN_IP
from extproc.core.request.identity import ANONYMOUS, Identity

NOW = datetime(2026, 3, 1, 12, 30, 30, tzinfo=UTC)
ZONE = ZoneInfo("UTC")
CALLER = Identity("acme", "console", "10.0.0.7")


def keys(route, caller=CALLER):
    return [bucket.key for bucket in route.buckets(caller, NOW, ZONE)]


def test_a_route_counts_requests_and_tokens_by_who_calls():
    route = read_route("models/qwen", "client_ip:10/minute, service_account:12000/day:tokens")
    assert route == Route(
        "models/qwen",
        (
            Limit(Scope.CLIENT_IP, Window.MINUTE, 10, Unit.REQUESTS),
            Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 12000, Unit.TOKENS),
        ),
    )
    parts = [bucket.parts for bucket in route.buckets(CALLER, NOW, ZONE)]
    assert parts == [
        ("10.0.0.7", "tokenweir", "route", "models/qwen"),
        ("console", "tokenweir", "route", "models/qwen"),
    ]


def test_two_routes_share_their_buckets_only_under_one_name():
    limits = "service_account:12000/day:tokens"
    assert keys(read_route("a", limits)) == keys(read_route("a", "service_account:7/day:tokens"))
    assert keys(read_route("a", limits)) != keys(read_route("b", limits))


def test_a_limit_of_a_route_never_shares_the_tenants_bucket():
    [key] = keys(read_route("a", "tenant:5/day:tokens"))
    [bucket] = read_route("a", "tenant:5/day:tokens").buckets(CALLER, NOW, ZONE)
    assert bucket.parts == ("tokenweir", "route", "a")
    assert key


def test_a_caller_whom_nothing_names_is_counted_all_the_same():
    nobody = Identity(ANONYMOUS, ANONYMOUS, UNKNOWN_IP)
    assert len(keys(read_route("a", "client_ip:10/minute,service_account:5/minute"), nobody)) == 2


def test_without_metadata_there_is_no_route():
    assert read_route("", "") == NO_ROUTE
    assert read_route("", " , ") == NO_ROUTE
    assert keys(NO_ROUTE) == []


def test_a_name_alone_has_no_limits():
    assert read_route("a", "") == Route("a")


def test_of_two_limits_of_one_kind_the_lower_counts():
    expected = (Limit(Scope.CLIENT_IP, Window.MINUTE, 5, Unit.REQUESTS),)
    assert read_route("a", "client_ip:10/minute,client_ip:5/minute").limits == expected
    assert read_route("a", "client_ip:5/minute,client_ip:10/minute").limits == expected


@pytest.mark.parametrize(
    "text",
    [
        "client_ip",
        "client_ip:10",
        "client_ip:-1/minute",
        "client_ip:1.5/minute",
        "client_ip:10/second",
        "client_ip:10/minute:bytes",
        "client_ip:10/minute:",
        f"client_ip:{MAX_AMOUNT + 1}/minute",
        "model:10/minute",
        "service_account+endpoint:10/minute",
        "CLIENT_IP:10/minute",
    ],
)
def test_a_limit_that_can_not_be_read_is_named(text):
    problem = read_route("a", f"tenant:1/day,{text}")
    assert isinstance(problem, BadRoute)
    assert repr(text) in problem.message
    assert "client_ip:60/minute" in problem.message


def test_limits_need_a_name_and_a_name_must_be_one():
    assert "needs tokenweir-route" in read_route("", "tenant:1/day").message
    assert "must be a name" in read_route(" x", "").message


def test_a_route_has_a_bounded_number_of_limits():
    units = ("requests", "tokens", "input_tokens", "output_tokens")
    many = [f"{s}:1/{w}:{u}" for s in ("tenant", "client_ip") for w in Window for u in units]
    assert len(read_route("a", ",".join(many[:MAX_ROUTE_LIMITS])).limits) == MAX_ROUTE_LIMITS
    assert "16 limits, not 17" in read_route("a", ",".join(many[: MAX_ROUTE_LIMITS + 1])).message


@given(st.text(max_size=40), st.text(max_size=60))
def test_any_metadata_gives_a_route_or_says_what_is_wrong(name, limits):
    assert isinstance(read_route(name, limits), Route | BadRoute)


@given(
    st.sampled_from([Scope.TENANT, Scope.SERVICE_ACCOUNT, Scope.CLIENT_IP, Scope.SERVICE_ACCOUNT_IP]),
    st.sampled_from(Window),
    st.sampled_from(Unit),
    st.integers(0, MAX_AMOUNT),
)
def test_every_limit_that_can_be_written_is_read(scope, window, unit, amount):
    assert limit_from(f"{scope}:{amount}/{window}:{unit}") == Limit(scope, window, amount, unit)
