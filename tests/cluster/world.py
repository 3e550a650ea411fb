"""All objects of a few namespaces of a cluster at one moment, and how Kubernetes and Istio find them."""

import functools
from typing import Any

from tests.charts.helm import Document

from .cluster import Cluster

_KINDS = (
    "pods", "services", "serviceaccounts", "configmaps", "secrets", "deployments.apps", "replicasets.apps",
    "horizontalpodautoscalers.autoscaling", "ingresses.networking.k8s.io", "poddisruptionbudgets.policy",
)  # fmt: skip
_CUSTOM = (
    ("serving.kserve.io/v1beta1", "InferenceService"),
    ("serving.kserve.io/v1alpha1", "InferenceGraph"),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("keda.sh/v1alpha1", "TriggerAuthentication"),
    ("networking.istio.io/v1", "VirtualService"),
    ("networking.istio.io/v1", "DestinationRule"),
    ("networking.istio.io/v1", "Gateway"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
)
_EVERYWHERE = (
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"),
    ("keda.sh/v1alpha1", "ClusterTriggerAuthentication"),
)


class World:
    """What is in the `namespaces` of a release; the first one is its own. `release` is its name."""

    def __init__(self, release: str, namespaces: tuple[str, ...], objects: list[Document]) -> None:
        self.release = release
        self.namespace = namespaces[0]
        self.namespaces = namespaces
        self.objects = objects

    @classmethod
    def seen(cls, cluster: Cluster, release: str, *namespaces: str) -> "World":
        """Return what the cluster has now."""
        kinds = list(_KINDS)
        kinds += [f"{kind}.{api.partition('/')[0]}".lower() for api, kind in _CUSTOM if cluster.serves(api, kind)]
        wide = [
            f"{kind}.{api.partition('/')[0]}".lower() for api, kind in _EVERYWHERE if cluster.serves(api, kind)
        ]
        objects = [each for name in namespaces for each in cluster.all_of(",".join(kinds), name)]
        return cls(release, namespaces, objects + (cluster.all_of(",".join(wide)) if wide else []))

    def of(self, kind: str, namespace: str | None = None) -> list[Document]:
        """Return the objects of a kind, in a namespace or in all."""
        return [
            each
            for each in self.objects
            if each["kind"] == kind and namespace in (None, each["metadata"].get("namespace", ""))
        ]

    def find(self, kind: str, name: str, namespace: str = "", group: str | None = None) -> Document | None:
        """Return one object, None where it is not there. Without `group` any group will do."""
        for each in self.of(kind, namespace):
            ours = each["apiVersion"].rpartition("/")[0]
            if each["metadata"]["name"] == name and group in (None, ours):
                return each
        return None

    def pods(self, labels: dict[str, str], namespace: str) -> list[Document]:
        """Return the pods with all these labels."""
        found = self.of("Pod", namespace)
        return [each for each in found if labels.items() <= each["metadata"].get("labels", {}).items()]

    def pods_of(self, deployment: str, namespace: str) -> list[Document]:
        """Return the pods of a Deployment, by who owns them."""
        sets = {
            each["metadata"]["name"]
            for each in self.of("ReplicaSet", namespace)
            if owner(each) == ("Deployment", deployment)
        }
        return [each for each in self.of("Pod", namespace) if owner(each)[1] in sets]

    def service(self, host: str, namespace: str) -> Document | None:
        """Return the Service that a host of Istio's means in an object of this namespace: short, or with all dots."""
        name, _, rest = host.partition(".")
        if rest:
            parts = rest.split(".")
            if parts[1:] not in ([], ["svc"], ["svc", "cluster", "local"]):
                return None
            namespace = parts[0]
        return self.find("Service", name, namespace)

    @functools.cached_property
    def hosts(self) -> set[str]:
        """The hosts that routes at gateways serve."""
        found: set[str] = set()
        for each in self.of("VirtualService"):
            if each["spec"].get("gateways", ["mesh"]) != ["mesh"]:
                found |= set(each["spec"]["hosts"])
        for each in self.of("HTTPRoute"):
            found |= set(each["spec"].get("hostnames", ()))
        return found

    @functools.cached_property
    def routes(self) -> set[str]:
        """The names of routes as EnvoyFilters find them: a VirtualService's, an HTTPRoute's by name and by place."""
        found: set[str] = {"default"}
        for each in self.of("VirtualService"):
            found |= {rule["name"] for rule in each["spec"].get("http", ()) if rule.get("name")}
        for each in self.of("HTTPRoute"):
            meta = each["metadata"]
            for place, rule in enumerate(each["spec"]["rules"]):
                found |= {rule.get("name", ""), f"{meta['namespace']}.{meta['name']}.{place}"}
        return found


def owner(document: Document) -> tuple[str, str]:
    """Return kind and name of the controller of an object, or two empty texts."""
    for each in document["metadata"].get("ownerReferences", ()):
        if each.get("controller"):
            return each["kind"], each["name"]
    return "", ""


def containers(pod: Document) -> list[dict[str, Any]]:
    """Return the containers of a pod, with those of its start that go on running (Istio's sidecar may be one)."""
    spec = pod["spec"]
    return spec["containers"] + [
        each for each in spec.get("initContainers", ()) if each.get("restartPolicy") == "Always"
    ]


def ports(pod: Document) -> set[int]:
    """Return the ports that the containers of a pod declare."""
    return {port["containerPort"] for each in containers(pod) for port in each.get("ports", ())}
