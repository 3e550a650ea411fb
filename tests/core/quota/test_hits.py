"""Descriptors of Envoy's rate limit filter -> one hit: whose it is, what it counts as, which limits come along."""

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.hits import MAX_HITS, BadDescriptor, Descriptor, Hit, read_hit
from extproc.core.quota.limits import MAX_AMOUNT, Bucket, Interval, Limit, Scope, Subject, Unit, Window
from extproc.core.quota.routes import MAX_ROUTE_LIMITS, RouteLimit
from extproc.core.request.addresses import UNKNOWN_IP
from extproc.core.request.identity import ANONYMOUS, MAX_NAME_CHARS, Identity, UnusableIdentity, is_name

NOW = datetime(2026, 3, 1, 12, 30, 30, tzinfo=UTC)
ZONE = ZoneInfo("UTC")
CALLER = ("tenant", "acme"), ("service_account", "console"), ("remote_address", "10.0.0.7")


def entries(*pairs, **options):
    return Descriptor(pairs, **options)


def read(*descriptors, domain="tokenweir", **options):
    return read_hit(domain, descriptors, **options)


def limits(*descriptors, **options):
    return [each.limit for each in read(*descriptors, **options).extra]


def keys(*descriptors, **options):
    return [each.bucket(NOW, ZONE).key for each in read(*descriptors, **options).extra]


# ---------------------------------------------------------------- who calls


def test_one_descriptor_names_the_caller_and_counts_one_request():
    assert read(entries(*CALLER)) == Hit(Identity("acme", "console", "10.0.0.7"), None, 1)


def test_all_descriptors_of_a_request_are_about_one_caller():
    by_address = entries(("remote_address", "10.0.0.7"))
    by_account = entries(("service_account", "console"), ("model", "m"))
    by_tenant = entries(("tenant", "acme"))
    hit = read(by_address, by_account, by_tenant)
    assert hit == Hit(Identity("acme", "console", "10.0.0.7"), "m", 1)
    assert read(by_tenant, by_account, by_address) == hit


def test_an_entry_that_comes_twice_must_say_the_same():
    assert isinstance(read(entries(*CALLER), entries(*CALLER)), Hit)
    problem = read(entries(*CALLER), entries(("service_account", "other")))
    assert problem == UnusableIdentity(
        "service_account", "The rate limit entry 'service_account' has two different values."
    )
    assert read(entries(("model", "m"), ("model", "n"))).source == "model"


def test_a_caller_that_nothing_names_is_anonymous():
    assert read(entries(("generic_key", "x"))).identity == Identity(ANONYMOUS, ANONYMOUS, UNKNOWN_IP)


def test_a_tenant_without_a_service_account_stays_a_tenant():
    assert read(entries(("tenant", "acme"))).identity == Identity("acme", ANONYMOUS, UNKNOWN_IP)


def test_a_tenant_that_no_entry_names_is_derived_from_the_service_account():
    pattern = re.compile(r"@([\w-]+)\.")
    account = ("service_account", "console@zone-prod.example.com")
    assert read(entries(account), tenant_pattern=pattern).identity.tenant == "zone-prod"
    assert read(entries(account, ("tenant", "acme")), tenant_pattern=pattern).identity.tenant == "acme"
    assert read(entries(account)).identity.tenant == ANONYMOUS


@pytest.mark.parametrize("key", ["tenant", "service_account", "model", "route"])
@pytest.mark.parametrize("value", ["", " x", "a\nb", "x" * (MAX_NAME_CHARS + 1)])
def test_what_can_name_nobody_is_said_by_its_key_and_never_shown(key, value):
    problem = read(entries(("remote_address", "10.0.0.7"), (key, value)))
    assert problem == UnusableIdentity(
        key, f"The rate limit entry '{key}' must be a name: 1 to 256 printable characters."
    )


def test_envoys_other_entries_are_not_read():
    others = ("generic_key", ""), ("header_match", "a\n"), ("destination_cluster", "x"), ("header_match", "b")
    assert read(entries(*CALLER, *others)) == read(entries(*CALLER))


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("given_", "address"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("10.0.0.7:4321", "10.0.0.7"),
        ("2001:db8:0::1", "2001:db8::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("/run/x.sock", UNKNOWN_IP),
    ],
)
@pytest.mark.parametrize("key", ["client_ip", "remote_address"])
def test_an_address_has_one_spelling(key, given_, address):
    assert read(entries((key, given_))).identity.client_ip == address


@pytest.mark.parametrize(
    ("masked", "network"),
    [
        ("10.0.0.0/24", "10.0.0.0/24"),
        ("10.0.0.7/24", "10.0.0.0/24"),
        ("2001:db8:0::/64", "2001:db8::/64"),
        ("nonsense", UNKNOWN_IP),
        ("10.0.0.0/99", UNKNOWN_IP),
    ],
)
def test_a_masked_address_stands_for_its_network(masked, network):
    assert read(entries(("masked_remote_address", masked))).identity.client_ip == network


