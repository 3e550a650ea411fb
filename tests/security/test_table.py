"""docs/security.md names a test for every threat, and each of them is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| threat")]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def defined_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_the_table_names_is_there(path, name):
    assert name.startswith("test_")
    assert name in defined_in(path)


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_every_threat_has_what_stops_it_and_a_test(row):
    threat, stops, tests = (cell.strip() for cell in row.strip("|").split(" | "))
    assert len(threat) > 5
    assert len(stops) > 5
    assert re.fullmatch(r"(`tests/[\w/]+\.py::\w+`(, )?)+", tests)


def test_the_table_has_the_threats_of_the_channel_the_bodies_and_the_names():
    assert len(ROWS) >= 24
