"""Documents of tenants: the talk's three fields are a whole document, and what can't be used says why."""

from copy import deepcopy
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.binding import Policy, StoreFailure, Terms, TopUp, bind
from extproc.core.quota.costs import EVEN, MAX_OUTPUT_BOUND, Weights
from extproc.core.quota.fields import MAX_ITEMS, FieldError
from extproc.core.quota.limits import MAX_AMOUNT, Limit, Mode, Scope, Subject, Unit, Window
from extproc.core.quota.policies import (
    MAX_ACCOUNTS,
    METERED,
    BadDocument,
    Defaults,
    limits_from,
    policy_from,
)
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import TenantId
from tests.changing import replace
from tests.core.samples import BERLIN, CALLER, FUZZ, NOW, VALUES

DEFAULTS = Defaults((Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 100),), BERLIN)
SA = (Scope.SERVICE_ACCOUNT, Window.DAY)
IP = (Scope.SERVICE_ACCOUNT_IP, Window.DAY)


def read(**fields):
    return policy_from({"tenant_id": "zone-prod", **fields}, DEFAULTS)


def test_the_three_fields_of_the_talk_are_a_whole_document():
    assert read(sa_limit=12_000, ip_limit=3000) == Policy(
        TenantId("zone-prod"), (Limit(*SA, 12_000), Limit(*IP, 3000)), BERLIN
    )


@pytest.mark.parametrize(
    ("fields", "limits"),
    [
        ({"sa_limit": 5}, (Limit(*SA, 5),)),
        ({"ip_limit": 5}, (Limit(*IP, 5),)),
        ({"sa_limit": 5, "ip_limit": None}, (Limit(*SA, 5),)),
        ({"sa_limit": 0}, (Limit(*SA, 0),)),
        ({"sa_limit": 12_000.0}, (Limit(*SA, 12_000),)),
        ({"sa_limit": MAX_AMOUNT}, (Limit(*SA, MAX_AMOUNT),)),
        ({"sa_limit": -0.0}, (Limit(*SA, 0),)),
        ({}, DEFAULTS.limits),
        ({"sa_limit": None, "ip_limit": None}, DEFAULTS.limits),
    ],
)
def test_a_limit_that_is_left_out_does_not_bind_and_without_any_the_defaults_do(fields, limits):
    policy = read(**fields)
    assert (policy.limits, policy.known) == (limits, True)
    assert all(type(limit.amount) is int for limit in policy.limits)


def test_fields_that_nobody_knows_are_left_alone():
    assert read(sa_limit=5, _id=object(), note={"x": 1}, version=2) == read(sa_limit=5)


@pytest.mark.parametrize("name", ["sa_limit", "ip_limit"])
@pytest.mark.parametrize(
    "value",
    [
        -1,
        1.5,
        float("nan"),
        float("inf"),
        -float("inf"),
        "5",
        "",
        True,
        False,
        [],
        {},
        MAX_AMOUNT + 1,
        1e300,
        2**63,
    ],
)
def test_an_amount_that_is_none_is_refused_and_named(name, value):
    message = f"'{name}' must be a whole number of tokens from 0 to {MAX_AMOUNT}"
    assert read(**{name: value}) == BadDocument("zone-prod", message)


@pytest.mark.parametrize("value", [None, "", " a", "a\n", "a" * 257, 5, [], b"zone", "\ud800"])
def test_a_tenant_that_is_no_name_is_refused(value):
    assert policy_from({"tenant_id": value}, DEFAULTS) == BadDocument(
        None, "'tenant_id' must be a printable string of 1 to 256 characters"
    )
    assert policy_from({}, DEFAULTS).tenant is None


def test_a_time_zone_of_its_own_counts_before_the_default():
    assert read(timezone="Asia/Kolkata").zone == ZoneInfo("Asia/Kolkata")
    assert read(timezone=None).zone is BERLIN


@pytest.mark.parametrize(
    "value",
    [
        "Europe/Berlim",
        "Nowhere",
        "Europe",
        "../etc/passwd",
        "/etc/localtime",
        "Europe/../UTC",
        "UTC\x00",
        "a" * 5000,
        "\ud800",
        ".",
        " ",
    ],
)
def test_a_time_zone_that_this_host_does_not_know_is_refused(value):
    message = "'timezone' is no IANA time zone that this host knows; use one such as 'Europe/Berlin'"
    assert read(timezone=value) == BadDocument("zone-prod", message)


