"""The talk's values in the forms that people write them in, beyond the files under ci/; and what they come to mean."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.charts import schemas
from tests.sizes import is_thorough, sized

from .helm import HELMS, ChartError, Document, lint, notes, pick, render

MODEL, GENERAL = "kserve-model", "kserve-general"
QWEN = """
inferenceservice:
  predictor:
    containers:
      - name: qwen2-5-instruct
        image: vllm/vllm-openai:v0.7.2
        command: [vllm, serve, Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4, --max-model-len=6144]
        ports: [{containerPort: 8000}]
        var_env: [{name: VLLM_USE_MODELSCOPE, value: "True"}]
        var_envFrom:
        var_readinessProbe: {httpGet: {path: /health, port: 8000}, initialDelaySeconds: 300}
        var_livenessProbe: null
        var_resource: %s
"""
CANARY = """
primaryLoad: 60
inferenceservice:
  predictor:
    model:
      modelFormat: {name: sklearn}
      storageUri: gs://kfserving-examples/models/sklearn/1.0/model
      newStorageUri: gs://kfserving-examples/models/sklearn/1.0/model-2
"""
BOTH = """
replicaCount: 2
clusterName: ai
env: dev
region: us-west-2
regionCode: uw2
geoCode: us
reconcileInterval: 1m
resources: {requestGPU: 1, limitGPU: 1, requestCPU: 1, limitCPU: 2, requestMemory: 4Gi, limitMemory: 8Gi}
autoscaling:
  maxReplicaCount: 10
  targetCPUUtilizationPercentage: 80
  targetMemoryUtilizationPercentage: 70
  targetGPUUtilizationPercentage: 75
  targetRequestRate: 100
exposeModel: {enabled: true, type: api, jwtVerify: {enabled: true, Audiences: [console]}}
metrics: {enabled: true, port: 8082, path: /metrics}
ratelimitIPPerMinute: 10
ratelimitEachSAPerMinute: 100
inferenceservice:
  predictor:
    model:
      image: example.com/huggingfaceserver:v0.20.0-gpu
      runtime: kserve-huggingfaceserver
      modelFormat: {name: huggingface}
      storageUri: hf://Qwen/Qwen2.5-14B-Instruct
