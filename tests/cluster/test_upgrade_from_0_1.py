"""Releases of the charts of version 0.1 are upgraded to these: with the same values, nothing lost, and no caller who notices."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.charts.helm import CHARTS, Document

from . import models, pods, version_0_1
from .callers import Callers
from .cluster import Cluster, documents_in
from .models import belongings
from .test_api_server import NAMESPACES, moved
from .world import owner

pytestmark = pytest.mark.timeout(300)

OLD_CHARTS = ("kserve-model", "kserve-general", "tokenweir", "platform")
RELEASE = "sample"
# Who installed version 0.1, and who upgrades.
WAYS = (("helm", "helm"), ("helm3", "helm3"), ("helm3", "helm"))
FILES = [(chart, path.name) for chart in OLD_CHARTS for path in sorted((CHARTS / chart / "ci").glob("*.yaml"))]

WATCHED = (("kserve-model", "sample-model.yaml"), ("kserve-general", "sample-sklearn.yaml"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = version_0_1.charts(tmp_path_factory.mktemp("version-0-1"))
    if found is None:
        pytest.skip(f"the history has no commit {version_0_1.COMMIT}: git fetch --unshallow")
    return found


@pytest.fixture(scope="module")
def places(cluster: Cluster) -> Iterator[dict[str, str]]:
    """The run's namespaces, by what sample values call them."""
    made = {name: cluster.make_namespace(name) for name in NAMESPACES}
    yield made
    for name in made.values():
        cluster.remove_namespace(name)


def read(path: Path, places: dict[str, str]) -> Document:
    """Return a values file with the run's namespaces."""
    return dict(moved(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, places))


def kept(cluster: Cluster, namespace: str, documents: list[Document]) -> dict[tuple[str, str, str], str | None]:
    """Return the uid of each of these objects, and of what KServe made in the namespace; None where one is gone."""
    kinds = {f"{each['kind']}.{each['apiVersion'].rpartition('/')[0]}".rstrip(".").lower() for each in documents}
    found = cluster.all_of(",".join(sorted({*kinds, "deployment.apps", "service"})))
    there = {_called(each): each for each in found}
    wanted = {_called(each) for each in cluster.placed(documents, namespace)}
    wanted |= {name for name, each in there.items() if name[1] == namespace and owner(each)[0]}
    return {name: there[name]["metadata"]["uid"] if name in there else None for name in wanted}


def _called(document: Document) -> tuple[str, str, str]:
    return document["kind"], document["metadata"].get("namespace", ""), document["metadata"]["name"]


def manifest(cluster: Cluster, namespace: str, helm: str) -> list[Document]:
    return documents_in(cluster.helm("get", "manifest", RELEASE, "-n", namespace, helm=helm).out)


def wait(cluster: Cluster, namespace: str, objects: list[Document]) -> None:
    """Wait until KServe, where it runs, has made what belongs to these models. A graph waits for models of others."""
    own = [each for each in objects if each["kind"] == "InferenceService"]
    if own and "kserve" in cluster.controllers:
        models.settled(cluster, models.Release(RELEASE, namespace, "", own))


@pytest.mark.parametrize("sample", FILES, ids=lambda each: "-".join(each).removesuffix(".yaml"))
def test_an_upgrade_keeps_every_object_of_version_0_1(
    cluster: Cluster, namespace: str, old: Path, places: dict[str, str], sample: tuple[str, str]
) -> None:
    chart, name = sample
    path = old / chart / "ci" / name
    if not path.exists():
        pytest.skip(f"version 0.1 has no sample {name}")
    install_by, upgrade_by = WAYS[FILES.index(sample) % len(WAYS)]
    names = places
    if chart == "platform":  # it makes the models' namespaces itself
        names = {**places, **{each: f"{each}-{namespace}" for each in ("models", "team-b")}}
    values = read(path, names)
    if chart == "platform" and values.get("namespaces", {}).get("create") is False:
        names, values = places, read(path, places)
    values.get("inferenceservice", {}).get("predictor", {}).pop("priorityClassName", None)  # need not be there
    if lacking := [each for each in needed(chart) if not cluster.serves(*each)]:
        pytest.skip(f"the cluster has no {lacking}")
    if wanted := belongings(values):
        cluster.apply(wanted, "-n", namespace)
    before = read(old / chart / "values.yaml", names)
    cluster.install(str(old / chart), RELEASE, namespace, before, values, helm=install_by)
    objects = manifest(cluster, namespace, install_by)
    wait(cluster, namespace, objects)
    uids = kept(cluster, namespace, objects)
    assert uids
    assert None not in uids.values()

    said = cluster.install(
        chart, RELEASE, namespace, read(CHARTS / chart / "values.yaml", names), values, helm=upgrade_by
    )
    assert said.warnings == []
    now = manifest(cluster, namespace, upgrade_by)
    wait(cluster, namespace, now)
    assert uids.items() <= kept(cluster, namespace, objects).items()
    assert cluster.apply(cluster.placed(now, namespace), "--dry-run=server", "--force-conflicts") == []
    cluster.uninstall(RELEASE, namespace, helm=upgrade_by)
    if names is not places:
        for each in ("models", "team-b"):
            cluster.delete("namespace", names[each], "default", "--wait=false")


def needed(chart: str) -> list[tuple[str, str]]:
    """Return the kinds without which nothing of a chart can be installed."""
    found = [
        ("networking.istio.io/v1", "VirtualService"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter"),
        ("keda.sh/v1alpha1", "ScaledObject"),
    ]
    found.append(("monitoring.coreos.com/v1", "PodMonitor"))
    return [*found, ("serving.kserve.io/v1beta1", "InferenceService")] if chart.startswith("kserve") else found


@pytest.mark.needs("kserve")
@pytest.mark.parametrize("sample", WATCHED, ids="-".join)
def test_no_caller_notices_the_upgrade(
    cluster: Cluster, namespace: str, old: Path, places: dict[str, str], sample: tuple[str, str]
) -> None:
    chart, name = sample
    if "kubelets" in cluster.controllers:
        pytest.skip("the cluster runs pods, and there is no model for them: here they are only made ready")
    values = read(old / chart / "ci" / name, places)
    if wanted := belongings(values):
        cluster.apply(wanted, "-n", namespace)
    with pods.kubelet(cluster, namespace):
        cluster.install(str(old / chart), RELEASE, namespace, read(old / chart / "values.yaml", places), values)
        cluster.kubectl(
            "wait", "inferenceservice", "--all", "-n", namespace, "--for=condition=Ready", "--timeout=90s"
        )
        with Callers(cluster, RELEASE, namespace).calling() as callers:
            seen = callers.changes
            cluster.install(chart, RELEASE, namespace, read(CHARTS / chart / "values.yaml", places), values)
            # Its pods get a pause before they end, so they are replaced.
            cluster.until(lambda: callers.changes > seen, "no pod was replaced")
            for each in cluster.all_of("deployments.apps", namespace):
                target = f"deployment/{each['metadata']['name']}"
                cluster.kubectl("rollout", "status", target, "-n", namespace, "--timeout=90s")
        assert callers.gaps == []
