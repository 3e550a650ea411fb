"""Every way to a model in a cluster, and what meters it: found in the objects, whoever made them.

A way is an object by which requests reach the pods of a model: a Service, whatever its type, or what leads to one. The
charts meter at one of two places (docs/model-security.md):

- With `placement: gateway`, an EnvoyFilter at the gateway switches the meter on for the release's routes, by their names.
  Any other way from outside the cluster goes around it. Ways from inside are not metered. The release's own are expected
  (its Services, its route in the mesh), and an ALLOW policy at the pods says who may use them.
- With `placement: sidecar`, an EnvoyFilter at the pods' sidecars meters whatever comes, so that every way is metered.

Proxies are not seen: pods that hand on what they are asked. An ingress controller is seen by its Ingress.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.charts.helm import Document

from .meters import Meters, Pod
from .reach import Reach, namespace_of, pool_name

OUTSIDE, INSIDE = "outside", "inside"
_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")
# A cluster of Envoy by its name, with the host at its end.
_CLUSTER = re.compile(r"outbound(?:_\.|\|)\d+(?:_\.|\|)[^|'\" ]*?(?:_\.|\|)([a-z0-9.-]+)")
# Istio puts it onto the pods that it makes for a Gateway of the Gateway API.
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
_SERVICES = {
    "ExternalName": "another name of the model",
    "NodePort": "a port of every node",
    "LoadBalancer": "an address for the world",
}


class Way(NamedTuple):
    """One way to the pods of one release.

    `name` is namespace/name and the place in the object; `source` is where it begins, OUTSIDE or INSIDE the cluster; `to` is
    the host or the pod that it leads to; `release` is the pods' (`namespace/name`, "" without a chart of ours); `metered` is
    the filter that meters it, "" without one; `own` says that the release made the object, or KServe for the release.
    """

    kind: str
    name: str
    source: str
    to: str
    release: str
    metered: str
    own: bool
    why: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}, from {self.source} to {self.to}: {self.why}"


def ways(objects: list[Document], root: str = "istio-system") -> list[Way]:
    """Return every way to a model. `objects` are all of a cluster; `root` is Istio's root namespace."""
    return list(_Finder(objects, root).ways())


def around(found: list[Way], limited: set[str], *, inside: bool = False) -> list[Way]:
    """Return the ways around the meter: none of them may be there.

    `limited` are the releases (`namespace/name`) that have limits. The others are asked for no meter, but nothing else than
    their own objects may lead to them. With `inside`, ways from inside the cluster must be metered too.
    """
    return [way for way in found if not way.metered and not _expected(way, limited, inside=inside)]


def _expected(way: Way, limited: set[str], *, inside: bool) -> bool:
    """Return whether the charts mean a way that is not metered to be there."""
    if not way.own:
        return False
    if way.release not in limited:
        return way.source == INSIDE or way.kind in {"VirtualService", "HTTPRoute"}
    return way.source == INSIDE and not inside


