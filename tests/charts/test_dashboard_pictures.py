"""Dashboards as pictures, from answers that were kept: what is asked, and what is drawn."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints
from xml.etree import ElementTree as ET

import pytest
import yaml

from extproc.admin.api.operations import OPERATIONS

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
KEPT = Path(__file__).parent / "answers"
NAMES = sorted(path.stem for path in (ROOT / "charts/tokenweir/dashboards").glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"
AT = 1_796_000_000.0


@pytest.fixture(scope="module")
def render():
    sys.path.insert(0, str(GRAFANA))
    try:
        found = runpy.run_path(str(GRAFANA / "render.py"))
        return SimpleNamespace(**found, key_of=sys.modules["answers"].key_of)
    finally:
        sys.path.remove(str(GRAFANA))


def dashboard(name):
    return json.loads((ROOT / f"charts/tokenweir/dashboards/{name}.json").read_text(encoding="utf-8"))


def texts(svg):
    return [each.text for each in ET.fromstring(svg).iter(f"{SVG}text")]


def panel(kind, *targets, unit="short", **more):
    made = {
        "type": kind,
        "title": "A panel",
        "gridPos": {"x": 0, "y": 0, "w": 24, "h": 8},
        "fieldConfig": {
            "defaults": {"unit": unit, **more.pop("defaults", {})},
            "overrides": more.pop("overrides", []),
        },
        "targets": [{"refId": "AB"[number], **each} for number, each in enumerate(targets)],
    }
    return {"title": "A dashboard", "panels": [made | more]}


def answers(render, **found):
    return render.Answers(AT, 600.0, found)


# ---- what was kept of a live run


@pytest.mark.parametrize("name", NAMES)
def test_each_dashboard_is_drawn_from_the_answers_of_a_live_run(name, render, tmp_path):
    kept = KEPT / f"{name}.json"
    assert render.main(["--answers", str(kept), "--into", str(tmp_path), name]) == 0
    drawn = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    told = texts(drawn)
    assert {each["title"] for each in dashboard(name)["panels"]} <= set(told)
    # Nothing was shadowed in that run. All others have data.
    assert told.count("No data") <= (1 if name == "tokenweir" else 0)
    assert not [each for each in told if each and each.startswith("Asked of the admin API")]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_kept_is_what_the_dashboard_asks_now(name, render):
    kept = render.Answers.read((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    asked = {render.key_of(target) for each in dashboard(name)["panels"] for target in each.get("targets", ())}
    assert set(kept.found) == asked, "keep them anew: docs/dashboards.md"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_a_picture_of_each_dashboard(name):
    assert f"](dashboards/{name}.svg)" in (ROOT / "docs/dashboards.md").read_text(encoding="utf-8")
    picture = (ROOT / f"docs/dashboards/{name}.svg").read_text(encoding="utf-8")
    assert {each["title"] for each in dashboard(name)["panels"]} <= set(texts(picture))


# ---- panels


def test_a_number_is_that_of_the_end_and_has_the_colour_of_its_threshold(render):
    steps = [{"color": "green", "value": None}, {"color": "red", "value": 2}]
    made = panel("stat", {"expr": "q"}, unit="percentunit", defaults={"thresholds": {"steps": steps}})
    for last, shown, colour in (("0.25", "25 %", "#73bf69"), ("2", "200 %", "#f2495c")):
        drawn = render.drawn(made, answers(render, q=[{"metric": {}, "values": [[AT - 10, "1"], [AT, last]]}]))
        assert shown in texts(drawn)
        assert f'fill="{colour}"' in drawn


def test_curves_have_legends_by_their_labels_and_end_where_their_values_are(render):
    found = [
        {"metric": {"tenant": name}, "values": [[AT - 600, "0"], [AT, value]]}
        for name, value in (("acme", "50"), ("beta", "100"))
    ]
    defaults = {"custom": {"stacking": {"mode": "none"}}}
    made = panel("timeseries", {"expr": "q", "legendFormat": "{{tenant}}: used"}, defaults=defaults)
    drawn = render.drawn(made, answers(render, q=found))
    assert {"acme: used", "beta: used", "100", "50"} <= set(texts(drawn))
    lines = [each.get("points").split()[-1] for each in ET.fromstring(drawn).iter(f"{SVG}polyline")]
    tops = sorted(float(point.split(",")[1]) for point in lines)
    bottom = max(float(point.split(",")[1]) for point in drawn.split('points="')[1].split('"')[0].split())
    assert tops[1] - tops[0] == pytest.approx(bottom - tops[1], abs=0.2), "50 is in the middle of 0 and 100"


def test_stacked_curves_stand_on_each_other(render):
    found = [{"metric": {"k": name}, "values": [[AT - 600, "10"], [AT, "10"]]} for name in "abc"]
    defaults = {"custom": {"stacking": {"mode": "normal"}}}
    drawn = render.drawn(
        panel("timeseries", {"expr": "q", "legendFormat": "{{k}}"}, defaults=defaults), answers(render, q=found)
    )
    heights = {
        float(each.get("points").split()[0].split(",")[1]) for each in ET.fromstring(drawn).iter(f"{SVG}polyline")
    }
    assert len(heights) == 3


def test_bars_are_as_long_as_their_values_the_longest_first(render):
    found = [{"metric": {"t": name}, "value": [AT, value]} for name, value in (("a", "0.25"), ("b", "0.5"))]
    made = panel(
        "bargauge",
        {"expr": "q", "legendFormat": "{{t}}", "instant": True},
        unit="percentunit",
        defaults={"max": 1},
    )
    drawn = render.drawn(made, answers(render, **{"now q": found}))
    told = texts(drawn)
    assert told.index("b") < told.index("a")
    widths = [float(each.get("width")) for each in ET.fromstring(drawn).iter(f"{SVG}rect")][2:]
    (all_b, of_b, all_a, of_a) = widths
    assert (of_b / all_b, of_a / all_a) == pytest.approx((0.5, 0.25), abs=0.01)


def test_a_table_joins_its_queries_by_their_labels(render):
    names = {"tenant": "Tenant", "Value #A": "Used", "Value #B": "Resets in"}
    steps = [{"id": "merge", "options": {}}, {"id": "organize", "options": {"renameByName": names}}]
    units = [{"matcher": {"id": "byName", "options": "Resets in"}, "properties": [{"id": "unit", "value": "s"}]}]
    made = panel(
        "table",
        {"expr": "u", "instant": True},
        {"expr": "r", "instant": True},
        transformations=steps,
        overrides=units,
    )
    used = [{"metric": {"tenant": name}, "value": [AT, "12000"]} for name in ("acme", "beta")]
    resets = [{"metric": {"tenant": "beta"}, "value": [AT, "7200"]}]
    told = texts(render.drawn(made, answers(render, **{"now u": used, "now r": resets})))
    assert told[-9:] == ["Tenant", "Used", "Resets in", "acme", "12k", None, "beta", "12k", "2 h"]


def test_a_table_of_the_admin_api_has_its_columns_and_exact_prices_as_numbers(render):
    columns = [("name", "Tenant", "string"), ("usage", "Charged", "number"), ("price", "Price", "number")]
    target = {
        "url": "/v1/usage/top",
        "url_options": {"params": [{"key": "by", "value": "tenant"}]},
        "columns": [{"selector": name, "text": text, "type": kind} for name, text, kind in columns],
    }
    rows = [{"name": "acme", "usage": 900, "price": "1.500000001"}]
    told = texts(render.drawn(panel("table", target), answers(render, **{"/v1/usage/top?by=tenant": rows})))
    assert told[-6:] == ["Tenant", "Charged", "Price", "acme", "900", "1.5"]


def test_names_from_tokens_are_text_and_nothing_else(render):
    hostile = "</text><script>alert(1)</script>\x1b\x00&"
    found = [{"metric": {"t": hostile}, "value": [AT, "1"]}]
    drawn = render.drawn(
        panel("bargauge", {"expr": "q", "legendFormat": "{{t}}", "instant": True}),
        answers(render, **{"now q": found}),
    )
    assert "<script" not in drawn
    assert any("<script>" in (each or "") for each in texts(drawn))


def test_a_panel_without_an_answer_says_so(render):
    assert "No data" in texts(render.drawn(panel("stat", {"expr": "q"}), answers(render)))
    nan = [{"metric": {}, "values": [[AT, "NaN"]]}]
    assert "No data" in texts(render.drawn(panel("stat", {"expr": "q"}), answers(render, q=nan)))


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "short", "0"),
        (1234567, "short", "1.23M"),
        (0.5, "percentunit", "50 %"),
        (90, "s", "1.5 min"),
        (0.0123, "s", "12.3 ms"),
        (3.5, "reqps", "3.5/s"),
        (1 << 20, "bytes", "1 MiB"),
        (5000, "none", "5000"),
    ],
)
def test_figures_are_in_their_units(value, unit, shown, render):
    assert render.form(value, unit) == shown


# ---- Grafana's set-up


def test_the_provisioned_data_sources_are_of_the_kinds_that_the_dashboards_select():
    text = (GRAFANA / "provisioning/datasources/tokenweir.yaml").read_text(encoding="utf-8")
    sources = {each["type"]: each for each in yaml.safe_load(text)["datasources"]}
    selected = {
        each["query"]
        for name in NAMES
        for each in dashboard(name)["templating"]["list"]
        if each["type"] == "datasource"
    }
    assert set(sources) == selected
    admin = sources["yesoreyeram-infinity-datasource"]
    assert admin["jsonData"]["allowedHosts"] == [admin["url"]], "the token goes nowhere else"
    assert admin["secureJsonData"] == {"bearerToken": "${TOKENWEIR_ADMIN_TOKEN}"}


def test_what_is_asked_of_the_admin_api_is_one_of_its_operations_and_is_answered_with_these_fields():
    found = {each.path: each for each in OPERATIONS if each.method == "GET"}
    for name in NAMES:
        for each in dashboard(name)["panels"]:
            for target in each.get("targets", ()):
                if "url" in target:
                    operation = found[target["url"]]
                    parameters = {given["key"] for given in target["url_options"]["params"]}
                    assert parameters <= {*operation.query.__struct_fields__}, each["title"]
                    rows = get_args(get_type_hints(operation.result)[target["root_selector"]])[0]
                    fields = {column["selector"] for column in target["columns"]}
                    assert fields <= {*rows.__struct_fields__}, each["title"]
