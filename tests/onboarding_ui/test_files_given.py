"""What is written: values that Helm reads back, patches that Git takes, no more than what differs."""

import base64
import json
import subprocess

import pytest
import yaml

from extproc.onboarding import charts, files
from extproc.onboarding.dumping import dump, inline, means, same
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.ui import essentials, filling, form, products
from extproc.onboarding.ui.opened import open_file

from .served import git, helm

# Plain, Go's YAML or Python's would take these for something else, or not at all.
TRAPS = [
    "yes",
    "y",
    "on",
    "No",
    "12:30",
    "1e3",
    "0o17",
    "017",
    "08",
    "0x1F",
    "1_0",
    "2024-01-01",
    "null",
    "~",
    "=",
    "-",
    "-1",
    "+",
    ".",
    "..",
    "<<",
    ".inf",
    ".nan",
    "true",
    "---",
    "...",
    "?",
    "!",
    "|",
    ">",
    "%",
    "@",
    "`",
    "*",
    "&",
    "#",
    "a:",
    ":a",
    "[a]",
    "{a}",
    "a,b",
    "'q'",
    '"q"',
    "1.5",
    ".5",
    "5.",
    "0b2",
    "e5",
    "-a",
    "--x=1",
    "a#b",
]
TRAPS += [
    "",
    " lead",
    "trail ",
    "a: b",
    "a #b",
    "- x",
    "a\nb",
    "a\nb\n",
    "\n",
    "  a\n b",
    "é 🤖",
    "\u2028",
    "\t",
    "{{ .Values.env }}",
]


def test_every_text_comes_out_of_helm_as_it_went_in(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: probe\nversion: 0.1.0\n")
    (tmp_path / "templates" / "a.yaml").write_text("all: {{ .Values | toJson | b64enc }}\n")
    values = {f"k{number}": text for number, text in enumerate(TRAPS)} | {"list": [1, 1.5, True, None, {}, []]}
    one_line = "".join(f"{key}: {inline(value)}\n" for key, value in values.items())
    for number, text in enumerate((dump(values), one_line)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        done = subprocess.run(
            [helm(), "template", tmp_path, "-f", file], capture_output=True, text=True, check=True
        )
        said = json.loads(base64.b64decode(yaml.safe_load(done.stdout)["all"]))
        assert {key: said.get(key) for key in values} == values
        assert same(means(text), values)


def test_only_what_differs_is_said_but_what_the_file_said_stays():
    defaults = {"a": 1, "b": {"c": True, "d": {}}, "e": None}
    assert filling.smallest({"a": 1, "b": {"c": True, "d": {}}, "e": None}, {}, defaults) == {}
    assert filling.smallest({"a": 1, "b": {"c": 1}}, {}, defaults) == {"b": {"c": 1}}  # 1 is not true
    assert filling.smallest({"a": 1, "b": {"c": True}}, {"a": 1, "b": {"c": False}}, defaults) == {"a": 1}
    assert filling.smallest({"b": None, "x": {}}, {}, defaults) == {"b": None, "x": {}}


def test_a_text_that_is_empty_takes_its_value_away():
    values, problems = filling.combined({"a": {"b": [1]}, "c": 1}, {"a.b": "", "d.e": "x: 1", "f": "# nothing"})
    assert values == {"a": {}, "c": 1, "d": {"e": {"x": 1}}}
    assert problems == []


def test_a_new_key_of_the_chart_is_a_new_field():
    schema = json.loads(json.dumps(charts.schema("kserve-model")))
    defaults = json.loads(json.dumps(charts.defaults("kserve-model")))
    schema["properties"]["autoscaling"]["properties"]["coolDownSeconds"] = {
        "type": "integer",
        "description": "New.",
        "default": 7,
    }
    schema["properties"]["sidecars"] = {"type": "array", "items": {"type": "object"}, "default": []}
    defaults["autoscaling"]["coolDownSeconds"] = 7
    defaults["sidecars"] = []
    found = form.fields(form.sections(schema, defaults))
    new = found["autoscaling.coolDownSeconds"]
    assert (new.control, new.label, new.help, new.default) == ("number", "Cool down seconds", "New.", 7)
    assert found["sidecars"].control == "yaml"


@pytest.mark.parametrize("chart", charts.MODEL_CHARTS)
def test_every_value_of_a_chart_has_a_field_that_fits(chart):
    found = form.fields(form.sections(charts.schema(chart), charts.defaults(chart)))

    def leaves(values, schema, above=""):
        for key, value in values.items():
            inner = schema.get("properties", {}).get(key, {})
            if isinstance(value, dict) and value and inner.get("additionalProperties") is False:
                yield from leaves(value, inner, f"{above}{key}.")
            else:
                yield f"{above}{key}"

    missing = [
        each
        for each in leaves(charts.defaults(chart), charts.schema(chart))
        if each not in found and not any(path.startswith(each + ".") for path in found)
    ]
    assert missing == []
    controls = {path: each.control for path, each in found.items()}
    assert controls["exposeModel.enabled"] == "switch"
    assert controls["tokenLimit.enabled"] == "choice"
    assert controls["tokenLimit.limits"] == "rows"
    assert controls["inferenceservice.labels"] == "pairs"
    assert controls["inferenceservice.predictor.containers"] == "yaml"
    assert controls["exposeModel.hosts"] == "lines"
    assert controls["resources.limitGPU"] == "text"
    assert ("primaryLoad" in controls) == (chart == charts.WITH_CANARY)


def test_the_essentials_are_values_of_the_chart_that_has_them_all():
    found = form.fields(form.sections(charts.schema(charts.WITH_CANARY), charts.defaults(charts.WITH_CANARY)))
    wanted = [each.path for topic in essentials.TOPICS for each in (*topic.fields, *topic.more)]
    assert [each for each in (*wanted, *essentials.SUGGESTIONS) if each not in found] == []
    assert len(wanted) == len(set(wanted))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, "a: 1\n"),
        (None, "a: 1"),
        ("", "a: 1\n"),
        ("a: 1", "a: 1\nb: 2"),
        ("a: 1\r\nb: 2\r\n", "a: 1\r\nb: 3\r\n"),
        ("a: x\x0cy\u2028z\n" * 9, "a: x\x0cy\u2028z\n" * 8 + "b: 1\n"),
    ],
)
@pytest.mark.parametrize("path", ["values.yaml", "a b/c d.yaml", 'ä/"q"\\\ty.yaml', "--x/-p.yaml"])
def test_git_applies_every_patch(tmp_path, old, new, path):
    subprocess.run([git(), "init", "-q", str(tmp_path)], check=True)
    file = tmp_path / path
    if old is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(old.encode())
    patch = products.patch(old, new, path)
    subprocess.run([git(), "-C", str(tmp_path), "apply", "-"], input=patch.encode(), check=True)
    assert file.read_bytes() == new.encode()