class _Finder:
    def __init__(self, objects: list[Document], root: str) -> None:
        self._reach = Reach(objects)
        self._models = self._reach.models
        self._meters = Meters(objects, root)

    def ways(self) -> Iterator[Way]:
        """Return the ways, kind by kind."""
        readers = {
            "Service": self._service,
            "ServiceEntry": self._service_entry,
            "Ingress": self._ingress,
            **dict.fromkeys(_ROUTES, self._gateway_api),
            "VirtualService": self._virtual_service,
            "Gateway": self._gateway,
            "EnvoyFilter": self._filter,
        }
        for kind, read in readers.items():
            for each in self._reach.of(kind):
                yield from read(each)
        for place, pod in enumerate(self._models):
            if _at_node(pod):
                yield from self._judged(_Step("Pod", pod.name, OUTSIDE, "a port of its node"), pod.name, {place})

    def _service(self, service: Document) -> Iterator[Way]:
        spec, kind = service["spec"], str(service["spec"].get("type", "ClusterIP"))
        outside = kind in {"NodePort", "LoadBalancer"} or bool(spec.get("externalIPs"))
        why = _SERVICES.get(kind, "external addresses" if outside else "an address in the cluster")
        yield from self._direct(service, "", OUTSIDE if outside else INSIDE, service["metadata"]["name"], why)

    def _service_entry(self, entry: Document) -> Iterator[Way]:
        for host in entry["spec"].get("hosts") or ():
            yield from self._direct(entry, "", INSIDE, host, "another name of the model")

    def _ingress(self, ingress: Document) -> Iterator[Way]:
        for place, name in _ingress_backends(ingress):
            why = "no filter of the charts knows the routes of an Ingress"
            yield from self._direct(ingress, place, OUTSIDE, name, why)

    def _gateway(self, gateway: Document) -> Iterator[Way]:
        if "AUTO_PASSTHROUGH" in str(gateway["spec"]):
            for name in self._reach.names:
                yield from self._direct(
                    gateway, "", OUTSIDE, name, "AUTO_PASSTHROUGH hands on what it does not read"
                )

    def _filter(self, patches: Document) -> Iterator[Way]:
        for host in sorted(set(_CLUSTER.findall(str(patches["spec"])))):
            yield from self._direct(patches, "", OUTSIDE, host, "a patch that leads to the model by itself")

    def _gateway_api(self, route: Document) -> Iterator[Way]:
        name, home = route["metadata"]["name"], namespace_of(route)
        for index, rule in enumerate(route["spec"].get("rules") or ()):
            # Which of them Istio calls the route depends on its version.
            names = {f"{home}.{name}.{index}"} | ({rule["name"]} if rule.get("name") else set())
            for place, backend in _backends(rule):
                target = _backend(backend, home)
                for parent in route["spec"].get("parentRefs") or ():
                    kind, at = (
                        parent.get("kind", "Gateway"),
                        f"{parent.get('namespace', home)}/{parent['name']}",
                    )
                    source = OUTSIDE if kind == "Gateway" else INSIDE
                    step = _step(route, f" rules[{index}].{place} at {kind} {at}", source)
                    pods = [each for each in self._reach.pods if _of_gateway(each, at)]
                    yield from self._routed(step, target, pods if route["kind"] == "HTTPRoute" else [], names)

    def _virtual_service(self, service: Document) -> Iterator[Way]:
        home = namespace_of(service)
        some = "sourceLabels" in str(service["spec"]) or "sourceNamespace" in str(service["spec"])
        for name, target, where in self._rules(service, None):
            for gateway in service["spec"].get("gateways") or ["mesh"]:
                if gateway == "mesh":
                    step = _step(service, f" {where} in the mesh", INSIDE, "a route of callers' sidecars")
                    if some:
                        step = step._replace(own=False, why="a route of some callers' sidecars")
                    yield from self._judged(step, target, self._reach.named(target, home))
                    continue
                at = gateway if "/" in gateway else f"{home}/{gateway}"
                pods = self._selected_by(at) if where.startswith("http") else []
                step = _step(service, f" {where} at Gateway {at}", OUTSIDE)
                yield from self._routed(step, target, pods, {name} - {""})

    def _rules(self, service: Document, prefix: str | None) -> Iterator[tuple[str, str, str]]:
        """Return name, destination and place of each rule, also of those that another VirtualService holds for it."""
        home = namespace_of(service)
        for part in ("http", "tls", "tcp"):
            for index, rule in enumerate(service["spec"].get(part) or ()):
                name = rule.get("name", "")
                if prefix is not None:
                    name = f"{prefix}-{name}" if prefix and name else prefix or name
                for host in _destinations(rule):
                    yield name, self._reach.canonical(host, home), f"{part}[{index}]"
                if prefix is None and (other := rule.get("delegate")):
                    wanted = f"{other.get('namespace', home)}/{other['name']}"
                    for each in self._reach.of("VirtualService"):
                        if _name(each) == wanted:
                            yield from self._rules(each, name)

    def _selected_by(self, name: str) -> list[Pod]:
        """Return the pods of an Istio Gateway, whichever namespace they are in."""
        for each in self._reach.of("Gateway"):
            if _name(each) == name and each["apiVersion"].startswith("networking.istio.io/"):
                chosen = each["spec"].get("selector") or {}
                return [pod for pod in self._reach.pods if chosen.items() <= pod.labels.items()]
        return []

    def _direct(self, document: Document, place: str, source: str, host: str, why: str) -> Iterator[Way]:
        """Return the ways of an object that hands requests to a host, with no meter of its own."""
        home = namespace_of(document)
        found = self._reach.named(host, home)
        yield from self._judged(_step(document, place, source, why), self._reach.canonical(host, home), found)

    def _routed(self, step: "_Step", target: str, pods: list[Pod], names: set[str]) -> Iterator[Way]:
        """Return the ways of a rule at a gateway with these pods; Istio calls its route one of `names`."""
        if step.source == INSIDE:
            step = step._replace(why="a route of callers' sidecars")
        elif not pods:
            step = step._replace(why="no pod of its gateway is known, or the rule is not about HTTP")
        else:
            said = " or ".join(sorted(names)) or "without a name"
            meter = self._meters.at_gateway(pods, names) if names else ""
            step = step._replace(why=f"no filter switches the meter on for the route {said}", meter=meter)
        yield from self._judged(step, target, self._reach.named(target, step.namespace))

    def _judged(self, step: "_Step", to: str, found: set[int]) -> Iterator[Way]:
        """Return a way for each release whose pods, at the places `found`, are reached."""
        pods = [self._models[place] for place in sorted(found)]
        for release in sorted({each.release for each in pods}):
            mine = [each for each in pods if each.release == release]
            at_pods = {self._at_pods(each) for each in mine}
            metered = step.meter or ("" if "" in at_pods else min(at_pods))
            guarded = all(self._meters.closed(each) for each in mine)
            why = step.why if guarded else f"{step.why}; no ALLOW policy is about the pods"
            if metered:
                why = f"metered at {'the gateway' if step.meter else 'the pods'}"
            own = step.own and guarded and bool(release)
            yield Way(step.kind, step.name, step.source, to, release, metered, own, why)

    def _at_pods(self, pod: Pod) -> str:
        """Return what meters requests at a pod, or at the pods of its release that it asks in turn."""
        if found := self._meters.at_pod(pod):
            return found
        mine = [each for each in self._models if each.release == pod.release and pod.release]
        predictors = [each for each in mine if each.component == "predictor"]
        transformers = [each for each in mine if each.component == "transformer"]
        # KServe's explainers ask the predictor, also past a transformer; a graph asks where callers enter.
        then = predictors if pod.component == "explainer" else transformers or predictors
        asked = {self._meters.at_pod(each) for each in then}
        if not asked or "" in asked or pod in then:
            return ""
        # A predictor behind a transformer may let in nobody else.
        return min(asked) if pod.component != "predictor" or self._meters.only_own(pod) else ""


