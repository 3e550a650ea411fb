"""KEDA's operator takes the ScaledObjects of the model charts, and nothing else scales the same pods."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHARTS
from tests.deploy.tree import merged

from . import models, scalers
from .cluster import Cluster, ClusterError

pytestmark = pytest.mark.needs("keda", "kserve")


def _scaled(path: Path) -> bool:
    given = yaml.safe_load(path.read_text(encoding="utf-8")).get("autoscaling") or {}
    return any(each.startswith("target") for each in given)


FILES = [
    (chart, path)
    for chart in ("kserve-model", "kserve-general")
    for path in sorted((CHARTS / chart / "ci").glob("*.yaml"))
    if _scaled(path)
]
SKLEARN = {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/iris"}}}
VLLM = {"predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://a/b"}}}
GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
OWN = {"predictor": {"containers": [{"image": "example.com/own:1", "ports": [{"containerPort": 8080}]}]}}
# Each target by itself, and all of them; numbers with a fraction and big ones.
TARGETS: dict[str, dict[str, Any]] = {
    "cpu": {"inferenceservice": SKLEARN, "autoscaling": {"targetCPUUtilizationPercentage": 70}},
    "memory": {"inferenceservice": OWN, "autoscaling": {"targetMemoryUtilizationPercentage": 80}},
    "rate": {"inferenceservice": SKLEARN, "autoscaling": {"targetRequestRate": 0.25}},
    "many": {"inferenceservice": SKLEARN, "autoscaling": {"targetRequestRate": 1000000}},
    "gpu": {"inferenceservice": VLLM, **GPU, "autoscaling": {"targetGPUUtilizationPercentage": 60}},
    "queue": {"inferenceservice": VLLM, "autoscaling": {"targetQueueDepth": 4}},
    "all": {
        "inferenceservice": VLLM,
        **GPU,
        "replicaCount": 2,
        "autoscaling": {
            "targetCPUUtilizationPercentage": 70,
            "targetMemoryUtilizationPercentage": 80,
            "targetRequestRate": 5,
            "targetGPUUtilizationPercentage": 60,
            "targetQueueDepth": 4,
            "maxReplicaCount": 7,
        },
    },
}
HPA = {"autoscaling": {"engine": "hpa"}}


@pytest.fixture(scope="module")
def answering(cluster: Cluster) -> Iterator[scalers.Prometheus]:
    """A Prometheus of the tests' own. KEDA's operator reaches it if it runs on this machine; else its URL is empty."""
    if "kubelets" in cluster.controllers:
        yield scalers.Prometheus()
        return
    with scalers.Prometheus().running() as server:
        yield server


def _asking(values: dict[str, Any], server: scalers.Prometheus) -> dict[str, Any]:
    """Return values with which KEDA asks this Prometheus, if it can."""
    return merged(values, {"platform": {"prometheusUrl": server.url}}) if server.url else values


def _check(cluster: Cluster, release: models.Release, server: scalers.Prometheus) -> None:
    """Compare each ScaledObject with the HPA that KEDA made of it, and with who else scales."""
    wanted = {}
    for scaled in release.of("ScaledObject"):
        name, spec = scaled["metadata"]["name"], scaled["spec"]
        found = scalers.ready(cluster, name, release.namespace, answered=bool(server.url))
        target = spec["scaleTargetRef"]
        wanted[f"Deployment/{target['name']}"] = 1
        hpa = cluster.get(scalers.HPAS, found["status"]["hpaName"], release.namespace)
        assert hpa["metadata"]["name"] == spec["advanced"]["horizontalPodAutoscalerConfig"]["name"]
        assert hpa["spec"]["scaleTargetRef"] == target
        assert cluster.get("deployments.apps", target["name"], release.namespace)
        bounds = (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"])
        assert bounds == (spec["minReplicaCount"], spec["maxReplicaCount"])
        made = [scalers.seen(each) for each in hpa["spec"]["metrics"]]
        assert sorted(made, key=str) == sorted(scalers.metrics(scaled), key=str)
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        seconds = hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
        assert seconds == behavior["stabilizationWindowSeconds"]
    for each in release.of("HorizontalPodAutoscaler"):
        wanted[f"Deployment/{each['spec']['scaleTargetRef']['name']}"] = 1
    assert scalers.targets(cluster, release.namespace) == wanted
    for each in cluster.all_of(scalers.HPAS, release.namespace):
        told = scalers.judged(cluster, each["metadata"]["name"], release.namespace)
        assert told["AbleToScale"][0] == "True", told
        # Without metrics nothing scales; what must not be is a second HPA for the same pods.
        assert told["ScalingActive"][1] != "AmbiguousSelector", told


@pytest.mark.parametrize(("chart", "path"), FILES, ids=lambda each: getattr(each, "stem", each))
def test_keda_makes_of_each_sample_the_scaler_that_it_says(
    cluster: Cluster, answering: scalers.Prometheus, chart: str, path: Path
) -> None:
    with models.installed(cluster, chart, _asking(models.values_of(path), answering)) as release:
        assert release.of("ScaledObject") or release.of("HorizontalPodAutoscaler")
        _check(cluster, release, answering)


@pytest.mark.parametrize(
    ("chart", "target"), [*(("kserve-model", each) for each in TARGETS), ("kserve-general", "all")]
)
def test_every_target_becomes_a_metric(
    cluster: Cluster, answering: scalers.Prometheus, chart: str, target: str
) -> None:
    with models.installed(cluster, chart, _asking(TARGETS[target], answering)) as release:
        (scaled,) = release.of("ScaledObject")
        given = TARGETS[target]["autoscaling"]
        assert len(scaled["spec"]["triggers"]) == len([each for each in given if each.startswith("target")])
        _check(cluster, release, answering)


def test_a_model_without_targets_is_scaled_by_nobody(cluster: Cluster) -> None:
    with models.installed(cluster, "kserve-model", {"inferenceservice": SKLEARN, "replicaCount": 2}) as release:
        assert scalers.targets(cluster, release.namespace) == {}
        made = cluster.get("deployments.apps", f"{release.name}-predictor", release.namespace)
        assert made["spec"]["replicas"] == 2


def test_what_kserve_scales_by_itself_would_be_seen(cluster: Cluster, namespace: str) -> None:
    """KServe's own HPA, which an InferenceService without our annotation has, beside a ScaledObject's."""
    component = {**SKLEARN["predictor"], "minReplicas": 1, "maxReplicas": 3}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "twice", "annotations": {"serving.kserve.io/autoscalerClass": "hpa"}},
        "spec": {"predictor": component},
    }
    cluster.apply([service], "-n", namespace)
    cluster.until(lambda: scalers.targets(cluster, namespace), "KServe has not made its HPA")
    scaled = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "twice-scale"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "twice-predictor"},
            "minReplicaCount": 1,
            "triggers": [
                {"type": "prometheus", "metadata": {"serverAddress": "http://a", "query": "1", "threshold": "1"}}
            ],
        },
    }
    if scalers.webhook(cluster):
        with pytest.raises(ClusterError, match="already managed by the hpa 'twice-predictor'"):
            cluster.apply([scaled], "-n", namespace)
        return
    cluster.apply([scaled], "-n", namespace)
    cluster.until(
        lambda: scalers.targets(cluster, namespace) == {"Deployment/twice-predictor": 2}, "there is one HPA"
    )


def test_the_engine_is_changed_and_one_scaler_is_left(cluster: Cluster, answering: scalers.Prometheus) -> None:
    values = _asking({"inferenceservice": SKLEARN, "autoscaling": {"targetRequestRate": 5}}, answering)
    with models.installed(cluster, "kserve-model", values) as release:
        for engine in (HPA, {}, HPA):
            laid = (values, engine, models.for_tests(values, release.gateway))
            cluster.install("kserve-model", release.name, release.namespace, *laid)
            after = release._replace(objects=models.manifest(cluster, release.name, release.namespace))
            assert bool(after.of("ScaledObject")) == (engine == {})
            wanted = {f"Deployment/{release.name}-predictor": 1}
            cluster.until(
                lambda wanted=wanted: scalers.targets(cluster, release.namespace) == wanted,
                f"after the change to {engine or 'keda'} not one scaler is left",
            )
            _check(cluster, after, answering)


def test_a_canary_has_a_scaler_as_long_as_it_lives(cluster: Cluster, answering: scalers.Prometheus) -> None:
    values = {**TARGETS["queue"], "primaryLoad": 50}
    canary = {"inferenceservice": {"predictor": {"model": {"newStorageUri": "hf://a/c"}}}}
    started = _asking(merged(values, canary), answering)
    with models.installed(cluster, "kserve-general", started) as release:
        assert len(release.of("ScaledObject")) == 2
        _check(cluster, release, answering)
        cluster.install(
            "kserve-general", release.name, release.namespace, values, models.for_tests(values, release.gateway)
        )
        wanted = {f"Deployment/{release.name}-primary-predictor": 1}
        cluster.until(
            lambda: scalers.targets(cluster, release.namespace) == wanted, "the canary's scaler is not gone"
        )
        cluster.uninstall(release.name, release.namespace)
        cluster.until(lambda: not scalers.targets(cluster, release.namespace), "a scaler is left")


def test_keda_asks_our_queries_and_no_answer_is_not_zero(cluster: Cluster) -> None:
    if "kubelets" in cluster.controllers:
        pytest.skip("KEDA runs in a pod, from where 127.0.0.1 is not this machine")
    with (
        scalers.Prometheus().running() as server,
        models.installed(cluster, "kserve-model", _asking(TARGETS["all"], server)) as release,
    ):
        (scaled,) = release.of("ScaledObject")
        name = scaled["metadata"]["name"]
        scalers.ready(cluster, name, release.namespace, answered=True)
        queries = {each["metadata"].get("query") for each in scaled["spec"]["triggers"]} - {None}
        assert len(queries) == 3
        cluster.until(lambda: queries <= server.asked, "KEDA has not asked each query")

        def told(condition: str) -> tuple[str, str]:
            return scalers.conditions(cluster.get(scalers.SCALED, name, release.namespace))[condition]

        cluster.until(lambda: told("Ready")[0] == "True" == told("Active")[0], "KEDA does not take the answer")
        server.value = None
        cluster.until(lambda: told("Ready") == ("False", "TriggerError"), "KEDA takes no answer for one")


@contextlib.contextmanager
def _judged(cluster: Cluster) -> Iterator[None]:
    if not scalers.webhook(cluster):
        pytest.skip("KEDA's admission webhook is not installed here")
    yield


def test_the_webhook_takes_our_scaler_once_the_deployment_is_there(cluster: Cluster) -> None:
    with _judged(cluster), models.installed(cluster, "kserve-model", TARGETS["all"]) as release:
        (scaled,) = release.of("ScaledObject")
        cluster.delete(scalers.SCALED, scaled["metadata"]["name"], release.namespace)
        assert cluster.apply([scaled]) == []
        second = {**scaled, "metadata": {**scaled["metadata"], "name": "second"}}
        with pytest.raises(ClusterError, match="already managed by the ScaledObject"):
            cluster.apply([second])


def test_the_webhook_refuses_a_cpu_target_before_its_deployment(cluster: Cluster, namespace: str) -> None:
    """docs/autoscaling.md says so, and that another run of Helm is a way out: `models.installed` goes it."""
    with _judged(cluster):
        scaled = {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "early"},
            "spec": {
                "scaleTargetRef": {"name": "not-yet"},
                "minReplicaCount": 1,
                "triggers": [{"type": "cpu", "metricType": "Utilization", "metadata": {"value": "50"}}],
            },
        }
        with pytest.raises(ClusterError, match=r'Deployment\.apps "not-yet" not found'):
            cluster.apply([scaled], "-n", namespace)
