"""Who gets in, with what istiod makes of the charts' objects: the checks of tests/charts/live."""

from tests.charts.live.test_callers import *  # noqa: F403
from tests.charts.live.test_callers import pytestmark

__all__ = ["pytestmark"]

del wide, test_they_are_closed_where_all_paths_are_published  # noqa: F821 - in test_all_paths.py
