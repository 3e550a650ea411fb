"""Plays scheduler and kubelet where a cluster has none: pods get a node and an address and become ready; nothing runs."""

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from .cluster import LABEL, Cluster, ClusterError

_SECONDS = 60
# Where nothing answers. The API server refuses endpoints at loopback addresses.
ADDRESS = "10.244.0.1"
# The pods' node. It never becomes ready: its pods would be made unready again with it, once nobody reports from there.
NODE = "tokenweir-tests"


def make_ready(cluster: Cluster, namespace: str, selector: str = "", address: str = ADDRESS) -> list[str]:
    """Wait for pods that match `selector` and make them ready, all at `address`; return their names.

    Where kubelets run, they alone decide: then this waits until the pods are ready.
    """
    if "kubelets" in cluster.controllers:
        cluster.kubectl(
            "wait", "pod", "-n", namespace, "-l", selector, "--for=condition=Ready", f"--timeout={_SECONDS}s"
        )
        return [each["metadata"]["name"] for each in cluster.all_of("pods", namespace, selector)]
    pods = cluster.until(lambda: cluster.all_of("pods", namespace, selector), f"no pod {selector} in {namespace}")
    for pod in pods:
        write_status(cluster, pod, address)
    return [pod["metadata"]["name"] for pod in pods]


def write_status(cluster: Cluster, pod: dict[str, Any], address: str, *, ready: bool = True) -> None:
    """Bind one pod to the node and write its status, as a kubelet does whose containers run."""
    if not pod["spec"].get("nodeName"):
        _bind(cluster, pod)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = "True" if ready else "False"
    conditions = [
        {
            "type": name,
            "status": "True" if name in {"PodScheduled", "Initialized"} else said,
            "lastTransitionTime": now,
        }
        for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    containers = [
        {"name": each["name"], "image": each["image"], "imageID": "", "ready": ready, "started": ready,
         "restartCount": 0, "state": {"running": {"startedAt": now}}}
        for each in pod["spec"]["containers"]
    ]  # fmt: skip
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "127.0.0.1", "startTime": now,
              "conditions": conditions, "containerStatuses": containers}  # fmt: skip
    patch = {"apiVersion": "v1", "kind": "Pod", "status": status}
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    cluster.kubectl(
        "patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(patch)
    )


def _bind(cluster: Cluster, pod: dict[str, Any]) -> None:
    """Give the pod its node, without which no endpoint leads to it."""
    cluster.apply(
        [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {LABEL: cluster.run}}}]
    )
    metadata = {key: pod["metadata"][key] for key in ("name", "namespace")}
    target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/binding"
    cluster.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(binding))


@contextlib.contextmanager
def kubelet(cluster: Cluster, namespace: str, address: str = ADDRESS) -> Iterator[None]:
    """Make every pod of a namespace ready as it comes and let it go when it is deleted, until the block ends."""
    if "kubelets" in cluster.controllers:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_play, args=(cluster, namespace, address, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_SECONDS)


def _play(cluster: Cluster, namespace: str, address: str, ended: threading.Event) -> None:
    while not ended.wait(0.5):
        with contextlib.suppress(ClusterError):  # a pod may be gone by now
            for pod in cluster.all_of("pods", namespace):
                if "deletionTimestamp" in pod["metadata"]:
                    cluster.delete("pod", pod["metadata"]["name"], namespace, "--force", "--grace-period=0")
                elif not pod["status"].get("podIP"):
                    write_status(cluster, pod, address)
