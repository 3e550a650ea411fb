"""How each kind of reference in the objects of the model charts is looked up: the rules for `references.faults`."""

import re
from typing import Any

from .references import Node, Rule, own
from .world import World, containers, ports

# The port of KServe's agent, which stands before the model where there is a logger.
AGENT = 9081
_HOST = re.compile(r"^https?://([^:/]+)")
_QUERY_LABEL = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def pods_of_release(world: World, node: Node) -> str:
    """Look up a selector: it must fit a pod, and no pod of a neighbour."""
    return _pods(world, node.value.get("matchLabels", node.value), node.namespace)


def workload(world: World, node: Node) -> str:
    """Look up an EnvoyFilter's workloadSelector, the same way."""
    return _pods(world, node.value["labels"], node.namespace)


def _pods(world: World, labels: dict[str, str], namespace: str) -> str:
    found = world.pods(labels, namespace)
    if not found:
        return f"no pod in {namespace} has the labels {labels}"
    if namespace != world.namespace:
        return ""  # a gateway's: it is not the release's own
    strange = [each for each in found if each["metadata"]["labels"].get("tokenweir.io/release") != world.release]
    return f"{labels} fits pods of others: {[each['metadata']['name'] for each in strange]}" if strange else ""


def existing(world: World, node: Node) -> str:
    """Look up {kind, name}, with apiVersion, group, namespace or port beside it."""
    given = node.value
    group = given.get("group")
    if "apiVersion" in given:
        group = given["apiVersion"].rpartition("/")[0]
    namespace = given.get("namespace", node.namespace)
    if namespace not in world.namespaces:
        return f"it is in the namespace {namespace}, which the release has no part in"
    wide = given["kind"].startswith("Cluster")
    found = world.find(given["kind"], given["name"], "" if wide else namespace, group)
    if found is None:
        return f"there is no {given['kind']} {given['name']} in {namespace}"
    if given["kind"] == "Service":
        return _service_port(world, found["metadata"]["name"], namespace, given.get("port"))
    return ""


def destination(world: World, node: Node) -> str:
    """Look up where a VirtualService leads: a Service with this port, and behind it pods that listen there."""
    service = world.service(node.value["host"], node.namespace)
    if service is None:
        return f"there is no Service {node.value['host']}"
    meta = service["metadata"]
    return _service_port(world, meta["name"], meta["namespace"], node.value["port"]["number"])


def _service_port(world: World, name: str, namespace: str, port: int | None) -> str:
    service = world.find("Service", name, namespace)
    if service is None:
        return f"there is no Service {name} in {namespace}"
    of_port = [each for each in service["spec"]["ports"] if each["port"] == port]
    if not of_port:
        return f"the Service {name} has no port {port}, but {[each['port'] for each in service['spec']['ports']]}"
    selector = service["spec"].get("selector") or {}
    pods = world.pods(selector, namespace)
    if not pods:
        return f"the Service {name} has no pods: none has {selector}"
    target = of_port[0].get("targetPort", port)
    return next((wrong for pod in pods if (wrong := _listens(pod, target))), "")


def _listens(pod: dict[str, Any], target: int | str) -> str:
    name = pod["metadata"]["name"]
    if target == AGENT:
        agents = [each for each in containers(pod) if each["name"] == "agent"]
        return "" if agents else f"{name} has no agent of KServe, which would listen at {AGENT}"
    declared = ports(pod)
    # KServe's own servers declare 8080; without any declaration it is what KServe's Service assumes.
    return (
        ""
        if target in declared or (not declared and target == 8080)
        else f"{name} declares {declared}, not {target}"
    )


def target_port(world: World, node: Node) -> str:
    """Compare the port of our own Service with that of KServe's for the same pods."""
    mine = node.owner["spec"]["selector"]
    others = [
        each
        for each in world.of("Service", node.namespace)
        if each["spec"].get("selector") == mine and each["metadata"]["name"] != node.owner["metadata"]["name"]
    ]
    found = {each["spec"]["ports"][0]["targetPort"] for each in others}
    return (
        "" if found == {node.value} else f"KServe's Service for the same pods leads to {found}, not {node.value}"
    )


