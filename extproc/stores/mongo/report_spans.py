"""Divide the dates of a report into parts, each of which one query reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from extproc.ports.reports import Grain

DAY: Final = timedelta(days=1)
_MOST_PERIODS: Final = 512  # of one query


@dataclass(frozen=True, slots=True)
class Span:
    """Hold dates, both inclusive. `months`: whole months, which have rows of their own."""

    first: date
    last: date
    months: bool = False


def with_months(span: Span, since: str = "") -> list[Span]:
    """Divide a span into its whole months from `since` (YYYY-MM) on, and the days around; the newest first."""
    first = span.first if span.first.day == 1 else _next_month(span.first)
    first = max(first, first_of(since)) if since else first
    last = span.last if (span.last + DAY).day == 1 else span.last.replace(day=1) - DAY
    if first > last:
        return [span]
    parts = [Span(last + DAY, span.last), Span(first, last, months=True), Span(span.first, first - DAY)]
    return [part for part in parts if part.first <= part.last]


def windows(span: Span, grain: Grain, few: Callable[[], bool]) -> Iterator[Span]:
    """Divide a span into parts, the newest first. They grow while `few()` says that they have few rows.

    Dates that have begun nowhere are a part of their own: they are empty, and say nothing about others.
    """
    if grain is not Grain.MONTH:
        begun = datetime.now(UTC).date() + DAY
        if span.first <= begun < span.last:
            yield Span(begun + DAY, span.last)
            span = Span(span.first, begun)
        yield from _days(span, few)
        return
    for part in with_months(span):
        months, last = 1, part.last
        while last >= part.first:
            first = max(part.first, _months_before(last, months - 1))
            yield Span(first, last, months=part.months)
            last = first - DAY
            months = min(months * 2, _MOST_PERIODS) if few() else months


def _days(span: Span, few: Callable[[], bool]) -> Iterator[Span]:
    days, last = 1, span.last
    while last >= span.first:
        first = max(span.first, last - (days - 1) * DAY)
        yield Span(first, last)
        last = first - DAY
        days = min(days * 2, _MOST_PERIODS) if few() else days


def _next_month(day: date) -> date:
    return (day.replace(day=28) + 4 * DAY).replace(day=1)


def _months_before(day: date, months: int) -> date:
    """Return the first day of the month that is so many months before."""
    year, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    return date(year, month + 1, 1)


def first_of(month: str) -> date:
    return date.fromisoformat(f"{month}-01")


def last_of(month: str) -> date:
    return _next_month(first_of(month)) - DAY


def date_of(period: str) -> date:
    return date.fromisoformat(period[:10])


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