@pytest.mark.parametrize("value", ["", 5, True, [], {}, 1.5])
def test_a_time_zone_that_is_no_text_is_refused(value):
    assert read(timezone=value) == BadDocument("zone-prod", "'timezone' must be an IANA time zone")


def test_a_tenant_without_a_document_is_bound_by_the_defaults_and_known_as_such():
    assert DEFAULTS.policy(TenantId("new")) == Policy(TenantId("new"), DEFAULTS.limits, BERLIN, known=False)


def test_short_limits_leave_out_what_does_not_exist():
    assert limits_from({"sa_limit": None}) == ()
    assert limits_from({"sa_limit": 0, "ip_limit": 5}) == (Limit(*SA, 0), Limit(*IP, 5))


# Limits in their general form.

MONTHLY = {"scope": "tenant", "window": "month", "amount": 1000}


def refused(**fields) -> str:
    found = read(**fields)
    assert isinstance(found, BadDocument)
    assert found.tenant == "zone-prod"
    return found.message


def test_a_limit_has_scope_window_and_amount_and_the_rest_has_defaults():
    assert read(limits=[MONTHLY]).limits == (Limit(Scope.TENANT, Window.MONTH, 1000),)


def test_a_limit_may_say_everything_about_itself():
    entry = {
        "scope": "service_account+client_ip+model",
        "window": "week",
        "amount": 7.0,
        "unit": "output_tokens",
        "mode": "shadow",
        "shadows": "strict",
        "model": "llama-*",
        "endpoint": ["score", "chat_completions"],
        "note": {"anything": 1},
    }
    expected = Limit(
        scope=Scope.SERVICE_ACCOUNT_IP_MODEL,
        window=Window.WEEK,
        amount=7,
        unit=Unit.OUTPUT_TOKENS,
        mode=Mode.STRICT,
        shadow=True,
        model="llama-*",
        endpoints=(Endpoint.CHAT_COMPLETIONS, Endpoint.SCORE),
    )
    assert limits_from({"limits": [entry]}) == (expected,)


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("window", Window)
def test_every_scope_and_window_can_be_said(scope, window):
    assert read(limits=[MONTHLY | {"scope": scope.value, "window": window.value}]).limits == (
        Limit(scope, window, 1000),
    )


def test_a_limit_or_top_up_on_asking_for_ones_limits_is_refused_as_it_would_never_bind():
    assert set(Endpoint) - set(METERED) == {Endpoint.QUOTA}
    rule = f"must be one or a list of {', '.join(METERED)}"
    for value in ("quota", ["chat_completions", "quota"]):
        assert refused(limits=[MONTHLY | {"endpoint": value}]) == f"'limits[0].endpoint' {rule}"
        top_up = {"amount": 5, "until": "2026-03-01", "endpoint": value}
        assert refused(top_ups=[top_up]) == f"'top_ups[0].endpoint' {rule}"


@pytest.mark.parametrize("endpoint", METERED)
def test_every_endpoint_that_is_metered_can_be_said(endpoint):
    assert read(limits=[MONTHLY | {"endpoint": endpoint.value}]).limits[0].endpoints == (endpoint,)


def test_one_endpoint_needs_no_list():
    assert read(limits=[MONTHLY | {"endpoint": "rerank"}]).limits[0].endpoints == (Endpoint.RERANK,)


def test_the_talks_request_limits_are_a_minute_and_bind_beside_the_default_tokens():
    policy = read(ratelimitEachSAPerMinute=60, ratelimitIPPerMinute=600)
    assert policy.limits == (
        Limit(Scope.SERVICE_ACCOUNT, Window.MINUTE, 60, Unit.REQUESTS),
        Limit(Scope.CLIENT_IP, Window.MINUTE, 600, Unit.REQUESTS),
        *DEFAULTS.limits,
    )


def test_short_and_general_limits_stand_beside_each_other():
    assert read(sa_limit=5, limits=[MONTHLY]).limits == (
        Limit(*SA, 5),
        Limit(Scope.TENANT, Window.MONTH, 1000),
    )


# Defaults.

REQUESTS = Limit(Scope.CLIENT_IP, Window.MINUTE, 600, Unit.REQUESTS)
BOTH = Defaults((Limit(*SA, 100), REQUESTS), BERLIN)


def under(defaults: Defaults, **fields) -> Policy:
    found = policy_from({"tenant_id": "zone-prod", **fields}, defaults)
    assert isinstance(found, Policy)
    return found


