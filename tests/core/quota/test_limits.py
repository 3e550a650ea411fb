"""Limits, their buckets' keys and globs; and the calendar: windows without gap or overlap, wherever clocks go."""

import re
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from time import process_time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.core.quota.limits import (
    NO_SUBJECT,
    Bucket,
    Interval,
    Limit,
    Mode,
    Scope,
    Subject,
    Unit,
    Window,
    interval_at,
    local_date,
    matches,
)
from extproc.core.request.addresses import ClientIP
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from tests.changing import replace
from tests.core.samples import CALLER, FUZZ
from tests.sizes import sized

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",  # half an hour off the full ones
    "Asia/Kathmandu",  # a quarter
    "Australia/Lord_Howe",  # clocks are put by half an hour
    "America/Sao_Paulo",  # until 2019 at midnight: there was none in spring
    "Pacific/Apia",  # 2011-12-30 never was
    "America/Havana",  # a midnight that comes twice
    "Asia/Beirut",  # no midnight in spring
    "Africa/Casablanca",  # four changes a year
    "America/St_Johns",  # until 2011 at 00:01: back into the day before
    "America/Caracas",  # moved by half an hour, for good
    "Antarctica/Troll",  # by two hours
]


def at(zone: str, text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


def bounds(window: Window, now: datetime) -> tuple[str, str]:
    """The window of `now` in its own zone, as it stands on the clock there."""
    interval = interval_at(window, now, now.tzinfo)
    return tuple(
        datetime.fromtimestamp(second, now.tzinfo).isoformat(timespec="minutes")[:16]
        for second in (interval.start, interval.end)
    )


def changes(zone: ZoneInfo, first_year: int, last_year: int) -> list[int]:
    """The instants at which the clocks of `zone` are put."""

    def offset(second: int) -> timedelta:
        return datetime.fromtimestamp(second, zone).utcoffset()

    def bisect(low: int, high: int) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
        return high

    start, end = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (first_year, last_year))
    days = range(start, end, 86_400)
    return [bisect(day, day + 86_400) for day in days if offset(day) != offset(day + 86_400)]


def tiles(window: Window, second: int, zone: ZoneInfo) -> None:
    interval = interval_at(window, datetime.fromtimestamp(second, UTC), zone)
    assert interval.start <= second < interval.end
    for inside in (interval.start, interval.end - 1):
        assert interval_at(window, datetime.fromtimestamp(inside, UTC), zone) == interval
    assert interval_at(window, datetime.fromtimestamp(interval.end, UTC), zone).start == interval.end
    assert interval_at(window, datetime.fromtimestamp(interval.start - 1, UTC), zone).end == interval.start


SECONDS = st.integers(
    int(datetime(1971, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2037, 1, 1, tzinfo=UTC).timestamp())
)


@pytest.mark.parametrize("window", Window)
@FUZZ
@given(second=SECONDS, zone=st.sampled_from(ZONES))
@example(second=1_320_020_000, zone="America/St_Johns")
def test_windows_follow_each_other_without_gap_or_overlap(window, second, zone):
    tiles(window, second, ZoneInfo(zone))


@pytest.mark.parametrize("zone", ZONES)
def test_windows_follow_each_other_where_the_clocks_are_put(zone):
    info, most = ZoneInfo(zone), sized(3, 10)
    changed = changes(info, 2005, 2027)
    assert bool(changed) is (zone not in {"UTC", "Asia/Kolkata", "Asia/Kathmandu"})
    for change in changed[:most] + changed[-most:]:
        for window in Window:
            for aside in (-86_400, -3600, -1800, -1, 0, 1, 59, 1799, 1800, 3599, 3600, 7200, 86_400):
                tiles(window, change + aside, info)


@FUZZ
@given(SECONDS, st.integers(0, 999_999), st.sampled_from(ZONES))
def test_fractions_of_a_second_and_the_zone_of_the_clock_make_no_difference(second, microsecond, zone):
    info = ZoneInfo(zone)
    now = datetime.fromtimestamp(second, UTC)
    for window in Window:
        expected = interval_at(window, now, info)
        assert interval_at(window, now.replace(microsecond=microsecond), info) == expected
        assert interval_at(window, now.astimezone(ZoneInfo("Asia/Tokyo")), info) == expected