@pytest.mark.parametrize("path", ["values.yaml", "a b/c d.yaml", 'ä/"q"\\\ty.yaml'])
def test_a_patch_names_its_file_as_git_does(tmp_path, path):
    subprocess.run([git(), "init", "-q", str(tmp_path)], check=True)
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a: 1\n")
    subprocess.run([git(), "-C", str(tmp_path), "add", "-A"], check=True)
    file.write_text("a: 2\n")
    theirs = subprocess.run(
        [git(), "-C", str(tmp_path), "diff"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line for line in theirs.splitlines(keepends=True) if not line.startswith("index ")]
    assert products.patch("a: 1\n", "a: 2\n", path) == "".join(lines)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a", "a/../b", "a//b", ".git/config", "a/./b", "x" * 500])
def test_a_patch_stays_in_its_repository(path):
    with pytest.raises(OnboardingError, match="inside a repository"):
        products.patch(None, "a: 1\n", path)


def test_the_other_commands_read_what_the_form_gives():
    values = {"replicaCount": 2, "primaryLoad": 90}
    for text in (
        products.values_file(values, "kserve-general", "qwen"),
        products.helmrelease(values, "kserve-general", "qwen", "models"),
    ):
        model = files.one(text, "given")
        assert (model.values, model.chart) == (values, "kserve-general")
    assert (model.release, model.namespace) == ("qwen", "models")


def test_a_file_that_is_not_there_yet_or_empty_is_begun(tmp_path):
    opened = open_file(tmp_path / "new.yaml", None, None)
    assert (opened.text, opened.values) == (None, {})
    file = tmp_path / "empty.yaml"
    file.write_text("# to come\n")
    opened = open_file(file, None, None)
    assert opened.with_values({"env": "dev"}, "kserve-model", "iris").startswith("# to come\n")
    assert opened.in_repository("iris") == "empty.yaml"
