"""A release of a model chart on a cluster, with a gateway beside it and a neighbour, and what KServe makes of it."""

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.charts.helm import Document, Values

from . import references, rules
from .cluster import Cluster, ClusterError, documents_in
from .ways import GATEWAY_NAME
from .world import World, owner

COMPONENTS = ("predictor", "transformer", "explainer")
_NEIGHBOUR: Document = {
    "inferenceservice": {
        "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/neighbour"}}
    }
}


class Release(NamedTuple):
    """An installed release: its objects as Helm sent them, and the namespace of the gateway that publishes it."""

    name: str
    namespace: str
    gateway: str
    objects: list[Document]

    def of(self, kind: str) -> list[Document]:
        """Return its objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]


def values_of(path: Path) -> dict[str, Any]:
    """Return a values file's content."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def for_tests(given: dict[str, Any], gateway: str) -> Document:
    """Return the values that put the gateways of `given` into the namespace `gateway`, to be laid over it."""
    platform: Document = {
        "gateways": [f"{gateway}/models"],
        "gateway": {"namespace": gateway, "principals": [f"cluster.local/ns/{gateway}/sa/gateway"]},
        "monitorLabels": {"release": "prometheus"},
    }
    exposures = (given.get("platform") or {}).get("exposures") or {}
    if exposures:
        own = {"namespace": gateway, "principals": [f"cluster.local/ns/{gateway}/sa/gateway"]}
        platform["exposures"] = {name: {"gateways": [f"{gateway}/models"], "gateway": own} for name in exposures}
    laid: Document = {"platform": platform}
    predictor = (given.get("inferenceservice") or {}).get("predictor") or {}
    if predictor.get("priorityClassName"):  # belongs to the cluster, which need not have it
        laid["inferenceservice"] = {"predictor": {"priorityClassName": None}}
    return laid


def belongings(given: dict[str, Any]) -> list[Document]:
    """Return what a release with these values expects of its namespace: Secrets and an account that its owner makes."""
    predictor = (given.get("inferenceservice") or {}).get("predictor") or {}
    key = (predictor.get("model") or {}).get("storageKey")
    secrets_of: dict[str, dict[str, str]] = {name: {} for name in predictor.get("serviceAccountSecrets") or ()}
    if key:
        secrets_of["storage-config"] = {key: '{"type": "s3"}'}
    made: list[Document] = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": content}
        for name, content in secrets_of.items()
    ]
    if predictor.get("serviceAccountName"):
        name = {"name": predictor["serviceAccountName"]}
        made.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name})
    return made


def others(given: dict[str, Any]) -> set[str]:
    """Return the names of other releases that an InferenceGraph in these values calls."""
    graph = (given.get("inferenceservice") or {}).get("graph") or {}
    steps = [step for router in graph.values() for step in router.get("steps", ())]
    return {step["serviceName"] for step in steps if step.get("serviceName")}


def selectors(given: dict[str, Any]) -> list[dict[str, str]]:
    """Return the labels of all gateways' pods that the values name."""
    platform = given.get("platform") or {}
    sections = [platform, *(platform.get("exposures") or {}).values()]
    named = [((each or {}).get("gateway") or {}).get("selector") for each in sections]
    return [each for each in named if each] or [{"istio": "ingressgateway"}]


def gateway(cluster: Cluster, namespace: str, labels: list[dict[str, str]]) -> None:
    """Put a gateway into a namespace: pods that do nothing, a service account, Istio's and Gateway API's Gateway."""
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    objects: list[Document] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gateway"}},
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "models"},
            "spec": {"selector": labels[0], "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]},
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "models"},
            "spec": {"gatewayClassName": "istio", "listeners": [listener]},
        },
    ]  # fmt: skip
    # The first pods are of both Gateways.
    for number, each in enumerate(
        [{**labels[0], GATEWAY_NAME: "models"}, *labels[1:], {"istio": "ingressgateway"}]
    ):
        pod = {"serviceAccountName": "gateway", "containers": [{"name": "istio-proxy", "image": "auto"}]}
        objects.append(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": f"gateway-{number}"},
                "spec": {
                    "selector": {"matchLabels": {"app": f"gateway-{number}", **each}},
                    "template": {"metadata": {"labels": {"app": f"gateway-{number}", **each}}, "spec": pod},
                },
            }
        )
    cluster.apply(objects, "-n", namespace)


