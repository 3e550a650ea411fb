"""Files that take long begin first: the list of them names files that there are, and sorting loses no test."""

from pathlib import Path
from types import SimpleNamespace

from tests.order import LONG, longest_first

TESTS = Path(__file__).parents[1]


def test_every_file_that_is_said_to_take_long_exists_once():
    assert [name for name in LONG if not (TESTS / name).is_file()] == []
    assert len(set(LONG)) == len(LONG)


def test_long_files_come_first_then_those_with_most_tests_and_each_file_stays_whole():
    names = ["a.py", LONG[1], "b.py", "b.py", LONG[0], "a.py", "b.py", LONG[1]]
    items = [SimpleNamespace(path=TESTS / name, number=number) for number, name in enumerate(names)]
    longest_first(items, TESTS)
    assert [item.number for item in items] == [4, 1, 7, 2, 3, 6, 0, 5]
