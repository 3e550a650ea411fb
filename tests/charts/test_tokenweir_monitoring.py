"""Alerts and the dashboard, before any of them meets a Prometheus; test_tokenweir_live.py has the rest."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import promql_parser
import pytest
import yaml

from extproc.observe.metrics import Metrics
from tests.missing import missing

from .helm import pick, render

STORES = {"redis": {"url": "redis://redis:6379/0"}, "mongo": {"url": "mongodb://mongo:27017"}}
CASES = sorted((Path(__file__).parent / "promtool").glob("*.yaml"))
METRIC = re.compile(r"(?<![\w:])tokenweir_\w+")
RECORDED = re.compile(r"\b\w+:tokenweir_\w+:\w+")
ROOT = Path(__file__).parents[2]


def made(*values):
    return _made(json.dumps(values))


@functools.cache
def _made(values):
    return render("tokenweir", STORES, *json.loads(values), release="tokenweir", namespace="tw")


def groups():
    return pick(made(), "PrometheusRule")["spec"]["groups"]


def rules():
    return [rule for group in groups() for rule in group["rules"] if "alert" in rule]


def recordings():
    return {rule["record"]: rule["expr"] for group in groups() for rule in group["rules"] if "record" in rule}


def dashboards():
    """Name -> dashboard, as the chart ships them."""
    found = pick(made(), "ConfigMap", "tokenweir-dashboard")
    return {name.removesuffix(".json"): json.loads(text) for name, text in found["data"].items()}


def dashboard(name="tokenweir"):
    return dashboards()[name]


def panels():
    return [(name, panel) for name, each in dashboards().items() for panel in each["panels"]]


def queries():
    """Panel and query to Prometheus, with Grafana's variables filled in."""
    for name, panel in panels():
        for target in panel.get("targets", ()):
            if target["datasource"]["type"] != "prometheus":
                continue
            query = re.sub(r"\$(namespace|tenant|model)\b", ".*", target["expr"])
            query = query.replace("$__rate_interval", "1m").replace("$__range", "1h")
            assert "$" not in query
            yield f"{name}: {panel['title']}", query


def asked():
    """Panel and query to the admin API."""
    for name, panel in panels():
        for target in panel.get("targets", ()):
            if target["datasource"]["type"] != "prometheus":
                yield f"{name}: {panel['title']}", target


def metrics():
    """The samples that the processor's metrics have."""
    found = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
        found |= {family.name + suffix for suffix in suffixes[family.type]}
    return found


def without_links(some):
    for rule in (some := json.loads(json.dumps(some))) and [rule for group in some for rule in group["rules"]]:
        rule.get("annotations", {}).pop("runbook_url", None)
    return some


