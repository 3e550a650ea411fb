"""Where requests are metered, judged by the objects that say so: EnvoyFilters, policies and pods.

A request is metered at a gateway if two EnvoyFilters hold for all of the gateway's pods: one that puts Tokenweir's filter
into their listeners, and one that switches it on for the route, by the route's name. It is metered at a model's pods if
two such EnvoyFilters hold for the inbound listener of each pod's sidecar, and nothing gets past that listener.
"""

from typing import Any, NamedTuple

from tests.charts.helm import Document

# The filters that count tokens and requests (charts/tokenweir), each of which is off until a route switches it on.
METERS = ("tokenweir", "tokenweir.ratelimit")
_MESH = "networking.istio.io"


class Pod(NamedTuple):
    """A pod, or the pods that a Deployment makes; `name` is `namespace/name`."""

    name: str
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]
    addresses: frozenset[str] = frozenset()

    @property
    def release(self) -> str:
        """`namespace/release`, "" for a pod that is none of our charts'."""
        name = self.labels.get("tokenweir.io/release")
        return f"{self.namespace}/{name}" if name else ""

    @property
    def component(self) -> str:
        """predictor, transformer or explainer; "graph" for an InferenceGraph's, "" for any other pod."""
        if "serving.kserve.io/inferencegraph" in self.labels:
            return "graph"
        return self.labels.get("component", "")


def pods_in(objects: list[Document]) -> list[Pod]:
    """Return all pods, and those that Deployments and the like would make: a model at rest has none."""
    found = []
    for each in objects:
        spec = each if each["kind"] == "Pod" else each.get("spec", {}).get("template")
        if not isinstance(spec, dict) or "containers" not in (spec.get("spec") or {}):
            continue
        meta, own = spec.get("metadata") or {}, each["metadata"]
        status = each.get("status") or {}
        addresses = {one["ip"] for one in status.get("podIPs") or ()} | {status.get("podIP")} - {None}
        namespace = own.get("namespace", "default")
        found.append(
            Pod(
                f"{namespace}/{own['name']}",
                namespace,
                dict(meta.get("labels") or {}),
                dict(meta.get("annotations") or {}),
                spec["spec"],
                frozenset(map(str, addresses)),
            )
        )
    return found


class Meters:
    """The EnvoyFilters and policies of a cluster. `root` is Istio's root namespace: what is there holds everywhere."""

    def __init__(self, objects: list[Document], root: str = "istio-system") -> None:
        self._root = root
        self._filters = [each for each in objects if each["kind"] == "EnvoyFilter"]
        self._policies = [each for each in objects if each["kind"] == "AuthorizationPolicy"]

    def at_gateway(self, pods: list[Pod], routes: set[str]) -> str:
        """Return the meter that is on for these routes at all of a gateway's pods, "" where there is none.

        `routes` are the names by which Istio may call one route: each of them must be switched on.
        """
        if not pods:
            return ""
        on = [{self._on(pod, "GATEWAY", name) for name in routes} for pod in pods]
        found = set().union(*on)
        return found.pop() if len(found) == 1 else ""

    def at_pod(self, pod: Pod) -> str:
        """Return the meter in the pod's own sidecar, "" where there is none or something gets past it."""
        if not _captured(pod) or not self.closed(pod):
            return ""
        return self._on(pod, "SIDECAR_INBOUND", "default")

    def closed(self, pod: Pod) -> bool:
        """Return whether an ALLOW policy holds for the pod, all of whose rules are about paths.

        Then whoever no rule names is refused, and so are bytes that are no HTTP: they have no path.
        """
        allows = [each["spec"] for each in self._of(pod, self._policies) if _action(each) == "ALLOW"]
        operations = [
            to.get("operation", {}) for spec in allows for rule in spec.get("rules") or () for to in rule.get("to") or ({},)
        ]  # fmt: skip
        return bool(allows) and all(each.get("paths") for each in operations)

    def only_own(self, pod: Pod) -> bool:
        """Return whether a DENY policy refuses everybody at the pod but the accounts that its release's pods run as.

        Reading the model's metrics may be left out of it.
        """
        account = f"/ns/{pod.namespace}/sa/{pod.spec.get('serviceAccountName')}"
        for each in self._of(pod, self._policies):
            rules = each["spec"].get("rules") or ()
            if _action(each) == "DENY" and any(_but_for(rule, account) for rule in rules):
                return True
        return False

    def _on(self, pod: Pod, context: str, route: str) -> str:
        patches = [one for each in self._of(pod, self._filters) for one in each["spec"].get("configPatches") or ()]
        for meter in METERS:
            here = [_installs(each, meter, context) for each in patches]
            there = [_switches(each, meter, context, route) for each in patches]
            if True in here and True in there and False not in here + there:
                return meter
        return ""

    def _of(self, pod: Pod, documents: list[Document]) -> list[Document]:
        """Return the objects that hold for a pod, by namespace and labels."""
        return [each for each in documents if self._holds(each, pod)]

    def _holds(self, document: Document, pod: Pod) -> bool:
        if document["metadata"].get("namespace") not in {self._root, pod.namespace}:
            return False
        spec = document["spec"]
        if spec.get("targetRefs") or spec.get("targetRef"):
            return False  # a waypoint's, or a Gateway's: none of the charts' are
        chosen = (
            spec.get("workloadSelector", {}).get("labels") or spec.get("selector", {}).get("matchLabels") or {}
        )
        return bool(chosen.items() <= pod.labels.items())


