"""What KServe made of a release's InferenceServices, compared with what they say and what the rest of the release expects."""

from collections.abc import Iterator
from typing import Any

from tests.charts.helm import Document

from .cluster import Cluster
from .models import COMPONENTS, Release
from .world import World, owner

# Each of these must select every pod of a release: what it leaves out is served without its rule.
GUARDS = ("PeerAuthentication", "Telemetry", "PodMonitor")


def differences(cluster: Cluster, release: Release) -> list[str]:
    """Return what is not as the release expects it; one line each."""
    world = World.seen(cluster, release.name, release.namespace, release.gateway)
    found = [line for each in release.of("InferenceService") for line in _service(world, each)]
    return found + list(_strangers(world)) + list(_unguarded(world, release))


def _service(world: World, isvc: Document) -> Iterator[str]:
    name, namespace = isvc["metadata"]["name"], world.namespace
    seen = world.find("InferenceService", name, namespace) or {}
    model = seen.get("status", {}).get("modelStatus", {})
    if model.get("transitionStatus") == "InvalidSpec":
        yield f"{name}: KServe says InvalidSpec: {model.get('lastFailureInfo')}"
    for part in COMPONENTS:
        if part not in isvc["spec"]:
            continue
        deployment = world.find("Deployment", f"{name}-{part}", namespace)
        service = world.find("Service", f"{name}-{part}", namespace)
        if deployment is None or service is None:
            yield f"{name}: no Deployment or no Service {name}-{part}"
            continue
        spec = isvc["spec"][part]
        for line in (*_pods(isvc, spec, deployment), *_replicas(isvc, spec, deployment), *_ports(service)):
            yield f"{name}-{part}: {line}"


def _pods(isvc: Document, spec: dict[str, Any], deployment: Document) -> Iterator[str]:
    template = deployment["spec"]["template"]
    labels = {**isvc["metadata"]["labels"], **spec.get("labels", {})}
    if not labels.items() <= template["metadata"]["labels"].items():
        yield f"its pods have not the labels {set(labels) - set(template['metadata']['labels'])}"
    annotations = {**isvc["metadata"]["annotations"], **spec.get("annotations", {})}
    for key in ("prometheus.io/port", "prometheus.io/path", "prometheus.io/scrape"):
        if template["metadata"].get("annotations", {}).get(key) != annotations.get(key):
            yield f"its pods' annotation {key} is not {annotations.get(key)}"
    pod = template["spec"]
    for field in (
        "serviceAccountName",
        "terminationGracePeriodSeconds",
        "tolerations",
        "affinity",
        "imagePullSecrets",
    ):
        if spec.get(field) != pod.get(field) and spec.get(field) is not None:
            yield f"its pods' {field} is {pod.get(field)}, not {spec[field]}"
    wanted = [{"name": "kserve-container", **spec["model"]}] if "model" in spec else spec.get("containers", [])
    for each in wanted:
        yield from _container(each, {one["name"]: one for one in pod["containers"]})


def _container(wanted: dict[str, Any], found: dict[str, dict[str, Any]]) -> Iterator[str]:
    made = found.get(wanted["name"])
    if made is None:
        yield f"it has no container {wanted['name']}, but {sorted(found)}"
        return
    if wanted.get("image", made["image"]) != made["image"]:
        yield f"its image is {made['image']}, not {wanted['image']}"
    # KServe puts the runtime's before them, and where the predictor is behind those of a transformer.
    arguments, given = wanted.get("args", []), made.get("args", [])
    if not any(given[start : start + len(arguments)] == arguments for start in range(len(given) + 1)):
        yield f"its arguments are {given}, which don't have {arguments} in them"
    env = {each["name"]: each for each in made.get("env", [])}
    for each in wanted.get("env", []):
        if env.get(each["name"]) != each and each.get("value") != "":
            yield f"its environment has {env.get(each['name'])}, not {each}"
        if each.get("value") == "" and each["name"] not in env:
            yield f"its environment has no {each['name']}"
    for kind, amounts in wanted.get("resources", {}).items():
        given = made.get("resources", {}).get(kind, {})
        if not amounts.items() <= given.items():
            yield f"its {kind} are {given}, not {amounts}"


def _replicas(isvc: Document, spec: dict[str, Any], deployment: Document) -> Iterator[str]:
    own = {**isvc["metadata"]["annotations"], **spec.get("annotations", {})}
    if own["serving.kserve.io/autoscalerClass"] == "none":
        replicas = deployment["spec"]["replicas"]
        if replicas != spec.get("minReplicas", 1):
            yield f"it has {replicas} replicas, not {spec.get('minReplicas', 1)}"


def _ports(service: Document) -> Iterator[str]:
    if service["spec"].get("clusterIP") in (None, "None"):
        yield "its Service is headless: Istio's routes lead past it"
    if 80 not in [each["port"] for each in service["spec"]["ports"]]:
        yield "its Service has no port 80"


def _strangers(world: World) -> Iterator[str]:
    """Report what KServe makes that publishes or scales a model beside us."""
    for kind in ("Ingress", "HTTPRoute", "VirtualService", "HorizontalPodAutoscaler", "ScaledObject"):
        for each in world.of(kind):
            if owner(each)[0] in {"InferenceService", "InferenceGraph"}:
                yield f"KServe made a {kind} {each['metadata']['name']}"


def _unguarded(world: World, release: Release) -> Iterator[str]:
    policies = [(each["kind"], each) for each in release.objects if each["kind"] in GUARDS]
    policies += [(f"policy to {each['spec']['action']}", each) for each in release.of("AuthorizationPolicy")]
    made = {(each["kind"], each["metadata"]["name"]) for each in release.objects}
    deployments = [each for each in world.of("Deployment", world.namespace) if owner(each) in made]
    mine = [pod for each in deployments for pod in world.pods_of(each["metadata"]["name"], world.namespace)]
    assert mine, "the release has no pods"
    for kind in {*GUARDS, "policy to ALLOW", "policy to DENY"}:
        chosen = [
            each["spec"]["selector"]["matchLabels"]
            for name, each in policies
            if name == kind and _here(each, world)
        ]
        for pod in mine:
            labels = pod["metadata"]["labels"]
            if not any(each.items() <= labels.items() for each in chosen):
                yield f"the pod {pod['metadata']['name']} has no {kind}"


def _here(document: Document, world: World) -> bool:
    return bool(document["metadata"]["namespace"] == world.namespace)