@pytest.mark.parametrize(
    ("fields", "limits"),
    [
        ({}, BOTH.limits),
        ({"limits": []}, BOTH.limits),
        ({"sa_limit": 5}, (Limit(*SA, 5), REQUESTS)),
        ({"limits": [MONTHLY]}, (Limit(Scope.TENANT, Window.MONTH, 1000), REQUESTS)),
        (
            {"limits": [MONTHLY | {"unit": "input_tokens"}]},
            (Limit(Scope.TENANT, Window.MONTH, 1000, Unit.INPUT_TOKENS), REQUESTS),
        ),
        (
            {"ratelimitEachSAPerMinute": 1},
            (Limit(Scope.SERVICE_ACCOUNT, Window.MINUTE, 1, Unit.REQUESTS), Limit(*SA, 100)),
        ),
        ({"unlimited": True}, ()),
        ({"unlimited": True, "sa_limit": 5}, (Limit(*SA, 5),)),
        ({"unlimited": False}, BOTH.limits),
    ],
)
def test_default_tokens_and_default_requests_each_bind_where_a_document_sets_none_of_them(fields, limits):
    assert under(BOTH, **fields).limits == limits


def test_the_defaults_take_the_mode_of_the_tenant():
    assert under(BOTH, mode="soft").limits == tuple(replaced(BOTH.limits, mode=Mode.SOFT))
    assert under(BOTH, mode="shadow").limits == tuple(replaced(BOTH.limits, shadow=True))
    strict = Defaults((Limit(*SA, 100, mode=Mode.STRICT),), BERLIN)
    assert under(strict).limits == strict.limits
    assert under(strict, mode="reserve").limits == (Limit(*SA, 100),)


def replaced(limits, **changes):
    return [Limit(limit.scope, limit.window, limit.amount, limit.unit, **changes) for limit in limits]


def test_a_default_that_is_only_tried_out_stays_so_and_nothing_counts_twice():
    tried = Defaults((Limit(*SA, 50, shadow=True), Limit(*SA, 100)), BERLIN)
    assert set(under(tried).limits) == set(tried.limits)
    assert set(under(tried, mode="strict").limits) == {
        Limit(*SA, 50, shadow=True),
        Limit(*SA, 100, mode=Mode.STRICT),
    }
    # Where all is a shadow there is room for one of them: what binds elsewhere.
    assert under(tried, mode="shadow").limits == (Limit(*SA, 100, shadow=True),)


def test_a_limit_that_is_only_tried_out_takes_no_default_away():
    tried = MONTHLY | {"mode": "shadow"}
    shadow = Limit(Scope.TENANT, Window.MONTH, 1000, shadow=True)
    assert under(BOTH, limits=[tried]).limits == (shadow, *BOTH.limits)
    assert under(BOTH, limits=[tried | {"unit": "requests"}]).limits[1:] == BOTH.limits
    assert under(BOTH, limits=[tried], sa_limit=5).limits == (Limit(*SA, 5), shadow, REQUESTS)


def test_a_document_that_is_a_shadow_as_a_whole_tries_out_its_own_limits():
    assert under(BOTH, mode="shadow", sa_limit=5).limits == (
        Limit(*SA, 5, shadow=True),
        Limit(REQUESTS.scope, REQUESTS.window, REQUESTS.amount, REQUESTS.unit, shadow=True),
    )


def test_a_shadow_of_ones_own_comes_before_a_default_of_the_same_kind():
    tried = Defaults((Limit(*SA, 50, shadow=True), Limit(*SA, 100)), BERLIN)
    own = {"scope": "service_account", "window": "day", "amount": 7, "mode": "shadow"}
    assert under(tried, limits=[own]).limits == (Limit(*SA, 7, shadow=True), Limit(*SA, 100))


# Modes.


