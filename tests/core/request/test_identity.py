"""Who calls: verified sources in their order, one spelling per address, and no guesses."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.addresses import UNKNOWN_IP, client_ip
from extproc.core.request.identity import (
    ANONYMOUS,
    MAX_NAME_CHARS,
    Identity,
    IdentityRules,
    UnusableIdentity,
    identify,
    is_name,
)
from tests.core.samples import FUZZ, VALUES

PEER = "10.0.0.7:4321"
RULES = IdentityRules(service_account_header="oc_sa", tenant_header="x-tenant")


def who(rules=RULES, claims=None, headers=None, source=PEER):
    return identify(rules, claims or {}, headers or {}, source)


def test_a_verified_claim_names_the_caller_before_any_header():
    assert who(
        claims={"sub": "console", "tenant": "zone-prod"}, headers={"oc_sa": "mallory", "x-tenant": "other"}
    ) == Identity("zone-prod", "console", "10.0.0.7")


def test_a_header_that_the_mesh_owns_names_the_caller_where_no_claim_does():
    assert who(headers={"oc_sa": "console", "x-tenant": "zone-prod"}) == Identity(
        "zone-prod", "console", "10.0.0.7"
    )


def test_each_part_comes_from_its_own_first_source():
    assert who(claims={"sub": "console"}, headers={"oc_sa": "x", "x-tenant": "zone-prod"}) == Identity(
        "zone-prod", "console", "10.0.0.7"
    )


def test_a_caller_that_no_source_names_is_anonymous():
    assert who() == Identity(ANONYMOUS, ANONYMOUS, "10.0.0.7")
    assert who(claims={"tenant": "zone-prod"}) == Identity("zone-prod", ANONYMOUS, "10.0.0.7")
    assert who(claims={"sub": "console"}) == Identity(ANONYMOUS, "console", "10.0.0.7")


def test_headers_that_nobody_declared_and_claims_that_nobody_asked_for_are_not_read():
    rules = IdentityRules(tenant_claim=None)
    headers = {"oc_sa": "x", "x-tenant": "y", "x-forwarded-for": "1.2.3.4"}
    assert who(rules, {"tenant": "z", "email": "e"}, headers) == Identity(ANONYMOUS, ANONYMOUS, "10.0.0.7")


def test_the_rules_say_which_claims_and_headers_are_read():
    assert (RULES.claims, RULES.headers) == (("sub", "tenant"), ("oc_sa", "x-tenant"))
    bare = IdentityRules(service_account_claim="azp", tenant_claim=None)
    assert (bare.claims, bare.headers) == (("azp",), ())


NO_NAMES = ["", " ", " a", "a ", "a\n", "a\x00", "a\u200b", "\ud800", "a" * (MAX_NAME_CHARS + 1)]


@pytest.mark.parametrize("value", [*NO_NAMES, None, 5, 1.5, True, [], ["console"], {}, b"console"])
@pytest.mark.parametrize("claim", ["sub", "tenant"])
def test_a_claim_that_names_nobody_is_refused_and_no_header_stands_in(claim, value):
    found = who(claims={"sub": "a", "tenant": "b", claim: value}, headers={"oc_sa": "x", "x-tenant": "y"})
    assert found == UnusableIdentity(
        claim, f"The token's claim '{claim}' must be a string: 1 to 256 printable characters."
    )


@pytest.mark.parametrize("value", [*NO_NAMES, "a,b", ",", "console,console"])
@pytest.mark.parametrize("header", ["oc_sa", "x-tenant"])
def test_a_header_that_names_nobody_or_came_twice_is_refused(header, value):
    found = who(headers={"oc_sa": "a", "x-tenant": "b", header: value})
    assert found == UnusableIdentity(
        header, f"The header '{header}' must hold one name: 1 to 256 printable characters."
    )


@pytest.mark.parametrize(
    "name", ["a", "Zoë, the console", "世界", "a b", "a" * MAX_NAME_CHARS, "system:serviceaccount:ns:sa"]
)
def test_a_claim_may_hold_any_printable_name(name):
    assert is_name(name)
    assert who(claims={"sub": name}).service_account == name


# Tenants out of service accounts.


@pytest.mark.parametrize(
    ("pattern", "account", "tenant"),
    [
        (r"@(?P<tenant>[^.]+)\.", "console@zone-prod.example.com", "zone-prod"),
        (r"@([^.]+)\.", "console@zone-prod.example.com", "zone-prod"),
        (r"(a)?@(?P<tenant>[^.]+)", "a@zone", "zone"),
        (r"(x)?@(.+)", "a@zone", "zone"),
        (r"@(?P<tenant>[^.]+)\.", "console", ANONYMOUS),
        (r"console", "console@zone", ANONYMOUS),
        (r"@(.*)", "console@", ANONYMOUS),
        (r"@(.*)!", "console@ zone!", ANONYMOUS),
    ],
)
def test_a_tenant_is_derived_from_the_service_account_by_the_pattern(pattern, account, tenant):
    rules = IdentityRules(tenant_pattern=re.compile(pattern))
    assert who(rules, {"sub": account}) == Identity(tenant, account, "10.0.0.7")


def test_a_tenant_that_a_source_names_is_never_derived_nor_is_one_for_the_anonymous():
    rules = IdentityRules(tenant_pattern=re.compile("(.+)"))
    assert who(rules, {"sub": "a", "tenant": "b"}).tenant == "b"
    assert who(rules).tenant == ANONYMOUS


# Addresses.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("10.0.0.7:4321", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7"),
        (" 10.0.0.7:4321 ", "10.0.0.7"),
        ("[2001:db8::1]:443", "2001:db8::/64"),
        ("[2001:DB8:0:0:0:0:0:1]:443", "2001:db8::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("[2001:db8::1]", "2001:db8::/64"),
        ("[fe80::1%eth0]:80", "fe80::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("[::ffff:a00:7]:9", "10.0.0.7"),
        ("::1", "::/64"),
        ("", UNKNOWN_IP),
        ("unix:///run/envoy.sock", UNKNOWN_IP),
        ("/run/envoy.sock", UNKNOWN_IP),
        ("localhost:80", UNKNOWN_IP),
        ("010.0.0.7:80", UNKNOWN_IP),
        ("10.0.0.256:80", UNKNOWN_IP),
        ("10.0.7:80", UNKNOWN_IP),
        ("167772167", UNKNOWN_IP),
        ("[]:80", UNKNOWN_IP),
        ("\u0661\u0660.\u0660.\u0660.\u0667:80", UNKNOWN_IP),
    ],
)
def test_an_address_has_one_spelling(source, expected):
    assert client_ip(source) == expected
    assert who(source=source).client_ip == expected


# Anything at all.


TEXTS = st.text(max_size=8) | st.text("a,@. \n", max_size=8)


@FUZZ
@given(
    st.builds(
        IdentityRules,
        service_account_claim=st.sampled_from(["sub", "azp"]),
        tenant_claim=st.sampled_from([None, "tenant"]),
        service_account_header=st.sampled_from([None, "oc_sa"]),
        tenant_header=st.sampled_from([None, "x-tenant"]),
        tenant_pattern=st.sampled_from(
            [None, re.compile("@(.*)"), re.compile("(?P<tenant>.)(.)?"), re.compile("")]
        ),
    ),
    st.dictionaries(st.sampled_from(["sub", "azp", "tenant"]), TEXTS | VALUES),
    st.dictionaries(st.sampled_from(["oc_sa", "x-tenant"]), TEXTS),
    st.text(max_size=20),
)
def test_any_caller_is_named_or_refused_with_the_source(rules, claims, headers, source):
    found = identify(rules, claims, headers, source)
    if isinstance(found, UnusableIdentity):
        assert found.source in {*rules.claims, *rules.headers}
        assert found.message
    else:
        assert is_name(found.tenant)
        assert is_name(found.service_account)
        assert found.client_ip


# ---------------------------------------------------------------- mTLS principals

PEER = "spiffe://cluster.local/ns/batch/sa/scorer"
MESH = IdentityRules(
    peer_principals=True,
    gateway_principals=frozenset({"cluster.local/ns/istio-system/sa/gateway"}),
    tenant_pattern=re.compile("/ns/([^/]+)/"),
)


def test_a_caller_in_the_mesh_is_named_by_its_principal_where_nothing_else_names_it():
    caller = identify(MESH, {}, {}, "10.0.0.7:1", PEER)
    assert caller == Identity("batch", "cluster.local/ns/batch/sa/scorer", UNKNOWN_IP)


def test_a_token_comes_before_the_principal_and_the_peers_word_on_addresses_counts_for_nothing():
    claims = {"sub": "console", "tenant": "acme"}
    assert identify(MESH, claims, {}, "10.0.0.7:1", PEER) == Identity("acme", "console", UNKNOWN_IP)


def test_a_gateway_names_nobody_and_its_word_on_addresses_counts():
    gateway = "spiffe://cluster.local/ns/istio-system/sa/gateway"
    assert identify(MESH, {}, {}, "10.0.0.7:1", gateway) == Identity(ANONYMOUS, ANONYMOUS, "10.0.0.7")


def test_principals_count_only_where_they_are_switched_on():
    rules = IdentityRules(tenant_pattern=MESH.tenant_pattern)
    assert identify(rules, {}, {}, "10.0.0.7:1", PEER) == Identity(ANONYMOUS, ANONYMOUS, "10.0.0.7")
    assert identify(MESH, {}, {}, "10.0.0.7:1", "") == Identity(ANONYMOUS, ANONYMOUS, "10.0.0.7")


def test_a_principal_that_can_name_nobody_is_said_so():
    problem = identify(MESH, {}, {}, "10.0.0.7:1", "spiffe://" + "x" * 300)
    assert isinstance(problem, UnusableIdentity)
    assert problem.source == "principal"
