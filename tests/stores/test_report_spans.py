"""A report is read in parts that cover its dates once, the newest first."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from extproc.ports.reports import Grain
from extproc.stores.mongo.report_spans import DAY, Span, windows

TODAY = datetime.now(UTC).date()


@pytest.mark.parametrize("ahead", [-3, 0, 1, 2, 40])
@pytest.mark.parametrize("grain", Grain)
def test_parts_cover_all_dates_once_the_newest_first(ahead, grain):
    span = Span(TODAY - 100 * DAY, TODAY + ahead * DAY)
    parts = list(windows(span, grain, lambda: True))
    assert (parts[0].last, parts[-1].first) == (span.last, span.first)
    assert all(older.last + DAY == newer.first for newer, older in pairwise(parts))


def test_dates_to_come_do_not_make_the_parts_grow():
    """At the begin of a month all its other days are to come."""
    parts = list(windows(Span(TODAY - 9 * DAY, TODAY + 31 * DAY), Grain.DAY, lambda: True))
    assert parts[0].first > TODAY + DAY
    assert parts[1] == Span(TODAY + timedelta(days=1), TODAY + timedelta(days=1))
