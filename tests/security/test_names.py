"""Names, keys and labels by themselves: what test_identities.py shows through the real parts, for every odd value."""

import logging

import pytest

from extproc import app
from extproc.core.quota.limits import Bucket, Interval, Limit, Scope, Window
from extproc.core.quota.usage import Usage
from extproc.core.request.identity import IdentityRules, UnusableIdentity, identify
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.settings.load import SettingsError, load


@pytest.mark.parametrize(
    "claim", [{"$ne": ""}, {"$gt": 1}, ["a"], 5, 5.5, True, None, {}, [], "a\x00b", "a\r\nb", "a\x1b[31m"]
)
@pytest.mark.parametrize("where", ["sub", "tenant"])
def test_a_claim_that_is_no_printable_text_names_nobody(claim, where):
    claims = {"sub": "sa", "tenant": "acme"} | {where: claim}
    assert isinstance(identify(IdentityRules(), claims, {}, "10.0.0.1:1"), UnusableIdentity)


def test_parts_with_separators_make_different_keys():
    window = Interval(0, 86_400)
    limit = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 10)
    pairs = [
        ("a/b", "c"),
        ("a", "b/c"),
        ("a:b", "c"),
        ("a", "b:c"),
        ("a%3Ab", "c"),
        ("a%", "3Ab:c"),
        ("a b", "c"),
        ("a+b", "c"),
    ]
    keys = {Bucket(limit, pair, window).key for pair in pairs}
    assert len(keys) == len(pairs)
    assert all(key.isascii() and "{" not in key and "}" not in key for key in keys)


def test_a_million_identities_make_no_more_than_the_bounded_set_of_labels():
    metrics = Metrics(usage_series=200, tenant_series=200)
    for number in range(1_000_000 // 20):  # each is 20 of them: what is beyond the first 200 takes one path
        metrics.decided_for(f"tenant-{number}", "admitted", known=number % 2 == 0)
        metrics.used(f"tenant-{number}", f"model-{number}", Usage(1, 1))
    names = [
        sample.labels
        for family in metrics.registry.collect()
        for sample in family.samples
        if "tenant" in sample.labels
    ]
    tokens, decisions = 2 * 2 * 201, 2 * 3 * 201
    assert len(names) <= tokens + decisions


async def test_passwords_in_urls_reach_no_log_and_no_error(caplog):
    """Of stores that can't be reached, at debug level: the URL that is told has its secrets masked."""
    caplog.set_level(logging.DEBUG)
    given = {
        "TOKENWEIR_REDIS__URL": "redis://user:quince@127.0.0.1:1/0",
        "TOKENWEIR_MONGO__URL": "mongodb://user:quince@127.0.0.1:1/?serverSelectionTimeoutMS=50",
        "TOKENWEIR_ALERTS__WEBHOOK_URL": "https://example.com/quince",
        "TOKENWEIR_ALERTS__WEBHOOK_SECRET": "quincequincequince",
        "TOKENWEIR_MONGO__TIMEOUT_S": "0.2",
    }
    with pytest.raises(SettingsError) as refused:
        load(None, given | {"TOKENWEIR_ALERTS__WEBHOOK_URL": "https://user:quince@example.com/"})
    settings = load(None, given)
    stores = app.build_stores(settings)
    told = [str(refused.value), repr(settings), str(settings.model_dump()), settings.model_dump_json()]
    for call in (stores.counters.ping, stores.prepare):
        with pytest.raises(StoreError) as caught:
            await call()
        told.append(f"{caught.value!r} {caught.value}")
    await stores.aclose()
    assert "quince" not in " ".join(told) + caplog.text
