"""Metering at the model's own pods, with what istiod makes of the charts' objects."""

from tests.charts.live.test_limits_enforced import (
    at_pods,
    pytestmark,
    test_at_the_pods_a_quota_holds_for_callers_from_outside_and_inside,
)

__all__ = ["at_pods", "pytestmark", "test_at_the_pods_a_quota_holds_for_callers_from_outside_and_inside"]