def service_host(world: World, node: Node) -> str:
    """Look up a host that stands for a Service: a DestinationRule's, or a VirtualService's inside the mesh."""
    return "" if world.service(node.value, node.namespace) else f"there is no Service {node.value}"


def route_hosts(world: World, node: Node) -> str:
    """Accept the hosts of a route at a gateway, which are given here; those inside the mesh are Services."""
    if node.owner["spec"].get("gateways") != ["mesh"]:
        return own(world, node)
    missing = [host for host in node.value if not world.service(host, node.namespace)]
    return f"there is no Service {missing}" if missing else ""


def gateways(world: World, node: Node) -> str:
    """Look up the Gateways of a VirtualService."""
    for each in node.value:
        namespace, _, name = each.rpartition("/")
        if each != "mesh" and not world.find("Gateway", name, namespace or node.namespace, "networking.istio.io"):
            return f"there is no Gateway {each}"
    return ""


def published(world: World, node: Node) -> str:
    """Look up the hosts of a policy among those that routes serve."""
    missing = [each for each in node.value if each.removesuffix(":*") not in world.hosts]
    return f"no route serves {missing}" if missing else ""


def namespaces(world: World, node: Node) -> str:
    """Look up namespaces."""
    missing = [each for each in node.value if each not in world.namespaces]
    return f"there is no namespace {missing}" if missing else ""


def principals(world: World, node: Node) -> str:
    """Look up the service accounts of principals that are in our namespaces; a pod must run as each of the release's."""
    for each in node.value:
        found = re.fullmatch(r"[^/]+/ns/([^/]+)/sa/(.+)", each)
        if not found or found[1] not in world.namespaces:
            continue
        if not world.find("ServiceAccount", found[2], found[1]):
            return f"there is no service account {found[2]} in {found[1]}"
        if not any(pod["spec"].get("serviceAccountName") == found[2] for pod in world.of("Pod", found[1])):
            return f"no pod runs as {each}"
    return ""


def account(world: World, node: Node) -> str:
    """Look up the service account of an InferenceService."""
    found = world.find("ServiceAccount", node.value, node.namespace)
    return "" if found else f"there is no service account {node.value}"


def runtime(world: World, node: Node) -> str:
    """Look up a runtime: one of the namespace, or one of the cluster."""
    for kind, namespace in (("ServingRuntime", node.namespace), ("ClusterServingRuntime", "")):
        if world.find(kind, node.value, namespace):
            return ""
    return f"there is no runtime {node.value}"


def metrics_port(world: World, node: Node) -> str:
    """Look up the port of the model's metrics: one that a container declares, or the pods' annotation says."""
    for port in node.value:
        for pod in world.pods({"tokenweir.io/release": world.release}, world.namespace):
            said = pod["metadata"].get("annotations", {}).get("prometheus.io/port")
            if said == str(port) or int(port) in ports(pod):
                break
        else:
            return f"no pod of the release has its metrics at {port}"
    return ""


def route(world: World, node: Node) -> str:
    """Look up the route that an EnvoyFilter patches by its name."""
    return (
        "" if node.value in world.routes else f"no route is called {node.value}: there are {sorted(world.routes)}"
    )


def bucket(world: World, node: Node) -> str:
    """Compare what a filter tells Tokenweir with the release's name there: it is that of the release's buckets."""
    given = node.value
    if given.get("key", given.get("descriptor_key")) not in {"tokenweir-route", "route"}:
        return ""
    said, wanted = given.get("value", given.get("descriptor_value")), f"{world.namespace}/{world.release}"
    return "" if said == wanted else f"{said} is not {wanted}"


def scaled_container(world: World, node: Node) -> str:
    """Look up the container that a scaler measures, in the pods of its target."""
    target = node.owner["spec"]["scaleTargetRef"]["name"]
    for pod in world.pods_of(target, node.namespace):
        if node.value not in [each["name"] for each in containers(pod)]:
            return f"{pod['metadata']['name']} has no container {node.value}"
    return ""