@contextmanager
def installed(cluster: Cluster, chart: str, *values: Values) -> Iterator[Release]:
    """Install a release beside a neighbour; wait until KServe has made what belongs to both. Raises `ClusterError`."""
    given: dict[str, Any] = {}
    for each in values:
        given |= values_of(each) if isinstance(each, Path) else dict(each)
    namespace, beside = cluster.make_namespace("models"), cluster.make_namespace("gateway")
    try:
        gateway(cluster, beside, selectors(given))
        name = f"m{secrets.token_hex(3)}"
        early = _refused_early(cluster, chart, name, namespace, *values, for_tests(given, beside))
        if wanted := belongings(given):
            cluster.apply(wanted, "-n", namespace)
        if early:
            cluster.until(lambda: _there(cluster, early, namespace), f"KServe has not made {early}", 90)
            cluster.install(chart, name, namespace, *values, for_tests(given, beside))
        for other in sorted(others(given)):
            cluster.install("kserve-model", other, namespace, _NEIGHBOUR, for_tests({}, beside))
        # As its name has the release's in it, a careless pattern fits its pods too.
        cluster.install("kserve-model", f"{name}-b", namespace, _NEIGHBOUR, for_tests({}, beside))
        yield settled(cluster, Release(name, namespace, beside, manifest(cluster, name, namespace)))
    finally:
        cluster.remove_namespace(namespace)
        cluster.remove_namespace(beside)


def _refused_early(cluster: Cluster, chart: str, name: str, namespace: str, *values: Values) -> str:
    """Install a release. Return the Deployment that KEDA's webhook missed, "" if Helm got through.

    The webhook refuses a scaler by CPU or memory before KServe has made the Deployment: docs/autoscaling.md. Helm is
    then run again. Raises `ClusterError` for anything else.
    """
    try:
        cluster.install(chart, name, namespace, *values)
    except ClusterError as error:
        found = re.search(r'vscaledobject.* Deployment\.apps "([^"]+)" not found', str(error))
        if not found:
            raise
        return found[1]
    return ""


def _there(cluster: Cluster, deployment: str, namespace: str) -> bool:
    return any(each["metadata"]["name"] == deployment for each in cluster.all_of("deployments.apps", namespace))


def manifest(cluster: Cluster, name: str, namespace: str) -> list[Document]:
    """Return the objects of a release, with the namespace that each is in."""
    objects = documents_in(cluster.helm("get", "manifest", name, "-n", namespace).out)
    for each in objects:
        each["metadata"].setdefault("namespace", namespace)
    return objects


def settled(cluster: Cluster, release: Release) -> Release:
    """Wait until KServe has made Deployments and Services of all InferenceServices, and their pods are there."""
    waiting = {
        f"{each['metadata']['name']}-{part}"
        for each in cluster.all_of("inferenceservices.serving.kserve.io", release.namespace)
        for part in COMPONENTS
        if part in each["spec"]
    }
    waiting |= {each["metadata"]["name"] for each in release.of("InferenceGraph")}

    def missing() -> set[str]:
        found = cluster.all_of("deployments.apps,services", release.namespace)
        seen = [each["metadata"]["name"] for each in found if owner(each)[0].startswith("Inference")]
        ready = [
            each["metadata"]["name"]
            for each in found
            if each["kind"] == "Deployment"
            and each["status"].get("observedGeneration") == each["metadata"]["generation"]
            and each["status"].get("replicas", 0) >= (each["spec"].get("replicas") or 0)
        ]
        return {name for name in waiting if seen.count(name) < 2 or name not in ready}

    end = time.monotonic() + 90
    while left := missing():
        assert time.monotonic() < end, f"KServe has not made {sorted(left)}: {why(cluster, release.namespace)}"
        time.sleep(0.5)
    return release


def why(cluster: Cluster, namespace: str) -> list[str]:
    """Return what KServe and the API server say of the objects in a namespace that are not as they should be."""
    found = cluster.all_of("inferenceservices.serving.kserve.io", namespace)
    said = [
        f"{each['metadata']['name']}: {one.get('message', '')}"
        for each in found
        for one in each.get("status", {}).get("conditions", ())
        if one.get("message")
    ]
    events = cluster.all_of("events", namespace)
    return said + [each["message"] for each in events if each["type"] == "Warning"]


def faults(cluster: Cluster, release: Release) -> list[str]:
    """Return the references of a release that lead nowhere. Looks again, as long as pods come and go."""
    found: list[str] = []
    for _ in range(4):
        world = World.seen(cluster, release.name, release.namespace, release.gateway)
        found = references.faults(world, release.objects, rules.MODEL)
        if not found:
            break
        time.sleep(1.5)
    return found
