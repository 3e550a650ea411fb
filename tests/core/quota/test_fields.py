"""Typed values out of documents that people wrote: what is wrong is named, and nothing else is ever raised."""

import time
from collections import OrderedDict, UserDict, UserList
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.core.quota.fields import MAX_ITEMS, FieldError, Fields
from tests.core.samples import BERLIN, FUZZ, VALUES


class Fruit(StrEnum):
    PEAR = "pear"
    APPLE = "apple"


GETTERS = {
    "whole": lambda fields: fields.whole("x", 100, "plums"),
    "thousandths": lambda fields: fields.thousandths("x", 100_000),
    "flag": lambda fields: fields.flag("x"),
    "name": lambda fields: fields.name("x"),
    "needed": lambda fields: fields.needed("x"),
    "reason": lambda fields: fields.reason("x"),
    "choice": lambda fields: fields.choice("x", Fruit),
    "choice or default": lambda fields: fields.choice("x", Fruit, Fruit.PEAR),
    "choices": lambda fields: fields.choices("x", Fruit),
    "instant": lambda fields: fields.instant("x"),
    "zone": lambda fields: fields.zone("x", BERLIN),
    "section": lambda fields: fields.section("x"),
    "items": lambda fields: list(fields.items("x", lambda item: item, repr).found),
}


def get(getter: str, value: object, path: str = "a[1].") -> object:
    return GETTERS[getter](Fields({"x": value}, path))


def refused(getter: str, value: object) -> str:
    with pytest.raises(FieldError) as caught:
        get(getter, value)
    message = str(caught.value)
    assert message.startswith("'a[1].x")
    return message


@pytest.mark.parametrize(
    ("getter", "nothing"),
    [
        ("whole", None),
        ("thousandths", None),
        ("flag", False),
        ("name", None),
        ("reason", None),
        ("choice or default", Fruit.PEAR),
        ("choices", ()),
        ("zone", BERLIN),
        ("section", None),
        ("items", []),
    ],
)
def test_what_is_absent_or_null_is_nothing(getter, nothing):
    assert get(getter, None) == nothing
    assert GETTERS[getter](Fields({})) == nothing


@pytest.mark.parametrize(
    ("getter", "message"),
    [
        ("needed", "'x' must be given"),
        ("choice", "'x' must be one of pear, apple"),
        ("instant", "'x' must be an instant such as 2026-03-01T00:00:00Z"),
    ],
)
def test_what_has_to_be_there_and_is_not_is_named(getter, message):
    for fields in ({}, {"x": None}):
        with pytest.raises(FieldError, match=f"^{message}$"):
            GETTERS[getter](Fields(fields))


# Numbers.


@pytest.mark.parametrize("value", [0, 1, 100, 0.0, -0.0, 100.0, 7.0])
def test_a_whole_number_may_be_written_as_a_double(value):
    found = get("whole", value)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [-1, 101, 1.5, 100.5, float("nan"), float("inf"), -float("inf"), 1e300, 10**400, True, "5", b"5", [], {}],
)
def test_a_number_that_is_not_whole_or_out_of_bounds_is_refused(value):
    assert refused("whole", value) == "'a[1].x' must be a whole number of plums from 0 to 100"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (-0.0, 0),
        (1, 1000),
        (100, 100_000),
        (100.0, 100_000),
        (0.1, 100),
        (0.001, 1),
        (1.005, 1005),
        (99.999, 99_999),
        (0.1 + 0.2, 300),
    ],
)
def test_a_number_with_three_decimals_is_thousandths(value, expected):
    found = get("thousandths", value)
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -0.001, 100.001, 101, 0.0001, 0.0005, 1.2345, True, False, "1", [], {}),
        *(float("nan"), float("inf"), -float("inf"), 1e306, 1.7e308, 10**309, 10**400, -(10**400)),
    ],
)
def test_a_number_with_more_decimals_or_out_of_bounds_is_refused(value):
    assert refused("thousandths", value) == "'a[1].x' must be a number from 0 to 100 with at most three decimals"


@FUZZ
@given(st.integers(0, 100_000))
def test_every_thousandth_is_read_as_it_is_written(thousandths):
    assert get("thousandths", float(f"{thousandths // 1000}.{thousandths % 1000:03}")) == thousandths


@pytest.mark.parametrize("value", [0, 1, "true", "", [], {}, 1.0])
def test_a_flag_is_true_or_false(value):
    assert (get("flag", True), get("flag", False)) == (True, False)
    assert refused("flag", value) == "'a[1].x' must be true or false"


# Text.


@pytest.mark.parametrize("value", ["", " a", "a ", "a\nb", "a" * 257, "\ud800", 5, True, b"a", ["a"], {}])
def test_a_name_is_printable_bounded_text(value):
    assert get("name", "a" * 256) == "a" * 256
    for getter in ("name", "needed"):
        assert refused(getter, value) == "'a[1].x' must be a printable string of 1 to 256 characters"


def test_a_reason_may_be_given_without_words():
    assert [get("reason", value) for value in (True, False, "unpaid")] == ["suspended", None, "unpaid"]


@pytest.mark.parametrize("value", ["", " ", 1, 0, 1.0, "a" * 257, [], {}, ["unpaid"]])
def test_a_reason_that_can_not_be_shown_is_refused(value):
    assert refused("reason", value) == "'a[1].x' must be a printable string of 1 to 256 characters"


