"""Every way to a model, listed from objects without a cluster: the charts', KServe's, and one more that leads around the meter."""

import copy
from typing import Any

import pytest
import yaml

from tests.cluster.models import for_tests, values_of
from tests.cluster.reach import Reach
from tests.cluster.ways import GATEWAY_NAME, INSIDE, OUTSIDE, Way, around, ways

from .helm import CHARTS, Document, render
from .test_references import GATEWAY, NAMESPACE, RELEASE, _kserve, _pod

PODS, LIMITED = f"{RELEASE}-predictor", {f"{NAMESPACE}/{RELEASE}"}
FULL = CHARTS / "kserve-model" / "ci" / "full-llm.yaml"
STORES = {"redis": {"url": "redis://redis:6379/0"}, "mongo": {"url": "mongodb://mongo:27017/?replicaSet=rs0"}}
AT_PODS = {"platform": {"tokenweir": {"placement": "sidecar"}}}
TRANSFORMER = {"inferenceservice": {"transformer": {"containers": [{"image": "registry.example.com/features:1"}]}}}
EXPLAINER = {"inferenceservice": {"explainer": {"type": "art"}}}
GRAPH = {
    "inferenceservice": {
        "graph": {"root": {"routerType": "Sequence", "steps": [{"name": "one", "serviceName": RELEASE}]}}
    }
}


def cluster(*more: Document, chart: str = "kserve-model", meter: str = "gateway") -> list[Document]:
    """Return all objects of a cluster with a release, what KServe makes for it, a gateway and the meter's filters.

    `meter` says where the chart tokenweir puts them. The gateway's namespace is Istio's root namespace too.
    """
    documents = render(
        chart, FULL, for_tests(values_of(FULL), GATEWAY), *more, release=RELEASE, namespace=NAMESPACE
    )
    where = {"gateway": {"namespace": GATEWAY}, "placement": meter, "sidecar": {"rootNamespace": GATEWAY, "namespaces": [NAMESPACE]}}  # fmt: skip
    filters = render("tokenweir", STORES, where, release="tokenweir", namespace="tokenweir")
    made = [one for each in documents if each["kind"] == "InferenceService" for one in _reconciled(each)]
    for each in documents:
        each["metadata"].setdefault("namespace", NAMESPACE)
        if each["kind"] == "InferenceGraph":
            name = each["metadata"]["name"]
            labels = {**each["metadata"]["labels"], "serving.kserve.io/inferencegraph": name}
            made += _pod(name, NAMESPACE, labels, {"containers": [{"name": "router"}]})
            made.append(_owned(service(name, labels={"serving.kserve.io/inferencegraph": name}), "InferenceGraph"))
    labels = {"istio": "ingressgateway", GATEWAY_NAME: "models"}
    made += _pod("gateway", GATEWAY, labels, {"serviceAccountName": "gateway", "containers": []})
    return [*documents, *filters, *made, gateway("models", GATEWAY)]


