"""Metering at the model's own pods, with what istiod makes of the charts' objects."""

import pytest

from tests.charts.live.test_limits_enforced import (
    at_pods as at_pods,
)
from tests.charts.live.test_limits_enforced import (
    test_at_the_pods_a_quota_holds_for_callers_from_outside_and_inside as test_a_quota_holds,
)

__all__ = ["test_a_quota_holds"]

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="session")]
