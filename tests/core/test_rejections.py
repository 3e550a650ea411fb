"""Denied answers, to the letter: what SDKs parse and people read."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core import rejections
from extproc.core.quota.limits import Bucket, Limit, Mode, Scope, Unit, Window, interval_at
from extproc.core.quota.reservation import BucketState, Count, Denied
from extproc.core.rejections import DeniedStyle, Rejection
from extproc.core.request.body import Malformed
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import UnusableIdentity

from .samples import BERLIN, FUZZ, NOW


def state(limit: Limit, used=11_990, held=0) -> BucketState:
    parts = tuple("x" for _ in limit.scope.names)
    return BucketState(Bucket(limit, parts, interval_at(limit.window, NOW, BERLIN)), Count(used, held))


def over(limit: Limit, style=DeniedStyle.OPENAI, now=NOW, **counts) -> Rejection:
    return rejections.over_limit(Denied(state(limit, **counts), need=50), now, style, Endpoint.CHAT_COMPLETIONS)


def error(rejection: Rejection) -> dict:
    assert ("content-type", "application/json") in rejection.headers
    document = json.loads(rejection.body)
    assert list(document) == ["error"]
    assert list(document["error"]) == ["message", "type", "param", "code"]
    return document["error"]


# Over a limit.


def test_a_denied_request_is_told_all_that_it_needs_to_wait_rightly():
    # 11:30:15 UTC is 12:30:15 in Berlin: 11 h 29 min 45 s to midnight.
    rejection = over(Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 12_000))
    assert rejection.status == 429
    assert rejection.reason == "over_limit:service_account+client_ip"
    assert rejection.headers == (
        ("content-type", "application/json"),
        ("retry-after", "41385"),
        ("x-ratelimit-limit-tokens", "12000"),
        ("x-ratelimit-remaining-tokens", "10"),
        ("x-ratelimit-reset-tokens", "11h29m45s"),
        ("x-should-retry", "false"),
    )
    assert error(rejection) == {
        "message": "Usage over limit -- serviceAccount + IP. Limit 12000 tokens per day: 11990 used, "
        "this request needs up to 50. Resets at 2026-03-04T23:00:00Z, in 11h29m45s.",
        "type": "tokens",
        "param": None,
        "code": "rate_limit_exceeded",
    }


@pytest.mark.parametrize(("amount", "hopeless"), [(49, True), (50, False)])
def test_who_asks_for_more_than_the_whole_limit_is_told_that_waiting_is_in_vain(amount, hopeless):
    message = error(over(Limit(Scope.TENANT, Window.DAY, amount), used=1))["message"]
    assert message.endswith("shorten the prompt or lower max_tokens.") is hopeless


@pytest.mark.parametrize(
    ("limit", "in_vain"),
    [
        (Limit(Scope.TENANT, Window.MINUTE, 49), True),
        (Limit(Scope.TENANT, Window.MONTH, 49), True),
        (Limit(Scope.TENANT, Window.MINUTE, 50), False),
        (Limit(Scope.TENANT, Window.MINUTE, 49, mode=Mode.STRICT), True),
        # Soft limits admit any request while less than the limit is used.
        (Limit(Scope.TENANT, Window.MINUTE, 49, mode=Mode.SOFT), False),
        (Limit(Scope.TENANT, Window.MINUTE, 0, mode=Mode.SOFT), True),
        (Limit(Scope.TENANT, Window.MINUTE, 0, Unit.REQUESTS), True),
    ],
)
def test_who_would_wait_in_vain_is_told_no_time_to_wait(limit, in_vain):
    rejection = over(limit, used=limit.amount)
    headers = dict(rejection.headers)
    assert ("retry-after" in headers) is not in_vain
    assert headers.get("x-should-retry") == ("false" if in_vain else None)
    assert ("more than the whole limit" in error(rejection)["message"]) is (
        in_vain and limit.unit is not Unit.REQUESTS
    )


def test_tokens_that_others_hold_are_told():
    message = error(over(Limit(Scope.TENANT, Window.DAY, 12_000), used=11_000, held=980))["message"]
    assert "per day: 11000 used and 980 held by requests in flight, this request" in message


@pytest.mark.parametrize(
    ("scope", "opening"),
    [
        (Scope.TENANT, "Usage over limit -- tenant."),
        (Scope.SERVICE_ACCOUNT, "Usage over limit -- serviceAccount."),
        (Scope.CLIENT_IP, "Usage over limit -- IP."),
        (Scope.SERVICE_ACCOUNT_IP, "Usage over limit -- serviceAccount + IP."),
    ],
)
def test_the_message_starts_with_the_scope_and_the_talks_answer_is_nothing_else(scope, opening):
    limit = Limit(scope, Window.DAY, 12_000)
    assert error(over(limit))["message"].startswith(opening + " ")
    assert over(limit, DeniedStyle.TALK) == Rejection(
        400, (("content-type", "text/plain"),), opening.encode(), f"over_limit:{scope}"
    )


@pytest.mark.parametrize("window", Window)
def test_clients_are_told_not_to_retry_only_where_the_window_is_longer_than_a_minute(window):
    headers = dict(over(Limit(Scope.TENANT, window, 100), used=90).headers)
    assert headers.get("x-should-retry") == (None if window is Window.MINUTE else "false")
    assert headers["x-ratelimit-remaining-tokens"] == "10"


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        (NOW, 45),
        (NOW + timedelta(seconds=44), 1),
        (NOW + timedelta(seconds=44, microseconds=999_999), 1),
        (NOW + timedelta(seconds=45), 1),
        (NOW + timedelta(hours=1), 1),
        (NOW + timedelta(microseconds=1), 45),
    ],
)
def test_the_wait_is_whole_seconds_never_too_short_and_never_none(now, seconds):
    headers = dict(over(Limit(Scope.TENANT, Window.MINUTE, 100), now=now).headers)
    assert (headers["retry-after"], headers["x-ratelimit-reset-tokens"]) == (str(seconds), f"{seconds}s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1s"),
        (59, "59s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3599, "59m59s"),
        (3600, "1h0m0s"),
        (41_234, "11h27m14s"),
        (2_678_400, "744h0m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    bucket = state(Limit(Scope.TENANT, Window.MONTH, 12_000))
    now = datetime.fromtimestamp(bucket.bucket.interval.end - seconds, UTC)
    assert dict(rejections.quota_headers((bucket,), now))["x-ratelimit-reset-tokens"] == text


def test_an_admitted_request_gets_the_quota_headers_only():
    assert rejections.quota_headers((state(Limit(Scope.TENANT, Window.DAY, 12_000), used=1, held=2),), NOW) == (
        ("x-ratelimit-limit-tokens", "12000"),
        ("x-ratelimit-remaining-tokens", "11997"),
        ("x-ratelimit-reset-tokens", "11h29m45s"),
    )


@FUZZ
@given(
    st.sampled_from(Scope),
    st.sampled_from(Window),
    st.integers(0, 10**12),
    st.integers(0, 10**13),
    st.integers(0, 10**13),
)
def test_any_denial_is_an_answer_that_a_client_can_parse(scope, window, amount, used, held):
    rejection = over(Limit(scope, window, amount), used=used, held=held)
    assert error(rejection)["code"] == "rate_limit_exceeded"
    headers = dict(rejection.headers)
    assert int(headers["retry-after"]) >= 1 if amount >= 50 else headers["x-should-retry"] == "false"
    assert int(headers["x-ratelimit-remaining-tokens"]) == max(0, amount - used - held)


@pytest.mark.parametrize(
    ("endpoint", "end"),
    [
        (Endpoint.RESPONSES, "shorten the prompt or lower max_output_tokens."),
        (Endpoint.EMBEDDINGS, "ask for less."),
        (None, "ask for less."),
    ],
)
def test_what_to_ask_for_less_with_is_the_endpoints_own_field(endpoint, end):
    denied = Denied(state(Limit(Scope.TENANT, Window.DAY, 49)), need=50)
    assert error(rejections.over_limit(denied, NOW, DeniedStyle.OPENAI, endpoint))["message"].endswith(end)


@pytest.mark.parametrize(
    ("unit", "words", "kind"),
    [
        (Unit.INPUT_TOKENS, "Limit 90 input tokens per minute: 88 used, this request needs up to 50.", "tokens"),
        (Unit.OUTPUT_TOKENS, "Limit 90 output tokens per minute: 88 used, this request needs up to 50.", "tokens"),
        (Unit.REQUESTS, "Limit 90 requests per minute: 88 used. Resets", "requests"),
    ],
)
def test_a_limit_is_told_in_its_unit(unit, words, kind):
    rejection = over(Limit(Scope.CLIENT_IP, Window.MINUTE, 90, unit), used=88)
    assert words in error(rejection)["message"]
    assert error(rejection)["type"] == kind
    headers = dict(rejection.headers)
    assert headers[f"x-ratelimit-limit-{kind}"] == "90"
    assert headers[f"x-ratelimit-remaining-{kind}"] == "2"
    assert not any(name.endswith({"tokens": "requests", "requests": "tokens"}[kind]) for name in headers)


def test_tokens_and_requests_are_told_side_by_side_each_by_its_tightest_bucket():
    states = (
        state(Limit(Scope.TENANT, Window.DAY, 12_000)),
        state(Limit(Scope.TENANT, Window.DAY, 11_991, Unit.OUTPUT_TOKENS)),
        state(Limit(Scope.TENANT, Window.MINUTE, 90, Unit.REQUESTS), used=1),
    )
    assert rejections.quota_headers(states, NOW) == (
        ("x-ratelimit-limit-tokens", "11991"),
        ("x-ratelimit-remaining-tokens", "1"),
        ("x-ratelimit-reset-tokens", "11h29m45s"),
        ("x-ratelimit-limit-requests", "90"),
        ("x-ratelimit-remaining-requests", "89"),
        ("x-ratelimit-reset-requests", "45s"),
    )
    assert rejections.quota_headers((), NOW) == ()


# The shape of the endpoint's API.


def test_anthropics_clients_get_anthropics_error():
    denied = Denied(state(Limit(Scope.TENANT, Window.DAY, 12_000)), need=50)
    answer = rejections.over_limit(denied, NOW, DeniedStyle.OPENAI, Endpoint.MESSAGES)
    document = json.loads(answer.body)
    assert list(document) == ["type", "error"]
    assert document["type"] == "error"
    assert document["error"]["type"] == "rate_limit_error"
    assert document["error"]["message"].startswith("Usage over limit -- tenant. ")
    assert dict(answer.headers)["retry-after"] == "41385"
    refused = rejections.malformed(Malformed("No.", "model"), Endpoint.MESSAGES)
    assert json.loads(refused.body)["error"] == {"type": "invalid_request_error", "message": "No."}


@pytest.mark.parametrize("endpoint", [Endpoint.PREDICT, Endpoint.INFER])
def test_kserves_clients_get_kserves_error(endpoint):
    denied = Denied(state(Limit(Scope.CLIENT_IP, Window.MINUTE, 60, Unit.REQUESTS), used=60), need=1)
    answer = rejections.over_limit(denied, NOW, DeniedStyle.OPENAI, endpoint)
    document = json.loads(answer.body)
    assert list(document) == ["error"]
    assert document["error"].startswith(
        "Usage over limit -- IP. Limit 60 requests per minute: 60 used. Resets at "
    )


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("suspended", "Access is suspended."),
        ("unpaid bill", "Access is suspended: unpaid bill."),
        ("Call us.", "Access is suspended: Call us."),
    ],
)
def test_who_is_suspended_reads_why(reason, message):
    answer = rejections.suspended(reason)
    assert (answer.status, answer.reason) == (403, "suspended")
    assert error(answer) == {"message": message, "type": "permission_error", "param": None, "code": "suspended"}


def test_an_answer_that_is_no_error_is_json_that_nobody_stores():
    answer = rejections.document({"a": 1}, "quota")
    assert (answer.status, answer.body, answer.reason) == (200, b'{"a":1}', "quota")
    assert answer.headers == (("content-type", "application/json"), ("cache-control", "no-store"))


# Everything else.


def test_a_malformed_request_names_the_field():
    rejection = rejections.malformed(Malformed("'n' must be \"one\".", "n", "invalid_value"))
    assert (rejection.status, rejection.headers, rejection.reason) == (
        400,
        (("content-type", "application/json"),),
        "malformed",
    )
    assert error(rejection) == {
        "message": "'n' must be \"one\".",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }


@pytest.mark.parametrize(
    ("rejection", "status", "reason", "extra", "fields"),
    [
        (
            rejections.too_large(4096),
            413,
            "too_large",
            (),
            {"type": "invalid_request_error", "param": None, "code": "request_too_large"},
        ),
        (
            rejections.compressed("gzip"),
            415,
            "compressed",
            (),
            {"type": "invalid_request_error", "param": "content-encoding", "code": "unsupported_content_encoding"},
        ),
        (
            rejections.method_not_allowed(),
            405,
            "method",
            (("allow", "POST"),),
            {"type": "invalid_request_error", "param": None, "code": "method_not_allowed"},
        ),
        (
            rejections.unusable_identity(UnusableIdentity("sub", "No name.")),
            403,
            "identity",
            (),
            {"type": "permission_error", "param": "sub", "code": "unusable_identity", "message": "No name."},
        ),
        (
            rejections.store_unavailable(7),
            503,
            "store_unavailable",
            (("retry-after", "7"),),
            {"type": "server_error", "param": None, "code": "quota_unavailable"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_other_refusal_has_its_status_reason_and_openais_shape(rejection, status, reason, extra, fields):
    assert (rejection.status, rejection.reason) == (status, reason)
    assert rejection.headers == (("content-type", "application/json"), *extra)
    assert error(rejection).items() >= fields.items()
    assert error(rejection)["message"]


def test_what_a_client_wrote_comes_back_short_and_escaped():
    message = error(rejections.compressed('gzip"\n' + "x" * 5000))["message"]
    assert 'content-encoding: gzip"\n' in message
    assert len(message) < 120
    assert "4096 bytes" in error(rejections.too_large(4096))["message"]
