"""A model that is no LLM, limited by requests alone, with what istiod makes of the charts' objects."""

from tests.charts.live.test_limits_enforced import (
    iris as iris,
)
from tests.charts.live.test_limits_enforced import (
    pytestmark as pytestmark,
)
from tests.charts.live.test_limits_enforced import (
    test_a_model_that_is_no_llm_is_limited_by_address_and_by_account as test_it_is_limited,
)
from tests.charts.live.test_limits_enforced import (
    test_its_administration_is_closed_and_its_callers_inside_need_no_token as test_its_callers,
)

__all__ = ["test_it_is_limited", "test_its_callers"]
