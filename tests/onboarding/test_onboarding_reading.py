"""YAML as Helm reads it, and what no file may do to the reader."""

import json
import subprocess

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.onboarding import files, layering, reading
from extproc.onboarding.errors import OnboardingError
from tests.charts.helm import tool
from tests.sizes import sized

READINGS = """
text: abc
date: 2025-01-02
instant: 2025-01-02T03:04:05Z
clock: 12:30
truths: [yes, No, on, OFF, true, y, N]
nothing: [~, null, ]
octal: [010, 0o10]
others: [0x1F, 0b11, 1_000, +5, -7]
exponents: [1e5, 1.0e+5, 5e-1]
version: 1.10
equals: =
big: 12345678901234567890123
tagged: [!!str 5, !mine x]
merged: {<<: {a: 1, b: 2}, b: 3}
anchors: [&x {k: v}, *x]
folded: >
  a
  b
5: a number as a key
on: a truth as a key
"""


def read(text, source="f.yaml"):
    (node,) = reading.compose(text, source)
    return reading.data(node, source)


@pytest.fixture(scope="module")
def chart(tmp_path_factory):
    """A chart that prints its values."""
    folder = tmp_path_factory.mktemp("chart")
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: t\nversion: 0.1.0\n")
    (folder / "templates").mkdir()
    (folder / "templates" / "x.yaml").write_text("out: {{ toJson .Values | quote }}\n")

    def values_in(values, defaults="{}", helm="helm"):
        (folder / "values.yaml").write_text(defaults)
        (folder / "given.yaml").write_text(values)
        words = [tool(helm), "template", "r", str(folder), "-f", str(folder / "given.yaml")]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return json.loads(yaml.safe_load(done.stdout)["out"])

    return values_in


@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_values_are_read_as_helm_reads_them(chart, helm):
    assert read(READINGS) == chart(READINGS, helm=helm)


KEYS = st.sampled_from(["a", "b", "c"])
TREES = st.recursive(
    st.one_of(st.none(), st.integers(0, 9), st.just([1])),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=sized(10, 100), deadline=None)
@given(defaults=st.dictionaries(KEYS, TREES, max_size=3), values=st.dictionaries(KEYS, TREES, max_size=3))
def test_values_lie_over_defaults_as_in_helm(chart, defaults, values):
    ours = layering.layered(defaults, values)
    theirs = chart(json.dumps(values), json.dumps(defaults))
    # Helm's versions differ on a null that is a default: whether it is there makes no difference to a template.
    assert without_nulls(ours) == without_nulls(theirs)


def without_nulls(value):
    if not isinstance(value, dict):
        return value
    return {key: without_nulls(each) for key, each in value.items() if each is not None}


def test_two_files_lie_over_one_another_as_in_helm_and_a_null_still_takes_a_default_away():
    below, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None}, "d": {"e": 1}}
    together = layering.overlaid(below, over)
    assert together == {"a": {"b": None, "c": 2}, "d": {"e": 1}}
    assert layering.layered({"a": {"b": 7}}, together)["a"] == {"c": 2}


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 99), st.text(min_size=1, max_size=8)), min_size=1, max_size=5))
def test_a_path_is_spelled_so_that_it_can_be_read_back(path):
    if isinstance(path[0], int):
        path = ["x", *path]
    assert layering.unspell(layering.spell(tuple(path))) == tuple(path)


BOMB = "l0: &l0 [a]\n" + "".join(f"l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice (first in line 1)"),
        ("yes: 1\non: 2", "line 2: 'true' is given twice (first in line 1)"),
        ("a: &a [*a]", "line 1: an anchor refers to itself"),
        ("a: &a {b: {<<: *a}}", "line 1: an anchor refers to itself"),
        (BOMB, "with what its anchors repeat it has more than 50,000 values"),
        ("a: " + "[" * 200_000, "line 1: nested more than 60 deep"),
        ("- " * 200_000, "line 1: nested more than 60 deep"),
        ("a:\n\tb: 1", "not valid YAML at line 2, column 1: a tab; YAML is indented with spaces"),
        ("a: [", "not valid YAML at line 2, column 1: "),
        ("a: b: c", "not valid YAML at line 1, column 5: "),
        ("a: *b", "not valid YAML at line 1, column 4: found undefined alias"),
        ("a: \x07", "not valid YAML: "),
        ("[1]", "not a map of values"),
        ("just text", "not a map of values"),
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("a: 1\n---\nb: 2\n", "several YAML documents"),
        ("x: 1\n? [a, b]\n: 1", "line 2: a key must be text"),
        ("a: .inf", "line 1: '.inf' is no number"),
        ("a: !!binary aGFs", "line 1: the tag !!binary can't be read here"),
        ("a: {<<: 1}", "line 1: '<<' takes a map"),
        ("apiVersion: apps/v1\nkind: Deployment", "a Deployment; neither values nor a Flux HelmRelease"),
    ],
)
def test_what_is_no_values_file_is_told_in_one_line_with_its_place(text, message):
    with pytest.raises(OnboardingError) as found:
        files.models(text, "f.yaml")
    assert str(found.value).startswith(f"f.yaml: {message}")
    assert "\n" not in str(found.value)


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@?,\n \t<~1.", max_size=40))
def test_any_text_is_values_or_a_message(text):
    try:
        (model,) = files.models(text, "f.yaml")
    except OnboardingError:
        return
    assert isinstance(model.values, dict)