@FUZZ
@given(SECONDS, st.sampled_from(ZONES))
def test_a_day_starts_at_midnight_or_where_the_clocks_jumped_over_it(second, zone):
    info = ZoneInfo(zone)
    start = interval_at(Window.DAY, datetime.fromtimestamp(second, UTC), info).start
    local, before = (datetime.fromtimestamp(s, info) for s in (start, start - 1))
    if (local.hour, local.minute, local.second) != (0, 0, 0):
        assert local.utcoffset() > before.utcoffset()
        assert before.date() < local.date()


@FUZZ
@given(SECONDS, st.sampled_from(ZONES))
def test_shorter_windows_lie_within_longer_ones(second, zone):
    info, now = ZoneInfo(zone), datetime.fromtimestamp(second, UTC)
    day = interval_at(Window.DAY, now, info)
    for window in (Window.MINUTE, Window.HOUR):
        part = interval_at(window, now, info)
        assert day.start <= part.start < part.end <= day.end
    for window in (Window.WEEK, Window.MONTH):
        whole = interval_at(window, now, info)
        assert whole.start <= day.start < day.end <= whole.end


@FUZZ
@given(SECONDS, st.sampled_from(ZONES))
def test_the_date_of_daily_usage_is_that_of_the_days_bucket(second, zone):
    info = ZoneInfo(zone)
    now = datetime.fromtimestamp(second, UTC)
    interval = interval_at(Window.DAY, now, info)
    dates = {local_date(datetime.fromtimestamp(s, UTC), info) for s in (interval.start, second, interval.end - 1)}
    assert dates == {datetime.fromtimestamp(interval.start, info).date().isoformat()}


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window.MINUTE, ("2026-03-04T11:30", "2026-03-04T11:31")),
        (Window.HOUR, ("2026-03-04T11:00", "2026-03-04T12:00")),
        (Window.DAY, ("2026-03-04T00:00", "2026-03-05T00:00")),
        (Window.WEEK, ("2026-03-02T00:00", "2026-03-09T00:00")),
        (Window.MONTH, ("2026-03-01T00:00", "2026-04-01T00:00")),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York"])
def test_on_an_ordinary_day_windows_are_those_of_the_clock(zone, window, expected):
    assert bounds(window, at(zone, "2026-03-04T11:30:15")) == expected


@pytest.mark.parametrize(
    ("zone", "now", "expected", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", ("2026-03-29T00:00", "2026-03-30T00:00"), 23),
        ("Europe/Berlin", "2026-10-25T12:00", ("2026-10-25T00:00", "2026-10-26T00:00"), 25),
        ("Australia/Lord_Howe", "2026-04-05T12:00", ("2026-04-05T00:00", "2026-04-06T00:00"), 24.5),
        ("America/Sao_Paulo", "2018-11-04T12:00", ("2018-11-04T01:00", "2018-11-05T00:00"), 23),
        ("America/Sao_Paulo", "2018-11-03T12:00", ("2018-11-03T00:00", "2018-11-04T01:00"), 24),
        ("America/Sao_Paulo", "2018-02-17T23:30", ("2018-02-17T00:00", "2018-02-18T00:00"), 25),
        ("Pacific/Apia", "2011-12-29T12:00", ("2011-12-29T00:00", "2011-12-31T00:00"), 24),
        ("Pacific/Apia", "2011-12-31T12:00", ("2011-12-31T00:00", "2012-01-01T00:00"), 24),
        ("America/Havana", "2026-11-01T00:30", ("2026-11-01T00:00", "2026-11-02T00:00"), 25),
        ("Asia/Beirut", "2026-03-29T12:00", ("2026-03-29T01:00", "2026-03-30T00:00"), 23),
        ("America/St_Johns", "2010-11-07T12:00", ("2010-11-07T00:00", "2010-11-08T00:00"), 25),
    ],
)
def test_where_the_clocks_are_put_a_day_is_longer_or_shorter(zone, now, expected, hours):
    moment = at(zone, now)
    interval = interval_at(Window.DAY, moment, moment.tzinfo)
    assert bounds(Window.DAY, moment) == expected
    assert (interval.end - interval.start) / 3600 == hours


def test_an_hour_that_comes_twice_is_two_hours():
    first, second = (at("Europe/Berlin", "2026-10-25T02:30", fold) for fold in (0, 1))
    one, two = (interval_at(Window.HOUR, moment, moment.tzinfo) for moment in (first, second))
    assert (one.end - one.start, two.start, two.end - two.start) == (3600, one.end, 3600)


