"""Every sample values file of every chart on an API server: installed, upgraded to the next, and removed, by both Helms."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHARTS, render

from .cluster import Cluster, documents_in

HELMS = ("helm", "helm3")
# What sample values call namespaces. Here each is a namespace of the run's own.
NAMESPACES = ("models", "science", "team-b", "infra", "istio-system", "istio-ingress")
FILES = {chart: sorted((CHARTS / chart / "ci").glob("*.yaml")) for chart in ("kserve-model", "kserve-general", "platform", "tokenweir")}  # fmt: skip
# The release is upgraded from one file of a chart to the next, once around: what a field may not become, shows.
STEPS = [(chart, path) for chart, paths in FILES.items() for path in (*paths, paths[0])]
RELEASE = "sample"
HOMES = {"kserve-model": "models", "kserve-general": "team-b", "tokenweir": "science"}


@pytest.fixture(scope="module")
def places(cluster: Cluster) -> Iterator[dict[str, str]]:
    """The run's namespaces, by what sample values call them."""
    made = {name: cluster.make_namespace(name) for name in NAMESPACES}
    yield made
    for name in made.values():
        cluster.remove_namespace(name)


@pytest.fixture(scope="module", params=HELMS)
def helm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def moved(value: Any, places: dict[str, str]) -> Any:
    """Return values in which each namespace is the run's: in texts that are its name, or begin with it and a slash."""
    if isinstance(value, dict):
        return {key: moved(each, places) for key, each in value.items()}
    if isinstance(value, list):
        return [moved(each, places) for each in value]
    if not isinstance(value, str):
        return value
    first, slash, rest = value.partition("/")
    return places.get(first, first) + slash + rest


def values_of(chart: str, path: Path, places: dict[str, str]) -> tuple[dict[str, Any], ...]:
    """Return the chart's defaults and a file's values, both with the run's namespaces."""
    texts = (each.read_text(encoding="utf-8") for each in (CHARTS / chart / "values.yaml", path))
    return tuple(moved(yaml.safe_load(text) or {}, places) for text in texts)


def place_of(chart: str, helm: str, places: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return where the chart is installed, and the namespaces of its values: platform makes those of models itself."""
    if chart == "platform":
        return places["infra"], {**places, **{name: f"{places[name]}-{helm}" for name in ("models", "team-b")}}
    return places[HOMES[chart]], places


@pytest.mark.parametrize(("chart", "path"), STEPS, ids=lambda each: each.stem if isinstance(each, Path) else each)
def test_a_release_is_installed_and_upgraded_without_a_warning(
    cluster: Cluster, places: dict[str, str], helm: str, chart: str, path: Path
) -> None:
    namespace, names = place_of(chart, helm, places)
    values = values_of(chart, path, names)
    if chart == "platform" and values[1].get("namespaces", {}).get("create") is False:
        values = values_of(chart, path, places)
    if lacking := cluster.lacks(render(chart, *values, release=RELEASE, namespace=namespace, helm=helm)):
        pytest.skip(f"the cluster has no {', '.join(lacking)}")
    said = cluster.install(chart, RELEASE, namespace, *values, helm=helm)
    assert said.warnings == []
    # Helm sends what it has with checks of its own; the server alone decides here.
    made = documents_in(cluster.helm("get", "manifest", RELEASE, "-n", namespace, helm=helm).out)
    assert made
    assert cluster.apply(cluster.placed(made, namespace), "--dry-run=server", "--force-conflicts") == []


@pytest.mark.parametrize("chart", FILES)
def test_a_release_that_is_removed_leaves_nothing(
    cluster: Cluster, places: dict[str, str], helm: str, chart: str
) -> None:
    namespace, names = place_of(chart, helm, places)
    if not cluster.helm("list", "-q", "-n", namespace, helm=helm).out:
        pytest.skip(f"no sample of {chart} was installed")
    made = documents_in(cluster.helm("get", "manifest", RELEASE, "-n", namespace, helm=helm).out)
    elsewhere = {each["metadata"].get("namespace", namespace) for each in made} - {namespace}
    assert made
    cluster.uninstall(RELEASE, namespace, helm=helm)
    for each in (namespace, *elsewhere):
        cluster.until(
            lambda each=each: not _left(cluster, each), f"{namespace} has {_left(cluster, each)}", seconds=30
        )
    if chart == "platform":
        for name in ("models", "team-b"):
            cluster.delete("namespace", names[name], "default", "--wait=false")


def _left(cluster: Cluster, namespace: str) -> set[str]:
    return {each for each in cluster.names(namespace) if not each.startswith("pod/")}


def test_what_the_server_warns_of_shows_through_both_helms(cluster: Cluster, namespace: str, helm: str) -> None:
    values = {
        "redis": {"url": "redis://redis:6379/0"},
        "mongo": {"url": "mongodb://mongo:27017/?replicaSet=rs0"},
        "gateway": {"namespace": namespace},
        "nodeSelector": {"beta.kubernetes.io/arch": "amd64"},
    }
    said = cluster.install("tokenweir", RELEASE, namespace, values, helm=helm)
    assert any("beta.kubernetes.io/arch" in each for each in said.warnings)
