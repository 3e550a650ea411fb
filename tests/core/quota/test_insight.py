"""What a caller is told of its limits."""

from datetime import UTC, datetime, timedelta

import pytest

from extproc.core.quota.insight import Insight, quota_document, row
from extproc.core.quota.limits import Bucket, Interval, Limit, Mode, Scope, Unit, Window
from extproc.core.quota.reservation import BucketState, Count
from extproc.core.request.endpoints import Endpoint
from tests.changing import replace
from tests.core.samples import CALLER

NOW = datetime(2026, 3, 4, 11, 30, 15, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 5, tzinfo=UTC)
DAILY = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 100)
OF_A_MODEL = Limit(
    Scope.TENANT, Window.MONTH, 7, Unit.REQUESTS, Mode.STRICT, model="big-*", endpoints=(Endpoint.SCORE,)
)


def state(limit=DAILY, used=30, held=20):
    interval = Interval(int(NOW.timestamp()) - 100, int(MIDNIGHT.timestamp()))
    return BucketState(Bucket(limit, ("sa",), interval), Count(used, held))


def test_a_limit_is_told_with_what_is_used_held_and_left_and_when_it_resets():
    assert row(DAILY, state(), NOW) == {
        "scope": "service_account",
        "unit": "tokens",
        "window": "day",
        "limit": 100,
        "used": 30,
        "held": 20,
        "remaining": 50,
        "resets_at": "2026-03-05T00:00:00Z",
        "resets_in_s": 44985,
        "mode": "reserve",
        "model": None,
        "endpoints": None,
    }


def test_a_limit_whose_bucket_is_not_known_is_told_without_counts():
    told = row(OF_A_MODEL, None, NOW)
    assert {told[name] for name in ("used", "held", "remaining", "resets_at", "resets_in_s")} == {None}
    assert (told["limit"], told["unit"], told["mode"]) == (7, "requests", "strict")
    assert (told["model"], told["endpoints"]) == ("big-*", ["score"])


def test_what_is_left_is_never_negative():
    assert row(DAILY, state(used=300), NOW)["remaining"] == 0


@pytest.mark.parametrize("late", [timedelta(), timedelta(seconds=5)])
def test_a_reset_is_never_now_or_in_the_past(late):
    assert row(DAILY, state(), MIDNIGHT + late)["resets_in_s"] == 1


def test_the_answer_names_the_caller_and_every_limit_but_shadows():
    shadow = replace(DAILY, shadow=True, amount=1)
    found = Insight(CALLER, ((DAILY, state()), (shadow, state(shadow)), (OF_A_MODEL, None)))
    answer = quota_document(found, NOW)
    assert answer == {
        "object": "quota",
        "tenant": "zone-prod",
        "service_account": "console@zone-prod",
        "client_ip": "10.0.0.7",
        "suspended": None,
        "limits": [row(DAILY, state(), NOW), row(OF_A_MODEL, None, NOW)],
    }
    assert quota_document(replace(found, suspended="unpaid"), NOW)["suspended"] == "unpaid"