def test_clocks_that_are_put_by_half_an_hour_leave_half_an_hour_at_the_end_of_the_day():
    assert bounds(Window.HOUR, at("Australia/Lord_Howe", "2026-04-05T12:00")) == (
        "2026-04-05T11:30",
        "2026-04-05T12:30",
    )
    assert bounds(Window.HOUR, at("Australia/Lord_Howe", "2026-04-05T23:59")) == (
        "2026-04-05T23:30",
        "2026-04-06T00:00",
    )
    assert bounds(Window.HOUR, at("Australia/Lord_Howe", "2026-04-06T12:30")) == (
        "2026-04-06T12:00",
        "2026-04-06T13:00",
    )


def test_a_day_that_is_over_stays_over_when_the_clocks_go_back_into_it():
    again = at("America/St_Johns", "2010-11-06T23:30", fold=1)
    assert local_date(at("America/St_Johns", "2010-11-06T23:30"), again.tzinfo) == "2010-11-06"
    assert local_date(again, again.tzinfo) == "2010-11-07"
    assert bounds(Window.WEEK, at("America/St_Johns", "2010-11-07T23:59"))[0] == "2010-11-01T00:00"


def test_weeks_start_on_monday_and_months_on_the_first_across_years():
    assert bounds(Window.WEEK, at("UTC", "2027-01-01T12:00")) == ("2026-12-28T00:00", "2027-01-04T00:00")
    assert bounds(Window.MONTH, at("UTC", "2026-12-31T23:59")) == ("2026-12-01T00:00", "2027-01-01T00:00")
    assert bounds(Window.MONTH, at("UTC", "2028-02-29T12:00")) == ("2028-02-01T00:00", "2028-03-01T00:00")
    assert bounds(Window.MONTH, at("UTC", "2026-01-31T12:00")) == ("2026-01-01T00:00", "2026-02-01T00:00")


def test_the_local_date_is_that_of_the_zone():
    now = datetime(2026, 3, 4, 23, 30, tzinfo=UTC)
    assert local_date(now, ZoneInfo("Europe/Berlin")) == "2026-03-05"
    assert local_date(now, ZoneInfo("America/New_York")) == "2026-03-04"


# Scopes.

CHAT = Subject("llama-70b", Endpoint.CHAT_COMPLETIONS)
CALLERS = {
    "service_account": "console@zone-prod",
    "client_ip": "10.0.0.7",
    "model": "llama-70b",
    "endpoint": "chat_completions",
}


@pytest.mark.parametrize(
    ("scope", "parts", "label"),
    [
        (Scope.TENANT, (), "tenant"),
        (Scope.SERVICE_ACCOUNT, ("console@zone-prod",), "serviceAccount"),
        (Scope.CLIENT_IP, ("10.0.0.7",), "IP"),
        (Scope.SERVICE_ACCOUNT_IP, ("console@zone-prod", "10.0.0.7"), "serviceAccount + IP"),
    ],
)
def test_a_scope_counts_by_its_parts_and_has_the_words_of_the_talk(scope, parts, label):
    assert (scope.parts(CALLER, NO_SUBJECT), scope.label) == (parts, label)


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_counts_by_every_part_that_it_names(scope):
    names = () if scope is Scope.TENANT else tuple(scope.value.split("+"))
    assert scope.names == names
    assert scope.parts(CALLER, CHAT) == tuple(CALLERS[name] for name in names)


def test_a_scope_with_model_or_endpoint_says_so():
    assert Scope.SERVICE_ACCOUNT_IP_MODEL.label == "serviceAccount + IP + model"
    assert Scope.ENDPOINT.label == "endpoint"


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("missing", ["model", "endpoint"])
def test_a_part_that_is_not_known_leaves_the_scope_without_parts(scope, missing):
    parts = scope.parts(CALLER, replace(CHAT, **{missing: None}))
    assert (parts is None) is (missing in scope.names)


# Keys.


def key(limit: Limit, identity: Identity = CALLER, start: int = 60, subject: Subject = CHAT) -> str:
    return Bucket(limit, limit.scope.parts(identity, subject), Interval(start, start + 60)).key


