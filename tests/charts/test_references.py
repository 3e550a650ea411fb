"""What our objects name and select, looked up without a cluster: in what KServe makes, as tests/cluster found it."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import references, rules
from tests.cluster.models import COMPONENTS, for_tests, others, selectors, values_of
from tests.cluster.world import World
from tests.sizes import sampled

from .helm import CHARTS, Document, render

RELEASE, NAMESPACE, GATEWAY = "zq7f3k", "models-zq", "gateway-zq"
CASES = [
    (chart, path)
    for chart in ("kserve-model", "kserve-general")
    for path in sorted((CHARTS / chart / "ci").glob("*.yaml"))
]
BREAKS = {
    "a scaler's target": ("ScaledObject", ("spec", "scaleTargetRef", "name"), "zq7f3k", "there is no Deployment"),
    "a scaler's container": ("ScaledObject", ("spec", "triggers", 0, "metadata", "containerName"), "model", "no container"),
    "a policy's pods": ("PeerAuthentication", ("spec", "selector", "matchLabels"), {"app": "other"}, "no pod"),
    "a policy's pods, and a neighbour's": ("Telemetry", ("spec", "selector"), {"matchLabels": {"k": "v"}}, "pods of others"),
    "a route's Service": ("VirtualService", ("spec", "http", 0, "route", 0, "destination", "host"), "zq7f3k", "no Service"),
    "a route's port": ("VirtualService", ("spec", "http", 0, "route", 0, "destination", "port", "number"), 8080, "no port"),
    "a route's gateway": ("VirtualService", ("spec", "gateways"), [f"{GATEWAY}/other"], "no Gateway"),
    "a rule's host": ("DestinationRule", ("spec", "host"), "zq7f3k", "no Service"),
    "a filter's route": (
        "EnvoyFilter",
        ("spec", "configPatches", 0, "match", "routeConfiguration", "vhost", "route", "name"),
        "zq7f3k",
        "no route",
    ),
    "a model's account": ("InferenceService", ("spec", "predictor", "serviceAccountName"), "zq7f3k-x", "no service account"),
    "a reference of a new kind": ("PodMonitor", ("spec", "jobLabel"), "zq7f3k-job", "no rule says what"),
    "a selector of a new kind": ("Telemetry", ("spec", "targetRef"), {"app": "x"}, "no rule says what"),
}  # fmt: skip


def _name(case: Any) -> str:
    return case.stem if isinstance(case, Path) else str(case)


def _pod(name: str, namespace: str, labels: dict[str, str], spec: Document) -> list[Document]:
    meta = {"namespace": namespace, "labels": {"k": "v", **labels}}
    own = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{name}-6b7c9d", "controller": True}
    deployed = {**own, "kind": "Deployment", "name": name}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace}},
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {**meta, "name": own["name"], "ownerReferences": [deployed]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**meta, "name": f"{own['name']}-x2x4z", "ownerReferences": [own]},
            "spec": spec,
        },
    ]


def _kserve(isvc: Document) -> list[Document]:
    """Return what KServe 0.20 makes in Standard mode: for each component a Deployment with pods, and a Service."""
    made: list[Document] = []
    name, namespace = isvc["metadata"]["name"], isvc["metadata"].get("namespace", NAMESPACE)
    for part in COMPONENTS:
        spec = isvc["spec"].get(part)
        if spec is None:
            continue
        called = f"{name}-{part}"
        own = {"app": f"isvc.{called}", "component": part, "serving.kserve.io/inferenceservice": name}
        labels = {**isvc["metadata"]["labels"], **spec.get("labels", {}), **own}
        served = copy.deepcopy(spec.get("containers", [{"name": "kserve-container"}]))
        first = served[0].get("ports") or [{"containerPort": 8080}]
        target = 9081 if "logger" in spec else first[0]["containerPort"]
        if "logger" in spec:
            served.append({"name": "agent", "ports": [{"containerPort": 9081}]})
        pod = {"serviceAccountName": spec["serviceAccountName"], "containers": served}
        made += _pod(called, namespace, labels, pod)
        for each in made:
            if each["kind"] == "Pod" and each["metadata"]["name"].startswith(called):
                each["metadata"]["annotations"] = isvc["metadata"]["annotations"]
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": called, "namespace": namespace},
                "spec": {"selector": {"app": f"isvc.{called}"}, "ports": [{"port": 80, "targetPort": target}]},
            }
        )
    return made


def _runtimes() -> list[Document]:
    names = ("mlserver", "huggingfaceserver", "vllmserver", "sklearnserver", "tritonserver", "torchserve")
    return [
        {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ClusterServingRuntime", "metadata": {"name": f"kserve-{each}"}}
        for each in names
    ]  # fmt: skip


def _world(chart: str, path: Path) -> tuple[World, list[Document]]:
    given = values_of(path)
    objects = render(chart, path, for_tests(given, GATEWAY), release=RELEASE, namespace=NAMESPACE)
    beside = render("kserve-model", for_tests({}, GATEWAY), release=f"{RELEASE}-b", namespace=NAMESPACE)
    made = _runtimes()
    for each in (*objects, *beside):
        each["metadata"].setdefault("namespace", NAMESPACE)
        if each["kind"] == "InferenceService":
            made += _kserve(each)
    for name in others(given):
        made.append(
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": name, "namespace": NAMESPACE},
            }
        )
    for number, labels in enumerate(selectors(given)):
        made += _pod(f"gateway-{number}", GATEWAY, labels, {"serviceAccountName": "gateway", "containers": []})
    for kind in ("networking.istio.io/v1", "gateway.networking.k8s.io/v1"):
        made.append({"apiVersion": kind, "kind": "Gateway", "metadata": {"name": "models", "namespace": GATEWAY}})
    made.append(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gateway", "namespace": GATEWAY}}
    )
    return World(RELEASE, (NAMESPACE, GATEWAY), [*made, *objects, *beside]), objects


@pytest.mark.parametrize(("chart", "path"), sampled(CASES, 6), ids=_name)
def test_whatever_our_objects_name_is_there(chart: str, path: Path) -> None:
    world, objects = _world(chart, path)
    assert references.faults(world, objects, rules.MODEL) == []


@pytest.mark.parametrize("name", BREAKS)
def test_a_reference_that_leads_nowhere_is_found(name: str) -> None:
    kind, path, value, says = BREAKS[name]
    world, objects = _world("kserve-model", CHARTS / "kserve-model" / "ci" / "full-llm.yaml")
    target = next(each for each in objects if each["kind"] == kind)
    place: Any = target
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = references.faults(world, objects, rules.MODEL)
    assert any(line.startswith(f"{kind}/") and says in line for line in found), found