@pytest.mark.parametrize(
    ("tenant", "limit", "mode", "shadow"),
    [
        ({}, {}, Mode.RESERVE, False),
        ({"mode": "soft"}, {}, Mode.SOFT, False),
        ({"mode": "strict"}, {}, Mode.STRICT, False),
        ({"mode": "shadow"}, {}, Mode.RESERVE, True),
        ({"mode": "shadow", "shadows": "strict"}, {}, Mode.STRICT, True),
        ({"mode": "strict"}, {"mode": "soft"}, Mode.SOFT, False),
        ({"mode": "strict"}, {"mode": "shadow"}, Mode.STRICT, True),
        ({"mode": "strict"}, {"mode": "shadow", "shadows": "soft"}, Mode.SOFT, True),
        ({"mode": "shadow", "shadows": "strict"}, {"mode": "shadow"}, Mode.STRICT, True),
        ({"mode": "shadow", "shadows": "strict"}, {"mode": "reserve"}, Mode.RESERVE, False),
        ({"mode": None, "shadows": None}, {"mode": None}, Mode.RESERVE, False),
    ],
)
def test_a_limits_mode_is_its_own_or_the_tenants(tenant, limit, mode, shadow):
    expected = Limit(Scope.TENANT, Window.MONTH, 1000, mode=mode, shadow=shadow)
    assert read(limits=[MONTHLY | limit], **tenant).limits[0] == expected


def test_short_limits_have_the_mode_of_the_tenant():
    assert read(sa_limit=5, ratelimitIPPerMinute=6, mode="strict").limits == (
        Limit(*SA, 5, mode=Mode.STRICT),
        Limit(Scope.CLIENT_IP, Window.MINUTE, 6, Unit.REQUESTS, Mode.STRICT),
    )


@pytest.mark.parametrize(
    ("tenant", "account", "limit", "mode", "shadow"),
    [
        ({"mode": "strict"}, {}, {}, Mode.STRICT, False),
        ({"mode": "strict"}, {"mode": "soft"}, {}, Mode.SOFT, False),
        ({"mode": "strict"}, {"mode": "shadow"}, {}, Mode.STRICT, True),
        ({"mode": "strict"}, {"mode": "shadow", "shadows": "soft"}, {}, Mode.SOFT, True),
        ({"mode": "shadow"}, {"mode": "strict"}, {}, Mode.STRICT, False),
        ({"mode": "shadow", "shadows": "strict"}, {"mode": "shadow"}, {}, Mode.STRICT, True),
        ({}, {"mode": "strict"}, {"mode": "reserve"}, Mode.RESERVE, False),
        ({}, {"mode": "strict"}, {"mode": "shadow"}, Mode.STRICT, True),
        ({}, {"mode": "shadow", "shadows": "strict"}, {}, Mode.STRICT, True),
        ({}, {}, {}, Mode.RESERVE, False),
    ],
)
def test_an_accounts_limits_have_their_own_mode_or_the_accounts_or_the_tenants(
    tenant, account, limit, mode, shadow
):
    terms = read(service_accounts=[{"name": "a", "limits": [MONTHLY | limit], **account}], **tenant).accounts["a"]
    assert terms.limits == (Limit(Scope.TENANT, Window.MONTH, 1000, mode=mode, shadow=shadow),)


def test_unknown_accounts_have_the_tenants_mode():
    policy = read(unknown_service_accounts={"sa_limit": 5}, mode="shadow", shadows="soft")
    assert policy.others == Terms((Limit(*SA, 5, mode=Mode.SOFT, shadow=True),))
    assert read(unknown_service_accounts={"sa_limit": 5}).others == Terms((Limit(*SA, 5),))


# Service accounts, suspensions, top-ups, weights.


def test_service_accounts_have_terms_of_their_own():
    policy = read(
        service_accounts=[
            {"name": "a", "sa_limit": 5, "ip_limit": 6, "note": "x"},
            {"name": "b", "unlimited": True, "ratelimitEachSAPerMinute": 7},
            {"name": "c", "suspended": "leaked key"},
            {"name": "d"},
        ],
        unknown_service_accounts={"suspended": True},
    )
    assert policy.accounts == {
        "a": Terms((Limit(*SA, 5), Limit(*IP, 6))),
        "b": Terms((Limit(Scope.SERVICE_ACCOUNT, Window.MINUTE, 7, Unit.REQUESTS),), unlimited=True),
        "c": Terms(suspended="leaked key"),
        "d": Terms(),
    }
    assert policy.others == Terms(suspended="suspended")
    assert policy.limits == DEFAULTS.limits


def test_a_tenant_is_suspended_with_a_reason_or_without():
    assert [read(suspended=value).suspended for value in ("unpaid", True, False, None)] == [
        "unpaid",
        "suspended",
        None,
        None,
    ]


