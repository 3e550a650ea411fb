"""Which controllers run in a cluster, found by what they do: each puts its finalizer, or a file, onto a small object."""

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster import Cluster

# Long enough for a controller that was just started on a busy machine.
SECONDS = 20
NAMES = ("kubelets", "kserve", "keda", "helm-controller", "kustomize-controller", "source-controller", "istiod")


@dataclass(frozen=True)
class Controllers:
    """The controllers that run, and for each of `NAMES` that does not the reason."""

    missing: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        assert name in NAMES, f"{name} is none of {NAMES}"
        return name not in self.missing

    def __str__(self) -> str:
        return ", ".join(name for name in NAMES if name in self) or "none"


# A model that no runtime serves; a deployment that is not there; a release and a tree without a source; a repository
# that is nowhere.
_PROBES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "kserve": (
        "serving.kserve.io/v1beta1",
        "InferenceService",
        {"predictor": {"model": {"modelFormat": {"name": "probe"}, "storageUri": "pvc://probe/probe"}}},
    ),
    "keda": (
        "keda.sh/v1alpha1",
        "ScaledObject",
        # Its webhook refuses a trigger by CPU or memory of a deployment that is not there.
        {"scaleTargetRef": {"name": "probe"}, "triggers": [{"type": "prometheus", "metadata": {"serverAddress": "http://probe.invalid", "query": "1", "threshold": "1"}}]},
    ),
    "helm-controller": (
        "helm.toolkit.fluxcd.io/v2",
        "HelmRelease",
        {"interval": "1h", "chartRef": {"kind": "OCIRepository", "name": "probe"}},
    ),
    "kustomize-controller": (
        "kustomize.toolkit.fluxcd.io/v1",
        "Kustomization",
        {"interval": "1h", "prune": True, "sourceRef": {"kind": "GitRepository", "name": "probe"}},
    ),
    "source-controller": (
        "source.toolkit.fluxcd.io/v1",
        "GitRepository",
        {"interval": "1h", "url": "https://probe.invalid/probe.git"},
    ),
}  # fmt: skip


def probe(cluster: "Cluster") -> Controllers:
    """Find out which controllers run. The objects that it makes are gone afterwards."""
    from .cluster import ClusterError

    missing: dict[str, str] = {}
    if not _nodes_ready(cluster):
        missing["kubelets"] = "the cluster has no node that is ready: pods don't run"
    namespace = cluster.make_namespace("probe")
    waiting: dict[str, str] = {}
    for name, (version, kind, spec) in _PROBES.items():
        if not cluster.serves(version, kind):
            missing[name] = f"the cluster has no {version} {kind}"
            continue
        try:
            cluster.apply(
                [{"apiVersion": version, "kind": kind, "metadata": {"name": "probe"}, "spec": spec}],
                "-n",
                namespace,
            )
        except ClusterError as error:
            missing[name] = f"a {kind} is refused: {error}"
        else:
            waiting[name] = f"{kind}.{version.partition('/')[0]}"
    istiod = bool(os.environ.get("ISTIOD_ADDRESS"))
    end = time.monotonic() + SECONDS
    while (waiting or not istiod) and time.monotonic() < end:
        for name, kind in list(waiting.items()):
            if json.loads(cluster.kubectl("get", kind, "probe", "-n", namespace, "-o", "json").out)[
                "metadata"
            ].get("finalizers"):
                del waiting[name]
        # istiod's certificate, for the proxies of a namespace.
        found = cluster.kubectl(
            "get", "configmap", "istio-ca-root-cert", "-n", namespace, "-o", "name", "--ignore-not-found"
        )
        istiod = istiod or bool(found.out)
        time.sleep(0.5)
    missing.update({name: f"nobody took care of a {kind} for {SECONDS} s" for name, kind in waiting.items()})
    if not istiod:
        missing["istiod"] = (
            "no istiod: ISTIOD_ADDRESS is not set, and no namespace has the ConfigMap istio-ca-root-cert"
        )
    with contextlib.suppress(ClusterError):
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    return Controllers(missing)


def _nodes_ready(cluster: "Cluster") -> bool:
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json").out)["items"]
    conditions = [each for node in nodes for each in node.get("status", {}).get("conditions", ())]
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)
