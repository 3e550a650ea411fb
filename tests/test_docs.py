import ast
import functools
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import typer

import extproc
from extproc.admin.report_rows import ReportedRow
from extproc.admin.service import TenantView
from extproc.cli import app
from extproc.cli.ledger import AsideRow, WaitingRow
from extproc.cli.usage import DailyRow, EntryRow
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.limits import Scope
from extproc.dumper.holding import Holding
from extproc.dumper.metrics import DumperMetrics
from extproc.observe.counting import Counts, Distribution
from extproc.observe.metrics import Metrics
from extproc.settings import dumper as dumper_settings
from extproc.settings.load import field_names, variable_name

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def text_of(name):
    return (DOCS / name).read_text(encoding="utf-8")


def sections(text):
    """Title -> text of each `##` section."""
    return dict(part.partition("\n")[::2] for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])


def rows(text):
    """The cells of a page's tables, heads left out."""
    lines = re.findall(r"^\|(.+)\|$", text, flags=re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    rules = {index for index, row in enumerate(cells) if set("".join(row)) == {"-"}}
    return [row for index, row in enumerate(cells) if index not in rules and index + 1 not in rules]


# Settings.


def test_the_tables_of_settings_are_what_the_settings_are():
    # Written anew by: python docs/settings_table.py
    page = runpy.run_path(str(DOCS / "settings_table.py"))["page"]
    assert page(text_of("settings.md")) == text_of("settings.md")


@pytest.mark.parametrize("name", field_names())
def test_a_setting_is_documented_with_variable_value_default_and_meaning(name):
    (row,) = [row for row in rows(text_of("settings.md")) if row[0] == f"`{name}`"]
    assert row[1] == f"`{variable_name(name)}`"
    assert len(row) == 5
    assert all(row)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_every_variable_that_a_page_names_is_one(page):
    known = {variable_name(name) for name in field_names()}
    known |= {
        "TOKENWEIR_CONFIG",
        "TOKENWEIR_SERVICE_HOST",
        "TOKENWEIR_PORT",
        "TOKENWEIR_FIXTURES",
        "TOKENWEIR_SCHEMAS",
    }
    known |= {"TOKENWEIR_ENVOYS", "TOKENWEIR_HELM"}
    known |= {"TOKENWEIR_ADMIN_TOKEN", "TOKENWEIR_ADMIN_URL"}  # Grafana's own
    known |= {dumper_settings.PREFIX + name.upper() for name in dumper_settings.DumperSettings.model_fields}
    assert set(re.findall(r"\bTOKENWEIR_\w+", text_of(page))) <= known | {"TOKENWEIR_", dumper_settings.PREFIX}


# Metrics.


def labels_of(family, metrics):
    collector = metrics.registry._names_to_collectors[family.name]
    return tuple(collector.labels if isinstance(collector, (Counts, Distribution)) else collector._labelnames)


def exported():
    """Name on the page -> (type, labels)."""
    metrics = Metrics()
    found = {}
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, labels_of(family, metrics))
    return found


def documented():
    table = text_of("metrics.md").partition("## Label values")[0]
    return {
        row[0].strip("`"): (row[1], tuple(re.findall(r"`(\w+)`", row[2]))) for row in rows(table) if row[3].strip()
    }


def test_the_table_of_metrics_is_what_is_exported():
    assert documented() == exported()


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_every_metric_that_a_page_names_is_exported(page):
    # Names with colons are those of recording rules.
    named = set(re.findall(r"(?<![\w:])tokenweir_[a-z0-9_]+", text_of(page))) - {"tokenweir_ext_proc"}
    named -= of_the_dumper() if page == "message-dumper.md" else set()
    histograms = {name for name, (kind, _) in exported().items() if kind == "histogram"}
    known = set(exported()) | {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
    assert named <= known


def of_the_dumper():
    """The names of the message dumper's own metrics, whose page its own tests compare."""
    families = list(DumperMetrics(Holding(1024)).registry.collect())
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def reasons_in(folder, *functions):
    """The string constants that calls of these functions have among their arguments."""
    found = set()
    for path in (ROOT / "extproc" / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in functions:
                arguments = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "reason")]
                inner = [part for argument in arguments for part in ast.walk(argument)]
                found |= {n.value for n in inner if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return found


def test_every_reason_that_a_reservation_ends_for_is_documented():
    reasons = reasons_in("core", "released", "estimate", "Settlement") | set(Absence)
    assert len(reasons) >= 10
    table = sections(text_of("metrics.md"))["Label values"]
    assert {reason for reason in reasons if f"`{reason}`" not in table} == set()


def test_every_reason_of_a_rejection_is_documented():
    line = text_of("metrics.md").partition("**`tokenweir_rejections_total`**")[2].partition("\n\n")[0]
    written = set(re.findall(r"`([^`]+)`", line))
    source = (ROOT / "extproc/core/rejections.py").read_text(encoding="utf-8")
    fixed = set(re.findall(r'reason="(\w+)"', source))
    assert written == fixed | {f"over_limit:{scope}" for scope in Scope}


def test_every_scope_is_documented_as_a_reason_to_deny():
    table = sections(text_of("metrics.md"))["Label values"]
    (row,) = [row for row in rows(table) if row[0] == "`denied`"]
    assert set(re.findall(r"`([^`]+)`", row[1])) == set(Scope)


def test_every_other_label_value_in_the_code_is_documented():
    values = reasons_in("envoy", "stream_fault") | reasons_in(".", "watch_queue") | reasons_in(".", "decided")
    table = sections(text_of("metrics.md"))["Label values"]
    assert {value for value in values if value and f"`{value}`" not in table} == set()
    assert {"protocol", "closings", "unavailable"} <= values


# The command line.


def leaves(command, path=()):
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path), command
        return
    for name, each in inner.items():
        yield from leaves(each, (*path, name))