@pytest.mark.parametrize("value", ["", "Pear", "plum", " pear", 1, True, [], ["pear"], {"pear": 1}])
def test_a_choice_is_one_of_those_there_are(value):
    assert [get("choice", "apple"), get("choice or default", "apple")] == [Fruit.APPLE] * 2
    assert type(get("choice", "apple")) is Fruit
    for getter in ("choice", "choice or default"):
        assert refused(getter, value) == "'a[1].x' must be one of pear, apple"


@pytest.mark.parametrize(
    "value", ["", "plum", [], ["pear", "plum"], ["pear", None], [["pear"]], [{}], {}, 1, True]
)
def test_choices_are_some_of_those_there_are(value):
    assert get("choices", "pear") == (Fruit.PEAR,)
    assert get("choices", ["pear", "apple", "pear"]) == (Fruit.APPLE, Fruit.PEAR)
    assert refused("choices", value) == "'a[1].x' must be one or a list of pear, apple"


# Time.


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-01T00:00:00Z",
        "2026-03-01T00:00:00+00:00",
        "2026-03-01T01:00:00+01:00",
        "2026-03-01T00:00:00",
        "2026-03-01 00:00",
        "2026-03-01",
        datetime(2026, 3, 1, tzinfo=UTC),
        datetime(2026, 3, 1, 1, tzinfo=BERLIN),
        datetime(2026, 3, 1),  # noqa: DTZ001 - as drivers give the dates of a database
    ],
)
def test_an_instant_is_a_date_of_the_database_or_text_and_without_an_offset_in_utc(value):
    assert get("instant", value) == 1_772_323_200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "tomorrow",
        "2026-13-01",
        "2026-03-01T25:00",
        "\ud800",
        "9" * 5000,
        1_772_323_200,
        1.5,
        True,
        [],
        {},
        b"2026",
    ],
)
def test_an_instant_that_is_none_is_refused(value):
    assert refused("instant", value) == "'a[1].x' must be an instant such as 2026-03-01T00:00:00Z"


def test_the_zone_of_the_host_makes_no_difference(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert get("instant", "2026-03-01T00:00:00") == 1_772_323_200
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_instant_at_the_end_of_time_is_one():
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-23)))
    for value in (datetime(1, 1, 1, tzinfo=UTC), last, last.replace(tzinfo=None)):
        assert isinstance(get("instant", value), float)
    assert get("instant", "0001-01-01T00:00:00+23:59") < 0


@pytest.mark.parametrize(
    "value", ["Europe/Berlim", "Europe", "../etc/passwd", "UTC\x00", "a" * 5000, "\ud800", " "]
)
def test_a_time_zone_that_the_host_does_not_know_is_refused(value):
    assert get("zone", "Asia/Kolkata") == ZoneInfo("Asia/Kolkata")
    expected = "'a[1].x' is no IANA time zone that this host knows; use one such as 'Europe/Berlin'"
    assert refused("zone", value) == expected


@pytest.mark.parametrize("value", ["", 5, True, [], {}])
def test_a_time_zone_that_is_no_text_is_refused(value):
    assert refused("zone", value) == "'a[1].x' must be an IANA time zone"


# Objects within objects.


def test_what_stands_within_is_named_by_its_path():
    inner = get("section", {"y": {"z": -1}})
    assert inner == Fields({"y": {"z": -1}}, "a[1].x.")
    with pytest.raises(FieldError, match=r"^'a\[1\]\.x\.y\.z' must be a whole number"):
        inner.section("y").whole("z", 5, "plums")
    second = get("items", [{}, {"y": "z"}])[1]
    with pytest.raises(FieldError, match=r"^'a\[1\]\.x\[1\]\.y' must be true or false"):
        second.flag("y")


@pytest.mark.parametrize("value", [[], "a", 5, True, {1: 2}, {None: 1}, [{}]])
def test_a_section_is_an_object_with_names(value):
    assert refused("section", value) == "'a[1].x' must be an object"
    assert get("section", OrderedDict(a=1)).values == {"a": 1}
    assert get("section", UserDict(a=1)).values == {"a": 1}


@pytest.mark.parametrize("value", [{}, "ab", b"ab", 5, True, {"a": {}}, [{}] * (MAX_ITEMS + 1)])
def test_a_list_is_a_bounded_list(value):
    assert refused("items", value) == f"'a[1].x' must be a list of at most {MAX_ITEMS} objects"
    assert len(get("items", [{}] * MAX_ITEMS)) == MAX_ITEMS
    assert len(get("items", UserList([{}, {}]))) == 2


@pytest.mark.parametrize("value", [5, None, "a", [], {1: 2}])
def test_what_is_in_a_list_is_an_object(value):
    assert refused("items", [{}, value]) == "'a[1].x[1]' must be an object"


def test_a_field_that_nobody_knows_is_named_with_those_that_there_are():
    Fields({"b": 1, "a": 2}).refuse_unknown({"a", "b", "c"})
    with pytest.raises(FieldError, match=r"^'p\.amuont' is no field here; use amount, unit$"):
        Fields({"amuont": 1}, "p.").refuse_unknown({"unit", "amount"})


@FUZZ
@given(st.sampled_from(sorted(GETTERS)), VALUES | st.floats() | st.integers() | st.datetimes())
@example("thousandths", 1e306)
@example("thousandths", 10**400)
@example("whole", 10**400)
def test_any_value_is_read_or_named(getter, value):
    assert (problem(getter, value) or "'a[1].x").startswith("'a[1].x")


def problem(getter: str, value: object) -> str | None:
    try:
        get(getter, value)
    except FieldError as error:
        return str(error)
    return None
