"""A document with fields that can't be used keeps the readable ones, and is never freer than the last good one."""

from copy import deepcopy
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given

from extproc.core.quota.binding import Policy, StoreFailure, Terms, TopUp
from extproc.core.quota.costs import Weights
from extproc.core.quota.limits import Limit, Mode, Scope, Unit, Window
from extproc.core.quota.policies import BadDocument, Defaults, Repaired, policy_from, repaired_policy

from .test_policies import BOTH, FUZZ, IP, SA, WHOLE, paths, spoilt, usable

DEFAULTS = Defaults((Limit(*SA, 100), Limit(*IP, 50)), ZoneInfo("UTC"))
GARBAGE = [7.5, -1, "", "no such value", [], {}, [5], {"a": 1}, float("nan"), b"x", [[]], "x" * 300]


def repaired(document, last=None, defaults=DEFAULTS):
    found = repaired_policy({"tenant_id": "t"} | document, defaults, last)
    assert isinstance(found, Repaired)
    return found


def after(last, document, defaults=DEFAULTS):
    """The policy of a document that came after a good one."""
    good = {"tenant_id": "t"} | last
    assert not repaired(good, None, defaults).problems
    found = repaired(document, good, defaults)
    assert found.problems
    assert repaired(document, found.document, defaults).policy == found.policy  # and again, on the next read
    return found.policy


def amounts(policy):
    return {limit.kind: limit.amount for limit in policy.limits}


def test_a_good_document_is_used_as_it_is():
    found = repaired_policy(WHOLE, BOTH)
    assert found == Repaired(policy_from(WHOLE, BOTH), WHOLE)


def test_a_document_of_nobody_is_refused():
    assert isinstance(repaired_policy({"tenant_id": 5}, DEFAULTS, None), BadDocument)


def test_last_values_that_are_not_good_are_refused():
    assert isinstance(
        repaired_policy({"tenant_id": "t", "sa_limit": "x"}, DEFAULTS, {"sa_limit": "y"}), BadDocument
    )


@pytest.mark.parametrize("name", ["sa_limit", "ip_limit"])
@pytest.mark.parametrize("value", GARBAGE)
def test_the_readable_limit_stays_and_the_other_one_keeps_its_last_value_or_the_default(name, value):
    other, kinds = {"sa_limit": "ip_limit", "ip_limit": "sa_limit"}[name], {"sa_limit": Limit(*SA, 0).kind}
    kinds["ip_limit"] = Limit(*IP, 0).kind
    default = {kinds["sa_limit"]: 100, kinds["ip_limit"]: 50}[kinds[name]]
    document = {name: value, other: 7}
    assert amounts(repaired(document).policy) == {kinds[name]: default, kinds[other]: 7}
    assert amounts(after({name: 33, other: 5}, document)) == {kinds[name]: 33, kinds[other]: 7}
    assert amounts(after({other: 5}, document)) == {kinds[name]: default, kinds[other]: 7}


def test_the_default_of_an_unreadable_limit_comes_alone():
    month = {"scope": "tenant", "window": "month", "amount": 9}
    assert set(amounts(repaired({"sa_limit": "x", "limits": [month]}).policy)) == {
        "service_account:day",
        "tenant:month",
    }
    both = {"service_account:day", "service_account+client_ip:day", "tenant:month"}
    assert set(amounts(repaired({"limits": [month, {"scope": "?"}]}).policy)) == both
    assert set(amounts(repaired({"unlimited": True, "limits": [month, 5]}).policy)) == both


@pytest.mark.parametrize("value", GARBAGE)
def test_every_kind_of_field_keeps_its_last_value(value):
    last = {
        "sa_limit": 10, "mode": "strict", "timezone": "Asia/Kolkata", "weights": {"input": 2, "output": 3},
        "min_output_tokens": 5, "on_store_failure": "allow", "suspended": "unpaid", "unlimited": False,
        "unknown_service_accounts": {"suspended": True},
        "service_accounts": [{"name": "a", "sa_limit": 5}], "models": [{"model": "m", "weights": {"input": 4}}],
        "top_ups": [{"amount": 5, "until": "2026-03-01T00:00:00Z"}],
        "limits": [{"scope": "tenant", "window": "month", "amount": 9}],
    }  # fmt: skip
    expected = policy_from({"tenant_id": "t"} | last, DEFAULTS)
    for name in last:
        if not isinstance(policy_from({"tenant_id": "t"} | last | {name: value}, DEFAULTS), BadDocument):
            continue
        assert after(last, last | {name: value}) == expected, name


