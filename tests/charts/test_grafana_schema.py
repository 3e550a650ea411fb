"""The dashboards against Grafana's own types. Needs packages of npm, which are not part of this project."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checked(monkeypatch):
    """Says what the compiler says of a folder's dashboards."""
    folder = os.environ.get("GRAFANA_SCHEMA")
    if folder is None or shutil.which("node") is None:
        pytest.skip("GRAFANA_SCHEMA names no folder with @grafana/schema: see CONTRIBUTING.md")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = runpy.run_path(str(ROOT / "deploy/grafana/check_schema.py"))
    return lambda dashboards: module["problems_of"](Path(folder), dashboards)


def test_grafanas_types_take_the_dashboards(checked):
    assert not checked(ROOT / "charts/tokenweir/dashboards")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("panels", 1, "gridPos"), {"x": "left"}),
        (("panels", 1, "options", "colorMode"), "rainbow"),
        (("panels", 1, "fieldConfig", "defaults", "thresholds", "mode"), "relative"),
        (("templating", "list", 0, "type"), "oracle"),
        (("no_such_field",), 1),
    ],
)
def test_a_dashboard_that_grafana_does_not_know_is_refused(checked, place, value, tmp_path):
    dashboard = json.loads((ROOT / "charts/tokenweir/dashboards/tokenweir.json").read_text(encoding="utf-8"))
    *way, last = place
    inner = dashboard
    for step in way:
        inner = inner[step]
    inner[last] = value
    (tmp_path / "bad.json").write_text(json.dumps(dashboard), encoding="utf-8")
    assert "error TS" in checked(tmp_path)
