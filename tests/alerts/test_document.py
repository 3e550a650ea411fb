"""An alert for receivers: an id that stays, and a document that says all."""

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.alerts.document import document_of, id_of, payload_of
from extproc.core.quota.limits import Bucket, Interval, Limit, Mode, Scope, Unit, Window
from extproc.core.request.endpoints import Endpoint
from extproc.ports.alerts import Alert, AlertReason
from tests.changing import replace
from tests.sizes import examples

DAY = Interval(
    int(datetime(2026, 3, 3, 23, tzinfo=UTC).timestamp()), int(datetime(2026, 3, 4, 23, tzinfo=UTC).timestamp())
)
NEXT_DAY = Interval(DAY.end, DAY.end + 86_400)
AT = datetime(2026, 3, 4, 12, 30, 15, 999_999, tzinfo=timezone(timedelta(hours=1)))
PER_ACCOUNT = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 12_000)
FUZZ = examples(quick=20, thorough=100)


def bucket(limit=PER_ACCOUNT, parts=("console@zone-prod",), interval=DAY):
    return Bucket(limit, parts, interval)


def alert(**changes):
    fields = {"tenant": "zone-prod", "bucket": bucket(), "used": 9_700, "threshold": 80, "at": AT}
    return Alert(**(fields | changes))


def test_an_alert_keeps_its_id_on_another_replica_at_another_time_and_with_more_used():
    assert id_of(alert()) == id_of(alert(used=11_000, at=AT + timedelta(seconds=3)))


def test_an_id_is_half_a_digest_of_tenant_bucket_and_threshold():
    named = f'["zone-prod", "{bucket().key}", 80]'
    assert id_of(alert()) == hashlib.sha256(named.encode()).hexdigest()[:32]


def test_a_limit_raised_in_mid_window_does_not_make_the_same_threshold_another_alert():
    assert id_of(alert(bucket=bucket(replace(PER_ACCOUNT, amount=24_000)))) == id_of(alert())


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "zone-test"},
        {"threshold": 95},
        {"bucket": bucket(interval=NEXT_DAY)},
        {"bucket": bucket(parts=("batch@zone-prod",))},
        {"bucket": bucket(replace(PER_ACCOUNT, window=Window.MONTH))},
        {"bucket": bucket(replace(PER_ACCOUNT, unit=Unit.REQUESTS))},
        {"bucket": bucket(replace(PER_ACCOUNT, model="gpt-*"))},
        {"bucket": bucket(replace(PER_ACCOUNT, shadow=True))},
    ],
)
def test_another_tenant_bucket_window_or_threshold_is_another_alert(other):
    assert id_of(alert(**other)) != id_of(alert())


@FUZZ
@given(st.lists(st.tuples(st.text(), st.text(), st.integers(1, 200)), min_size=2, max_size=6, unique=True))
def test_no_two_names_make_one_id_whatever_characters_they_hold(triples):
    ids = {id_of(alert(tenant=t, bucket=bucket(parts=(sa,)), threshold=n)) for t, sa, n in triples}
    assert len(ids) == len(triples)


def test_the_document_names_everything_that_a_receiver_needs():
    assert document_of(alert()) == {
        "id": id_of(alert()),
        "type": "tokenweir.quota.threshold",
        "version": 1,
        "occurred_at": "2026-03-04T11:30:15Z",
        "tenant": "zone-prod",
        "scope": "service_account",
        "service_account": "console@zone-prod",
        "unit": "tokens",
        "window": "day",
        "window_started_at": "2026-03-03T23:00:00Z",
        "resets_at": "2026-03-04T23:00:00Z",
        "limit": 12_000,
        "used": 9_700,
        "used_percent": 80,
        "threshold_percent": 80,
        "shadow": False,
    }


@pytest.mark.parametrize("scope", Scope)
def test_the_document_has_exactly_the_identity_parts_of_its_scope(scope):
    parts = tuple(f"the {name}" for name in scope.names)
    document = document_of(alert(bucket=bucket(Limit(scope, Window.DAY, 1), parts)))
    identity = {"service_account", "client_ip", "model", "endpoint"}
    assert {name: document[name] for name in identity & document.keys()} == {n: f"the {n}" for n in scope.names}
    assert document["scope"] == scope.value


def test_what_narrows_a_limit_is_told_apart_from_the_parts_of_its_scope():
    limit = Limit(
        Scope.MODEL, Window.HOUR, 5, Unit.OUTPUT_TOKENS, Mode.SOFT, shadow=True, model="gpt-*",
        endpoints=(Endpoint.RESPONSES, Endpoint.CHAT_COMPLETIONS),
    )  # fmt: skip
    document = document_of(alert(bucket=bucket(limit, ("gpt-tiny",))))
    assert document["model"] == "gpt-tiny"
    assert document["model_pattern"] == "gpt-*"
    assert document["endpoints"] == ["chat_completions", "responses"]
    assert document["unit"] == "output_tokens"
    assert document["shadow"] is True


@pytest.mark.parametrize(
    ("used", "amount", "percent"),
    [(0, 3, 0), (2, 3, 66), (3, 3, 100), (7, 3, 233), (10**12 - 1, 10**12, 99), (0, 0, None), (5, 0, None)],
)
def test_the_used_percentage_is_rounded_down_and_never_promises_what_is_not_reached(used, amount, percent):
    told = alert(used=used, bucket=bucket(replace(PER_ACCOUNT, amount=amount)))
    assert document_of(told)["used_percent"] == percent


def test_the_payload_is_the_document_in_the_same_ascii_bytes_each_time():
    strange = alert(tenant="zöne\ud800\n", bucket=bucket(parts=('a"b\\c',)))
    payload = payload_of(strange)
    assert payload.isascii()
    assert payload == payload_of(strange)
    assert json.loads(payload) == document_of(strange)


@FUZZ
@given(st.text(), st.text(), st.integers(0, 10**13), st.integers(0, 10**12))
def test_any_alert_has_a_payload(tenant, account, used, amount):
    told = alert(tenant=tenant, used=used, bucket=bucket(replace(PER_ACCOUNT, amount=amount), (account,)))
    assert json.loads(payload_of(told))["service_account"] == account


# Denials and lockouts.


def denial(**changes):
    return alert(
        **({"threshold": 0, "reason": AlertReason.DENIED, "used": 24, "held": 15, "needed": 20} | changes)
    )


def test_a_denial_says_what_was_used_held_and_needed():
    document = document_of(denial())
    assert document["type"] == "tokenweir.quota.denied"
    assert (document["limit"], document["used"], document["held"], document["needed"]) == (12_000, 24, 15, 20)
    assert (document["scope"], document["service_account"], document["resets_at"]) == (
        "service_account", "console@zone-prod", "2026-03-04T23:00:00Z",
    )  # fmt: skip
    assert "threshold_percent" not in document


def test_a_lockout_and_a_threshold_of_one_bucket_are_other_messages():
    made = [alert(), denial(), denial(reason=AlertReason.LOCKED_OUT)]
    assert len({id_of(each) for each in made}) == len({document_of(each)["type"] for each in made}) == 3
    assert id_of(denial()) == id_of(denial(used=30, at=AT + timedelta(minutes=1)))


def test_a_suspension_says_whom_and_why_and_has_no_limit():
    document = document_of(denial(reason=AlertReason.SUSPENDED, told="unpaid"))
    assert document["type"] == "tokenweir.quota.suspended"
    assert (document["suspended"], document["service_account"]) == ("unpaid", "console@zone-prod")
    assert document.keys().isdisjoint({"limit", "used", "unit"})
