"""A release over time, and beside its neighbours: what a change of values leaves alone, and whose names are whose."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.sizes import sampled

from .helm import CHARTS, HELMS, ChartError, Document, pick, render, tool
from .test_chart_properties import FEATURES, SOURCES, _merged

GENERAL, MODEL = "kserve-general", "kserve-model"
EVERYTHING = _merged(*(values for name, values in FEATURES.items() if name not in {"gateway api", "hpa"}))
OTHER = _merged(EVERYTHING, FEATURES["gateway api"], FEATURES["hpa"])
# What an upgrade may touch when a canary starts or goes: who gets how much, and the routes that are limited.
SPLIT = {"VirtualService", "HTTPRoute", "EnvoyFilter", "AuthorizationPolicy"}


def _by_name(documents: list[Document]) -> dict[tuple[str, str, str], Document]:
    named = {(each["kind"], each["metadata"]["namespace"], each["metadata"]["name"]): each for each in documents}
    assert len(named) == len(documents)
    return named


def _stable(canary: dict[str, Any]) -> dict[str, Any]:
    """The same release without its canary."""
    values = _merged(canary)
    predictor = values["inferenceservice"]["predictor"]
    for holder in (predictor.get("model", {}), *predictor.get("containers", [])):
        for key in ("newStorageUri", "newImage", "newImageTag"):
            holder.pop(key, None)
    return values


WAYS = {"plain": {}, "everything": EVERYTHING, "the other ways": OTHER}


@pytest.mark.parametrize(("source", "way"), sampled(itertools.product(range(len(SOURCES)), WAYS), 5))
def test_a_canary_comes_and_goes_and_the_primary_does_not_notice(source: int, way: str) -> None:
    canary, features = SOURCES[source][1], WAYS[way]
    before = _by_name(render(GENERAL, _stable(canary), features))
    during = _by_name(render(GENERAL, canary, features, {"primaryLoad": 70}))
    assert before.keys() <= during.keys()
    assert {key[0] for key, each in before.items() if each != during[key]} <= SPLIT
    assert {key[2] for key in during.keys() - before.keys() if key[0] == "InferenceService"} == {"qwen-canary"}


def _images(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    model = {"modelFormat": {"name": "vllm"}, "storageUri": "hf://a/b", "image": old}
    return _merged(
        {"inferenceservice": {"predictor": {"model": model | ({"newImageTag": new} if new else {})}}}, values
    )


def test_a_promotion_gives_the_primary_what_the_canary_had_and_nothing_else() -> None:
    trial = render(GENERAL, _images(EVERYTHING, "r:5000/v:1", "2"), {"primaryLoad": 10})
    after = render(GENERAL, _images(EVERYTHING, "r:5000/v:2", ""), {"primaryLoad": 10})
    promoted, canary = pick(after, "InferenceService"), pick(trial, "InferenceService", "qwen-canary")
    assert promoted["spec"] == canary["spec"]
    assert promoted["metadata"]["name"] == "qwen-primary"
    (backend,) = pick(after, "VirtualService", "qwen-mesh")["spec"]["http"][0]["route"]
    assert (backend["destination"]["host"], backend["weight"]) == ("qwen-primary-transformer", 100)


def test_values_that_are_added_later_rename_nothing() -> None:
    for chart in (MODEL, GENERAL):
        plain = _by_name(render(chart, {}))
        for features in (EVERYTHING, OTHER, {"exposeModel": {"enabled": True}}):
            own = {"inferenceservice": {"predictor": {"serviceAccountName": None}}}
            assert plain.keys() <= _by_name(render(chart, features, own)).keys()


def test_the_same_values_make_the_same_bytes() -> None:
    folder = CHARTS / GENERAL
    command = [tool("helm"), "template", "qwen", str(folder), "-f", str(folder / "ci/full-llm-canary.yaml")]
    texts = {subprocess.run(command, capture_output=True, check=True).stdout for _ in range(3)}
    assert len(texts) == 1


NEIGHBOURS = ["x", "x-mesh", "x-public", "x-callers", "x-closed", "x-limits", "x-graph", "x-vllm", "x-scale", "xy"]


@pytest.mark.parametrize("way", sampled(["everything", "the other ways"], 1))
def test_releases_in_one_namespace_have_no_object_and_no_host_in_common(way: str) -> None:
    features = WAYS[way]
    vllm = {
        "inferenceservice": {"predictor": {"model": {"modelFormat": {"name": "vllm"}, "storageUri": "hf://a/b"}}}
    }
    graph = {"inferenceservice": {"graph": {"root": {"routerType": "Sequence", "steps": [{"serviceName": "a"}]}}}}
    made: dict[str, set[tuple[str, ...]]] = {}
    for number, release in enumerate(NEIGHBOURS):
        documents = render((GENERAL, MODEL)[number % 2], vllm, features, graph, release=release)
        names: set[tuple[str, ...]] = set(_by_name(documents))
        for each in documents:
            spec = each.get("spec", {})
            hosts = spec.get("hosts", []) if each["kind"] == "VirtualService" else spec.get("hostnames", [])
            names |= {("host", host, str(spec.get("gateways"))) for host in hosts}
            if each["kind"] == "InferenceService":
                names |= {("Deployment", f"{each['metadata']['name']}-predictor")}
        made[release] = names - {("ServiceAccount", "models", "own")}
    for one, other in itertools.combinations(made, 2):
        assert not made[one] & made[other], (one, other)


@pytest.mark.parametrize("release", ["a-predictor", "a-predictor-b"])
def test_a_release_has_no_host_that_could_be_another_namespaces(release: str) -> None:
    """`a-predictor-b` in `c` and `a` in `b-predictor-c` would share a-predictor-b-predictor-c."""
    with pytest.raises(ChartError, match="must not have -predictor in it"):
        render(MODEL, {}, release=release)
    render(MODEL, {}, release="a-predictors")


@pytest.mark.parametrize("chart", sampled([MODEL, GENERAL], 1))
@pytest.mark.parametrize("helm", HELMS)
def test_a_packaged_chart_makes_what_the_folder_makes(helm: str, chart: str, tmp_path: Path) -> None:
    """With the library by its link, and, where links are lost, by `helm dependency build`."""
    values = next((CHARTS / chart / "ci").glob("full-*.yaml"))
    place = {name: str(tmp_path) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}

    def run(*arguments: str) -> str:
        command = [tool(helm), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **place}
        ).stdout

    wanted = run("template", "qwen", str(CHARTS / chart), "-n", "models", "-f", str(values))
    run("package", str(CHARTS / chart), "-d", str(tmp_path))
    (package,) = tmp_path.glob(f"{chart}-*.tgz")
    assert run("template", "qwen", str(package), "-n", "models", "-f", str(values)) == wanted
    inside = subprocess.run(["tar", "-tzf", package], capture_output=True, text=True, check=True).stdout
    assert "README.md" in inside
    assert "README.head.md" not in inside

    for name in ("kserve-lib", chart):
        shutil.copytree(CHARTS / name, tmp_path / "charts" / name, symlinks=True)
    (tmp_path / "charts" / chart / "charts" / "kserve-lib").unlink()
    run("dependency", "build", str(tmp_path / "charts" / chart))
    assert run("template", "qwen", str(tmp_path / "charts" / chart), "-n", "models", "-f", str(values)) == wanted