def test_top_ups_raise_what_they_name_until_an_instant():
    policy = read(
        top_ups=[
            {"amount": 5, "until": datetime(2026, 3, 1, tzinfo=UTC)},
            {
                "scope": "tenant",
                "window": "month",
                "unit": "requests",
                "amount": 6.0,
                "note": "x",
                "until": "2026-03-01T01:00:00+01:00",
                "service_account": "a",
                "model": "llama-*",
            },
        ]
    )
    until = 1_772_323_200.0
    assert policy.top_ups == (
        TopUp(Scope.SERVICE_ACCOUNT, Window.DAY, Unit.TOKENS, 5, until),
        TopUp(Scope.TENANT, Window.MONTH, Unit.REQUESTS, 6, until, "a", "llama-*"),
    )


def test_weights_may_be_given_for_models_and_for_all_others():
    policy = read(
        models=[
            {"model": "llama-*", "weights": {"input": 0.5, "output": 2}},
            {"model": "*b", "weights": {"cached_input": 0.1, "reasoning": 3}, "note": "x"},
        ],
        weights={"input": 0},
    )
    assert policy.weights == (
        ("llama-*", Weights(500, 500, 2000, 2000)),
        ("*b", Weights(1000, 100, 1000, 3000)),
        ("*", Weights(0, 0, 1000, 1000)),
    )
    assert read(weights={}).own_weights("x") == EVEN
    assert read().weights == ()


def test_the_least_output_may_be_the_tenants_own():
    assert read(min_output_tokens=40).min_output_tokens == 40
    assert read().min_output_tokens is None


def test_what_happens_without_the_counters_is_the_tenants_own_or_the_default():
    allow = replace(DEFAULTS, on_store_failure=StoreFailure.ALLOW)
    assert read().on_store_failure is StoreFailure.DENY
    assert read(on_store_failure="allow").on_store_failure is StoreFailure.ALLOW
    assert policy_from({"tenant_id": "a", "sa_limit": 1}, allow).on_store_failure is StoreFailure.ALLOW
    assert policy_from({"tenant_id": "a", "on_store_failure": "deny"}, allow).on_store_failure is StoreFailure.DENY
    assert allow.policy("a").on_store_failure is StoreFailure.ALLOW


# What can't be used, and how that is said.

