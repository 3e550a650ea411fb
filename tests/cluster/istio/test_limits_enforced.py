"""Token quotas and request limits, with what istiod makes of the charts' objects: the checks of tests/charts/live."""

from tests.charts.live.test_limits_enforced import (
    pytestmark,
    test_a_body_that_is_too_large_is_refused,
    test_a_stranger_uses_up_nothing,
    test_a_token_quota_is_enforced_and_shared_by_primary_and_canary,
    test_requests_to_an_llm_are_limited_by_address_and_by_account,
)

__all__ = [
    "pytestmark",
    "test_a_body_that_is_too_large_is_refused",
    "test_a_stranger_uses_up_nothing",
    "test_a_token_quota_is_enforced_and_shared_by_primary_and_canary",
    "test_requests_to_an_llm_are_limited_by_address_and_by_account",
]
