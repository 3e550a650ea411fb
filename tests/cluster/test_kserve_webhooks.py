"""KServe's webhooks take what the charts make, and their defaults change nothing that a values file said."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.charts.helm import ChartError, Document, render

from .cluster import Cluster, ClusterError
from .test_kserve_references import OWN, REFUSED, THEIRS, _name

pytestmark = pytest.mark.needs("kserve")

KINDS = {"InferenceService", "InferenceGraph", "ServingRuntime"}
BARE: Document = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "bare", "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
    "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/bare"}}},
}


def _answered(cluster: Cluster, namespace: str, document: Document) -> Document:
    """Return an object as the server would keep it, with what webhooks add. Nothing is kept."""
    metadata = {**document["metadata"], "namespace": namespace}
    command = ("create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-")
    return dict(json.loads(cluster.kubectl(*command, given=[{**document, "metadata": metadata}]).out))


def _changed(sent: Any, kept: Any, path: str) -> list[str]:
    """Return the paths at which the kept object has another value than was sent; what was added is no change."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return [line for key, each in sent.items() for line in _changed(each, kept.get(key), f"{path}.{key}")]
    if isinstance(sent, list) and isinstance(kept, list) and len(kept) >= len(sent):
        return [
            line for place, each in enumerate(sent) for line in _changed(each, kept[place], f"{path}[{place}]")
        ]
    return [] if sent == kept or sent in ({}, [], None) else [f"{path}: {kept} instead of {sent}"]


def _check(cluster: Cluster, namespace: str, chart: str, path: Path) -> None:
    objects = [each for each in render(chart, path, namespace=namespace) if each["kind"] in KINDS]
    assert objects
    found = [(each, _answered(cluster, namespace, each)) for each in objects]
    assert [line for sent, kept in found for line in _changed(sent["spec"], kept["spec"], sent["kind"])] == []


@pytest.mark.parametrize(("chart", "path"), OWN, ids=_name)
def test_a_sample_passes_kserve_s_webhooks_unchanged(
    cluster: Cluster, namespace: str, chart: str, path: Path
) -> None:
    _check(cluster, namespace, chart, path)


@pytest.mark.parametrize(("chart", "path"), THEIRS, ids=_name)
def test_the_values_of_others_pass_kserve_s_webhooks_unchanged(
    cluster: Cluster, namespace: str, chart: str, path: Path
) -> None:
    try:
        _check(cluster, namespace, chart, path)
    except ChartError as error:
        if any(each in str(error) for each in (*REFUSED, "don't meet the specifications")):
            pytest.skip(f"{chart} refuses {path.stem}")
        raise


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"metadata": {"name": "with.dots"}}, "with.dots"),
        (
            {"spec": {"predictor": {**BARE["spec"]["predictor"], "minReplicas": 3, "maxReplicas": 1}}},
            "MinReplicas",
        ),
    ],
    ids=["name", "replicas"],
)
def test_the_webhooks_are_asked_in_a_dry_run_too(
    cluster: Cluster, namespace: str, more: Document, says: str
) -> None:
    """The server's own validation takes these; without this the tests above would say nothing of the webhooks."""
    assert _answered(cluster, namespace, BARE)["kind"] == "InferenceService"
    with pytest.raises(ClusterError, match=rf"admission webhook .*{says}"):
        _answered(cluster, namespace, {**BARE, **more})


def test_a_default_of_the_webhooks_shows(cluster: Cluster, namespace: str) -> None:
    kept = _answered(cluster, namespace, BARE)["spec"]["predictor"]["model"]
    assert _changed(BARE["spec"], {"predictor": {"model": kept}}, "spec") == []
    assert kept != BARE["spec"]["predictor"]["model"]
    assert _changed({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}, 4]}, "x") == ["x.a[1].b: 3 instead of 2"]