AMOUNT = f"must be a whole number of tokens from 0 to {MAX_AMOUNT}"
SCOPES = f"must be one of {', '.join(Scope)}"
LIMIT_FIELDS = "amount, endpoint, mode, model, note, scope, shadows, unit, window"
TERMS_FIELDS = (
    "ip_limit, limits, note, ratelimitEachSAPerMinute, ratelimitIPPerMinute, sa_limit, suspended, unlimited"
)
ACCOUNT_FIELDS = (
    "ip_limit, limits, mode, name, note, ratelimitEachSAPerMinute, ratelimitIPPerMinute, sa_limit, shadows, suspended, "
    "unlimited"
)
NAME = "must be a printable string of 1 to 256 characters"
WEIGHT = "must be a number from 0 to 100 with at most three decimals"
TWICE = "must not add a second limit of tokens per tenant and month for the same requests"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratelimitIPPerMinute": -1}, "'ratelimitIPPerMinute' " + AMOUNT.replace("tokens", "requests")),
        ({"ratelimitEachSAPerMinute": "5"}, "'ratelimitEachSAPerMinute' " + AMOUNT.replace("tokens", "requests")),
        ({"unlimited": "yes"}, "'unlimited' must be true or false"),
        ({"unlimited": 1}, "'unlimited' must be true or false"),
        ({"suspended": ""}, f"'suspended' {NAME}"),
        ({"suspended": 1}, f"'suspended' {NAME}"),
        ({"mode": "Strict"}, "'mode' must be one of soft, reserve, strict, shadow"),
        ({"mode": 1}, "'mode' must be one of soft, reserve, strict, shadow"),
        ({"mode": "shadow", "shadows": "shadow"}, "'shadows' must be one of soft, reserve, strict"),
        ({"shadows": "strict"}, "'shadows' needs 'mode: shadow' beside it"),
        ({"mode": "soft", "shadows": "strict"}, "'shadows' needs 'mode: shadow' beside it"),
        (
            {"min_output_tokens": -1},
            f"'min_output_tokens' must be a whole number of tokens from 0 to {MAX_OUTPUT_BOUND}",
        ),
        ({"limits": {}}, f"'limits' must be a list of at most {MAX_ITEMS} objects"),
        ({"limits": "all"}, f"'limits' must be a list of at most {MAX_ITEMS} objects"),
        ({"limits": [MONTHLY] * (MAX_ITEMS + 1)}, f"'limits' must be a list of at most {MAX_ITEMS} objects"),
        ({"limits": [MONTHLY, 5]}, "'limits[1]' must be an object"),
        ({"limits": [MONTHLY | {"amuont": 5}]}, f"'limits[0].amuont' is no field here; use {LIMIT_FIELDS}"),
        ({"limits": [{}]}, f"'limits[0].scope' {SCOPES}"),
        ({"limits": [MONTHLY | {"amount": None}]}, "'limits[0].amount' must be given"),
        ({"limits": [MONTHLY | {"amount": 1.5}]}, f"'limits[0].amount' {AMOUNT}"),
        (
            {"limits": [MONTHLY | {"amount": -1, "unit": "requests"}]},
            "'limits[0].amount' " + AMOUNT.replace("tokens", "requests"),
        ),
        ({"limits": [{"amount": 1, "window": "day"}]}, f"'limits[0].scope' {SCOPES}"),
        ({"limits": [MONTHLY | {"scope": "Tenant"}]}, f"'limits[0].scope' {SCOPES}"),
        ({"limits": [{"amount": 1, "scope": "tenant"}]}, f"'limits[0].window' must be one of {', '.join(Window)}"),
        ({"limits": [MONTHLY | {"window": "year"}]}, f"'limits[0].window' must be one of {', '.join(Window)}"),
        ({"limits": [MONTHLY | {"unit": "dollars"}]}, f"'limits[0].unit' must be one of {', '.join(Unit)}"),
        ({"limits": [MONTHLY | {"mode": "off"}]}, "'limits[0].mode' must be one of soft, reserve, strict, shadow"),
        ({"limits": [MONTHLY | {"shadows": "soft"}]}, "'limits[0].shadows' needs 'mode: shadow' beside it"),
        ({"limits": [MONTHLY | {"model": " x"}]}, f"'limits[0].model' {NAME}"),
        (
            {"limits": [MONTHLY | {"endpoint": "chat"}]},
            f"'limits[0].endpoint' must be one or a list of {', '.join(METERED)}",
        ),
        (
            {"limits": [MONTHLY | {"endpoint": []}]},
            f"'limits[0].endpoint' must be one or a list of {', '.join(METERED)}",
        ),
        ({"limits": [MONTHLY, MONTHLY | {"amount": 5, "mode": "soft"}]}, f"'limits' {TWICE}"),
        (
            {"sa_limit": 5, "limits": [{"scope": "service_account", "window": "day", "amount": 6}]},
            "'limits' must not add a second limit of tokens per service_account and day for the same requests",
        ),
        ({"service_accounts": {}}, f"'service_accounts' must be a list of at most {MAX_ACCOUNTS} objects"),
        ({"service_accounts": [{"sa_limit": 5}]}, "'service_accounts[0].name' must be given"),
        ({"service_accounts": [{"name": ""}]}, f"'service_accounts[0].name' {NAME}"),
        ({"service_accounts": [{"name": "a"}, {"name": "a"}]}, "'service_accounts[1].name' is given twice: a"),
        (
            {"service_accounts": [{"name": "a", "timezone": "UTC"}]},
            f"'service_accounts[0].timezone' is no field here; use {ACCOUNT_FIELDS}",
        ),
        ({"service_accounts": [{"name": "a", "sa_limit": -1}]}, f"'service_accounts[0].sa_limit' {AMOUNT}"),
        (
            {"service_accounts": [{"name": "a", "limits": [MONTHLY, MONTHLY | {"window": "x"}]}]},
            f"'service_accounts[0].limits[1].window' must be one of {', '.join(Window)}",
        ),
        (
            {"service_accounts": [{"name": "a", "limits": [MONTHLY, MONTHLY]}]},
            f"'service_accounts[0].limits' {TWICE}",
        ),
        (
            {"service_accounts": [{"name": "a", "mode": "x", "sa_limit": 5}]},
            "'service_accounts[0].mode' must be one of soft, reserve, strict, shadow",
        ),
        (
            {"service_accounts": [{"name": "a", "mode": "strict"}]},
            "'service_accounts[0].mode' needs limits beside it: it is that of this account's own",
        ),
        ({"unknown_service_accounts": []}, "'unknown_service_accounts' must be an object"),
        (
            {"unknown_service_accounts": {"mode": "soft"}},
            f"'unknown_service_accounts.mode' is no field here; use {TERMS_FIELDS}",
        ),
        (
            {"unknown_service_accounts": {"limits": [MONTHLY | {"unit": 1}]}},
            f"'unknown_service_accounts.limits[0].unit' must be one of {', '.join(Unit)}",
        ),
        ({"top_ups": [{"until": "2026-03-01"}]}, "'top_ups[0].amount' must be given"),
        ({"top_ups": [{"amount": -1, "until": "2026-03-01"}]}, f"'top_ups[0].amount' {AMOUNT}"),
        (
            {"top_ups": [{"amount": -1, "unit": "requests"}]},
            "'top_ups[0].amount' " + AMOUNT.replace("tokens", "requests"),
        ),
        ({"top_ups": [{"amount": 5}]}, "'top_ups[0].until' must be an instant such as 2026-03-01T00:00:00Z"),
        (
            {"top_ups": [{"amount": 5, "until": 5}]},
            "'top_ups[0].until' must be an instant such as 2026-03-01T00:00:00Z",
        ),
        (
            {"top_ups": [{"amount": 5, "until": "2026-03-01", "expires": 1}]},
            (
                "'top_ups[0].expires' is no field here; use amount, endpoint, id, model, note, scope, "
                "service_account, unit, until, window"
            ),
        ),
        ({"top_ups": [{"amount": 5, "scope": "x"}]}, f"'top_ups[0].scope' {SCOPES}"),
        ({"models": [{"weights": {}}]}, "'models[0].model' must be given"),
        ({"models": [{"model": "a"}]}, "'models[0].weights' must be given"),
        ({"models": [{"model": "a", "weights": 5}]}, "'models[0].weights' must be an object"),
        ({"models": [{"model": "a", "weights": {"input": 101}}]}, f"'models[0].weights.input' {WEIGHT}"),
        ({"models": [{"model": "a", "price": 5}]}, "'models[0].price' is no field here; use model, note, weights"),
        (
            {"models": [{"model": "a", "weights": {}}, {"model": "a", "weights": {"input": 2}}]},
            "'models[1].model' is given twice: a",
        ),
        ({"weights": {"output": -1}}, f"'weights.output' {WEIGHT}"),
        (
            {"weights": {"cached": 1}},
            "'weights.cached' is no field here; use cached_input, input, output, reasoning",
        ),
        ({"weights": 1}, "'weights' must be an object"),
    ],
)
def test_what_can_not_be_used_is_named_with_its_path_and_what_it_must_be(fields, message):
    assert refused(**fields) == message