def query(world: World, node: Node) -> str:
    """Look up the labels of a PromQL query: the workload is the scaler's target, the pattern fits all of its pods alone."""
    target = node.owner["spec"]["scaleTargetRef"]["name"]
    mine = {each["metadata"]["name"] for each in world.pods_of(target, node.namespace)}
    named = False
    for label, _, value in _QUERY_LABEL.findall(node.value):
        if label.endswith("namespace") and value != node.namespace:
            return f"{label} is {value}, not {node.namespace}"
        if label == "destination_workload":
            named = True
            if value != target:
                return f"{label} is {value}, and the scaler's target {target}"
        if label.endswith("pod") and value:
            named = True
            found = {
                each["metadata"]["name"]
                for each in world.of("Pod", node.namespace)
                if re.fullmatch(value, each["metadata"]["name"])
            }
            if found != mine:
                return f"{value} fits the pods {sorted(found)}, and the target has {sorted(mine)}"
    return "" if named else f"{node.value!r} names no workload and no pod"


def step(world: World, node: Node) -> str:
    """Look up what a step of an InferenceGraph calls by name."""
    found = world.find("InferenceService", node.value, node.namespace)
    return "" if found else f"there is no InferenceService {node.value}"


def url(world: World, node: Node) -> str:
    """Look up the host of a URL, where it is in the cluster and in a namespace of ours."""
    found = _HOST.match(str(node.value))
    host = found[1] if found else ""
    if not any(
        host.endswith(f".{name}{rest}") for name in world.namespaces for rest in ("", ".svc", ".svc.cluster.local")
    ):
        return ""
    return "" if world.service(host, node.namespace) else f"there is no Service {host}"


# The first pattern that fits a path decides.
MODEL: dict[str, Rule] = {
    # selectors
    r"(PeerAuthentication|RequestAuthentication|AuthorizationPolicy|Telemetry|PodMonitor|PodDisruptionBudget):spec\.selector": pods_of_release,
    r"NetworkPolicy:spec\.podSelector": pods_of_release,
    r"EnvoyFilter:spec\.workloadSelector": workload,
    r"Service:spec\.selector": pods_of_release,
    # {kind, name}
    r"(ScaledObject|HorizontalPodAutoscaler):spec\.scaleTargetRef": existing,
    r"ScaledObject:spec\.triggers\[\]\.authenticationRef": existing,
    r"HTTPRoute:spec\.parentRefs\[\]": existing,
    r"HTTPRoute:spec\.rules\[\]\.backendRefs\[\]": existing,
    # hosts, ports, routes
    r"VirtualService:.*\.destination": destination,
    r"VirtualService:spec\.gateways": gateways,
    r"VirtualService:spec\.hosts": route_hosts,
    r"HTTPRoute:spec\.hostnames": own,
    r"(VirtualService:spec\.http|HTTPRoute:spec\.rules)\[\]\.name": own,
    r"DestinationRule:spec\.host": service_host,
    r"Service:spec\.ports\[\]\.targetPort": target_port,
    r"EnvoyFilter:.*\.match\.routeConfiguration\.vhost\.route\.name": route,
    r"EnvoyFilter:.*\.(grpc_initial_metadata\[\]|generic_key)": bucket,
    # who
    r"AuthorizationPolicy:.*\.source\.namespaces": namespaces,
    r"AuthorizationPolicy:.*\.source\.(principals|notPrincipals)": principals,
    r"AuthorizationPolicy:.*\.operation\.hosts": published,
    r"AuthorizationPolicy:.*\.operation\.ports": metrics_port,
    r"InferenceService:spec\.\w+\.serviceAccountName": account,
    # metrics
    r"ScaledObject:.*\.metadata\.containerName": scaled_container,
    r"HorizontalPodAutoscaler:.*\.containerResource\.container": scaled_container,
    r"ScaledObject:.*\.metadata\.query": query,
    r"ScaledObject:.*\.metadata\.serverAddress": url,
    r"ScaledObject:.*\.horizontalPodAutoscalerConfig\.name": own,
    # models
    r"InferenceService:spec\.predictor\.model\.runtime": runtime,
    r"InferenceService:.*\.logger\.url": url,
    r"InferenceService:.*\.(args|command|env)": own,  # the name that callers use
    r"InferenceGraph:.*\.serviceName": step,
    r"InferenceGraph:.*\.serviceUrl": url,
    r"HorizontalPodAutoscaler:.*\.metric\.selector": own,
}  # fmt: skip
