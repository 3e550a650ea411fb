"""The suite's own parts: pods that nobody runs become ready, and controllers are found or are not."""

import pytest

from . import pods
from .cluster import Cluster, ClusterError
from .controllers import NAMES

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "sample"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "sample"}},
        "template": {
            "metadata": {"labels": {"app": "sample"}},
            "spec": {"containers": [{"name": "sample", "image": "registry.k8s.io/pause:3.10"}]},
        },
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "sample"},
    "spec": {"selector": {"app": "sample"}, "ports": [{"port": 80}]},
}


def test_a_deployment_is_available_and_has_addresses_once_its_pods_are_ready(
    cluster: Cluster, namespace: str
) -> None:
    assert cluster.apply([DEPLOYMENT, SERVICE], "-n", namespace) == []
    cluster.until(lambda: len(cluster.all_of("pods", namespace, "app=sample")) == 2, "no two pods")
    assert len(pods.make_ready(cluster, namespace, "app=sample")) == 2
    cluster.kubectl("rollout", "status", "deployment/sample", "-n", namespace, "--timeout=60s")

    def addresses() -> list[str]:
        slices = cluster.all_of("endpointslices", namespace, "kubernetes.io/service-name=sample")
        endpoints = [each for part in slices for each in part["endpoints"] or () if each["conditions"]["ready"]]
        return [address for each in endpoints for address in each["addresses"]]

    cluster.until(addresses, "no endpoint is ready")


def test_a_rollout_ends_where_the_kubelet_is_played(cluster: Cluster, namespace: str) -> None:
    cluster.apply([DEPLOYMENT], "-n", namespace)
    with pods.kubelet(cluster, namespace):
        cluster.kubectl("rollout", "status", "deployment/sample", "-n", namespace, "--timeout=90s")
        cluster.kubectl("set", "image", "deployment/sample", "sample=registry.k8s.io/pause:3.9", "-n", namespace)
        cluster.kubectl("rollout", "status", "deployment/sample", "-n", namespace, "--timeout=90s")


def test_every_controller_runs_or_has_a_reason_why_it_is_missing(cluster: Cluster) -> None:
    for name in NAMES:
        assert (name in cluster.controllers) != bool(cluster.controllers.missing.get(name)), name


def test_what_the_api_server_refuses_is_said(cluster: Cluster, namespace: str) -> None:
    wrong = {**SERVICE, "spec": {**SERVICE["spec"], "port": 80}}
    with pytest.raises(ClusterError, match=r"\.spec\.port: field not declared in schema"):
        cluster.apply([wrong], "-n", namespace)
    assert cluster.names(namespace) == set()


def test_what_the_api_server_warns_of_is_said(cluster: Cluster, namespace: str) -> None:
    template = DEPLOYMENT["spec"]["template"]
    old = {**template["spec"], "nodeSelector": {"beta.kubernetes.io/arch": "amd64"}}
    deployment = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "template": {**template, "spec": old}}}
    (warning,) = cluster.apply([deployment], "-n", namespace, "--dry-run=server")
    assert "deprecated since v1.14" in warning
