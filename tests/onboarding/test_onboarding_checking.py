"""Each rule on a file that breaks it and on one that doesn't, and the schema's words for people."""

import copy
import re

import pytest
import yaml

from extproc.onboarding import charts, checking, facts
from extproc.onboarding.checking import Level
from tests.charts.helm import CHARTS, ChartError, pick, render
from tests.sizes import sampled

LLM = """
replicaCount: 1
resources: {requestCPU: 4, requestMemory: 24Gi, limitGPU: 1}
inferenceservice:
  predictor:
    model:
      modelFormat: {name: huggingface}
      storageUri: hf://Qwen/Qwen2.5-7B-Instruct
autoscaling: {maxReplicaCount: 3, targetQueueDepth: 4}
exposeModel: {enabled: true, jwtVerify: {Audiences: [llm]}}
platform: {jwt: {issuers: [{issuer: https://login.example.com}]}}
"""
IRIS = """
resources: {requestCPU: 1, requestMemory: 2Gi}
inferenceservice:
  predictor:
    model:
      modelFormat: {name: sklearn}
      storageUri: gs://models/iris
"""
BOX = """
inferenceservice:
  predictor:
    containers: [{name: x, image: "registry.example.com/iris:v1"}]
"""
BASES = {"llm": LLM, "iris": IRIS, "box": BOX}
MODEL = "inferenceservice.predictor.model"
BOXES = "inferenceservice.predictor.containers"


def laid(base, more):
    """The base's values with `more` over them; a list is replaced."""
    found = copy.deepcopy(yaml.safe_load(BASES[base]))
    stack = [(found, yaml.safe_load(more) or {})]
    while stack:
        into, what = stack.pop()
        for key, value in what.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                stack.append((into[key], value))
            else:
                into[key] = value
    return found


def found(values, chart="kserve-general", **names):
    return {(each.level.value, each.path): each for each in checking.problems(chart, values, **names)}


def model(text):
    return f"inferenceservice: {{predictor: {{model: {{{text}}}}}}}"


def box(text):
    return f"inferenceservice: {{predictor: {{containers: [{{name: x, {text}}}]}}}}"


@pytest.mark.parametrize("base", BASES)
def test_a_good_file_has_no_problem(base):
    assert found(laid(base, ""), release="qwen", namespace="models") == {}


def tokens(more):
    return f"tokenLimit: {{limits: [{{scope: tenant, window: day, amount: 5{more}}}]}}"


def joined(*parts):
    return f"{{{', '.join(parts)}}}"


