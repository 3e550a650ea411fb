"""Nothing leads to a model around the meter: all ways are listed once Helm has installed it and KServe has made its part."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts import test_ways as offline
from tests.charts.helm import Document

from . import models, pods
from .cluster import Cluster, ClusterError
from .models import Release
from .test_kserve_references import OWN, REFUSED, THEIRS, _name
from .ways import OUTSIDE, Way, around, ways

pytestmark = pytest.mark.needs("kserve")

# The sample values that ask for limits, and the filter that keeps them. The others ask for none.
LIMITED = {
    "canary-image": "tokenweir",
    "full-llm": "tokenweir",
    "full-llm-canary": "tokenweir",
    "sample-model": "tokenweir",
    "sample-qwen-container": "tokenweir",
    "sidecar": "tokenweir.ratelimit",
    "slide-rate-limit": "tokenweir.ratelimit",
    "slide-token-limit": "tokenweir",
    "transformer-limits": "tokenweir.ratelimit",
}
# Those whose own values have the meter at the pods.
AT_PODS_ALREADY = {"sidecar", "transformer-limits"}
AT_PODS: Document = {"platform": {"tokenweir": {"placement": "sidecar"}}}
KINDS = (
    *(("v1", kind) for kind in ("Pod", "Service", "Endpoints")),
    *(("apps/v1", kind) for kind in ("Deployment", "StatefulSet")),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("networking.k8s.io/v1", "Ingress"),
    *(("gateway.networking.k8s.io/v1", kind) for kind in ("Gateway", "HTTPRoute", "GRPCRoute", "TLSRoute")),
    *(("gateway.networking.k8s.io/v1alpha2", kind) for kind in ("TCPRoute", "UDPRoute")),
    ("inference.networking.k8s.io/v1", "InferencePool"),
    *(("networking.istio.io/v1", kind) for kind in ("Gateway", "VirtualService", "ServiceEntry", "WorkloadEntry")),
    ("networking.istio.io/v1alpha3", "EnvoyFilter"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
)


def _found(cluster: Cluster, release: Release) -> list[Way]:
    """Return every way in the cluster that leads to pods of the release's namespace."""
    wanted = [
        f"{kind}.{api.rpartition('/')[0]}".rstrip(".").lower() for api, kind in KINDS if cluster.serves(api, kind)
    ]
    objects = cluster.all_of(",".join(wanted))
    here = [
        each
        for each in objects
        if _near(each, release) or each["kind"] not in {"Pod", "Deployment", "StatefulSet"}
    ]
    return ways(here, release.gateway)


def _near(document: Document, release: Release) -> bool:
    return document["metadata"]["namespace"] in {release.namespace, release.gateway}


def install_meter(
    cluster: Cluster, release: Release, given: Document, placement: str, *, root: str | None = None
) -> None:
    """Install the chart tokenweir: its filters go to the gateways that the values name, or to the sidecars of metered pods.

    `root` is the namespace of the sidecars' filter, the gateway's if none is given.
    """
    for number, labels in enumerate(models.selectors(given)):
        where = {
            "placement": placement,
            "gateway": {"namespace": release.gateway, "selector": labels},
            "sidecar": {"rootNamespace": root or release.gateway, "namespaces": [release.namespace]},
        }
        cluster.install("tokenweir", f"tokenweir-{number}", release.gateway, offline.STORES, where)


def _cases() -> list[Any]:
    """Return each sample values file with its own placement, and those with limits at the pods too."""
    every = [(chart, path, "gateway") for chart, path in OWN if path.stem not in AT_PODS_ALREADY]
    return every + [(chart, path, "sidecar") for chart, path in OWN if path.stem in LIMITED]


def test_every_sample_with_limits_is_there() -> None:
    assert {path.stem for _, path in OWN} >= LIMITED.keys()


@pytest.mark.parametrize(("chart", "path", "placement"), _cases(), ids=_name)
def test_every_way_to_a_model_passes_the_meter(cluster: Cluster, chart: str, path: Path, placement: str) -> None:
    given, meter = models.values_of(path), LIMITED.get(path.stem)
    with models.installed(cluster, chart, path, *([AT_PODS] if placement == "sidecar" else [])) as release:
        if meter:
            install_meter(cluster, release, given, placement)
        found = _found(cluster, release)
        mine = f"{release.namespace}/{release.name}"
        assert {"Service", "VirtualService"} <= {way.kind for way in found if way.release == mine}
        limited = {mine} if meter else set[str]()
        assert [str(way) for way in around(found, limited, inside=placement == "sidecar")] == []
        outside = {way.metered for way in found if way.source == OUTSIDE and way.release == mine}
        assert outside == ({meter or ""} if (given.get("exposeModel") or {}).get("enabled") else set())
        inside = {way.metered for way in found if way.source != OUTSIDE and way.release == mine}
        assert inside == {meter if placement == "sidecar" else ""}


