"""Documents of tenants: the talk's three fields are a whole document, and what can't be used says why."""

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.identity import TenantId
from extproc.core.limits import MAX_AMOUNT, Limit, Scope, Window
from extproc.core.policies import BadDocument, Defaults, policy_from, short_limits
from extproc.core.quota import Policy

from .samples import BERLIN, FUZZ, VALUES

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
    assert short_limits(None, None) == ()
    assert short_limits(0, 5) == (Limit(*SA, 0), Limit(*IP, 5))


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