@pytest.fixture
def promtool(tmp_path):
    if shutil.which("promtool") is None:
        message = "promtool is missing: apt-get install prometheus"
        missing(message)
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({"groups": groups()}))
    # The cases compare what people read; the links have a test of their own.
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": without_links(groups())}))

    def run(*arguments):
        done = subprocess.run(
            ["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def test_prometheus_takes_the_rules(promtool):
    promtool("check", "rules", "--lint-fatal", "whole.yaml")


@pytest.mark.parametrize("case", CASES, ids=[path.stem for path in CASES])
def test_alerts_fire_when_they_should_and_not_before(case, promtool, tmp_path):
    shutil.copy(case, tmp_path)
    promtool("test", "rules", case.name)


def test_every_alert_was_seen_to_fire_and_not_to_fire():
    fired, quiet = set(), set()
    for case in CASES:
        for test in yaml.safe_load(case.read_text())["tests"]:
            for each in test["alert_rule_test"]:
                (fired if each["exp_alerts"] else quiet).add(each["alertname"])
    assert {rule["alert"] for rule in rules()} == fired == quiet


def test_alerts_say_what_is_wrong_and_how_bad_it_is():
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["summary"].endswith(".")


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    page = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (\w+)$", page, flags=re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in rules())
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"
        summary = rule["annotations"]["summary"]
        assert f"### {rule['alert']}\n\n{summary}" in page, "the runbook begins with the alert's summary"


def test_the_page_on_metrics_lists_each_alert_and_each_recording():
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[`(\w+)`\]\(runbooks\.md#(\w+)\) \|", page, flags=re.MULTILINE)
    assert listed == [(rule["alert"], rule["alert"].lower()) for rule in rules()]
    assert re.findall(r"^\| `(\w+:\w+:\w+)` \|", page, flags=re.MULTILINE) == list(recordings())


def test_runbooks_are_where_the_values_say():
    url = "https://docs.example/runbooks.md?plain=1"
    documents = made({"metrics": {"runbooksUrl": url}})
    first = pick(documents, "PrometheusRule")["spec"]["groups"][1]["rules"][0]
    assert first["annotations"]["runbook_url"] == f"{url}#tokenweirdown"


def test_alerts_are_about_the_releases_own_namespace():
    for query in [*recordings().values(), *(rule["expr"] for rule in rules())]:
        after = re.split(rf"{METRIC.pattern}|{RECORDED.pattern}", query)[1:]
        assert after
        assert all(each.startswith('{namespace="tw"') for each in after), query


@pytest.mark.parametrize("where", ["rules", "dashboards"])
def test_only_metrics_that_there_are_are_asked_for(where):
    expressions = [*recordings().values(), *(rule["expr"] for rule in rules())]
    asked = expressions if where == "rules" else [query for _, query in queries()]
    assert asked
    for query in asked:
        promql_parser.parse(query)
        assert set(METRIC.findall(query)) <= metrics(), query
        assert set(RECORDED.findall(query)) <= set(recordings()), query


def test_the_dashboards_show_what_one_asks_first():
    asked = "\n".join(query for _, query in queries())
    for each in (
        *('outcome="denied"', "tokenweir_tokens_total", "tokenweir_reserve_seconds_bucket"),
        *("tokenweir_queue_items", "tokenweir_ready", "tokenweir_limits_loaded_timestamp_seconds"),
        *('outcome="unavailable"', "tokenweir_limit_used_ratio", "tokenweir_limit_remaining", "deriv("),
        *("tokenweir_usage_price_total", "tokenweir_tenant_decisions_total"),
    ):
        assert each in asked


def test_the_chart_ships_the_dashboards_that_are_generated():
    # Written anew by: python deploy/grafana/generate.py
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy/grafana/generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(dashboards()) == {
        f"tokenweir{each}" for each in ("", "-tenants", "-models", "-finance", "-accounts")
    }


def test_the_dashboards_panels_have_places_of_their_own():
    for name, each in dashboards().items():
        taken, ids = set(), []
        for panel in each["panels"]:
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not cells & taken, (name, panel["title"])
            assert max(x for x, _ in cells) < 24
            taken |= cells
            ids.append(panel["id"])
        assert len(ids) == len(set(ids))
        titles = [panel["title"] for panel in each["panels"] if panel["type"] != "row"]
        assert len(titles) == len(set(titles)), name
    uids = [each["uid"] for each in dashboards().values()]
    assert len(uids) == len(set(uids))
    assert set(uids) == set(dashboards())


def test_every_panel_has_a_unit_and_asks_the_data_source_that_is_chosen():
    for name, panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"], (name, panel["title"])
        assert panel["targets"]
        variables = {each["name"]: each for each in dashboard(name)["templating"]["list"]}
        for target in panel["targets"]:
            chosen = variables[target["datasource"]["uid"].removeprefix("${").removesuffix("}")]
            assert (chosen["type"], chosen["query"]) == ("datasource", target["datasource"]["type"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


def test_every_variable_that_a_query_names_is_one_of_its_dashboard():
    for name, panel in panels():
        text = json.dumps(panel.get("targets", []))
        used = {each for each in re.findall(r"\$\{?(\w+)", text) if not each.startswith("__")}
        assert used <= {each["name"] for each in dashboard(name)["templating"]["list"]}, panel["title"]


def test_every_query_is_about_the_namespace_that_is_chosen():
    for name, panel in panels():
        for target in panel.get("targets", ()):
            for after in METRIC.split(target.get("expr", ""))[1:]:
                assert after.startswith('{namespace=~"$namespace"'), (name, panel["title"])


def test_the_admin_api_is_asked_within_bounds():
    found = dict(asked())
    assert found
    for title, target in found.items():
        parameters = {each["key"]: each["value"] for each in target["url_options"]["params"]}
        assert target["url"].startswith("/v1/usage/"), title
        assert int(parameters["at_most"]) <= 1000
        assert parameters["since"] == "${__from:date:YYYY-MM-DD}"
        assert target["root_selector"] == "rows"


def test_grafana_finds_the_dashboard_by_its_label():
    found = pick(made(), "ConfigMap", "tokenweir-dashboard")["metadata"]
    assert found["labels"]["grafana_dashboard"] == "1"
    values = {"metrics": {"dashboardNamespace": "grafana", "dashboardLabels": {"dashboards": "yes"}}}
    found = pick(made(values), "ConfigMap", "tokenweir-dashboard")["metadata"]
    assert found["namespace"] == "grafana"
    assert found["labels"]["dashboards"] == "yes"
    assert "grafana_dashboard" not in found["labels"]
    assert len(json.dumps(dashboards())) < 900_000, "a ConfigMap holds a megabyte"


def test_the_data_source_of_the_admin_api_is_off_and_is_what_is_provisioned_without_the_chart():
    names = [each["metadata"]["name"] for each in made() if each["kind"] == "ConfigMap"]
    assert "tokenweir-data-source" not in names
    source = {"enabled": True, "url": "https://admin.example.org"}
    found = pick(made({"metrics": {"dataSource": source}}), "ConfigMap", "tokenweir-data-source")
    assert found["metadata"]["labels"]["grafana_datasource"] == "1"
    (shown,) = yaml.safe_load(found["data"]["tokenweir-admin-api.yaml"])["datasources"]
    provisioned = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/tokenweir.yaml").read_text())
    (own,) = [each for each in provisioned["datasources"] if each["uid"] == shown["uid"]]
    own = json.loads(json.dumps(own).replace("${TOKENWEIR_ADMIN_URL}", source["url"]))
    assert shown == own
    assert shown["secureJsonData"] == {"bearerToken": "${TOKENWEIR_ADMIN_TOKEN}"}


def test_the_data_source_has_another_namespace_label_and_variable():
    source = {"enabled": True, "url": "http://tw", "labels": {"sources": "yes"}, "tokenVariable": "TOKEN_OF_TEAM"}
    values = {"metrics": {"dashboardNamespace": "grafana", "dataSource": source}}
    found = pick(made(values), "ConfigMap", "tokenweir-data-source")
    assert found["metadata"]["namespace"] == "grafana"
    assert "grafana_datasource" not in found["metadata"]["labels"]
    assert found["metadata"]["labels"]["sources"] == "yes"
    assert "${TOKEN_OF_TEAM}" in found["data"]["tokenweir-admin-api.yaml"]