def test_every_kind_of_field_that_was_never_good_has_its_default():
    bad = dict.fromkeys(
        ["mode", "timezone", "weights", "min_output_tokens", "on_store_failure", "unlimited", "models", "top_ups",
         "service_accounts", "unknown_service_accounts", "shadows"], 7.5
    )  # fmt: skip
    found = repaired({"sa_limit": 10} | bad)
    assert found.policy == Policy("t", (Limit(*SA, 10),), ZoneInfo("UTC"))
    assert len(found.problems) == len(bad)
    assert found.document == {"tenant_id": "t", "sa_limit": 10}


@pytest.mark.parametrize(
    ("value", "reason"),
    [(1, "suspended"), ({"why": 1}, "suspended"), ("x" * 300, "suspended"), (0, None), ("", None)],
)
def test_a_suspension_that_was_never_good_suspends_unless_it_is_empty(value, reason):
    assert repaired({"suspended": value}).policy.suspended == reason
    account = {"name": "a", "suspended": value}
    assert repaired({"service_accounts": [account]}).policy.accounts["a"].suspended == reason
    assert after({"sa_limit": 5}, {"suspended": value}).suspended is None
    assert after({"suspended": "unpaid"}, {"suspended": value}).suspended == "unpaid"


def test_of_a_limit_only_the_unreadable_field_keeps_its_last_value():
    last = {"limits": [{"scope": "tenant", "window": "day", "amount": 9, "mode": "strict"}]}

    def limits(**fields):
        item = {"scope": "tenant", "window": "day", "amount": 8, "mode": "strict"} | fields
        return after(last, {"limits": [item]}).limits

    tenant = (Scope.TENANT, Window.DAY)
    assert limits(mode="strickt") == (Limit(*tenant, 8, mode=Mode.STRICT),)
    assert limits(amount="8k", mode="soft") == (Limit(*tenant, 9, mode=Mode.SOFT),)
    assert limits(amount=None) == (Limit(*tenant, 9, mode=Mode.STRICT),)
    assert limits(shadows="soft") == (Limit(*tenant, 8, mode=Mode.STRICT),)
    assert limits(modle="a*") == (Limit(*tenant, 9, mode=Mode.STRICT),)  # it was meant for some model
    moved = limits(scope="tennant", amount=1)
    assert moved == (Limit(*tenant, 9, mode=Mode.STRICT),)


def test_an_item_of_which_nothing_is_known_keeps_all_that_were_there_and_changes_to_the_others_apply():
    tenant, month = ({"scope": "tenant", "window": window, "amount": 9} for window in ("day", "month"))
    found = after({"limits": [tenant, month]}, {"limits": [month | {"amount": 5}, 7]})
    assert amounts(found) == {"tenant:month": 5, "tenant:day": 9}
    accounts = [{"name": "a", "suspended": True}, {"name": "b", "sa_limit": 5}, {"name": "c", "sa_limit": 6}]
    for wrong in ({"name": ""}, {"sa_limit": 5}, "a", {"name": "c", "sa_limit": 9}):
        changed = [{"name": "c", "sa_limit": 7}, wrong]
        found = after({"service_accounts": accounts}, {"service_accounts": changed}).accounts
        assert found["a"].suspended
        assert [found[name].limits[0].amount for name in "bc"] == [5, 7]


def test_misspelt_fields_of_an_account_leave_it_what_it_had():
    last = {"service_accounts": [{"name": "a", "suspended": True, "sa_limit": 5}]}
    found = after(last, {"service_accounts": [{"name": "a", "suspnded": True, "sa_limit": 4}]})
    assert found.accounts == {"a": Terms((Limit(*SA, 4),), suspended="suspended")}
    assert repaired({"service_accounts": [{"name": "a", "sa_limt": 4}]}).policy.accounts == {"a": Terms()}


def test_an_account_whose_limit_can_not_be_read_is_not_unlimited():
    account = {"name": "a", "unlimited": True, "ip_limit": "x"}
    assert repaired({"service_accounts": [account]}).policy.accounts == {"a": Terms()}