COMMAND = typer.main.get_command(app)
LEAVES = dict(leaves(COMMAND))


def options(command):
    return {o for p in command.params if p.param_type_name == "option" for o in [*p.opts, *p.secondary_opts]}


def test_the_commands_that_are_documented_are_the_ones_there_are():
    assert sorted(sections(text_of("cli.md"))) == sorted(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_of_a_command_is_documented_and_no_other(name):
    table = " ".join(row[0] for row in rows(sections(text_of("cli.md"))[name]))
    assert set(re.findall(r"`(-[\w-]+)", table)) == options(LEAVES[name]) - {"--help", "-h"}


def test_the_options_before_the_command_are_documented():
    head = text_of("cli.md").partition("\n## ")[0]
    named = set(re.findall(r"`(-[\w-]+)", " ".join(row[0] for row in rows(head))))
    assert named == options(COMMAND) | {"--help", "-h"}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("tenant list", TenantView),
        ("usage daily", DailyRow),
        ("usage report", ReportedRow),
        ("usage top", ReportedRow),
        ("usage entries", EntryRow),
        ("ledger waiting", WaitingRow),
        ("ledger aside", AsideRow),
    ],
)
def test_the_keys_of_json_are_documented(name, record):
    (row,) = [row for row in rows(sections(text_of("cli.md"))[name]) if row[0] == "`--json`"]
    assert re.findall(r"`(\w+)`", row[1]) == list(
        getattr(record, "__struct_fields__", None) or record.__dataclass_fields__
    )


# Dependencies.


def test_every_dependency_has_its_reason_and_no_other_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {"Always": project["dependencies"], **{f"Extra `{name}`": listed for name, listed in extras.items()}}
    names = {
        title: [re.match(r"[\w.-]+", requirement).group() for requirement in listed]
        for title, listed in wanted.items()
    }
    pages = {title.partition(":")[0]: rows(text) for title, text in sections(text_of("dependencies.md")).items()}
    assert {title: [row[0] for row in table] for title, table in pages.items()} == names
    assert all(len(row[1]) > 5 for table in pages.values() for row in table)


# Tests that pages name.

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def named_tests_of(page):
    """Return the (path, function) pairs of a page; the function is empty where only a file or folder is named."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"\btests/([\w/]+(?:\.py)?)(?:::(\w+))?", text)


@functools.cache
def functions_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page):
    missing = []
    for path, function in named_tests_of(page):
        where = ROOT / "tests" / path
        if not where.exists() or (function and function not in functions_of(where)):
            missing.append(f"tests/{path}::{function}")
    assert missing == []


def test_every_guarantee_names_a_test():
    table = text_of("guarantees.md").partition("\n## ")[0]
    promises = rows(table)
    assert len(promises) >= 15
    assert [promise for promise, shown_by in promises if "tests/" not in shown_by] == []


def test_every_promise_under_faults_names_a_test_and_a_filter_that_selects_one():
    page = sections(text_of("reliability.md"))
    named = {row[0]: row[1] for row in rows(page["Tests"])}
    names = [
        f"{path.stem} {name}"
        for path in (ROOT / "tests" / "chaos").glob("test_*.py")
        for name in functions_of(path)
    ]
    promises = [row for row in rows(text_of("reliability.md").partition("\n## ")[0]) if row[0].startswith("R")]
    assert [row[0] for row in promises] == [f"R{number}" for number in range(1, 14)]
    for number, _, _, command in promises:
        assert "tests/chaos/" in named[number]
        word = re.fullmatch(r"`(\w+)`", command)
        assert word is None or any(word.group(1) in name for name in names)


# Versions.


def test_the_version_is_the_same_everywhere_and_in_the_changelog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    charts = [path.read_text(encoding="utf-8") for path in (ROOT / "charts").glob("*/Chart.yaml")]
    shipped = {version for text in charts for version in re.findall(r'^appVersion: "(.+)"$', text, re.MULTILINE)}
    latest = re.search(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {project["version"], extproc.__version__, latest.group(1), *shipped} == {project["version"]}