def _installs(patch: Document, meter: str, context: str) -> bool | None:
    """Return True if a patch puts the meter before the router, False if one takes it out, None if neither."""
    match, change = patch.get("match") or {}, patch.get("patch") or {}
    if patch.get("applyTo") != "HTTP_FILTER" or match.get("context", "ANY") not in {context, "ANY"}:
        return None
    listener = match.get("listener") or {}
    sub = ((listener.get("filterChain") or {}).get("filter") or {}).get("subFilter") or {}
    if change.get("operation") in {"REMOVE", "REPLACE"}:
        return False if sub.get("name", meter) == meter else None
    if (change.get("value") or {}).get("name") != meter:
        return None
    everywhere = set(listener) <= {"filterChain"} and set(listener.get("filterChain") or {}) <= {"filter"}
    before = change.get("operation") == "INSERT_BEFORE" and sub.get("name") == "envoy.filters.http.router"
    return True if everywhere and before else None


def _switches(patch: Document, meter: str, context: str, route: str) -> bool | None:
    """Return True if a patch switches the meter on for the route, False if it switches it off, None if neither."""
    match, change = patch.get("match") or {}, patch.get("patch") or {}
    if patch.get("applyTo") != "HTTP_ROUTE" or match.get("context", "ANY") not in {context, "ANY"}:
        return None
    asked = match.get("routeConfiguration") or {}
    host = asked.get("vhost") or {}
    name = (host.get("route") or {}).get("name")
    if name not in {None, route}:
        return None
    given = ((change.get("value") or {}).get("typed_per_filter_config") or {}).get(meter)
    if change.get("operation") == "REMOVE":
        return None  # then there is no route
    if given is None:
        return None
    if given.get("disabled"):
        return False
    everywhere = set(asked) <= {"vhost"} and set(host) <= {"route"}
    return True if change.get("operation") == "MERGE" and everywhere and name == route else None


def _action(policy: Document) -> str:
    return str(policy["spec"].get("action", "ALLOW"))


def _but_for(rule: Document, account: str) -> bool:
    """Return whether a rule of a DENY policy is about everybody but this account, and about every path but metrics."""
    if rule.get("when"):
        return False
    sources = [each.get("source") or {} for each in rule.get("from") or ()]
    operations = [each.get("operation") or {} for each in rule.get("to") or ()]
    others = len(sources) == 1 and set(sources[0]) == {"notPrincipals"}
    return (
        others
        and all(each.endswith(account) for each in sources[0]["notPrincipals"])
        and all(set(each) == {"notPaths"} and _metrics(each["notPaths"]) for each in operations)
    )


def _metrics(paths: list[str]) -> bool:
    return bool(paths) and not any(
        each.startswith(("/v1", "/v2", "/openai", "*")) or each in {"/", "/*"} for each in paths
    )


def _captured(pod: Pod) -> bool:
    """Return whether the pod has a sidecar that takes all that comes to the ports of its containers."""
    told = {**pod.annotations, **pod.labels}
    if pod.spec.get("hostNetwork") or told.get("sidecar.istio.io/inject", "true") != "true":
        return False
    if told.get("traffic.sidecar.istio.io/includeInboundPorts", "*") != "*":
        return False
    left_out = set(told.get("traffic.sidecar.istio.io/excludeInboundPorts", "").replace(" ", "").split(","))
    # A container that declares none may be KServe's server, at 8080.
    declared = [each.get("ports") or [{"containerPort": 8080}] for each in pod.spec["containers"]]
    return not left_out & {str(port["containerPort"]) for ports in declared for port in ports}
