"""deploy/flux, deploy/local and what `tokenweir model` writes, on an API server: folders, and releases over time."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHARTS, ROOT, Document
from tests.deploy.test_flux import OURS, _chart
from tests.deploy.tree import CLUSTERS, FLUX, build, folders, merged, named, objects

from .asked import told
from .cluster import Cluster, documents_in
from .test_api_server import moved

Release = tuple[str, str, str, dict[str, Any]]
LOCAL = ROOT / "deploy" / "local"
ISSUER = {"platform": {"jwt": {"issuers": [{"issuer": "https://a.local", "audiences": ["models"], "jwks": '{"keys": []}'}]}}}  # fmt: skip


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(FLUX)))
def test_every_folder_of_flux_is_taken(cluster: Cluster, namespace: str, folder: Path) -> None:
    assert told(cluster, build(folder), namespace) == []


def _of_flux(cluster: str) -> list[Release]:
    """Return chart, namespace, name and own values of our releases, in the order in which Flux installs them."""
    found = [each for each in named(objects(cluster), "HelmRelease").values() if _chart(each) in OURS]
    found.sort(key=lambda each: OURS.index(_chart(each)))
    return [
        (_chart(each), each["metadata"]["namespace"], each["metadata"]["name"], each["spec"]["values"])
        for each in found
    ]


def _of_local(model: str) -> list[Release]:
    values = {
        name: yaml.safe_load((LOCAL / f"{name}.yaml").read_text()) for name in ("platform", "tokenweir", model)
    }
    return [
        ("platform", "infra", "platform", merged(values["platform"], ISSUER)),
        ("tokenweir", "tokenweir", "tokenweir", values["tokenweir"]),
        ("kserve-model", "models", model, values[model]),
    ]


# One after the other, each an upgrade of the former where it has the same releases.
COURSES = {
    "flux": [_of_flux(each) for each in (*CLUSTERS, CLUSTERS[0])],
    "local": [_of_local("iris"), _of_local("llm")],
}


@pytest.fixture
def places(cluster: Cluster) -> Iterator[dict[str, str]]:
    """The run's namespaces, by what the trees call them. The chart platform makes that of the models."""
    given = ("infra", "tokenweir", "istio-system", "istio-ingress", "gpu-operator")
    made = {name: cluster.make_namespace(name) for name in given}
    made["models"] = f"{made['infra']}-models"
    yield made
    for name in made.values():
        cluster.remove_namespace(name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("course", COURSES)
def test_a_course_of_releases_is_installed_upgraded_and_removed(
    cluster: Cluster, places: dict[str, str], course: str
) -> None:
    _skip_without_kinds(cluster)
    installed: set[tuple[str, str]] = set()
    for releases in COURSES[course]:
        for chart, home, name, own in releases:
            values = [yaml.safe_load((CHARTS / chart / "values.yaml").read_text()), own]
            if home == "models":
                handed_on = cluster.get("configmap", "platform-values", places["models"])["data"]["values.yaml"]
                values.insert(1, yaml.safe_load(handed_on))
            given = [moved(each, places) for each in values]
            assert cluster.install(chart, name, places[home], *given).warnings == [], name
            installed.add((name, places[home]))
    for name, home in sorted(installed, key=lambda each: each[1] != places["models"]):
        cluster.uninstall(name, home)
    for place in places.values():
        cluster.until(lambda place=place: not _left(cluster, place), f"something is left in {place}", 60)


def _left(cluster: Cluster, namespace: str) -> set[str]:
    return {each for each in cluster.names(namespace) if not each.startswith("pod/")}


def _skip_without_kinds(cluster: Cluster) -> None:
    wanted = [
        {"apiVersion": version, "kind": kind}
        for version, kind in (
            ("serving.kserve.io/v1beta1", "InferenceService"),
            ("networking.istio.io/v1", "VirtualService"),
            ("keda.sh/v1alpha1", "ScaledObject"),
            ("monitoring.coreos.com/v1", "PodMonitor"),
        )
    ]
    if lacking := cluster.lacks(wanted):
        pytest.skip(f"the cluster has no {', '.join(lacking)}")


def _tokenweir(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "extproc", "model", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr


INIT = ["--storage", "hf://Qwen/Qwen2.5-7B-Instruct", "--publish", "--audience", "llm", "--max-replicas", "4",
        "--requests-per-sa", "100", "--tokens", "service_account:200000/day"]  # fmt: skip
MODELS = {
    "llm": INIT,
    "sklearn": ["--storage", "s3://models/iris", "--kind", "sklearn", "--max-replicas", "3"],
    "image": ["--image", "example.com/model:1", "--publish"],
    "vllm": ["--storage", "hf://a/b", "--kind", "vllm", "--target-gpu", "70", "--max-replicas", "2"],
}


@pytest.mark.parametrize("model", MODELS)
def test_what_onboarding_writes_is_taken_as_values_and_as_a_helmrelease(
    cluster: Cluster, namespace: str, tmp_path: Path, model: str
) -> None:
    _skip_without_kinds(cluster)
    _tokenweir(tmp_path, "init", "written", "-n", namespace, *MODELS[model])
    _tokenweir(tmp_path, "init", "written", "-n", namespace, "--helmrelease", *MODELS[model])
    assert told(cluster, documents_in((tmp_path / "written.yaml").read_text()), namespace) == []
    said = cluster.install("kserve-general", "written", namespace, _at_home(namespace), tmp_path / "values.yaml")
    assert said.warnings == []
    cluster.uninstall("written", namespace)
    assert cluster.names(namespace) == set()


def test_a_canary_is_started_shifted_and_promoted_by_its_file(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    _skip_without_kinds(cluster)
    _tokenweir(tmp_path, "init", "qwen", "-n", namespace, *INIT)

    def served(*arguments: str) -> list[str]:
        if arguments:
            _tokenweir(tmp_path, "canary", arguments[0], "values.yaml", *arguments[1:])
        said = cluster.install("kserve-general", "qwen", namespace, _at_home(namespace), tmp_path / "values.yaml")
        assert said.warnings == []
        return sorted(_weights(cluster.get("virtualservice.networking.istio.io", "qwen-predictor", namespace)))

    assert served() == ["qwen-primary-predictor 100"]
    both = served("start", "--storage", "hf://Qwen/Qwen3-8B", "--primary-load", "90")
    assert both == ["qwen-canary-predictor 10", "qwen-primary-predictor 90"]
    assert served("shift", "--primary-load", "50") == ["qwen-canary-predictor 50", "qwen-primary-predictor 50"]
    assert served("promote") == ["qwen-primary-predictor 100"]
    services = cluster.all_of("inferenceservices.serving.kserve.io", namespace)
    assert [each["metadata"]["name"] for each in services] == ["qwen-primary"]
    assert services[0]["spec"]["predictor"]["model"]["storageUri"] == "hf://Qwen/Qwen3-8B"


def _at_home(namespace: str) -> dict[str, Any]:
    """Values by which what belongs to the gateway is in the namespace too."""
    return {"platform": {"gateway": {"namespace": namespace}, "gateways": [f"{namespace}/public"]}}


def _weights(route: Document) -> Iterator[str]:
    for rule in route["spec"]["http"]:
        for backend in rule.get("route", ()):
            yield f"{backend['destination']['host'].partition('.')[0]} {backend['weight']}"