def test_of_two_limits_of_one_kind_the_smaller_one_binds():
    two = [{"scope": "tenant", "window": "day", "amount": n} for n in (9, 5, 7)]
    assert amounts(repaired({"sa_limit": 1, "limits": two}).policy) == {"service_account:day": 1, "tenant:day": 5}


def test_an_account_s_mode_without_limits_is_noted_and_harmless():
    found = repaired({"service_accounts": [{"name": "a", "mode": "soft"}]})
    assert found.policy.accounts == {"a": Terms()}
    assert len(found.problems) == 1


def test_a_top_up_that_can_not_be_read_adds_nothing_and_the_last_one_stays():
    good = {"amount": 5, "until": "2026-03-01T00:00:00Z", "note": "x"}
    raised = TopUp(Scope.SERVICE_ACCOUNT, Window.DAY, Unit.TOKENS, 5, 1772323200.0)
    for wrong in ({"amount": "lots"}, {"until": "soon"}, {"until": 10**30}, {"until": "9999-99-99"}):
        assert repaired({"top_ups": [good | wrong]}).policy.top_ups == ()
        assert after({"top_ups": [good]}, {"top_ups": [good | wrong, good]}).top_ups == (raised, raised)
    assert repaired({"top_ups": [good, good | {"until": None}]}).policy.top_ups == (raised,)


def test_weights_keep_the_readable_kinds():
    last = {"weights": {"input": 2, "output": 3}, "models": [{"model": "m", "weights": {"input": 4}}]}
    found = after(last, {"weights": {"input": "x", "output": 5}, "models": [{"model": "m", "weights": 5}]})
    assert found.weights == (("m", Weights(4000, 4000, 1000, 1000)), ("*", Weights(2000, 2000, 5000, 5000)))
    misspelt = after(last, {"weights": {"inptu": 1}})
    assert misspelt.weights == (("*", Weights(2000, 2000, 3000, 3000)),)
    twice = {"model": "n", "weights": {"input": 1}}
    assert len(after({}, {"models": [twice, twice]}).weights) == 1
    assert repaired({"weights": {"inptu": 1}}).problems


def test_on_store_failure_keeps_its_last_value():
    assert after({"on_store_failure": "allow"}, {"on_store_failure": 1}).on_store_failure is StoreFailure.ALLOW


def alike(policy):
    """What two policies must have in common, whatever the order of their items is."""
    fields = (policy.zone, policy.suspended, dict(policy.accounts), policy.others, policy.min_output_tokens)
    lists = (policy.limits, policy.top_ups, policy.weights)
    return (*fields, policy.on_store_failure, *(sorted(map(repr, items)) for items in lists))


@pytest.mark.parametrize("way", paths(WHOLE)[1:], ids=str)
@pytest.mark.parametrize("value", GARBAGE, ids=repr)
def test_one_unreadable_value_anywhere_changes_nothing(way, value):
    document = deepcopy(WHOLE)
    within = document
    for step in way[:-1]:
        within = within[step]
    within[way[-1]] = value
    if way == ("tenant_id",) or not isinstance(policy_from(document, BOTH), BadDocument):
        return
    found = repaired_policy(document, BOTH, WHOLE)
    assert isinstance(found, Repaired)
    assert found.problems
    assert alike(found.policy) == alike(policy_from(WHOLE, BOTH))


@FUZZ
@given(spoilt(), spoilt())
def test_anything_after_anything_gives_a_policy_that_can_be_used(first, second):
    before = repaired_policy(first, BOTH)
    for last in (None, before.document if isinstance(before, Repaired) else None):
        found = repaired_policy(second, BOTH, last)
        if isinstance(found, BadDocument):
            assert found.tenant is None
            continue
        usable(found.policy)
        again = repaired_policy({**second}, BOTH, found.document)
        assert again.policy == found.policy


def test_an_item_is_the_same_one_whose_scope_has_its_parts_in_another_order():
    last = {"limits": [{"scope": "client_ip+model", "window": "day", "amount": 7}]}
    bad = {"limits": [{"scope": "model+client_ip", "window": "day", "amount": "x"}]}
    assert after(last, bad).limits[0].amount == 7