def test_an_address_of_the_operators_own_comes_before_the_peers_and_that_before_the_network():
    given_ = [("client_ip", "10.0.0.1"), ("remote_address", "10.0.0.2"), ("masked_remote_address", "10.0.0.0/24")]
    for expected in ("10.0.0.1", "10.0.0.2", "10.0.0.0/24"):
        assert read(*(entries(pair) for pair in reversed(given_))).identity.client_ip == expected
        assert read(entries(*given_)).identity.client_ip == expected
        del given_[0]


# ---------------------------------------------------------------- what it counts as


@pytest.mark.parametrize(
    ("addend", "own", "hits"),
    [
        (0, None, 1),
        (5, None, 5),
        (5, 3, 3),
        (5, 0, 1),  # a descriptor's own 0 is a check that counts nothing; there is none
        (0, 7, 7),
        (MAX_HITS + 1, None, MAX_HITS),
        (0, 2**64 - 1, MAX_HITS),
    ],
)
def test_a_descriptors_own_number_of_hits_comes_before_the_requests(addend, own, hits):
    assert read(entries(*CALLER, hits=own), hits_addend=addend).hits == hits


def test_a_request_counts_once_as_the_largest_of_its_descriptors_says():
    assert read(entries(*CALLER, hits=2), entries(*CALLER), entries(*CALLER, hits=4), hits_addend=3).hits == 4
    assert read(entries(*CALLER, hits=2), entries(*CALLER), hits_addend=3).hits == 3


# ---------------------------------------------------------------- limits of the route


def test_a_route_brings_limits_along():
    hit = read(entries(*CALLER, ("route", "search"), ("limit", "client_ip:60/minute")))
    limit = Limit(Scope.CLIENT_IP, Window.MINUTE, 60, Unit.REQUESTS)
    assert hit.extra == (RouteLimit(limit, ("10.0.0.7", "tokenweir", "route", "search")),)
    noon = int(NOW.replace(second=0).timestamp())
    assert hit.extra[0].bucket(NOW, ZONE) == Bucket(limit, hit.extra[0].parts, Interval(noon, noon + 60))


def test_the_windows_of_a_routes_limit_are_those_of_the_tenants_time_zone():
    (found,) = read(entries(*CALLER, ("limit", "tenant:5/day"))).extra
    assert found.bucket(NOW, ZoneInfo("Asia/Tokyo")).interval.start == 1_772_290_800  # 2026-03-01T00:00+09:00


@pytest.mark.parametrize("window", Window)
@pytest.mark.parametrize("amount", [0, 1, MAX_AMOUNT])
def test_every_window_and_amount_can_be_written(window, amount):
    (limit,) = limits(entries(*CALLER, ("limit", f"tenant:{amount}/{window}")))
    assert limit == Limit(Scope.TENANT, window, amount, Unit.REQUESTS)


@pytest.mark.parametrize("scope", [scope for scope in Scope if "endpoint" not in scope])
def test_every_scope_whose_parts_have_entries_can_be_written(scope):
    hit = read(entries(*CALLER, ("model", "m"), ("limit", f"{scope}:5/hour")))
    (found,) = hit.extra
    assert found.limit.scope is scope
    assert found.parts[:-3] == scope.parts(hit.identity, Subject("m"))


@pytest.mark.parametrize(
    "text",
    [
        "", "60/minute", "client_ip:60", "client_ip:60/second", "client_ip:-1/minute", "client_ip:1.5/minute",
        "client_ip:60/minute ", "Client_ip:60/minute", "nobody:60/minute", f"tenant:{MAX_AMOUNT + 1}/day",
        "tenant:٣/day", "tenant:9999999999999/day", "client_ip:60/minute,tenant:1/day",
    ],
)  # fmt: skip
def test_a_limit_that_reads_otherwise_is_refused_and_shown(text):
    problem = read(entries(*CALLER, ("limit", text)))
    assert isinstance(problem, BadDescriptor)
    assert repr(text) in problem.message
    assert "client_ip:60/minute" in problem.message


def test_what_is_shown_of_a_limit_is_short_and_printable():
    problem = read(entries(*CALLER, ("limit", "\x1b[31m" + "x" * 1000)))
    assert problem.message.isprintable()
    assert len(problem.message) < 200


@pytest.mark.parametrize(
    ("scope", "others"),
    [
        ("client_ip", [("service_account", "a")]),
        ("service_account+client_ip", [("service_account", "a")]),
        ("model", [("remote_address", "10.0.0.7")]),
        ("client_ip+model", [("remote_address", "10.0.0.7")]),
        ("endpoint", [("remote_address", "10.0.0.7"), ("model", "m")]),
    ],
)
def test_a_limit_by_what_no_entry_names_is_refused(scope, others):
    problem = read(entries(*others, ("limit", f"{scope}:5/day")))
    assert problem == BadDescriptor(f"A limit by {scope} needs an entry for each of its parts.")


def test_callers_without_a_service_account_share_the_bucket_of_the_anonymous():
    assert keys(entries(("remote_address", "10.0.0.7"), ("limit", "service_account:5/day"))) == [
        "service_account:day~requests:1772323200:anonymous:tokenweir"
    ]