def test_as_many_limits_as_there_may_be_are_read():
    many = [MONTHLY | {"model": f"model-{number}"} for number in range(MAX_ITEMS)]
    assert len(read(limits=many, unlimited=True).limits) == MAX_ITEMS


def test_a_limit_for_some_models_or_endpoints_takes_no_default_away():
    for narrow in ({"model": "gpt-*"}, {"endpoint": "embeddings"}):
        policy = read(limits=[MONTHLY | narrow])
        assert policy.limits[1:] == DEFAULTS.limits
        assert len(policy.limits) == 2
    assert len(read(limits=[MONTHLY]).limits) == 1


def test_a_top_up_raises_the_limit_that_is_narrowed_as_it_is():
    top_up = {"amount": 5, "until": "2099-01-01", "scope": "tenant", "window": "month"}
    for narrow in ({}, {"model": "gpt-*"}, {"endpoint": ["embeddings", "score"]}):
        policy = read(
            limits=[MONTHLY, MONTHLY | {"model": "gpt-*"}, MONTHLY | {"endpoint": ["score", "embeddings"]}],
            top_ups=[top_up | narrow],
        )
        raised = [limit for limit in policy.limits if policy.top_ups[0].raises(limit, CALLER, 0.0)]
        assert len(raised) == 1
        assert (raised[0].model, len(raised[0].endpoints)) == (narrow.get("model"), 2 * ("endpoint" in narrow))


def test_limits_outside_of_a_document_are_read_the_same_way():
    assert (
        limits_from({"sa_limit": 5, "mode": "soft", "limits": [MONTHLY]})
        == read(sa_limit=5, mode="soft", limits=[MONTHLY]).limits
    )
    assert limits_from({}) == ()
    with pytest.raises(FieldError, match=r"^'limits\[0\]\.amount' must be given$"):
        limits_from({"limits": [{"scope": "tenant", "window": "day"}]})


