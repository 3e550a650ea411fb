"""A model that is no LLM, limited by requests alone, with what istiod makes of the charts' objects."""

from tests.charts.live.test_limits_enforced import (
    iris,
    pytestmark,
    test_a_model_that_is_no_llm_is_limited_by_address_and_by_account,
    test_its_administration_is_closed_and_its_callers_inside_need_no_token,
)

__all__ = [
    "iris",
    "pytestmark",
    "test_a_model_that_is_no_llm_is_limited_by_address_and_by_account",
    "test_its_administration_is_closed_and_its_callers_inside_need_no_token",
]