def test_a_limit_may_stand_in_another_descriptor_than_the_caller():
    hit = read(entries(*CALLER), entries(("route", "search"), ("limit", "service_account+client_ip:5/minute")))
    assert [each.parts for each in hit.extra] == [("console", "10.0.0.7", "tokenweir", "route", "search")]


def test_one_descriptor_can_count_by_address_and_the_next_by_network():
    by_address = entries(("remote_address", "10.0.0.7"), ("limit", "client_ip:60/minute"))
    by_network = entries(("masked_remote_address", "10.0.0.0/24"), ("limit", "client_ip:600/minute"))
    hit = read(by_address, by_network)
    assert hit.identity.client_ip == "10.0.0.7"
    assert [(each.limit.amount, each.parts[0]) for each in hit.extra] == [(60, "10.0.0.7"), (600, "10.0.0.0/24")]


def test_two_routes_share_no_bucket_and_neither_do_a_route_and_a_model_of_its_name():
    limit = ("limit", "client_ip:60/minute")
    named = [(("route", "a"),), (("route", "b"),), (("model", "a"),), (), (("route", "a"), ("model", "b"))]
    found = [keys(entries(*CALLER, *names, limit))[0] for names in named]
    assert len(set(found)) == 4
    assert found[0] == found[4]  # the route's name is enough


def test_two_filters_of_different_domains_share_no_bucket():
    descriptor = entries(*CALLER, ("route", "a"), ("limit", "client_ip:60/minute"))
    assert keys(descriptor, domain="one") != keys(descriptor, domain="two")


@pytest.mark.parametrize("scope", [scope for scope in Scope if "endpoint" not in scope])
def test_a_routes_limit_never_shares_a_bucket_with_the_tenants_own(scope):
    hit = read(entries(*CALLER, ("model", "m"), ("limit", f"{scope}:5/hour")))
    of_route = hit.extra[0].bucket(NOW, ZONE)
    of_tenant = Bucket(of_route.limit, scope.parts(hit.identity, Subject("m")), of_route.interval)
    assert of_route.key != of_tenant.key


def test_of_limits_that_share_a_bucket_the_lowest_counts():
    amounts = [
        entries(*CALLER, *(("limit", f"client_ip:{n}/minute") for n in order)) for order in ((9, 3, 5), (3, 9))
    ]
    for descriptor in amounts:
        assert [limit.amount for limit in limits(descriptor, descriptor)] == [3]


def test_a_limit_of_nothing_is_a_limit():
    assert [limit.amount for limit in limits(entries(*CALLER, ("limit", "tenant:0/day")))] == [0]


def test_a_request_brings_a_bounded_number_of_limits():
    many = [entries(("route", f"r{n}"), ("limit", "tenant:5/day")) for n in range(MAX_ROUTE_LIMITS + 1)]
    assert len(limits(*many[1:])) == MAX_ROUTE_LIMITS
    assert read(*many) == BadDescriptor("A request can have 16 entries 'limit', not 17.")


# ---------------------------------------------------------------- what is not there


@pytest.mark.parametrize("domain", ["", " ", "x" * (MAX_NAME_CHARS + 1), "a\nb"])
def test_a_domain_is_a_name(domain):
    assert "domain" in read(entries(*CALLER), domain=domain).message


def test_a_request_without_descriptors_is_refused():
    assert read() == BadDescriptor("A rate limit request needs a descriptor.")


def test_what_would_be_misunderstood_is_refused_and_not_ignored():
    assert "entry 'limit'" in read(entries(*CALLER), entries(overrides=True)).message
    assert "given back" in read(entries(*CALLER), entries(refunds=True)).message


# ---------------------------------------------------------------- anything at all

TEXT = st.one_of(
    st.text(max_size=8), st.sampled_from(["10.0.0.7", "10.0.0.0/8", "a", "tenant:5/day", "client_ip:1/week"])
)
KEYS = [
    "tenant",
    "service_account",
    "client_ip",
    "remote_address",
    "masked_remote_address",
    "model",
    "route",
    "limit",
]
ENTRY = st.tuples(st.one_of(st.sampled_from(KEYS), st.text(max_size=4)), TEXT)
DESCRIPTOR = st.builds(Descriptor, st.lists(ENTRY, max_size=6).map(tuple), st.none() | st.integers(0, 2**64 - 1))


@given(st.sampled_from(["tokenweir", ""]), st.lists(DESCRIPTOR, max_size=4), st.integers(0, 2**32 - 1))
def test_any_request_is_read_or_refused(domain, descriptors, addend):
    found = read_hit(domain, descriptors, addend)
    if isinstance(found, Hit):
        assert 1 <= found.hits <= MAX_HITS
        assert is_name(found.identity.tenant)
        assert is_name(found.identity.service_account)
        buckets = [each.bucket(NOW, ZONE) for each in found.extra]
        assert len({bucket.key for bucket in buckets}) == len(buckets)
    elif isinstance(found, UnusableIdentity):
        assert found.source in KEYS
    else:
        assert found.message.isprintable()