@pytest.mark.parametrize(("chart", "path"), THEIRS, ids=_name)
def test_the_same_holds_for_the_values_of_others(cluster: Cluster, chart: str, path: Path) -> None:
    """What they ask to be limited is read from the release: its own filters switch the meter on."""
    given = models.values_of(path)
    placement = (((given.get("platform") or {}).get("tokenweir")) or {}).get("placement", "gateway")
    try:
        with models.installed(cluster, chart, path) as release:
            install_meter(cluster, release, given, placement)
            filters = str([each["spec"] for each in release.of("EnvoyFilter")])
            limited = {f"{release.namespace}/{release.name}"} if "tokenweir" in filters else set[str]()
            found = around(_found(cluster, release), limited, inside=placement == "sidecar")
            assert [str(way) for way in found] == []
    except ClusterError as error:
        if any(each in str(error) for each in REFUSED):
            pytest.skip(f"{chart} refuses {path.stem}")
        raise


@pytest.mark.timeout(600)
def test_each_way_that_somebody_adds_on_the_cluster_is_reported(cluster: Cluster) -> None:
    """The API server takes each of them, so that they are what could be there."""
    refused: dict[str, str] = {}
    with models.installed(cluster, "kserve-model", offline.FULL) as release:
        install_meter(cluster, release, models.values_of(offline.FULL), "gateway")
        pods.make_ready(cluster, release.namespace)
        other = cluster.make_namespace("other")
        try:
            mine = f"{release.namespace}/{release.name}"
            assert around(_found(cluster, release), {mine}) == []
            address = cluster.get("service", f"{release.name}-predictor", release.namespace)["spec"]["clusterIP"]
            for name, (objects, kind, source) in offline.STRANGERS.items():
                text = json.dumps(objects)
                for old, new in (
                    (offline.NAMESPACE, release.namespace), (offline.GATEWAY, release.gateway), (offline.RELEASE, release.name),
                    ('"other"', f'"{other}"'), ("10.1.2.3", pods.ADDRESS), ("10.96.1.2", address),
                ):  # fmt: skip
                    text = text.replace(old, new)
                made = yaml.safe_load(text)
                if cluster.lacks(made):
                    refused[name] = "the cluster has no such kind"
                    continue
                try:
                    cluster.apply(made)
                except ClusterError as error:
                    refused[name] = str(error)
                    continue
                found = around(_found(cluster, release), {mine})
                cluster.kubectl("delete", "--ignore-not-found", "-f", "-", given=made)
                assert (kind, source) in {(way.kind, way.source) for way in found if way.release == mine}, name
            assert around(_found(cluster, release), {mine}) == []
        finally:
            cluster.remove_namespace(other)
    assert {name: said for name, said in refused.items() if "no such kind" not in said} == {}


def test_a_model_that_no_chart_made_is_reported_with_all_that_kserve_makes_for_it(cluster: Cluster) -> None:
    """KServe's own Ingress or HTTPRoute, which the label on the charts' models forbids, is among it where KServe makes any."""
    bare = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "bare", "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/bare"}}},
    }
    configured = json.loads(cluster.get("configmap", "inferenceservice-config", "kserve")["data"]["ingress"])
    namespace = cluster.make_namespace("bare")
    try:
        cluster.apply([bare], "-n", namespace)
        release = Release("bare", namespace, namespace, [])
        cluster.until(lambda: around(_found(cluster, release), set()), "nothing is reported")
        expected = {"Service"}
        if not configured.get("disableIngressCreation"):
            expected.add("HTTPRoute" if configured.get("enableGatewayApi") else "Ingress")
            pods.make_ready(cluster, namespace)  # before that KServe makes no Ingress
        cluster.until(
            lambda: expected <= {way.kind for way in around(_found(cluster, release), set())}, f"no {expected}"
        )
    finally:
        cluster.remove_namespace(namespace)
