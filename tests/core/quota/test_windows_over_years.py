"""Thousands of instants, where clocks are odd: around midnights, month ends and daylight-saving changes.

The thorough form has more than 10,000; the quick one has all changes of the clocks and a few of the others.

A charge lands in the window of its admission, and each window resets once. What days, weeks and months are is
counted here from one midnight to the next, on the clock and the calendar of the zone.
"""

from bisect import bisect_right
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from random import Random
from zoneinfo import ZoneInfo

import pytest

from extproc.core.quota.binding import Policy, bind
from extproc.core.quota.costs import Bound, Cost
from extproc.core.quota.ledger import SHORTEST_RETENTION
from extproc.core.quota.limits import LONGEST_WINDOW, Limit, Mode, Scope, Unit, Window, interval_at, local_date
from extproc.core.quota.reservation import Admitted, Count, Reservation, decide
from extproc.core.quota.settlement import Estimates, charges, expiry, released
from extproc.core.quota.usage import Usage
from tests.core.samples import CALLER, reservation
from tests.sizes import sized

from .test_limits import changes

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",  # until 2019 clocks were put at midnight
    "Asia/Kolkata",  # half an hour off the full ones
    "Asia/Kathmandu",  # a quarter
    "Australia/Lord_Howe",  # clocks are put by half an hour
    "Africa/Casablanca",  # back and forth around Ramadan
    "America/St_Johns",  # until 2011 at 00:01: back into the day before
    "Pacific/Apia",  # 2011-12-30 never was
    "Asia/Tehran",  # at midnight, until 2022
    "America/Havana",  # a midnight that comes twice
    "Atlantic/Azores",  # midnight is the hour that comes twice
    "Asia/Gaza",  # another rule each year
    "Pacific/Chatham",  # three quarters of an hour off
    "Asia/Pyongyang",  # moved by half an hour at midnight, and back before it
]
FIRST, LAST = 2009, 2027
SEED = 20_111_230
# Of each zone: starts of months (of 216), other days, instants anywhere, and instants aside from each of those.
MONTHS, DAYS, ANYWHERE, DRAWN = sized((12, 8, 20, 1), (216, 40, 100, 3))
ASIDE = (-3601, -3600, -1800, -60, -1, 0, 1, 59, 60, 1799, 1800, 3599, 3600, 5400, 7200)


def second_of(local: datetime) -> int:
    return int(local.timestamp())