def test_a_large_file_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_bytes(b"a" * 3_000_000)
    with pytest.raises(OnboardingError, match="larger than 512 KiB: split it, or name another file"):
        files.load(str(path))


@pytest.mark.parametrize(
    ("raw", "message"), [(b"\xff\xfe", "no UTF-8 text"), (b"a: \0", "a binary file"), (None, "No such file")]
)
def test_a_file_that_is_no_text_or_missing_is_told(tmp_path, raw, message):
    path = tmp_path / "v.yaml"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(OnboardingError, match=message):
        files.load(str(path))


RELEASE = """
# a comment
apiVersion: v1
kind: Namespace
metadata: {name: models}
---
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata:
  name: qwen
  namespace: models
spec:
  chart: {spec: {chart: ./charts/kserve-general}}
  values:
    replicaCount: 2
    inferenceservice:
      predictor:
        containers:
          - image: a:v1
            env:
              - {name: A, value: b}
"""


def test_values_of_a_helmrelease_are_found_with_chart_names_and_lines():
    (model,) = files.models(RELEASE, "qwen.yaml")
    assert (model.chart, model.release, model.namespace) == ("kserve-general", "qwen", "models")
    assert (model.helmrelease, model.partial, model.elsewhere) == (True, False, False)
    assert model.values["replicaCount"] == 2
    path = ("inferenceservice", "predictor", "containers", 0, "env", 0, "value")
    assert RELEASE.splitlines()[model.line_of(path) - 1].strip() == "- {name: A, value: b}"
    assert RELEASE.splitlines()[model.line_of(("replicaCount", "x", "y")) - 1].strip() == "replicaCount: 2"
    assert model.line_of(("nowhere",)) is None


@pytest.mark.parametrize(
    ("old", "new", "release", "namespace"),
    [
        ("spec:\n", "spec:\n  releaseName: other\n", "other", "models"),
        ("spec:\n", "spec:\n  targetNamespace: prod\n", "prod-qwen", "prod"),
        ("spec:\n", "spec:\n  releaseName: o\n  targetNamespace: prod\n", "o", "prod"),
    ],
)
def test_a_release_is_named_as_flux_names_it(old, new, release, namespace):
    (model,) = files.models(RELEASE.replace(old, new), "f")
    assert (model.release, model.namespace) == (release, namespace)


def test_a_patch_of_a_helmrelease_and_values_from_elsewhere_are_known_as_such():
    (patch,) = files.models(RELEASE.replace("  chart: {spec: {chart: ./charts/kserve-general}}\n", ""), "f")
    assert (patch.partial, patch.told) == (True, False)
    (model,) = files.models(
        RELEASE.replace("  values:\n", "  valuesFrom: [{kind: ConfigMap, name: p}]\n  values:\n"), "f"
    )
    assert (model.partial, model.elsewhere) == (False, True)


def test_a_helmrelease_of_another_chart_is_no_model_unless_told():
    text = RELEASE.replace("./charts/kserve-general", "redis")
    with pytest.raises(OnboardingError, match="its HelmRelease's chart is not kserve-model or kserve-general"):
        files.models(text, "f")
    assert files.models(text, "f", "kserve-model")[0].chart == "kserve-model"


def test_of_several_releases_one_is_chosen_by_name():
    two = (
        RELEASE
        + "---"
        + RELEASE.replace("name: qwen", "name: llama").replace("replicaCount: 2", "replicaCount: 3")
    )
    assert [each.release for each in files.models(two, "f")] == ["qwen", "llama"]
    assert files.one(two, "f", release="llama").values["replicaCount"] == 3
    with pytest.raises(OnboardingError, match=r"several models \(qwen, llama\): --release says which"):
        files.one(two, "f")


@pytest.mark.parametrize(
    ("text", "chart", "told"),
    [
        ("replicaCount: 1", "kserve-model", False),
        ("primaryLoad: 50", "kserve-general", False),
        ("inferenceservice: {predictor: {model: {newImageTag: v2}}}", "kserve-general", False),
        ("inferenceservice: {predictor: {containers: [{image: a, newImage: b}]}}", "kserve-general", False),
        ("# Values of the model q for the chart kserve-general.\nreplicaCount: 1", "kserve-general", True),
        ("---\n# chart kserve-model\nprimaryLoad: 1", "kserve-model", True),
        ("replicaCount: 1\n# chart kserve-general", "kserve-model", False),
    ],
)
def test_the_chart_of_a_values_file_is_told_by_its_head_or_by_its_keys(text, chart, told):
    (model,) = files.models(text, "f")
    assert (model.chart, model.told) == (chart, told)