# Anything at all.

WHOLE = {
    "tenant_id": "zone-prod",
    "sa_limit": 12_000,
    "ip_limit": 3000,
    "ratelimitEachSAPerMinute": 60,
    "ratelimitIPPerMinute": 600,
    "mode": "shadow",
    "shadows": "strict",
    "timezone": "Asia/Kolkata",
    "unlimited": False,
    "suspended": False,
    "min_output_tokens": 5,
    "on_store_failure": "allow",
    "limits": [MONTHLY | {"mode": "soft", "model": "a*", "endpoint": ["rerank"]}],
    "service_accounts": [{"name": "a", "mode": "soft", "sa_limit": 5, "unlimited": True}],
    "unknown_service_accounts": {"sa_limit": 5, "suspended": "no"},
    "top_ups": [{"amount": 5, "until": "2026-03-01T00:00:00Z"}],
    "weights": {"input": 0.5},
    "models": [{"model": "a*", "weights": {"output": 2}}],
}


def paths(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where all values in a document stand."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [path, *(found for name, inner in items for found in paths(inner, (*path, name)))]


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, object]:
    """A document of every field, with values replaced by anything, or left out."""
    document = deepcopy(WHOLE)
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(paths(document)[1:]))
        within = document
        for step in way:
            within = within[step]
        if isinstance(within, dict) and draw(st.booleans()):
            del within[last]
        else:
            within[last] = draw(VALUES)
    return document


def usable(found: Policy | BadDocument) -> None:
    if isinstance(found, BadDocument):
        assert found.message.startswith("'")
        return
    for limit in (*found.limits, *(limit for terms in found.accounts.values() for limit in terms.limits)):
        assert type(limit.amount) is int
        assert 0 <= limit.amount <= MAX_AMOUNT
    kinds = [limit.kind for limit in found.limits]
    assert len(set(kinds)) == len(kinds)
    bind(found, CALLER, NOW, Subject("a", Endpoint.RERANK))


@FUZZ
@given(spoilt())
def test_a_document_with_anything_anywhere_gives_a_policy_or_names_its_problem(document):
    found = policy_from(document, BOTH)
    usable(found)
    if isinstance(found, Policy) and document.get("unlimited") is not True:
        assert {limit.unit is Unit.REQUESTS for limit in found.limits} == {True, False}


def test_the_document_of_every_field_is_one():
    assert isinstance(policy_from(WHOLE, BOTH), Policy)


@FUZZ
@given(st.dictionaries(st.sampled_from(sorted(WHOLE)), VALUES, max_size=5), VALUES)
def test_fields_of_any_value_never_make_a_policy_unlimited(fields, within):
    for name in ("limits", "service_accounts", "top_ups", "models"):
        found = policy_from({"tenant_id": "zone-prod", **fields, name: [within]}, BOTH)
        usable(found)
        assert isinstance(found, BadDocument) or found.limits or fields.get("unlimited") is True


@FUZZ
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "tenant_id": VALUES | st.just("zone"),
            "sa_limit": VALUES | st.integers(0, 10**13) | st.integers(0, 10**13).map(float),
            "ip_limit": VALUES,
            "timezone": VALUES | st.sampled_from(["UTC", "Asia/Kolkata"]) | st.text("UTC/._-\x00aä", max_size=9),
        },
    )
)
def test_any_document_gives_a_policy_that_binds_or_names_its_problem(document):
    found = policy_from(document, DEFAULTS)
    if isinstance(found, BadDocument):
        assert found.message.startswith("'")
    else:
        assert found.limits
        assert all(0 <= limit.amount <= MAX_AMOUNT for limit in found.limits)


@pytest.mark.parametrize("field", ["limits", "top_ups"])
def test_a_scope_is_read_with_its_parts_in_any_order(field):
    def policy(scope):
        item = {"scope": scope, "window": "day", "amount": 9, "until": "2026-03-01T00:00:00Z"}
        return read(**{field: [{name: item[name] for name in item if field == "top_ups" or name != "until"}]})

    assert policy("client_ip + service_account") == policy("service_account+client_ip")
    assert isinstance(policy("client_ip + service_account"), Policy)


def test_two_limits_whose_scopes_differ_in_order_alone_are_one_twice():
    items = [{"scope": scope, "window": "day", "amount": 9} for scope in ("model+client_ip", "client_ip+model")]
    assert "must not add a second limit" in read(limits=items).message
