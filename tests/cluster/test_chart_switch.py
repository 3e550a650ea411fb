"""A release that changes from kserve-model to kserve-general, and back: refused where callers would lose it, else unnoticed."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.charts.helm import ROOT, Document, render, tool

from . import pods
from .callers import Callers
from .cluster import Cluster, ClusterError
from .world import owner

pytestmark = [pytest.mark.needs("kserve"), pytest.mark.timeout(300)]

MODEL, GENERAL = "kserve-model", "kserve-general"
HELMS = ("helm", "helm3")
RELEASE = "m"
VALUES: Document = {
    "replicaCount": 2,
    "inferenceservice": {
        "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/a"}},
    },
}
# Something else counts the pods: the new ones must be as many.
SCALED: Document = {
    **VALUES,
    "replicaCount": 1,
    "resources": {"requestCPU": 1, "requestMemory": "1Gi"},
    "autoscaling": {"engine": "hpa", "targetCPUUtilizationPercentage": 80, "maxReplicaCount": 4},
}
TRANSFORMED: Document = {
    "inferenceservice": {
        **VALUES["inferenceservice"],
        "transformer": {"containers": [{"name": "before", "image": "registry.example.com/before:1"}]},
    },
}
PAGE = ROOT / "docs" / "onboarding.md"
HEADING = "From one chart to the other"


@pytest.fixture(autouse=True)
def _played(cluster: Cluster, namespace: str) -> Iterator[None]:
    if "kubelets" in cluster.controllers:
        pytest.skip("the cluster runs pods, and there is no model for them: here they are only made ready")
    with pods.kubelet(cluster, namespace):
        yield


def steps(to: str) -> str:
    """Return what docs/onboarding.md tells to do for a change to the chart `to`."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {HEADING}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(
        rf"^\*\*From [a-z-]+ to {to}\*\*.*?^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL
    )
    return str(found)