def _reconciled(isvc: Document) -> list[Document]:
    made = _kserve(isvc)
    for each in made:
        if each["kind"] == "Pod":
            each["status"] = {"podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}
        if each["kind"] == "Service":
            each["spec"]["clusterIP"] = "10.96.1.2"
            _owned(each, "InferenceService")
    return made


def _owned(document: Document, kind: str) -> Document:
    document["metadata"]["ownerReferences"] = [{"kind": kind, "name": "owner", "controller": True}]
    return document


def thing(api: str, kind: str, spec: Document, name: str = "stranger", namespace: str = NAMESPACE) -> Document:
    """Return an object."""
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def service(name: str = "stranger", *, labels: dict[str, str] | None = None, **spec: Any) -> Document:
    """Return a Service that selects by labels, those of the release's predictor if none are given."""
    chosen = {"selector": labels or {"app": f"isvc.{PODS}"}, "ports": [{"port": 80, "targetPort": 8080}]}
    return thing("v1", "Service", {**chosen, **spec}, name)


def gateway(name: str, namespace: str = NAMESPACE, mode: str = "SIMPLE", **selector: str) -> Document:
    """Return a Gateway of Istio's; its pods are those of the ingress gateway if no label is given."""
    server = {"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["*"], "tls": {"mode": mode}}
    spec = {"selector": selector or {"istio": "ingressgateway"}, "servers": [server]}
    return thing("networking.istio.io/v1", "Gateway", spec, name, namespace)


def virtual_service(namespace: str = NAMESPACE, host: str = PODS, **spec: Any) -> Document:
    """Return a VirtualService with one rule that leads to the predictor."""
    to = {"route": [{"destination": {"host": host, "port": {"number": 80}}}]}
    given = {"hosts": ["x.example.com"], "http": [to], **spec}
    kept = {key: each for key, each in given.items() if each is not None}
    return thing("networking.istio.io/v1", "VirtualService", kept, namespace=namespace)


def http_route(kind: str = "HTTPRoute", parent: str = "other", **rule: Any) -> Document:
    """Return a route of the Gateway API at a Gateway called `parent`."""
    to = {"backendRefs": [{"name": PODS, "port": 80}], **rule}
    spec = {"parentRefs": [{"namespace": GATEWAY, "name": parent}], "rules": [to]}
    return thing("gateway.networking.k8s.io/v1", kind, spec)


def endpoint_slice(address: str) -> Document:
    """Return endpoints that somebody wrote for a Service without a selector."""
    meta = {"name": "stranger-1", "namespace": "other", "labels": {"kubernetes.io/service-name": "stranger"}}
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "endpoints": [{"addresses": [address]}], "addressType": "IPv4"}  # fmt: skip


def ingress(name: str) -> Document:
    """Return an Ingress with one path to a Service."""
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": name, "port": {"number": 80}}}}
    return thing(
        "networking.k8s.io/v1", "Ingress", {"rules": [{"host": "x.example.com", "http": {"paths": [path]}}]}
    )


def entry(**spec: Any) -> Document:
    """Return a ServiceEntry of another namespace."""
    given = {"hosts": ["x.internal"], "resolution": "STATIC", "ports": [{"number": 80, "name": "http"}], **spec}
    return thing("networking.istio.io/v1", "ServiceEntry", given, namespace="other")


BARE = thing("v1", "Service", {"ports": [{"port": 80}], "clusterIP": "None"}, namespace="other")
WHOLE = f"{PODS}.{NAMESPACE}.svc.cluster.local"
ROUTE = "networking.istio.io/v1"
POOL = {"targetPorts": [{"number": 8080}], "endpointPickerRef": {"name": "picker", "port": {"number": 9002}}}
ROOT = virtual_service(
    gateways=[f"{GATEWAY}/models"], http=[{"name": "a", "delegate": {"name": "held", "namespace": "other"}}]
)
HELD = virtual_service("other", WHOLE, hosts=None)
HELD["metadata"]["name"] = "held"
# What somebody may add, the kind of the object that must be reported, and from where it leads to the model.
STRANGERS: dict[str, tuple[list[Document], str, str]] = {
    "an Ingress": ([ingress(PODS)], "Ingress", OUTSIDE),
    "an Ingress by its default": ([thing("networking.k8s.io/v1", "Ingress", {"defaultBackend": {"service": {"name": PODS, "port": {"number": 80}}}})], "Ingress", OUTSIDE),
    "an HTTPRoute at another gateway": ([http_route()], "HTTPRoute", OUTSIDE),
    "an HTTPRoute at the same gateway": ([http_route(parent="models")], "HTTPRoute", OUTSIDE),
    "an HTTPRoute that copies requests": (
        [http_route(parent="models", backendRefs=[], filters=[{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": PODS, "port": 80}}}])],
        "HTTPRoute",
        OUTSIDE,
    ),
    "an HTTPRoute to an InferencePool": (
        [
            http_route(backendRefs=[{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "pool"}]),
            thing("inference.networking.k8s.io/v1", "InferencePool", {**POOL, "selector": {"matchLabels": {"app": f"isvc.{PODS}"}}}, "pool"),
        ],
        "HTTPRoute",
        OUTSIDE,
    ),
    "a GRPCRoute": ([http_route("GRPCRoute", "models")], "GRPCRoute", OUTSIDE),
    "a TCPRoute": ([http_route("TCPRoute", "models")], "TCPRoute", OUTSIDE),
    "a route on another host": ([virtual_service(gateways=[f"{GATEWAY}/models"])], "VirtualService", OUTSIDE),
    "a route at another gateway": (
        [virtual_service("other", WHOLE, gateways=["edge"]), gateway("edge", "other", istio="edge")],
        "VirtualService",
        OUTSIDE,
    ),
    "a route with the name of ours at another gateway": (
        [
            virtual_service(gateways=["edge"], http=[{"name": f"{NAMESPACE}.{PODS}", "route": [{"destination": {"host": PODS}}]}]),
            gateway("edge", istio="edge"),
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "edge", "namespace": "other", "labels": {"istio": "edge"}}, "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]}},
        ],
        "VirtualService",
        OUTSIDE,
    ),
    "a route of TCP": ([virtual_service(gateways=[f"{GATEWAY}/models"], http=None, tcp=[{"route": [{"destination": {"host": PODS}}]}])], "VirtualService", OUTSIDE),
    "a route that copies requests": (
        [virtual_service(gateways=[f"{GATEWAY}/models"], http=[{"route": [{"destination": {"host": "else"}}], "mirrors": [{"destination": {"host": PODS}}]}])],
        "VirtualService",
        OUTSIDE,
    ),
    "a route that another one holds": ([ROOT, HELD], "VirtualService", OUTSIDE),
    "a route in the mesh of another namespace": ([virtual_service("other", WHOLE, gateways=["mesh"])], "VirtualService", INSIDE),
    "a route in the mesh with no gateway": ([virtual_service("other", WHOLE)], "VirtualService", INSIDE),
    "a Gateway that passes everything": ([gateway("east-west", mode="AUTO_PASSTHROUGH")], "Gateway", OUTSIDE),
    "a NodePort": ([service(type="NodePort")], "Service", OUTSIDE),
    "a LoadBalancer": ([service(type="LoadBalancer")], "Service", OUTSIDE),
    "external addresses": ([service(externalIPs=["192.0.2.1"])], "Service", OUTSIDE),
    "a headless Service": ([service(clusterIP="None")], "Service", INSIDE),
    "a Service by other labels": ([service(labels={"tokenweir.io/release": RELEASE})], "Service", INSIDE),
    "an alias": ([thing("v1", "Service", {"type": "ExternalName", "externalName": WHOLE}, namespace="other")], "Service", INSIDE),
    "an alias of an alias that is published": (
        [thing("v1", "Service", {"type": "ExternalName", "externalName": WHOLE}), ingress("stranger")],
        "Ingress",
        OUTSIDE,
    ),
    "a Service with written endpoints": ([BARE, endpoint_slice("10.1.2.3")], "Service", INSIDE),
    "written endpoints at the Service's address": ([BARE, endpoint_slice("10.96.1.2")], "Service", INSIDE),
    "endpoints of the old kind": (
        [BARE, {"apiVersion": "v1", "kind": "Endpoints", "metadata": BARE["metadata"], "subsets": [{"addresses": [{"ip": "10.1.2.3"}]}]}],
        "Service",
        INSIDE,
    ),
    "an entry of the mesh by name": ([entry(resolution="DNS", endpoints=[{"address": WHOLE}])], "ServiceEntry", INSIDE),
    "an entry of the mesh by address": ([entry(endpoints=[{"address": "10.1.2.3"}])], "ServiceEntry", INSIDE),
    "an entry with a workload": (
        [
            entry(workloadSelector={"labels": {"app": "x"}}),
            thing(ROUTE, "WorkloadEntry", {"address": "10.1.2.3", "labels": {"app": "x"}}, namespace="other"),
        ],
        "ServiceEntry",
        INSIDE,
    ),
    "a route to an entry": (
        [entry(endpoints=[{"address": "10.1.2.3"}]), virtual_service(host="x.internal", gateways=[f"{GATEWAY}/models"])],
        "VirtualService",
        OUTSIDE,
    ),
    "a patch with a route of its own": (
        [thing(f"{ROUTE}alpha3", "EnvoyFilter", {"configPatches": [{"applyTo": "HTTP_ROUTE", "patch": {"operation": "ADD", "value": {"route": {"cluster": f"outbound|80||{WHOLE}"}}}}]}, namespace=GATEWAY)],
        "EnvoyFilter",
        OUTSIDE,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=["kserve-model", "kserve-general"])
def world(request: pytest.FixtureRequest) -> list[Document]:
    """A cluster whose release is metered at the gateway; PODS are the only ones, or the primary's."""
    return cluster(chart=request.param)


def _faults(objects: list[Document], *, inside: bool = False) -> list[Way]:
    return around(ways(objects, GATEWAY), LIMITED, inside=inside)


def _put(stranger: list[Document], objects: list[Document]) -> list[Document]:
    """Return the objects with a stranger among them; where a chart's predictor is called otherwise, so does it call it."""
    text = yaml.safe_dump(stranger)
    if f"{PODS}.{NAMESPACE}.svc" not in Reach(objects).names:
        raise AssertionError("the release has no Service")
    if not any(each["metadata"].get("labels", {}).get("app") == f"isvc.{PODS}" for each in objects):
        text = text.replace(f"isvc.{PODS}", f"isvc.{RELEASE}-primary-predictor")
    return [*objects, *yaml.safe_load(text)]


def test_the_release_s_own_ways_are_metered_or_inside(world: list[Document]) -> None:
    found = ways(world, GATEWAY)
    assert _faults(world) == []
    outside = [way for way in found if way.source == OUTSIDE]
    assert outside
    assert {(way.kind, way.metered) for way in outside} == {("VirtualService", "tokenweir")}
    assert {way.kind for way in found if way.source == INSIDE} == {"Service", "VirtualService"}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_way_that_somebody_adds_is_reported(world: list[Document], name: str) -> None:
    stranger, kind, source = STRANGERS[name]
    found = _faults(_put(stranger, world))
    assert (kind, source) in {(way.kind, way.source) for way in found}, found
    assert {way.release for way in found} == LIMITED
    assert {way.name.partition(" ")[0].partition("/")[2] for way in found} <= {
        each["metadata"]["name"] for each in stranger
    }


def test_of_a_mesh_route_for_some_callers_even_the_release_s_own_is_reported(world: list[Document]) -> None:
    changed = copy.deepcopy(world)
    (mesh,) = (each for each in changed if each["metadata"]["name"] == f"{RELEASE}-mesh")
    mesh["spec"]["http"][0]["match"] = [{"sourceLabels": {"app": "batch"}}]
    assert {way.name.partition(" ")[0] for way in _faults(changed)} == {f"{NAMESPACE}/{RELEASE}-mesh"}


def test_a_port_of_the_node_is_reported(world: list[Document]) -> None:
    changed = copy.deepcopy(world)
    pod = next(each for each in changed if each["kind"] == "Pod" and each["metadata"]["namespace"] == NAMESPACE)
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 8080, "hostPort": 8080}]
    assert [(way.kind, way.source) for way in _faults(changed)] == [("Pod", OUTSIDE)]


def _without(objects: list[Document], kind: str, namespace: str, name: str) -> list[Document]:
    kept = [
        each
        for each in objects
        if (each["kind"], each["metadata"]["namespace"]) != (kind, namespace)
        or name not in each["metadata"]["name"]
    ]
    assert len(kept) < len(objects)
    return kept


@pytest.mark.parametrize("name", ["tokenweir", NAMESPACE])
def test_a_gateway_without_one_of_the_two_filters_meters_nothing(world: list[Document], name: str) -> None:
    found = _faults(_without(world, "EnvoyFilter", GATEWAY, name))
    assert found
    assert {way.kind for way in found} == {"VirtualService"}


def test_without_a_policy_that_refuses_strangers_the_ways_inside_are_reported(world: list[Document]) -> None:
    found = _faults(_without(world, "AuthorizationPolicy", NAMESPACE, "-callers"))
    assert found
    assert all("no ALLOW policy" in way.why for way in found)


OFF = {"applyTo": "HTTP_FILTER", "match": {"context": "GATEWAY", "listener": {"filterChain": {"filter": {"subFilter": {"name": "tokenweir"}}}}}, "patch": {"operation": "REMOVE"}}  # fmt: skip
DISABLED = {"applyTo": "HTTP_ROUTE", "match": {"context": "GATEWAY"}, "patch": {"operation": "MERGE", "value": {"typed_per_filter_config": {"tokenweir": {"disabled": True}}}}}  # fmt: skip


@pytest.mark.parametrize("patch", [OFF, DISABLED], ids=["taken out", "switched off"])
def test_a_patch_that_takes_the_meter_away_is_seen(world: list[Document], patch: Document) -> None:
    found = _faults([*world, thing(ROUTE, "EnvoyFilter", {"configPatches": [patch]}, namespace=GATEWAY)])
    assert {(way.kind, way.source) for way in found} == {("VirtualService", OUTSIDE)}


PARTS: dict[str, list[Document]] = {
    "predictor": [],
    "transformer": [TRANSFORMER],
    "explainer": [EXPLAINER],
    "both": [TRANSFORMER, EXPLAINER],
    "graph": [GRAPH],
    "graph and transformer": [GRAPH, TRANSFORMER],
}


@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
@pytest.mark.parametrize("parts", PARTS)
def test_at_the_pods_every_way_is_metered_whoever_made_it(chart: str, parts: str) -> None:
    objects = cluster(AT_PODS, *PARTS[parts], chart=chart, meter="sidecar")
    assert _faults(objects, inside=True) == []


@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_at_the_pods_whatever_somebody_adds_is_metered(chart: str) -> None:
    objects = cluster(AT_PODS, chart=chart, meter="sidecar")
    for name, (stranger, kind, _) in STRANGERS.items():
        there = _put(stranger, objects)
        assert _faults(there, inside=True) == [], name
        names = {f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in stranger}
        assert any(way.kind == kind and way.name.partition(" ")[0] in names for way in ways(there, GATEWAY)), name


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": {"sidecar.istio.io/inject": "false"}},
        {"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "15020, 8080"}},
        {"annotations": {"traffic.sidecar.istio.io/includeInboundPorts": "15020"}},
        {"labels": {"sidecar.istio.io/inject": "false"}},
    ],
    ids=str,
)
def test_at_the_pods_a_port_that_the_sidecar_does_not_take_is_a_way_around(change: Document) -> None:
    objects = cluster(AT_PODS, meter="sidecar")
    for each in objects:
        if each["kind"] == "Pod" and each["metadata"]["namespace"] == NAMESPACE:
            for part, more in change.items():
                each["metadata"][part] = {**(each["metadata"].get(part) or {}), **more}
    found = _faults(objects, inside=True)
    assert {way.kind for way in found} == {"Service", "VirtualService"}


def test_at_the_pods_a_predictor_behind_a_transformer_lets_in_nobody_else() -> None:
    objects = cluster(AT_PODS, TRANSFORMER, meter="sidecar")
    found = _faults(_without(objects, "AuthorizationPolicy", NAMESPACE, "-behind"), inside=True)
    assert {(way.kind, way.to) for way in found} == {("Service", f"{PODS}.{NAMESPACE}.svc")}


def test_at_the_pods_an_explainer_that_asks_past_the_transformer_is_metered_itself() -> None:
    objects = cluster(AT_PODS, TRANSFORMER, EXPLAINER, meter="sidecar")
    for each in objects:
        if each["kind"] == "Pod" and each["metadata"]["labels"].get("component") == "explainer":
            assert each["metadata"]["labels"].pop("tokenweir.io/metered") == "true"
    assert {way.to for way in _faults(objects, inside=True)} == {f"{RELEASE}-explainer.{NAMESPACE}.svc"}


def test_a_model_without_limits_needs_no_meter_and_nothing_else_may_lead_to_it() -> None:
    values = {"tokenLimit": None, "ratelimitIPPerMinute": None, "ratelimitEachSAPerMinute": None}
    objects = cluster(values, {"platform": {"tokenweir": {"enabled": False}}})
    assert not any(way.metered for way in ways(objects, GATEWAY))
    assert around(ways(objects, GATEWAY), set()) == []
    assert [way.kind for way in around(ways([*objects, service(type="NodePort")], GATEWAY), set())] == ["Service"]


def test_a_model_that_no_chart_made_is_reported() -> None:
    (made,) = (each for each in cluster() if each["kind"] == "InferenceService")
    made["metadata"].update(name="bare", labels={})
    found = around(ways(_reconciled(made)), set())
    assert [(way.kind, way.name, way.release) for way in found] == [("Service", f"{NAMESPACE}/bare-predictor", "")]


@pytest.mark.parametrize("host", ["m", "m.ns", "m.ns.svc", "m.ns.svc.cluster.local", "M.ns.svc.example.com."])
def test_a_service_has_one_spelling(host: str) -> None:
    made = thing("v1", "Service", {}, "m", "ns")
    assert Reach([made]).canonical(host, "ns") == "m.ns.svc"
    assert Reach([made]).canonical("models.example.com", "ns") == "models.example.com"