def test_a_key_names_scope_window_start_and_parts_but_not_the_amount():
    limit = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 5)
    assert key(limit) == "service_account+client_ip:day:60:console@zone-prod:10.0.0.7"
    assert key(Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 9)) == key(limit)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Limit(Scope.TENANT, Window.MONTH, 5), "tenant:month:60:"),
        (Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 5), "service_account:day:60:console@zone-prod"),
        (Limit(Scope.CLIENT_IP, Window.MINUTE, 5), "client_ip:minute:60:10.0.0.7"),
        (Limit(Scope.CLIENT_IP, Window.MINUTE, 5, Unit.REQUESTS), "client_ip:minute~requests:60:10.0.0.7"),
        (Limit(Scope.TENANT, Window.DAY, 5, model="a*/b"), "tenant:day~m=a%2A%2Fb:60:"),
        (Limit(Scope.MODEL, Window.DAY, 5, shadow=True), "model:day~shadow:60:llama-70b"),
        (
            Limit(
                Scope.ENDPOINT,
                Window.DAY,
                5,
                Unit.OUTPUT_TOKENS,
                shadow=True,
                model="a",
                endpoints=(Endpoint.SCORE, Endpoint.CHAT_COMPLETIONS),
            ),
            "endpoint:day~output_tokens~m=a~e=chat_completions,score~shadow:60:chat_completions",
        ),
    ],
)
def test_a_key_names_all_that_tells_limits_apart(limit, expected):
    assert key(limit) == expected
    assert limit.kind == expected.split(":60:")[0]


@pytest.mark.parametrize("mode", Mode)
def test_a_limit_that_changes_its_mode_in_mid_window_keeps_its_counter(mode):
    limit = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 5)
    assert key(replace(limit, mode=mode)) == key(limit)


def test_the_order_of_endpoints_makes_no_difference():
    one = Limit(Scope.TENANT, Window.DAY, 5, endpoints=(Endpoint.SCORE, Endpoint.RERANK))
    assert key(one) == key(replace(one, endpoints=one.endpoints[::-1]))


NAMES = st.text(":%@/ {}ab~*?=,\n世", max_size=5)
GLOBS = st.none() | NAMES | st.sampled_from(["x", "x~shadow", "x~e=score", "x%7Eshadow", "", "~", "%7E"])
LIMITS = st.builds(
    Limit,
    st.sampled_from(Scope),
    st.sampled_from(Window),
    st.integers(0, 3),
    st.sampled_from(Unit),
    st.sampled_from(Mode),
    st.booleans(),
    GLOBS,
    st.lists(st.sampled_from([Endpoint.SCORE, Endpoint.RERANK]), max_size=2, unique=True).map(tuple),
)
INTERVALS = st.integers(0, 3).map(lambda start: Interval(start, start + 60))


@st.composite
def buckets(draw: st.DrawFn) -> Bucket:
    limit = draw(LIMITS)
    parts = tuple(draw(NAMES) for _ in limit.scope.names)
    return Bucket(limit, parts, draw(INTERVALS))


@st.composite
def similar_buckets(draw: st.DrawFn) -> tuple[Bucket, Bucket]:
    """Two that differ in little: unlike ones would hardly ever share a key, whatever it is made of."""
    one, other = draw(buckets()), draw(buckets())
    copied = {
        name: getattr(other.limit, name)
        for name in ("amount", "unit", "mode", "shadow", "model", "endpoints", "window")
        if draw(st.sampled_from([False, False, True]))
    }
    parts = tuple(draw(st.just(part) | NAMES) for part in one.parts)
    return one, Bucket(replace(one.limit, **copied), parts, draw(st.just(one.interval) | INTERVALS))


def counted_as(bucket: Bucket) -> tuple[object, ...]:
    """What must be the same for two buckets to be one."""
    limit = replace(bucket.limit, amount=0, mode=Mode.RESERVE, endpoints=())
    return limit, set(bucket.limit.endpoints), bucket.parts, bucket.interval


@FUZZ
@given(st.tuples(buckets(), buckets()) | similar_buckets())
@example(
    (
        Bucket(Limit(Scope.TENANT, Window.DAY, 1, model="x~shadow"), (), Interval(0, 60)),
        Bucket(Limit(Scope.TENANT, Window.DAY, 1, model="x", shadow=True), (), Interval(0, 60)),
    )
)
def test_two_buckets_share_a_key_only_if_they_are_the_same_but_for_amount_and_mode(two):
    one, other = two
    assert (one.key == other.key) == (counted_as(one) == counted_as(other))


