"""Which limits bind a request: the tenant's, a service account's own, and what stands in for whom."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.binding import Policy, Terms, TopUp, bind, limits_of
from extproc.core.quota.costs import Weights
from extproc.core.quota.limits import MAX_AMOUNT, Limit, Mode, Scope, Subject, Unit, Window, interval_at
from extproc.core.request.addresses import ClientIP
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from tests.changing import replace
from tests.core.samples import BERLIN, CALLER, FUZZ, NOW

MINUTELY = Limit(Scope.TENANT, Window.MINUTE, 100)
DAILY = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 1000)
PER_IP = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 500)
BY_IP = Limit(Scope.CLIENT_IP, Window.HOUR, 700)
BY_MODEL = Limit(Scope.MODEL, Window.DAY, 900)
LIMITS = (MINUTELY, DAILY, PER_IP)

OTHER = Identity(TenantId("zone-prod"), ServiceAccount("other@zone-prod"), ClientIP("10.0.0.7"))
CHAT = Subject("llama-70b", Endpoint.CHAT_COMPLETIONS)


def policy(*limits: Limit, **fields) -> Policy:
    return Policy(CALLER.tenant, limits, BERLIN, **fields)


def bound(of: Policy, who: Identity = CALLER, subject: Subject = CHAT, now: datetime = NOW) -> list[Limit]:
    return [bucket.limit for bucket in bind(of, who, now, subject)]


# All of a tenant's limits.


def test_every_limit_of_the_policy_binds_in_the_tenants_time_zone():
    buckets = bind(Policy(CALLER.tenant, LIMITS, BERLIN), CALLER, NOW)
    assert [bucket.limit for bucket in buckets] == list(LIMITS)
    assert [bucket.parts for bucket in buckets] == [
        (),
        (CALLER.service_account,),
        (CALLER.service_account, CALLER.client_ip),
    ]
    assert [bucket.interval for bucket in buckets] == [interval_at(limit.window, NOW, BERLIN) for limit in LIMITS]


def test_other_callers_and_other_days_have_buckets_of_their_own():
    of = Policy(CALLER.tenant, (DAILY,), BERLIN)
    other = Identity(CALLER.tenant, "other", CALLER.client_ip)
    buckets = {bind(of, who, NOW + timedelta(days=day)) for who in (CALLER, other) for day in (0, 1)}
    assert len(buckets) == 4
    assert bind(of, CALLER, NOW) == bind(of, CALLER, NOW + timedelta(hours=1))


def test_several_windows_of_one_scope_bind_at_once():
    several = tuple(Limit(Scope.SERVICE_ACCOUNT, window, 10) for window in Window)
    buckets = bind(policy(*several), CALLER, NOW)
    assert [bucket.interval for bucket in buckets] == [interval_at(window, NOW, BERLIN) for window in Window]
    assert len({bucket.key for bucket in buckets}) == 5


def test_a_model_and_an_endpoint_are_parts_like_any_other():
    limits = (BY_MODEL, replace(BY_MODEL, scope=Scope.SERVICE_ACCOUNT_ENDPOINT))
    parts = [bucket.parts for bucket in bind(policy(*limits), CALLER, NOW, CHAT)]
    assert parts == [("llama-70b",), (CALLER.service_account, "chat_completions")]


@pytest.mark.parametrize("subject", [Subject(), Subject(endpoint=Endpoint.ROUTE)])
def test_where_the_model_is_not_known_limits_that_need_it_are_left_out(subject):
    narrowed = replace(DAILY, model="*")
    assert bound(policy(DAILY, BY_MODEL, narrowed), subject=subject) == [DAILY]


def test_where_the_endpoint_is_not_known_limits_that_need_it_are_left_out():
    narrowed = replace(DAILY, endpoints=(Endpoint.CHAT_COMPLETIONS,))
    per_endpoint = replace(DAILY, scope=Scope.ENDPOINT)
    assert bound(policy(DAILY, narrowed, per_endpoint), subject=Subject("llama-70b")) == [DAILY]
    assert bound(policy(DAILY, narrowed, per_endpoint)) == [DAILY, narrowed, per_endpoint]


def test_a_limit_that_a_model_narrows_binds_only_the_models_that_match():
    narrowed = replace(DAILY, model="llama-*b")
    for model, binds in {
        "llama-70b": True,
        "llama-b": True,
        "llama-70b-x": False,
        "Llama-70b": True,
        "lama-70b": False,
    }.items():
        assert (narrowed in bound(policy(DAILY, narrowed), subject=Subject(model))) is binds


def test_a_limit_that_endpoints_narrow_binds_only_those():
    narrowed = replace(DAILY, endpoints=(Endpoint.EMBEDDINGS, Endpoint.RERANK))
    for endpoint in Endpoint:
        found = bound(policy(narrowed), subject=Subject("m", endpoint))
        assert bool(found) is (endpoint in {Endpoint.EMBEDDINGS, Endpoint.RERANK})


# A service account's own terms.


def test_an_own_limit_stands_in_for_the_tenants_of_the_same_kind_only():
    own = replace(DAILY, amount=5, mode=Mode.STRICT)
    further = Limit(Scope.SERVICE_ACCOUNT, Window.MONTH, 50)
    of = policy(MINUTELY, DAILY, PER_IP, BY_IP, accounts={CALLER.service_account: Terms((own, further))})
    assert bound(of) == [MINUTELY, PER_IP, BY_IP, own, further]
    assert bound(of, OTHER) == [MINUTELY, DAILY, PER_IP, BY_IP]


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": Unit.REQUESTS},
        {"unit": Unit.OUTPUT_TOKENS},
        {"window": Window.HOUR},
        {"scope": Scope.SERVICE_ACCOUNT_MODEL},
        {"model": "llama-*"},
        {"endpoints": (Endpoint.CHAT_COMPLETIONS,)},
        {"shadow": True},
    ],
)
def test_an_own_limit_of_another_kind_binds_beside_the_tenants(changes):
    own = replace(DAILY, amount=5, **changes)
    assert bound(policy(DAILY, accounts={CALLER.service_account: Terms((own,))})) == [DAILY, own]


def test_terms_without_limits_change_no_limit():
    assert bound(policy(*LIMITS, accounts={CALLER.service_account: Terms()})) == list(LIMITS)


def test_an_unlimited_account_is_still_bound_by_what_counts_tenant_client_ip_and_model():
    narrowed = replace(DAILY, model="llama-*")
    per_endpoint = replace(BY_IP, scope=Scope.CLIENT_IP_ENDPOINT)
    counting_accounts = [
        Limit(scope, Window.DAY, 1) for scope in Scope if scope.value.startswith("service_account")
    ]
    assert len(counting_accounts) == 6
    of = policy(
        *(MINUTELY, BY_IP, BY_MODEL, per_endpoint, narrowed, *counting_accounts),
        accounts={CALLER.service_account: Terms(unlimited=True)},
    )
    assert bound(of) == [MINUTELY, BY_IP, BY_MODEL, per_endpoint]
    assert bound(of, OTHER) == list(of.limits)


def test_an_unlimited_account_keeps_the_limits_that_are_its_own():
    own = replace(DAILY, amount=5)
    of = policy(MINUTELY, DAILY, PER_IP, accounts={CALLER.service_account: Terms((own,), unlimited=True)})
    assert bound(of) == [MINUTELY, own]


def test_accounts_that_are_not_named_have_the_terms_of_the_others():
    own = replace(DAILY, amount=5)
    of = policy(DAILY, accounts={CALLER.service_account: Terms()}, others=Terms((own,)))
    assert bound(of) == [DAILY]
    assert bound(of, OTHER) == [own]
    assert of.terms(OTHER) is of.others


# Suspended.


def test_nobody_is_suspended_without_a_word():
    assert policy(DAILY).suspension(CALLER) is None
    assert policy(DAILY, accounts={CALLER.service_account: Terms()}).suspension(CALLER) is None


def test_a_suspended_tenant_suspends_all_and_its_reason_counts_first():
    terms = {CALLER.service_account: Terms(suspended="leaked key")}
    assert policy(suspended="unpaid", accounts=terms).suspension(CALLER) == "unpaid"
    assert policy(suspended="unpaid").suspension(OTHER) == "unpaid"


def test_a_suspended_account_suspends_itself_only():
    of = policy(DAILY, accounts={CALLER.service_account: Terms(suspended="leaked key")})
    assert (of.suspension(CALLER), of.suspension(OTHER)) == ("leaked key", None)


def test_accounts_that_nobody_named_can_be_suspended_together():
    of = policy(accounts={CALLER.service_account: Terms()}, others=Terms(suspended="ask for access"))
    assert (of.suspension(CALLER), of.suspension(OTHER)) == (None, "ask for access")


# Top-ups.


SOON = NOW.timestamp() + 60


def top_up(amount=300, until=SOON, **fields) -> TopUp:
    plain = {"scope": Scope.SERVICE_ACCOUNT, "window": Window.DAY, "unit": Unit.TOKENS}
    return TopUp(**(plain | fields), amount=amount, until=until)


def amounts(of: Policy, who: Identity = CALLER, now: datetime = NOW) -> list[int]:
    return [limit.amount for limit in limits_of(of, who, now)]


def test_a_top_up_raises_its_limit_until_it_expires_and_keeps_the_bucket():
    of = policy(*LIMITS, top_ups=(top_up(),))
    assert amounts(of) == [100, 1300, 500]
    assert amounts(of, now=NOW + timedelta(seconds=59, microseconds=999_999)) == [100, 1300, 500]
    assert amounts(of, now=NOW + timedelta(seconds=60)) == [100, 1000, 500]
    keys = [[bucket.key for bucket in bind(p, CALLER, NOW)] for p in (of, policy(*LIMITS))]
    assert keys[0] == keys[1]


def test_top_ups_add_up_but_never_beyond_the_largest_amount():
    assert amounts(policy(DAILY, top_ups=(top_up(300), top_up(20), top_up(7, until=0.0)))) == [1320]
    assert amounts(policy(DAILY, top_ups=(top_up(MAX_AMOUNT), top_up(MAX_AMOUNT)))) == [MAX_AMOUNT]


@pytest.mark.parametrize(
    "fields",
    [
        {"scope": Scope.TENANT},
        {"window": Window.MONTH},
        {"unit": Unit.REQUESTS},
        {"model": "llama-*"},
        {"service_account": OTHER.service_account},
        {"amount": 0},
    ],
)
def test_a_top_up_for_something_else_raises_nothing(fields):
    assert limits_of(policy(DAILY, top_ups=(top_up(**fields),)), CALLER, NOW) == (DAILY,)


def test_a_top_up_may_be_one_accounts_and_one_models():
    narrowed = replace(DAILY, model="llama-*")
    mine = top_up(service_account=CALLER.service_account, model="llama-*")
    of = policy(DAILY, narrowed, top_ups=(mine,))
    assert amounts(of) == [1000, 1300]
    assert amounts(of, OTHER) == [1000, 1000]


def test_a_top_up_raises_an_accounts_own_limit_too():
    own = replace(DAILY, amount=5)
    of = policy(DAILY, top_ups=(top_up(),), accounts={CALLER.service_account: Terms((own,))})
    assert amounts(of) == [305]


# Weights.


def test_the_first_glob_that_matches_a_model_gives_its_weights():
    cheap, dear = Weights(input=1), Weights(input=2)
    of = policy(weights=(("llama-*", cheap), ("*", dear)))
    assert (of.own_weights("llama-70b"), of.own_weights("gpt")) == (cheap, dear)
    assert policy(weights=(("llama-*", cheap),)).own_weights("gpt") is None
    assert policy().own_weights("gpt") is None


# Anything at all.

SUBJECTS = st.builds(
    Subject, st.none() | st.sampled_from(["llama-70b", "llama", "gpt", ""]), st.none() | st.sampled_from(Endpoint)
)
ANY_LIMITS = st.lists(
    st.builds(
        Limit,
        st.sampled_from(Scope),
        st.sampled_from(Window),
        st.integers(0, 50),
        st.sampled_from(Unit),
        st.sampled_from(Mode),
        st.booleans(),
        st.none() | st.sampled_from(["*", "llama-*", "g?t"]),
        st.sampled_from([(), (Endpoint.CHAT_COMPLETIONS,), (Endpoint.RERANK, Endpoint.ROUTE)]),
    ),
    max_size=6,
    unique_by=lambda limit: limit.kind,
).map(tuple)
ANY_TERMS = st.builds(Terms, ANY_LIMITS, st.booleans())


@FUZZ
@given(ANY_LIMITS, st.none() | ANY_TERMS, st.none() | ANY_TERMS, SUBJECTS, st.integers(0, 2**31))
def test_no_request_ever_counts_twice_in_a_bucket_and_no_kind_gets_lost(limits, own, others, subject, second):
    accounts = {CALLER.service_account: own} if own is not None else {}
    of = policy(*limits, accounts=accounts, others=others)
    buckets = bind(of, CALLER, datetime.fromtimestamp(second, UTC), subject)
    keys = [bucket.key for bucket in buckets]
    assert len(set(keys)) == len(keys)
    terms = own or others or Terms()
    found = [bucket.limit for bucket in buckets]
    for limit in (*limits, *terms.limits):
        freed = terms.unlimited and "service_account" in limit.scope.names and limit not in terms.limits
        known = subject.model is not None or "model" not in limit.scope.names
        known = known and (subject.endpoint is not None or "endpoint" not in limit.scope.names)
        if limit.binds(subject) and known and not freed:
            assert limit.kind in [other.kind for other in found]
    assert all(limit in (*limits, *terms.limits) for limit in found)
