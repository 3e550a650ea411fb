"""The values files of the talk's slides and samples, given to the charts as they are."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts import schemas
from tests.sizes import sampled

from .helm import CHARTS, HELMS, Document, kinds, lint, notes, pick, render

MODEL = sorted((CHARTS / "kserve-model" / "ci").glob("*.yaml"))
GENERAL = sorted((CHARTS / "kserve-general" / "ci").glob("*.yaml"))
# What kserve-model takes, kserve-general takes too.
OWN = [("kserve-model", path) for path in MODEL] + [("kserve-general", path) for path in GENERAL]
SHARED = [("kserve-general", path) for path in MODEL]


def _name(case: Any) -> str:
    return case.stem if isinstance(case, Path) else str(case)


def _documents(chart: str, path: Path, helm: str = "helm") -> list[Document]:
    return render(chart, path, helm=helm)


@pytest.mark.parametrize(("chart", "path"), [*sampled(OWN, 15), *sampled(SHARED, 3)], ids=_name)
def test_every_values_file_makes_objects_that_their_schemas_accept(chart: str, path: Path) -> None:
    documents = _documents(chart, path)
    schemas.check(documents)
    assert "InferenceService" in kinds(documents)


@pytest.mark.parametrize(("chart", "path"), sampled(OWN, 3), ids=_name)
def test_helm_3_and_4_make_the_same(chart: str, path: Path) -> None:
    assert _documents(chart, path, "helm3") == _documents(chart, path)


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("chart", "path"), sampled(OWN, 4), ids=_name)
def test_every_values_file_lints(chart: str, path: Path, helm: str) -> None:
    lint(chart, path, helm=helm)


@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_without_values_the_example_is_served(chart: str) -> None:
    documents = render(chart, {})
    schemas.check(documents)
    model = pick(documents, "InferenceService")["spec"]["predictor"]["model"]
    assert model["storageUri"] == "gs://kfserving-examples/models/sklearn/1.0/model"
    assert "example" in notes(chart, {}).lower()


def _pod(chart: str, name: str) -> dict[str, Any]:
    path = CHARTS / chart / "ci" / f"{name}.yaml"
    documents = [each for each in _documents(chart, path) if each["kind"] == "InferenceService"]
    return documents[0]["spec"]["predictor"]


def _node_terms(predictor: dict[str, Any]) -> list[list[dict[str, Any]]]:
    required = predictor["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]


def test_the_gpu_slide_runs_on_gpu_nodes() -> None:
    predictor = _pod("kserve-model", "slide-gpu")
    assert predictor["model"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert predictor["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert _node_terms(predictor) == [[{"key": "node-group", "operator": "In", "values": ["gpu"]}]]


def test_the_gpu_slide_on_eks_uses_the_node_group_of_the_cluster() -> None:
    wanted = {"key": "eks.amazonaws.com/nodegroup", "operator": "In", "values": ["ai-sandbox-gpu"]}
    assert _node_terms(_pod("kserve-model", "slide-gpu-eks")) == [[wanted]]


def test_a_model_without_gpu_stays_away_from_gpu_nodes() -> None:
    predictor = _pod("kserve-model", "slide-hpa")
    assert "tolerations" not in predictor
    assert _node_terms(predictor) == [[{"key": "node-group", "operator": "NotIn", "values": ["gpu"]}]]


def test_the_sample_has_its_gpu_at_the_model() -> None:
    resources = _pod("kserve-model", "sample-model")["model"]["resources"]
    assert resources["requests"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert resources["limits"] == {"cpu": "8", "memory": "24Gi", "nvidia.com/gpu": "1"}


def test_the_samples_container_keeps_what_its_var_names_say() -> None:
    given = yaml.safe_load((CHARTS / "kserve-model/ci/sample-qwen-container.yaml").read_text(encoding="utf-8"))
    given = given["inferenceservice"]["predictor"]["containers"][0]
    (container,) = _pod("kserve-model", "sample-qwen-container")["containers"]
    assert container["name"] == "kserve-container"
    assert container["image"] == given["image"]
    assert container["env"][1:] == given["var_env"]
    assert container["envFrom"] == given["var_envFrom"]
    assert container["readinessProbe"] == given["var_readinessProbe"]
    assert container["livenessProbe"] == given["var_livenessProbe"]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "1"}
    # What callers name is what vLLM serves it under.
    assert container["env"][0] == {"name": "SERVED_MODEL_NAME", "value": "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4"}


def test_the_loggers_slide_logs_at_the_predictor() -> None:
    logger = {"mode": "all", "url": "http://message-dumper.default/"}
    assert _pod("kserve-model", "slide-logger")["logger"] == logger


def test_the_metrics_slide_scrapes_its_port() -> None:
    documents = _documents("kserve-model", CHARTS / "kserve-model/ci/slide-metrics.yaml")
    annotations = pick(documents, "InferenceService")["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == "8082"
    assert annotations["prometheus.io/path"] == "/metrics"


def test_the_canary_slide_makes_two_variants_that_differ_in_storage() -> None:
    documents = _documents("kserve-general", CHARTS / "kserve-general/ci/slide-canary.yaml")
    primary = pick(documents, "InferenceService", "qwen-primary")["spec"]
    canary = pick(documents, "InferenceService", "qwen-canary")["spec"]
    assert primary["predictor"]["model"].pop("storageUri").endswith("/model")
    assert canary["predictor"]["model"].pop("storageUri").endswith("/model-2")
    assert primary == canary


def test_a_canary_of_an_image_differs_in_the_image_and_its_pods() -> None:
    documents = _documents("kserve-general", CHARTS / "kserve-general/ci/canary-image.yaml")
    primary = pick(documents, "InferenceService", "qwen-primary")["spec"]["predictor"]
    canary = pick(documents, "InferenceService", "qwen-canary")["spec"]["predictor"]
    assert primary["model"].pop("image") == "harbor.example.com:8443/ai/vllm-openai:v0.31.0"
    assert canary["model"].pop("image") == "harbor.example.com:8443/ai/vllm-openai:v0.32.0"
    assert (primary.pop("minReplicas"), canary.pop("minReplicas")) == (3, 1)
    assert primary == canary


def test_without_a_canary_there_is_the_primary_alone() -> None:
    documents = _documents("kserve-general", CHARTS / "kserve-general/ci/no-canary.yaml")
    assert pick(documents, "InferenceService")["metadata"]["name"] == "qwen-primary"