"""
_INNER = "inferenceservice: {predictor: {model: {modelFormat: {name: %s}, storageUri: '%s', resources: %s}}}"
FORMS = {
    "GPU at the root": (MODEL, "resources: {requestGPU: 1, limitGPU: 1}"),
    "GPU in quotes": (MODEL, "resources: {requestGPU: '1', limitGPU: '1'}"),
    "GPU left empty": (MODEL, "resources: {requestGPU: , limitGPU: , requestCPU: 200m}"),
    "GPU at the model": (MODEL, _INNER % ("huggingface", "hf://a/b", "{requestGPU: 1, limitGPU: 1}")),
    "numbers as quantities": (MODEL, "resources: {requestCPU: 1, limitCPU: 1.5, requestMemory: 1073741824}"),
    "requests without limits": (MODEL, _INNER % ("sklearn", "s3://a/b", "{requestCPU: 200m, requestMemory: 1Gi}")),
    "all targets": (MODEL, BOTH.partition("exposeModel")[0]),
    "targets without a maximum": (MODEL, "{replicaCount: 5, autoscaling: {targetCPUUtilizationPercentage: 80}}"),
    "a maximum without targets": (MODEL, "{replicaCount: 2, autoscaling: {maxReplicaCount: 4}}"),
    "metrics: null": (MODEL, "metrics: null"),
    "metrics on": (MODEL, "metrics: {enabled: true}"),
    "metrics off": (MODEL, "metrics: {enabled: false}"),
    "port in quotes": (MODEL, "metrics: {enabled: true, port: '8082', path: /metrics}"),
    "published by type": (MODEL, "exposeModel: {enabled: true, type: VirtualService}"),
    "one audience": (MODEL, "exposeModel: {enabled: true, type: internal, jwtVerify: {Audiences: console}}"),
    "tokens verified": (MODEL, "exposeModel: {enabled: true, jwtVerify: {enabled: true, Audiences: [a, b]}}"),
    "tokens not verified": (MODEL, "exposeModel: {enabled: true, jwtVerify: {enabled: false}}"),
    "not published": (MODEL, "exposeModel: {enabled: false, type: , jwtVerify: }"),
    "rate limits": (MODEL, "{ratelimitIPPerMinute: 10, ratelimitEachSAPerMinute: 100}"),
    "environment": (MODEL, "{clusterName: c, env: stg, region: eu-central-1, regionCode: ec1, geoCode: eu}"),
    "Flux' intervals": (MODEL, "reconcileInterval: 1h30m"),
    "container": (MODEL, QWEN % "{requestGPU: 1, limitGPU: 1, requestCPU: 3, limitCPU: 4}"),
    "container as Kubernetes": (MODEL, QWEN % "{requests: {cpu: 3}, limits: {cpu: 4, nvidia.com/gpu: 1}}"),
    "container without resources": (MODEL, QWEN % "null"),
    "container with a canary": (
        GENERAL,
        QWEN.replace("        image:", "        newImageTag: v0.8\n        image:") % "{}",
    ),
    "XGBoost": (MODEL, _INNER % ("XGBoost", "pvc://efs/model", "{}")),
    "canary": (GENERAL, CANARY),
    "canary without a load": (GENERAL, CANARY.replace("primaryLoad: 60", "")),
    "canary of all": (GENERAL, CANARY.replace("primaryLoad: 60", "primaryLoad: 0")),
    "canary of none": (GENERAL, CANARY.replace("primaryLoad: 60", "primaryLoad: 100")),
    "canary with an image": (GENERAL, CANARY.replace("storageUri: gs", "image: 'a/b:1'\n      storageUri: gs", 1)),
    "a load without a canary": (GENERAL, "primaryLoad: 60"),
    "everything": (MODEL, BOTH),
    "everything with a load": (GENERAL, BOTH + "primaryLoad: 50"),
}


def _read(name: str) -> tuple[str, dict[str, Any]]:
    chart, text = FORMS[name]
    return chart, yaml.safe_load(text)


def _made(name: str) -> list[Document]:
    return render(*_read(name))


@pytest.mark.parametrize("helm", HELMS)
def test_each_form_makes_valid_objects_and_lints(helm: str) -> None:
    def tried(name: str) -> str:
        chart, values = _read(name)
        try:
            schemas.check(render(chart, values, helm=helm))
            if is_thorough():  # lint renders as well, at twice the price
                lint(chart, values, helm=helm)
        except (ChartError, AssertionError) as error:
            return str(error)
        return ""

    forms = list(FORMS)[:: sized(3, 1)]
    with ThreadPoolExecutor(4) as pool:
        told = dict(zip(forms, pool.map(tried, forms), strict=True))
    assert {name: message for name, message in told.items() if message} == {}


def _predictor(documents: list[Document]) -> dict[str, Any]:
    return next(each for each in documents if each["kind"] == "InferenceService")["spec"]["predictor"]


def test_the_domain_may_be_made_of_type_env_and_region_as_in_the_talk() -> None:
    domain = '{{ .Values.exposeModel.type | default "int" }}.{{ .Values.env }}-{{ .Values.%s }}.example.com'
    for key, end in (("regionCode", "uw2"), ("geoCode", "us")):
        documents = render(MODEL, _read("everything")[1], {"platform": {"domain": domain % key}})
        hosts = pick(documents, "VirtualService", "qwen-predictor")["spec"]["hosts"]
        assert hosts == [f"qwen-predictor-models.api.dev-{end}.example.com"]


def test_a_port_in_quotes_is_that_port() -> None:
    annotations = pick(_made("port in quotes"), "InferenceService")["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "8082"


def test_the_maximum_is_never_below_the_minimum_unless_the_values_say_so() -> None:
    spec = pick(_made("targets without a maximum"), "ScaledObject")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (5, 5)
    one = {"autoscaling": {"targetCPUUtilizationPercentage": 80}}
    assert pick(render(MODEL, one), "ScaledObject")["spec"]["maxReplicaCount"] == 3
    assert "5 to 5 pods" in notes(MODEL, _read("targets without a maximum")[1])


def test_tokens_are_verified_whatever_the_talks_switch_says_and_the_notes_tell() -> None:
    on, off = (_read(f"tokens {word}verified")[1] for word in ("", "not "))
    on["exposeModel"]["jwtVerify"].pop("Audiences")
    assert render(MODEL, on) == render(MODEL, off)
    words = "tokens are verified all the same"
    assert words in notes(MODEL, off)
    assert words not in notes(MODEL, on)


def test_what_a_container_leaves_empty_is_left_out() -> None:
    container = _predictor(_made("container without resources"))["containers"][0]
    assert not {"envFrom", "livenessProbe", "resources"} & set(container)
    assert container["readinessProbe"]["httpGet"]["port"] == 8000


@pytest.mark.parametrize(
    ("spelled", "runtime", "wanted"),
    [
        ("vLLM", None, "vllm"),
        ("SKLearn", None, "sklearn"),
        ("PyTorch", "kserve-torchserve", "pytorch"),
        ("PyTorch", "our-own", "PyTorch"),
        ("Ours", None, "Ours"),
    ],
)
def test_a_format_is_spelled_as_the_runtime_that_has_it_spells_it(
    spelled: str, runtime: str | None, wanted: str
) -> None:
    model = {"modelFormat": {"name": spelled}, "storageUri": "s3://a/b"} | (
        {"runtime": runtime} if runtime else {}
    )
    documents = render(MODEL, {"inferenceservice": {"predictor": {"model": model}}})
    assert _predictor(documents)["model"]["modelFormat"]["name"] == wanted
    assert any(each["kind"] == "ServingRuntime" for each in documents) == (wanted == "vllm")


def test_looking_at_a_release_more_often_restarts_no_model() -> None:
    seldom, often = (render(MODEL, {"reconcileInterval": each}) for each in ("10m", "1m"))
    assert pick(seldom, "InferenceService") == pick(often, "InferenceService")
    assert pick(often, "ServiceAccount")["metadata"]["annotations"] == {"tokenweir.io/reconcile-interval": "1m"}