@FUZZ
@given(buckets())
def test_a_key_is_plain_text_that_needs_no_escaping(bucket):
    assert re.fullmatch(r"[a-zA-Z0-9_+~=,.%@:-]*", bucket.key)


def test_two_identities_never_share_a_key():
    limit = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 5)
    sneaky = Identity(TenantId("t"), ServiceAccount("a:10.0.0.7"), ClientIP("b"))
    plain = Identity(TenantId("t"), ServiceAccount("a"), ClientIP("10.0.0.7:b"))
    assert key(limit, sneaky) != key(limit, plain)


# Globs.


@pytest.mark.parametrize(
    ("glob", "name", "expected"),
    [
        ("*", "", True),
        ("*", "anything/at:all\n", True),
        ("", "", True),
        ("", "a", False),
        ("?", "", False),
        ("?", "\n", True),
        ("a*", "a", True),
        ("*a", "ba", True),
        ("*a", "ab", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("*ab*ab", "ab", False),
        ("*ab*ab", "abab", True),
        ("a*a", "a", False),
        ("a**?c", "a-c", True),
        ("a**?c", "ac", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("a.c", "abc", False),
        ("\\?", "\\x", True),
        ("\\?", "?", False),
        ("(a|b)+", "(a|b)+", True),
        ("A", "a", True),
        ("llama", "llama-70b", False),
    ],
)
def test_a_glob_matches_a_whole_name_and_knows_only_star_and_question_mark(glob, name, expected):
    assert matches(glob, name) is expected


@FUZZ
@given(st.text("ab*?.\\\n(世", max_size=9), st.text("ab?.\\\n(世", max_size=9))
def test_a_glob_without_brackets_matches_as_the_shells_do(glob, name):
    assert matches(glob, name) == fnmatchcase(name, glob)


@FUZZ
@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
def test_a_glob_with_many_stars_matches_as_the_shells_do(glob, name):
    assert matches(glob, name) == fnmatchcase(name, glob)


@pytest.mark.parametrize(
    "glob", ["*a" * 127 + "b", "a*" * 127 + "b", "*a?" * 85 + "b", "?*" * 127 + "b", "*" * 255 + "b"]
)
def test_no_glob_takes_more_than_linear_time(glob):
    """Backtracking would take longer than the universe is old; what is linear takes well under a millisecond."""
    before = process_time()
    assert not matches(glob, "a" * 256)
    assert process_time() - before < 1.0


# What a limit binds.


@pytest.mark.parametrize(
    ("fields", "subject", "expected"),
    [
        ({}, NO_SUBJECT, True),
        ({}, CHAT, True),
        ({"model": "llama-*"}, CHAT, True),
        ({"model": "gpt-*"}, CHAT, False),
        ({"model": "*"}, NO_SUBJECT, False),
        ({"endpoints": (Endpoint.CHAT_COMPLETIONS, Endpoint.SCORE)}, CHAT, True),
        ({"endpoints": (Endpoint.SCORE,)}, CHAT, False),
        ({"endpoints": (Endpoint.CHAT_COMPLETIONS,)}, NO_SUBJECT, False),
        ({"model": "llama-*", "endpoints": (Endpoint.SCORE,)}, CHAT, False),
        ({"model": "gpt-*", "endpoints": (Endpoint.CHAT_COMPLETIONS,)}, CHAT, False),
        ({"model": "llama-*", "endpoints": (Endpoint.CHAT_COMPLETIONS,)}, CHAT, True),
    ],
)
def test_a_limit_binds_what_its_model_and_its_endpoints_name(fields, subject, expected):
    assert Limit(Scope.TENANT, Window.DAY, 5, **fields).binds(subject) is expected


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("client_ip+service_account", Scope.SERVICE_ACCOUNT_IP),
        ("model + client_ip  service_account", Scope.SERVICE_ACCOUNT_IP_MODEL),
        (" tenant ", Scope.TENANT),
        *((scope.value, scope) for scope in Scope),
        *(("+".join(reversed(scope.split("+"))), scope) for scope in Scope),
    ],
)
def test_the_parts_of_a_scope_come_in_any_order(text, scope):
    assert Scope(text) is scope


@pytest.mark.parametrize(
    "text", ["", "+", "model+model", "tenant+model", "model+endpoint", "Model", 5, None, ["model"]]
)
def test_what_is_no_scope_is_refused(text):
    with pytest.raises(ValueError, match="is not a valid Scope"):
        Scope(text)