RULES = [
    # what, base, what is bad, level, path, a part of the message, the same in good
    ("GPU target", "iris", "autoscaling: {targetGPUUtilizationPercentage: 75}", "error",
     "autoscaling.targetGPUUtilizationPercentage", "the model has none",
     "{autoscaling: {targetGPUUtilizationPercentage: 75}, resources: {limitGPU: 1}}"),
    ("GPUs of a container", "box", "autoscaling: {targetGPUUtilizationPercentage: 75}", "error",
     "autoscaling.targetGPUUtilizationPercentage", "the model has none",
     joined("autoscaling: {targetGPUUtilizationPercentage: 75}", box("image: 'a:1', var_resource: {requestGPU: 1}"))),
    ("GPU mismatch", "llm", "resources: {requestGPU: 1, limitGPU: 2}", "error", "resources.limitGPU", "one in Kubernetes",
     "resources: {requestGPU: 2, limitGPU: 2}"),
    ("LLM on a CPU", "llm", "resources: {limitGPU: 0}", "warning", "resources", "without a GPU", ""),
    ("limit below request", "llm", "resources: {limitMemory: 8Gi}", "error", "resources.limitMemory", "below the request",
     "resources: {limitMemory: 24Gi}"),
    ("CPU in thousandths", "llm", "resources: {limitCPU: 3999m}", "error", "resources.limitCPU", "below the request",
     "resources: {limitCPU: 4000m}"),
    ("memory without a unit", "iris", "resources: {requestMemory: 8}", "warning", "resources.requestMemory", "megabyte",
     "resources: {requestMemory: 8G}"),
    ("CPU target", "box", "autoscaling: {targetCPUUtilizationPercentage: 80}", "warning",
     "autoscaling.targetCPUUtilizationPercentage", "percent of what",
     joined("autoscaling: {targetCPUUtilizationPercentage: 80}", box("image: 'a:1', resources: {requests: {cpu: 1}}"))),
    ("memory target", "box", "autoscaling: {targetMemoryUtilizationPercentage: 80}", "warning",
     "autoscaling.targetMemoryUtilizationPercentage", "percent of what",
     "{autoscaling: {targetMemoryUtilizationPercentage: 80}, resources: {limitMemory: 1Gi}}"),
    ("most below fewest", "llm", "replicaCount: 4", "error", "autoscaling.maxReplicaCount", "never fewer than 4",
     "replicaCount: 3"),
    ("most below the canary's", "llm", joined("canary: {replicaCount: 5}", model("newStorageUri: 'hf://a/b'")), "error",
     "autoscaling.maxReplicaCount", "never fewer than 5", joined("primaryLoad: 90, canary: {replicaCount: 3}", model("newStorageUri: 'hf://a/b'"))),
    ("no target", "iris", "autoscaling: {maxReplicaCount: 5}", "warning", "autoscaling.maxReplicaCount", "nothing scales",
     "autoscaling: {maxReplicaCount: 5, targetRequestRate: 10}"),
    ("queue of no vLLM", "iris", "autoscaling: {targetQueueDepth: 4}", "error", "autoscaling.targetQueueDepth",
     "is not served by it", ""),
    ("queue of an image", "box", "autoscaling: {targetQueueDepth: 4}", "error", "autoscaling.targetQueueDepth",
     "is not served by it", joined("autoscaling: {targetQueueDepth: 4}, resources: {limitGPU: 1}", box("image: 'vllm/vllm-openai:v1'"))),
    ("queue without vLLM", "llm", model("args: [--backend=huggingface]"), "error", "autoscaling.targetQueueDepth",
     "is not served by it", model("args: [--backend=vllm]")),
    ("queue by adapter", "llm", "autoscaling: {engine: hpa}", "error", "autoscaling.targetQueueDepth", "has no rule",
     "autoscaling: {engine: hpa, targetQueueDepth: null, targetRequestRate: 3}"),
    ("queue without metrics", "llm", "metrics: {enabled: false}", "error", "autoscaling.targetQueueDepth", "are off",
     "metrics: {enabled: true}"),
    ("tokens unmetered", "iris", joined("exposeModel: {enabled: true, jwtVerify: {Audiences: [a]}}, platform: {jwt: {issuers: [{issuer: a}]}}", tokens("")),
     "error", "tokenLimit.limits", "it speaks v1, not openai",
     joined("exposeModel: {enabled: true, jwtVerify: {Audiences: [a]}}, platform: {jwt: {issuers: [{issuer: a}]}}", tokens(", unit: requests"))),
    ("tokens switched off", "llm", "tokenLimit: {enabled: false, limits: [{scope: tenant, window: day, amount: 5}]}", "error",
     "tokenLimit.limits", "tokenLimit.enabled is false", tokens("")),
    ("no Tokenweir", "llm", "{ratelimitIPPerMinute: 5, platform: {tokenweir: {enabled: false}}}", "error",
     "ratelimitIPPerMinute", "nobody counts", "ratelimitIPPerMinute: 5"),
    ("tokens without Tokenweir", "llm", joined("platform: {tokenweir: {enabled: false}}", tokens(", unit: requests")), "error",
     "tokenLimit.limits", "platform.tokenweir.enabled is false", tokens(", unit: requests")),
    ("a limit twice", "llm", "tokenLimit: {limits: [{scope: tenant, window: day, amount: 5}, {scope: tenant, unit: tokens, window: day, amount: 6}]}",
     "error", "tokenLimit.limits[1]", "stands above",
     "tokenLimit: {limits: [{scope: tenant, window: day, amount: 5}, {scope: tenant, unit: requests, window: day, amount: 6}]}"),
    ("a limit of nothing", "llm", "ratelimitEachSAPerMinute: 0", "warning", "ratelimitEachSAPerMinute", "lets no request",
     "ratelimitEachSAPerMinute: 1"),
    ("limits where nobody passes", "llm", "{ratelimitIPPerMinute: 5, exposeModel: {enabled: false, jwtVerify: null}}", "warning",
     "ratelimitIPPerMinute", "not published there",
     "{ratelimitIPPerMinute: 5, exposeModel: {enabled: false, jwtVerify: null}, platform: {tokenweir: {placement: sidecar}}}"),
    ("metered by hand", "iris", "tokenLimit: {enabled: true}", "warning", "tokenLimit.enabled", "no usage to read",
     "tokenLimit: {enabled: false}"),
    ("no issuer", "llm", "platform: {jwt: {issuers: []}}", "warning", "platform.jwt.issuers", "nobody outside", ""),
    ("no audience", "llm", "exposeModel: {jwtVerify: {Audiences: []}}", "warning", "exposeModel.jwtVerify.Audiences",
     "any token of the issuer", "{exposeModel: {jwtVerify: {Audiences: []}}, platform: {jwt: {issuers: [{issuer: a, audiences: [b]}]}}}"),
    ("audience of nobody", "llm", "exposeModel: {enabled: false}", "warning", "exposeModel.jwtVerify.Audiences", "not published",
     "exposeModel: {enabled: false, jwtVerify: {Audiences: []}}"),
    ("no mTLS", "llm", "security: {mtls: PERMISSIVE}", "warning", "security.mtls", "without mTLS", "security: {mtls: STRICT}"),
    ("an exposure that is none", "llm", "{exposeModel: {type: outside}, platform: {exposures: {internal: {}}}}", "error",
     "exposeModel.type", "no exposure 'outside'", "{exposeModel: {type: internal}, platform: {exposures: {internal: {}}}}"),
    ("full load", "llm", joined("primaryLoad: 100", model("newStorageUri: 'hf://a/b'")), "warning", "primaryLoad",
     "gets no requests", joined("primaryLoad: 99", model("newStorageUri: 'hf://a/b'"))),
    ("no load", "llm", joined("primaryLoad: 0", model("newStorageUri: 'hf://a/b'")), "warning", "primaryLoad", "stand idle",
     joined("primaryLoad: 1", model("newStorageUri: 'hf://a/b'"))),
    ("a load without a canary", "llm", "primaryLoad: 60", "warning", "primaryLoad", "no canary runs", "primaryLoad: 100"),
    ("a canary of the same model", "iris", joined("primaryLoad: 60", model("newStorageUri: 'gs://models/iris'")), "warning",
     f"{MODEL}.newStorageUri", "is the primary's", joined("primaryLoad: 60", model("newStorageUri: 'gs://models/iris2'"))),
    ("a canary of the same tag", "box", joined("primaryLoad: 60", box("image: 'a:v1', newImageTag: v1")), "warning",
     f"{BOXES}[0].newImageTag", "is the primary's", joined("primaryLoad: 60", box("image: 'a:v1', newImageTag: v2"))),
    ("a tag of no image", "llm", joined("primaryLoad: 60", model("newImageTag: v2")), "error", f"{MODEL}.newImageTag",
     "which image", joined("primaryLoad: 60", model("newImageTag: v2, image: 'a:v1'"))),
    ("an image and a tag", "llm", joined("primaryLoad: 60", model("newImageTag: v2, newImage: 'a:v1'")), "warning",
     f"{MODEL}.newImageTag", "in place of its own tag", joined("primaryLoad: 60", model("newImage: 'a:v1'"))),
    ("a container's model", "box", joined("primaryLoad: 60", model("newStorageUri: 'hf://a/b'")), "error",
     f"{MODEL}.newStorageUri", "is an image", ""),
    ("an image that moves", "box", box("image: 'host:5000/a'"), "warning", f"{BOXES}[0].image", "without a fixed tag",
     box("image: 'host:5000/a:v1'")),
    ("the latest image", "box", box("image: 'a:latest'"), "warning", f"{BOXES}[0].image", "without a fixed tag",
     box("image: 'a@sha256:abc'")),
    ("model and container", "iris", box("image: 'a:1'"), "error", f"{MODEL}.storageUri", "one of them serves", ""),
    ("no format", "iris", model("modelFormat: null"), "error", f"{MODEL}.modelFormat.name", "is missing", ""),
    ("no storage", "iris", model("storageUri: null"), "error", f"{MODEL}.storageUri", "where the model is", ""),
    ("secret by name", "box", box("image: 'a:1', env: [{name: HF_TOKEN, value: abc}]"), "warning", f"{BOXES}[0].env[0]",
     "plain sight", box("image: 'a:1', env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: a, key: b}}}, "
                        "{name: MAX_TOKENS, value: '5'}, {name: TOKENIZERS_PARALLELISM, value: 'true'}, {name: API_KEY, value: $(KEY)}]")),
    ("secret by look", "box", box("image: 'a:1', var_env: [{name: X, value: hf_abcdefghijklmnopqrstuvwxyz}]"), "warning",
     f"{BOXES}[0].var_env[0]", "plain sight", box("image: 'a:1', var_env: [{name: X, value: hf_short}]")),
    ("secret of a model", "llm", model("env: [{name: AWS_SECRET_ACCESS_KEY, value: abc}]"), "warning", f"{MODEL}.env[0]",
     "plain sight", model("env: [{name: AWS_REGION, value: abc}]")),
    ("secret argument", "llm", model("args: ['--api-key=abc']"), "warning", f"{MODEL}.args[0]", "plain sight",
     model("args: ['--api-key=$(KEY)']")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("base", "bad", "level", "path", "message"), [rule[1:6] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_a_rule_finds_what_breaks_it(base, bad, level, path, message):
    problems = found(laid(base, bad))
    assert message in problems[level, path].message
    assert problems[level, path].fix
    assert all(each.path == path for each in problems.values() if each.level is Level.ERROR)


@pytest.mark.parametrize(
    ("base", "good"), [(rule[1], rule[6]) for rule in RULES if rule[6]], ids=[rule[0] for rule in RULES if rule[6]]
)
def test_a_rule_leaves_alone_what_keeps_it(base, good):
    assert found(laid(base, good)) == {}


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        ("Qwen/Qwen2.5-7B", "hf://Qwen/Qwen2.5-7B, if it is on Hugging Face"),
        ("my-model", "such as hf://, s3:// or pvc://"),
        ("https://huggingface.co/Qwen/Qwen2.5-7B", "write hf://Qwen/Qwen2.5-7B"),
        ("https://huggingface.co/Qwen/Qwen2.5-7B/tree/v2", "write hf://Qwen/Qwen2.5-7B:v2"),
        ("hf://Qwen", "hf://organisation/model or hf://organisation/model:revision"),
        ("hf://Qwen/Qwen2@v2", "hf://Qwen/Qwen2:v2"),
        ("efs://fs-1/models", "pvc://<claim>/<path>"),
        ("pvc:///models", "pvc://<claim>/<path>"),
        ("s3://", "s3://<name>/<path>"),
        ("S3://models/iris", "s3://models/iris"),
        ("kit://a/b", "platform.storageSchemes"),
    ],
)
def test_an_address_that_kserve_can_not_fetch_is_an_error_with_what_is_meant(uri, fix):
    values = laid("iris", model(f"storageUri: '{uri}'"))
    assert fix in found(values)["error", f"{MODEL}.storageUri"].fix
    with pytest.raises(ChartError):  # the chart says so too
        render("kserve-general", values)


@pytest.mark.parametrize(
    "uri",
    ["hf://a/b", "hf://a/b:main", "s3://a/b", "gs://a", "pvc://c/p", "oci://r/a:v1", "https://x/y", "${URI}"],
)
def test_an_address_that_can_be_fetched_is_none(uri):
    assert found(laid("iris", model(f"storageUri: '{uri}'"))) == {}


def test_a_scheme_that_the_platform_adds_is_known():
    values = laid("iris", joined("platform: {storageSchemes: [kit]}", model("storageUri: 'kit://a/b'")))
    assert found(values) == {}


def test_a_password_in_an_address_is_told():
    values = laid("iris", model("storageUri: 'https://u:p@x/y'"))
    assert ("warning", f"{MODEL}.storageUri") in found(values)


def test_no_secret_is_printed():
    values = laid(
        "box", box("image: 'a:1', env: [{name: DB_PASSWORD, value: hunter2}], args: ['--token=hunter2']")
    )
    problems = found(values).values()
    assert len(problems) == 2
    assert "hunter2" not in str(problems)


def test_no_model_is_an_error_for_the_chart_would_serve_its_example():
    problem = found({"replicaCount": 2})["error", MODEL]
    assert "example" in problem.message
    # Of a patch nothing is missing; with values from elsewhere it may be there.
    assert checking.problems("kserve-general", {"replicaCount": 2}, partial=True) == []
    (warning,) = checking.problems("kserve-general", {"replicaCount": 2}, elsewhere=True)
    assert warning.level is Level.WARNING


def test_a_canary_needs_the_chart_that_has_one():
    values = laid("llm", model("newStorageUri: 'hf://a/b'"))
    assert "kserve-general" in found(values, "kserve-model")["error", f"{MODEL}.newStorageUri"].message
    with pytest.raises(ChartError):
        render("kserve-model", values)


# Names.


@pytest.mark.parametrize(
    ("release", "namespace", "message"),
    [
        ("Qwen", "models", "is no name of Kubernetes"),
        ("qwen_1", "models", "is no name of Kubernetes"),
        ("qwen-", "models", "is no name of Kubernetes"),
        ("qwen", "my.models", "is no name of Kubernetes"),
        ("7b", "models", "begins with a digit"),
        ("q" * 40, "m" * 20, "has 79 characters"),
    ],
)
def test_names_that_kubernetes_refuses_are_errors(release, namespace, message):
    (problem,) = checking.problems("kserve-general", laid("llm", ""), release, namespace)
    assert (problem.level, problem.path) == (Level.ERROR, "")
    assert message in problem.message


@pytest.mark.parametrize("chart", sampled(charts.MODEL_CHARTS, 1))
@pytest.mark.parametrize("namespace", ["m", "m" * 25])
def test_the_longest_name_is_the_one_that_the_chart_takes(chart, namespace):
    values = laid("iris", "")
    fitting = [n for n in range(1, 54) if not checking.problems(chart, values, "q" * n, namespace)]
    render(chart, values, release="q" * fitting[-1], namespace=namespace)
    with pytest.raises(ChartError):
        render(chart, values, release="q" * (fitting[-1] + 1), namespace=namespace)


# What values mean: the charts say the same.

FORMATS = [
    "huggingface", "vllm", "sklearn", "xgboost", "lightgbm", "pytorch", "tensorflow", "onnx", "triton", "mlflow", "paddle",
    "pmml", "mine",
]  # fmt: skip
SERVED = [
    *(model(f"modelFormat: {{name: {name}}}") for name in FORMATS),
    *(model(f"runtime: {name}") for name in ("kserve-huggingfaceserver", "kserve-tritonserver", "my-vllm", "kserve-xgbserver", "own")),
    *(model(f"protocolVersion: {version}") for version in ("v1", "v2")),
    model("protocolVersion: grpc-v2, modelFormat: {name: triton}"),
    model("args: [--backend=huggingface], modelFormat: {name: huggingface}"),
    "inferenceservice: {protocol: openai}",
    "inferenceservice: {multiModel: {enabled: true, server: mlserver}}",
    "tokenLimit: {enabled: true}",
]  # fmt: skip
IMAGES = [
    "vllm/vllm-openai:v1",
    "lmsysorg/sglang:v1",
    "ghcr.io/ggml-org/llama.cpp:server",
    "iris:v1",
    "ollama/ollama:1",
]


@pytest.mark.parametrize(
    ("base", "more"),
    sampled([*(("iris", each) for each in SERVED), *(("box", box(f"image: '{each}'")) for each in IMAGES)], 9),
)
def test_values_mean_here_what_they_mean_to_the_charts(base, more):
    values = laid(base, more)
    ours = facts.Facts("kserve-model", values)
    at_pods = {**values, "platform": {"tokenweir": {"placement": "sidecar"}}}
    service = pick(render("kserve-model", at_pods), "InferenceService")
    assert ("tokenweir.io/metered" in str(service)) == ours.metered
    try:
        render("kserve-model", {**values, "autoscaling": {"targetQueueDepth": 2}})
        queue = True
    except ChartError:
        queue = False
    assert ours.has_vllm == queue


@pytest.mark.parametrize("path", sorted(CHARTS.glob("kserve-*/ci/*.yaml")), ids=lambda path: path.stem)
def test_the_charts_own_examples_have_no_error_but_what_a_slides_fragment_leaves_out(path):
    values = yaml.safe_load(path.read_text())
    problems = checking.problems(path.parents[1].name, values, "qwen", "models")
    fragment = {MODEL, "autoscaling.targetGPUUtilizationPercentage"}
    assert {each.path for each in problems if each.level is Level.ERROR} <= fragment


# The schema.


@pytest.mark.parametrize(
    ("text", "path", "message", "fix"),
    sampled([
        ("replicCount: 1", "replicCount", "no such value", "did you mean replicaCount?"),
        ("targetRequestRate: 4", "targetRequestRate", "no such value", "it belongs at autoscaling.targetRequestRate"),
        ("autoscaling: {targetCpuUtilizationPercentage: 4}", "autoscaling.targetCpuUtilizationPercentage", "no such value",
         "did you mean autoscaling.targetCPUUtilizationPercentage?"),
        ("exposeModel: {jwtVerify: {audiences: [a]}}", "exposeModel.jwtVerify.audiences", "no such value",
         "did you mean exposeModel.jwtVerify.Audiences?"),
        ("foo: null", "foo", "no such value", "there are replicaCount, "),
        ("inferenceservice: {predictor: {storageUri: a}}", "inferenceservice.predictor.storageUri", "no such value",
         "it belongs at inferenceservice.predictor.model.storageUri"),
        ("replicaCount: '2'", "replicaCount", '"2" is text; it must be a whole number', "without quotes: 2"),
        ("replicaCount: 2.5", "replicaCount", "2.5 is a number; it must be a whole number", "Pods"),
        ("replicaCount: two", "replicaCount", '"two" is text; it must be a whole number', "Pods of the model"),
        ("resources: {limitGPU: two}", "resources.limitGPU", "has not the form", "Whole GPUs"),
        ("replicaCount: 0", "replicaCount", "0 is out of bounds", "at least 1"),
        ("primaryLoad: 101", "primaryLoad", "101 is out of bounds", "at most 100"),
        ("autoscaling: {targetCPUUtilizationPercentage: 80%}", "autoscaling.targetCPUUtilizationPercentage",
         "is text", "without the percent sign: 80"),
        ("autoscaling: {targetRequestRate: 0}", "autoscaling.targetRequestRate", "0 is out of bounds", "more than 0"),
        ("autoscaling: {engine: kedaa}", "autoscaling.engine", "none of the choices", "did you mean keda?"),
        ("security: {mtls: OFF}", "security.mtls", "is true or false; it must be text", "in quotes"),
        ("exposeModel: {enabled: 'yes'}", "exposeModel.enabled", "is text; it must be true or false", "without quotes"),
        ("inferenceservice: {predictor: {model: {newImageTag: 1.10}}}", f"{MODEL}.newImageTag", "is a number", "in quotes"),
        ("inferenceservice: {predictor: {model: {args: --x}}}", f"{MODEL}.args", "it must be a list", "a list: [--x]"),
        ("autoscaling: []", "autoscaling", "is a list; it must be a map", "Scaling"),
        ("tokenLimit: {limits: [{scope: tenant, window: day}]}", "tokenLimit.limits[0]", "'amount' is missing",
         "give tokenLimit.limits[0].amount"),
        ("inferenceservice: {predictor: {nodeSelector: {a.b/c: 1}}}", 'inferenceservice.predictor.nodeSelector["a.b/c"]',
         "is a whole number; it must be text", "in quotes"),
        ("resources: {requestCPU: lots}", "resources.requestCPU", "has not the form", ""),
        ("env: " + "x" * 64, "env", "has 64 characters", "63 characters at the most"),
        ("platform: {domain: ''}", "platform.domain", "is empty", "give one"),
    ], 8),
)  # fmt: skip
def test_what_the_schema_refuses_is_told_with_what_is_meant(text, path, message, fix):
    problem = found(yaml.load(text, yaml.SafeLoader))["error", path]
    assert message in problem.message
    assert fix in problem.fix
    with pytest.raises(ChartError):
        render("kserve-general", yaml.load(text, yaml.SafeLoader))


@pytest.mark.parametrize("section", sorted(charts.defaults("kserve-general")))
def test_a_section_that_is_null_is_as_if_it_were_not_there(section):
    assert checking.problems("kserve-general", {section: None}, partial=True) == []


@pytest.mark.parametrize("section", sorted(charts.defaults("kserve-general")))
@pytest.mark.parametrize("value", [5, "x", [], [1], {"x": {"y": 1}}, True, 1.5])
def test_rules_are_safe_on_values_of_any_shape(section, value):
    for each in checking.problems("kserve-general", {section: value}, "qwen", "models"):
        assert isinstance(each.message, str)


def test_what_flux_fills_in_is_not_called_wrong():
    problem = found(laid("llm", "replicaCount: ${REPLICAS}"))["warning", "replicaCount"]
    assert "filled in later" in problem.message


def test_errors_come_first():
    problems = checking.problems("kserve-general", laid("llm", "{security: {mtls: PERMISSIVE}, replicaCount: 9}"))
    assert [each.level for each in problems] == [Level.ERROR, Level.WARNING]


def test_no_message_names_a_part_of_the_checker():
    values = {key: {"x": 1} for key in charts.defaults("kserve-general")} | {"autoscaling": 1}
    text = " ".join(f"{each.message} {each.fix}" for each in checking.problems("kserve-general", values))
    assert not re.search(r"allOf|\$ref|definitions|jsonschema|kserve-lib|global", text)