def utc(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


@cache
def days(zone: str) -> tuple[tuple[date, int, int], ...]:
    """The zone's days: date, start and end. A day starts with the first instant that shows its date or a later one.

    That is a midnight in one of the offsets that are used around that day, or an instant at which the clocks are put.
    """
    info = ZoneInfo(zone)
    changed = changes(info, FIRST - 2, LAST + 2)
    first = date(FIRST - 1, 12, 1)
    starts: list[tuple[date, int]] = []
    for number in range((date(LAST + 1, 2, 1) - first).days):
        day = first + timedelta(days=number)
        midnight = second_of(datetime(day.year, day.month, day.day, tzinfo=UTC))
        near = changed[bisect_right(changed, midnight - 2 * 86_400) : bisect_right(changed, midnight + 2 * 86_400)]
        offsets = {datetime.fromtimestamp(at, info).utcoffset() for at in (midnight - 2 * 86_400, *near)}
        candidates = [*near, *(midnight - int(offset.total_seconds()) for offset in offsets)]
        starts.append((day, min(at for at in candidates if datetime.fromtimestamp(at, info).date() >= day)))
    return tuple((day, start, end) for (day, start), (_, end) in pairwise(starts) if start < end)


@cache
def instants(zone: str) -> tuple[int, ...]:
    """Seconds in order, most of them within two hours of a midnight, a month's end or a change of the clocks."""
    info, draw = ZoneInfo(zone), Random(f"{SEED} {zone}")
    around = changes(info, FIRST, LAST)
    months = [start for day, start, _ in days(zone) if day.day == 1 and FIRST <= day.year < LAST]
    around += draw.sample(months, MONTHS)
    around += [start for _, start, _ in draw.sample(days(zone), DAYS)]
    start, end = (second_of(datetime(year, 1, 1, tzinfo=UTC)) for year in (FIRST, LAST))
    anywhere = [draw.randrange(start, end) for _ in range(ANYWHERE)]
    drawn = [at + draw.choice(ASIDE) for at in around for _ in range(DRAWN)]
    found = {at + aside for at in around for aside in (-1, 0)} | set(anywhere) | set(drawn)
    return tuple(sorted(second for second in found if start <= second < end))


@cache
def resets(window: Window, zone: str) -> tuple[int, ...]:
    """When days, weeks and months start, counted on the calendar."""
    rules = {
        Window.DAY: lambda day: True,
        Window.WEEK: lambda day: day.weekday() == 0,
        Window.MONTH: lambda day: day.day == 1,
    }
    return tuple(start for day, start, _ in days(zone) if rules[window](day))


def test_there_are_thousands_of_instants_in_a_dozen_zones():
    assert len(ZONES) >= 12
    assert sum(len(instants(zone)) for zone in ZONES) >= sized(1_500, 10_000)
    assert all(len(instants(zone)) > sized(50, 500) for zone in ZONES)


@pytest.mark.parametrize("zone", ZONES)
def test_the_days_of_a_zone_are_those_of_its_calendar(zone):
    """What the other tests count by, and so that it is more than another way to call the same code."""
    missing = {date(2011, 12, 30)} if zone == "Pacific/Apia" else set()
    dates = [day for day, _, _ in days(zone)]
    expected = [dates[0] + timedelta(days=n) for n in range((dates[-1] - dates[0]).days + 1)]
    assert dates == [day for day in expected if day not in missing]
    assert {end - start for _, start, end in days(zone)} <= {h * 1800 for h in (46, 47, 48, 49, 50)}


@pytest.mark.parametrize("window", Window)
@pytest.mark.parametrize("zone", ZONES)
def test_every_instant_lies_in_its_window_and_windows_tile_time(zone, window):
    info = ZoneInfo(zone)
    for second in instants(zone):
        interval = interval_at(window, utc(second), info)
        assert interval.start <= second < interval.end
        for inside in (interval.start, interval.end - 1):
            assert interval_at(window, utc(inside), info) == interval
        assert interval_at(window, utc(interval.end), info).start == interval.end
        assert interval_at(window, utc(interval.start - 1), info).end == interval.start


@pytest.mark.parametrize("window", [Window.DAY, Window.WEEK, Window.MONTH])
@pytest.mark.parametrize("zone", ZONES)
def test_days_weeks_and_months_are_those_of_the_zones_calendar(zone, window):
    info, starts = ZoneInfo(zone), resets(window, zone)
    for second in instants(zone):
        place = bisect_right(starts, second)
        interval = interval_at(window, utc(second), info)
        assert (interval.start, interval.end) == (starts[place - 1], starts[place])


@pytest.mark.parametrize("zone", ZONES)
def test_minutes_and_hours_are_counted_from_the_start_of_their_day(zone):
    info, starts = ZoneInfo(zone), resets(Window.DAY, zone)
    for second in instants(zone):
        place = bisect_right(starts, second)
        day, next_day = starts[place - 1], starts[place]
        for window, length in ((Window.MINUTE, 60), (Window.HOUR, 3600)):
            interval = interval_at(window, utc(second), info)
            assert (interval.start - day) % length == 0
            assert interval.end == min(interval.start + length, next_day)


@pytest.mark.parametrize("window", Window)
@pytest.mark.parametrize("zone", ZONES)
def test_each_window_resets_once_as_time_goes_on(zone, window):
    info = ZoneInfo(zone)
    walked = [interval_at(window, utc(second), info) for second in instants(zone)]
    seen = [walked[0].start]
    for before, now in pairwise(walked):
        if now != before:
            assert now.start >= before.end
            seen.append(now.start)
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)


@pytest.mark.parametrize("window", Window)
@pytest.mark.parametrize("zone", ZONES)
def test_no_window_is_longer_than_a_ledger_keeps_its_entries_less_a_week(zone, window):
    info = ZoneInfo(zone)
    found = [interval_at(window, utc(second), info) for second in instants(zone)]
    assert max(each.end - each.start for each in found) <= LONGEST_WINDOW.total_seconds()
    assert LONGEST_WINDOW + timedelta(days=7) <= SHORTEST_RETENTION


@pytest.mark.parametrize("zone", ZONES)
def test_no_day_week_or_month_is_left_out_where_one_follows_the_other(zone):
    info = ZoneInfo(zone)
    for window in (Window.DAY, Window.WEEK, Window.MONTH):
        starts = resets(window, zone)[: sized(2500, None)]
        at, found = starts[0], []
        while at < starts[-1]:
            found.append(at)
            at = interval_at(window, utc(at), info).end
        assert tuple(found) == starts[:-1]


@pytest.mark.parametrize("zone", ZONES)
def test_the_date_of_daily_usage_is_the_calendars(zone):
    info, starts = ZoneInfo(zone), resets(Window.DAY, zone)
    for second in instants(zone):
        day, _, _ = days(zone)[bisect_right(starts, second) - 1]
        assert local_date(utc(second), info) == day.isoformat()


# Charges.

ALL_WINDOWS = tuple(Limit(Scope.SERVICE_ACCOUNT, window, 10**9) for window in Window)


