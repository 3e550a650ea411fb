"""Which rendered objects hold for a proxy."""

from dataclasses import dataclass, field

from .strict import fields

ROOT_NAMESPACE = "istio-system"
TRANSLATED = {
    "AuthorizationPolicy",
    "EnvoyFilter",
    "PeerAuthentication",
    "RequestAuthentication",
    "VirtualService",
}
# Read for labels, arguments and addresses.
READ = {"ConfigMap", "Deployment", "InferenceService", "Service"}
# These change nothing about whether and where a request goes.
NOT_ON_THE_PATH = {
    *(
        "DestinationRule",
        "Gateway",
        "HorizontalPodAutoscaler",
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
    ),
    *("PodMonitor", "PrometheusRule", "ScaledObject", "ServiceAccount", "ServiceMonitor", "Telemetry"),
}


@dataclass(frozen=True)
class Workload:
    """A pod with a sidecar, or the gateway's."""

    name: str
    namespace: str
    account: str
    labels: dict[str, str] = field(default_factory=dict)
    port: int = 8080
    other_ports: tuple[int, ...] = ()

    @property
    def principal(self):
        return f"cluster.local/ns/{self.namespace}/sa/{self.account}"


def check_kinds(documents):
    """Fails on a kind that nobody thought about."""
    unknown = {document["kind"] for document in documents} - TRANSLATED - READ - NOT_ON_THE_PATH
    assert not unknown, f"not translated: {sorted(unknown)}"


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def named(document):
    metadata = document["metadata"]
    return f"{document['kind']} {metadata['namespace']}/{metadata['name']}"


def holding(documents, kind, workload):
    """The specs of this kind that hold for the workload, with their names, the selector taken out of them."""
    for document in of_kind(documents, kind):
        spec = dict(document["spec"])
        selector = {}
        if kind == "EnvoyFilter":
            with fields(spec.pop("workloadSelector", {"labels": {}}), named(document)) as found:
                selector = found.take("labels")
        elif "selector" in spec:
            with fields(spec.pop("selector"), named(document)) as found:
                selector = found.take("matchLabels")
        namespace = document["metadata"]["namespace"]
        if namespace in {workload.namespace, ROOT_NAMESPACE} and selector.items() <= workload.labels.items():
            yield named(document), bool(selector), spec


def model_workloads(documents):
    """The predictors' pods, with the labels that KServe gives them."""
    for service in of_kind(documents, "InferenceService"):
        name, metadata = service["metadata"]["name"], service["metadata"]
        predictor = service["spec"]["predictor"]
        labels = {**metadata["labels"], **predictor.get("labels", {}), "app": f"isvc.{name}-predictor"}
        yield Workload(f"{name}-predictor", metadata["namespace"], predictor["serviceAccountName"], labels)
