"""What stays closed where all paths of a model are published, with what istiod makes of the charts' objects."""

from tests.charts.live.test_callers import pytestmark, test_they_are_closed_where_all_paths_are_published, wide

__all__ = ["pytestmark", "test_they_are_closed_where_all_paths_are_published", "wide"]