class Counts:
    """Counts in a dict, as a store keeps them."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}

    def admit(self, policy: Policy, now: datetime, cost: Cost, bound: Bound | None = None) -> Reservation:
        buckets = bind(policy, CALLER, now)
        decision = decide(
            reservation(cost, buckets=buckets, admitted_at=now, bound=bound), [self.count(b.key) for b in buckets]
        )
        assert isinstance(decision, Admitted)
        self.counts |= {state.bucket.key: state.count for state in decision.states}
        return decision.reservation

    def end(self, held: Reservation, settlement) -> None:
        for bucket, charge in zip(held.buckets, charges(held, settlement), strict=True):
            count = self.count(bucket.key)
            self.counts[bucket.key] = Count(count.used + charge, count.held - held.hold(bucket.limit))

    def count(self, key: str) -> Count:
        return self.counts.get(key, Count(0, 0))


@pytest.mark.parametrize("zone", ZONES)
def test_a_charge_lands_in_the_window_of_its_admission_however_late_it_is_settled(zone):
    """Each request ends after the next one came, hours or years later, in another order than they began."""
    info, store, draw = ZoneInfo(zone), Counts(), Random(SEED)
    policy = Policy(CALLER.tenant, ALL_WINDOWS, info)
    expected: Counter[tuple[Window, int]] = Counter()
    in_flight: list[tuple[Reservation, int]] = []
    for number, second in enumerate(instants(zone), start=1):
        in_flight.append((store.admit(policy, utc(second), Cost(3, 4)), number))
        for window in Window:
            expected[window, interval_at(window, utc(second), info).start] += number
        if len(in_flight) > 20:
            held, tokens = in_flight.pop(draw.randrange(len(in_flight)))
            store.end(held, Estimates.of(held, 3).settle(Usage(tokens, 0, total=tokens), complete=True))
    for held, tokens in in_flight:
        store.end(held, Estimates.of(held, 3).settle(Usage(tokens, 0, total=tokens), complete=True))
    assert store.counts == {
        f"service_account:{window}:{start}:{CALLER.service_account}": Count(tokens, 0)
        for (window, start), tokens in expected.items()
    }


ENDS = {
    "settled": lambda held: Estimates.of(held, 3).settle(Usage(5, 6, total=11), complete=True),
    "cut off": lambda held: Estimates.of(held, 3).settle(Usage(5, 6, total=11), complete=False),
    "estimated": lambda held: Estimates.of(held, 3).estimate(9, 1, "missing"),
    "released": lambda held: released("upstream_error"),
    "expired": expiry,
}


@cache
def edges(zone: str) -> tuple[int, ...]:
    """Starts of weeks and months, and of days close to a change of the clocks."""
    found = {at for window in (Window.WEEK, Window.MONTH) for at in resets(window, zone)[5::17]}
    changed = changes(ZoneInfo(zone), 2009, 2013)
    found |= {start for _, start, _ in days(zone) if any(abs(start - at) < 7200 for at in changed)}
    assert len(found) > 20
    return tuple(sorted(found))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("zone", ZONES)
def test_what_was_admitted_before_a_reset_and_ends_after_it_leaves_the_new_window_untouched(zone, end):
    info = ZoneInfo(zone)
    # In the quick form the ends share the edges between them.
    first = list(ENDS).index(end)
    for edge in edges(zone)[sized(slice(first, None, len(ENDS)), slice(None))]:
        ended = [w for w in Window if interval_at(w, utc(edge), info).start == edge]
        assert {Window.MINUTE, Window.HOUR, Window.DAY} <= set(ended)
        limits = tuple(Limit(Scope.TENANT, window, 20, mode=Mode.STRICT) for window in ended)
        counting = tuple(Limit(Scope.TENANT, window, 2, Unit.REQUESTS) for window in ended)
        policy, store, bound = Policy(CALLER.tenant, limits + counting, info), Counts(), Bound(8, 12, 1)
        before = store.admit(policy, utc(edge) - timedelta(microseconds=1), Cost(3, 4), bound)
        old = dict(store.counts)
        assert set(old.values()) == {Count(0, 20), Count(0, 1)}
        after = store.admit(policy, utc(edge), Cost(3, 4), bound)  # the old windows are full, the new ones empty
        assert not set(old) & {bucket.key for bucket in after.buckets}
        new = {bucket.key: store.count(bucket.key) for bucket in after.buckets}
        settlement = ENDS[end](before)
        store.end(before, settlement)
        charged = dict(zip((bucket.key for bucket in before.buckets), charges(before, settlement), strict=True))
        assert {key: store.count(key) for key in old} == {key: Count(charge, 0) for key, charge in charged.items()}
        assert {key: store.count(key) for key in new} == new