class _Step(NamedTuple):
    """What is known of a way before it is known where it ends."""

    kind: str
    name: str
    source: str
    why: str = ""
    own: bool = False
    meter: str = ""

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]


def _step(document: Document, place: str, source: str, why: str = "") -> _Step:
    return _Step(document["kind"], f"{_name(document)}{place}", source, why, _owned(document))


def _name(document: Document) -> str:
    return f"{namespace_of(document)}/{document['metadata']['name']}"


def _owned(document: Document) -> bool:
    """Return whether a release of the charts made an object, or KServe for a release."""
    meta = document["metadata"]
    owners = {each["kind"] for each in meta.get("ownerReferences") or () if each.get("controller")}
    labels = meta.get("labels") or {}
    ours = "tokenweir.io/release" in labels and labels.get("app.kubernetes.io/managed-by") == "Helm"
    return ours or bool(owners & {"InferenceService", "InferenceGraph"})


def _at_node(pod: Pod) -> bool:
    ports = [port for each in pod.spec["containers"] for port in each.get("ports") or ()]
    return bool(pod.spec.get("hostNetwork")) or any(port.get("hostPort") for port in ports)


def _of_gateway(pod: Pod, gateway: str) -> bool:
    return f"{pod.namespace}/{pod.labels.get(GATEWAY_NAME)}" == gateway


def _ingress_backends(document: Document) -> Iterator[tuple[str, str]]:
    spec = document["spec"]
    if name := ((spec.get("defaultBackend") or {}).get("service") or {}).get("name"):
        yield " defaultBackend", name
    for index, rule in enumerate(spec.get("rules") or ()):
        for path in (rule.get("http") or {}).get("paths") or ():
            if name := (path["backend"].get("service") or {}).get("name"):
                yield f" rules[{index}] {path.get('path', '/')}", name


def _destinations(rule: dict[str, Any]) -> Iterator[str]:
    """Return the hosts that a rule of a VirtualService leads to: those that answer, and those that get a copy."""
    copies = [rule.get("mirror"), *(each.get("destination") for each in rule.get("mirrors") or ())]
    for each in (*(one["destination"] for one in rule.get("route") or ()), *copies):
        if each:
            yield each["host"]


def _backends(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return where a rule of a route leads: its backends, and those that get a copy."""
    filters = list(rule.get("filters") or ())
    for index, each in enumerate(rule.get("backendRefs") or ()):
        yield f"backendRefs[{index}]", each
        filters += each.get("filters") or ()
    for one in filters:
        if "requestMirror" in one:
            yield "requestMirror", one["requestMirror"]["backendRef"]


def _backend(backend: dict[str, Any], namespace: str) -> str:
    kind, home = backend.get("kind", "Service"), backend.get("namespace", namespace)
    if kind == "InferencePool":
        return pool_name(backend["name"], home)
    return str(backend["name"]) if kind == "Hostname" else f"{backend['name']}.{home}.svc"