def follow(
    cluster: Cluster, namespace: str, to: str, values: Document, folder: Path, *, helm: str = "helm"
) -> None:
    """Do the page's steps in a shell, with the programs of the tests."""
    bin_, given = folder / f"bin-{to}", folder / f"{to}.yaml"
    bin_.mkdir()
    (bin_ / "helm").symlink_to(tool(helm))
    (bin_ / "kubectl").symlink_to(tool("kubectl"))
    given.write_text(yaml.safe_dump(values), encoding="utf-8")
    meant = f"r={RELEASE} n={namespace} f={given} force={'--force-conflicts' if helm == 'helm' else ''}\n"
    done = subprocess.run(
        ["bash", "-c", meant + "set -o pipefail\n" + steps(to)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={"PATH": f"{bin_}:{os.environ['PATH']}", "KUBECONFIG": str(cluster.kubeconfig), "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def install(cluster: Cluster, chart: str, namespace: str, values: Document, helm: str = "helm") -> None:
    """Install the release and wait until it is served."""
    cluster.install(chart, RELEASE, namespace, values, helm=helm)
    for each in render(chart, values, release=RELEASE):
        if each["kind"] == "InferenceService":
            name = f"inferenceservice/{each['metadata']['name']}"
            cluster.kubectl("wait", name, "-n", namespace, "--for=condition=Ready", "--timeout=90s")


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("chart", "to"), [(MODEL, GENERAL), (GENERAL, MODEL)])
def test_a_plain_upgrade_to_the_other_chart_is_refused_and_changes_nothing(
    cluster: Cluster, namespace: str, chart: str, to: str, helm: str
) -> None:
    install(cluster, chart, namespace, VALUES, helm)
    before = cluster.names(namespace)
    for dry in ((), ("--dry-run=server",)):
        with pytest.raises(
            ClusterError, match=f"was installed with the chart {chart}, and this is {to}"
        ) as refused:
            cluster.install(to, RELEASE, namespace, VALUES, helm=helm, more=dry)
        assert f'docs/onboarding.md, "{HEADING}"' in str(refused.value)
    assert cluster.names(namespace) == before
    assert '"status":"deployed"' in cluster.helm("list", "-n", namespace, "-o", "json", helm=helm).out
    cluster.install(chart, RELEASE, namespace, VALUES, helm=helm)


@pytest.mark.parametrize("helm", HELMS)
def test_callers_notice_nothing_of_a_change_to_kserve_general_and_back(
    cluster: Cluster, namespace: str, helm: str, tmp_path: Path
) -> None:
    install(cluster, MODEL, namespace, VALUES, helm)
    before = cluster.get("service", "m-predictor", namespace)
    with Callers(cluster, RELEASE, namespace).calling() as callers:
        follow(cluster, namespace, GENERAL, VALUES, tmp_path, helm=helm)
    assert callers.changes > 2
    assert callers.gaps == []
    after = cluster.get("service", "m-predictor", namespace)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["clusterIP"] == before["spec"]["clusterIP"]
    assert after["spec"]["selector"] == {"app": "isvc.m-primary-predictor"}
    assert owner(after) == ("", "")
    assert parts(cluster, namespace) == {
        "deployment/m-primary-predictor",
        "service/m-primary-predictor",
        "service/m-predictor",
    }
    cluster.install(GENERAL, RELEASE, namespace, {**VALUES, "primaryLoad": 100}, helm=helm)

    with Callers(cluster, RELEASE, namespace).calling() as callers:
        follow(cluster, namespace, MODEL, VALUES, tmp_path, helm=helm)
    assert callers.changes > 2
    assert callers.gaps == []
    cluster.until(
        lambda: parts(cluster, namespace) == {"deployment/m-predictor", "service/m-predictor"},
        "the old parts stay",
    )
    for kind in ("service", "deployment"):
        found = cluster.get(kind, "m-predictor", namespace)
        assert owner(found) == ("InferenceService", "m")
        assert "helm.sh/resource-policy" not in found["metadata"]["annotations"]
    assert cluster.get("service", "m-predictor", namespace)["metadata"]["uid"] == before["metadata"]["uid"]

    cluster.install(MODEL, RELEASE, namespace, {**VALUES, "replicaCount": 3}, helm=helm)
    cluster.until(
        lambda: cluster.get("deployment", "m-predictor", namespace)["spec"]["replicas"] == 3,
        "KServe changes nothing",
    )
    cluster.uninstall(RELEASE, namespace, helm=helm)
    cluster.until(lambda: not parts(cluster, namespace), "something is left")


def test_the_new_pods_are_as_many_as_the_old_ones_where_something_scales_them(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    install(cluster, MODEL, namespace, SCALED)
    cluster.kubectl("scale", "deployment/m-predictor", "-n", namespace, "--replicas=3")
    cluster.kubectl("rollout", "status", "deployment/m-predictor", "-n", namespace, "--timeout=60s")
    with Callers(cluster, RELEASE, namespace).calling() as callers:
        follow(cluster, namespace, GENERAL, SCALED, tmp_path)
        assert callers.ready("m-predictor") == 3
    assert callers.gaps == []
    assert cluster.get("deployment", "m-primary-predictor", namespace)["spec"]["replicas"] == 3


def test_of_a_transformer_nothing_is_left_behind_either(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    install(cluster, MODEL, namespace, TRANSFORMED)
    follow(cluster, namespace, GENERAL, TRANSFORMED, tmp_path)
    wanted = {
        f"{kind}/m-primary-{part}" for kind in ("deployment", "service") for part in ("predictor", "transformer")
    }
    assert parts(cluster, namespace) == wanted | {"service/m-predictor"}
    assert cluster.get("service", "m-predictor", namespace)["spec"]["selector"] == {
        "app": "isvc.m-primary-transformer"
    }


def test_steps_that_are_left_out_are_noticed(cluster: Cluster, namespace: str) -> None:
    install(cluster, MODEL, namespace, VALUES)
    cluster.delete("inferenceservice", RELEASE, namespace, "--cascade=orphan")
    with pytest.raises(ClusterError, match="because the InferenceService m-primary is not there, or not ready"):
        cluster.install(GENERAL, RELEASE, namespace, VALUES)
    made = render(MODEL, VALUES, release=RELEASE, namespace=namespace)
    cluster.apply([each for each in made if each["kind"] == "InferenceService"])
    cluster.install(MODEL, RELEASE, namespace, VALUES, more=("--take-ownership", "--force-conflicts"))
    cluster.uninstall(RELEASE, namespace)


def test_a_service_that_helm_would_delete_is_noticed(cluster: Cluster, namespace: str) -> None:
    install(cluster, GENERAL, namespace, VALUES)
    made = render(MODEL, VALUES, release=RELEASE, namespace=namespace)
    cluster.apply([each for each in made if each["kind"] == "InferenceService"])
    cluster.kubectl("wait", "inferenceservice/m", "-n", namespace, "--for=condition=Ready", "--timeout=90s")
    with pytest.raises(ClusterError, match="because Helm would delete the Service m-predictor"):
        cluster.install(MODEL, RELEASE, namespace, VALUES, more=("--take-ownership", "--force-conflicts"))


def test_without_the_steps_and_the_refusal_callers_lose_the_model(cluster: Cluster, namespace: str) -> None:
    """What looks nothing up, such as Argo CD, does this; it also shows that `Callers` would notice."""
    install(cluster, MODEL, namespace, VALUES)
    made = render(GENERAL, VALUES, release=RELEASE, namespace=namespace)
    with Callers(cluster, RELEASE, namespace).calling() as callers:
        cluster.apply(made, "--force-conflicts")
        cluster.delete("inferenceservice", RELEASE, namespace)
        cluster.until(lambda: callers.gaps, "no caller has noticed", seconds=30)


def test_names_that_belong_to_others_are_refused(cluster: Cluster, namespace: str) -> None:
    """Flux takes over whatever it finds, as `--take-ownership` does."""
    made = render(MODEL, VALUES, release="other", namespace=namespace)
    (other,) = (each for each in made if each["kind"] == "InferenceService")
    strange = {
        **other,
        "metadata": {"name": RELEASE, "namespace": namespace, "annotations": other["metadata"]["annotations"]},
    }
    cluster.apply([strange])
    with pytest.raises(
        ClusterError, match="there is an InferenceService m, and KServe makes the Service m-predictor"
    ):
        cluster.install(GENERAL, RELEASE, namespace, VALUES, more=("--take-ownership",))
    cluster.install(MODEL, "n-primary", namespace, VALUES)
    with pytest.raises(ClusterError, match="the InferenceService n-primary belongs to the release n-primary"):
        cluster.install(GENERAL, "n", namespace, VALUES, more=("--take-ownership",))


def test_a_service_that_goes_with_its_inferenceservice_is_waited_for(cluster: Cluster, namespace: str) -> None:
    made = render(MODEL, VALUES, release="other", namespace=namespace)
    cluster.apply([each for each in made if each["kind"] == "InferenceService"])
    uid = cluster.get("inferenceservice", "other", namespace)["metadata"]["uid"]
    reference = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "name": "other",
        "uid": uid,
    }
    ports = {"ports": [{"port": 80}]}
    metadata = {"name": "m-predictor", "namespace": namespace, "ownerReferences": [reference]}
    cluster.apply([{"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": ports}])
    with pytest.raises(ClusterError, match="wait until it is gone"):
        cluster.install(GENERAL, RELEASE, namespace, VALUES, more=("--take-ownership",))


def parts(cluster: Cluster, namespace: str) -> set[str]:
    """Return kind and name of Deployments and Services that are there and stay."""
    found = cluster.all_of("deployments.apps,services", namespace)
    return {
        f"{each['kind'].lower()}/{each['metadata']['name']}"
        for each in found
        if "deletionTimestamp" not in each["metadata"]
    }
