"""What KServe's own runtimes refuse, and an LLM's GPUs: each rule on values that break it and on values that don't."""

import pytest
import yaml

from extproc.onboarding import checking
from extproc.onboarding.checking import Level
from extproc.onboarding.runtimes import ONLY_BY_NAME, RUNTIMES, serving
from tests.charts.helm import ChartError, render
from tests.sizes import sampled

MODEL = "inferenceservice.predictor.model"
BOX = "inferenceservice.predictor.containers[0]"


def values(model, more="{}"):
    text = f"{{storageUri: 's3://a/b', {model}}}"
    return {"inferenceservice": {"predictor": {"model": yaml.safe_load(text)}}} | yaml.safe_load(more)


def box(text, more="{}"):
    return {"inferenceservice": {"predictor": {"containers": [yaml.safe_load(text)]}}} | yaml.safe_load(more)


def errors(given):
    problems = checking.problems("kserve-model", given, "qwen", "models")
    return {each.path: each for each in problems if each.level is Level.ERROR}


REFUSED = [
    ("modelFormat: {name: vllm}, runtime: kserve-huggingfaceserver", "runtime", "serves huggingface, not vllm",
     "kserve-vllmserver"),
    ("modelFormat: {name: sklearn}, runtime: kserve-tritonserver", "runtime", "not sklearn",
     "kserve-mlserver or kserve-sklearnserver, or modelFormat.name: tensorrt"),
    ("modelFormat: {name: mine}, runtime: kserve-xgbserver", "runtime", "serves xgboost, not mine", "leave it out"),
    ("modelFormat: {name: sklearn, version: '1.5'}", "modelFormat.version", "letter by letter", "1, or leave it out"),
    ("modelFormat: {name: vLLM, version: '2'}, runtime: kserve-vllmserver", "modelFormat.version", "kserve-vllmserver",
     "1, or leave it out"),
    ("modelFormat: {name: sklearn}, protocolVersion: v1, runtime: kserve-mlserver", "protocolVersion", "speaks v2", "v2"),
    ("modelFormat: {name: sklearn}, protocolVersion: grpc-v2", "protocolVersion", "no runtime of KServe for sklearn",
     "one of v1, v2"),
    ("modelFormat: {name: mine}, runtime: own, protocolVersion: grpc-v2", "ports", "none is named", "containerPort: 9000"),
    ("modelFormat: {name: triton}, protocolVersion: grpc-v2, ports: [{containerPort: 9000}]", "ports[0].name",
     "HTTP/1.1", "h2c"),
    ("modelFormat: {name: vllm}, image: 'registry.corp/vllm/vllm-openai:v0.32.0'", "image", "without a GPU",
     "vllm-openai-cpu"),
]  # fmt: skip
TAKEN = [
    ("modelFormat: {name: VLLM}, runtime: kserve-vllmserver", "{}"),
    ("modelFormat: {name: vLLM, version: '1'}, runtime: kserve-vllmserver, protocolVersion: v2", "{}"),
    ("modelFormat: {name: mine, version: '7'}, runtime: kserve-of-ours", "{}"),
    ("modelFormat: {name: mine, version: '7'}", "{}"),
    ("modelFormat: {name: sklearn, version: '0'}", "{}"),
    ("modelFormat: {name: triton}, protocolVersion: grpc-v2", "{}"),
    ("modelFormat: {name: mine}, runtime: own, protocolVersion: grpc-v2, ports: [{containerPort: 9, name: grpc}]", "{}"),
    ("modelFormat: {name: vllm}", "{}"),
    ("modelFormat: {name: vllm}, image: 'vllm/vllm-openai-cpu:v0.32.0'", "{}"),
    ("modelFormat: {name: vllm}, image: 'vllm/vllm-openai:v0.32.0'", "resources: {limitGPU: 1}"),
    ("modelFormat: {name: vllm}, image: 'vllm/vllm-openai:v0.32.0'", "resources: {limits: {amd.com/gpu: 1}}"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "path", "message", "fix"), REFUSED)
def test_what_kserve_or_vllm_would_refuse_is_an_error_with_the_fix(model, path, message, fix):
    problem = errors(values(model))[f"{MODEL}.{path}"]
    assert message in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(("model", "more"), TAKEN)
def test_what_a_runtime_takes_is_no_error_and_is_rendered(model, more):
    given = values(model, more)
    assert errors(given) == {}
    render("kserve-model", given)


@pytest.mark.parametrize(
    "model", sampled([each[0] for each in REFUSED if "grpc-v2" in each[0]], 3), ids=lambda each: each[:60]
)
def test_the_chart_refuses_grpc_that_nobody_would_reach(model):
    with pytest.raises(ChartError, match=r"model\.(protocolVersion|ports)"):
        render("kserve-model", values(model))


def test_a_runtime_whose_name_is_mistyped_is_told():
    (problem,) = checking.problems(
        "kserve-model", values("modelFormat: {name: sklearn}, runtime: kserve-sklernserver")
    )
    assert (problem.level, problem.path, problem.fix) == (
        Level.WARNING,
        f"{MODEL}.runtime",
        "kserve-sklearnserver?",
    )


def test_a_containers_vllm_that_leaves_gpus_idle_is_told():
    text = "{image: 'vllm/vllm-openai:v0.32.0', args: [--model=x%s]}"
    four = "resources: {limitGPU: 4}"
    problems = checking.problems("kserve-model", box(text % "", four))
    assert [(each.path, each.fix) for each in problems if "4 GPUs" in each.message] == [
        (f"{BOX}.args", "--tensor-parallel-size=4")
    ]
    for split in (", -tp, '4'", ", --pipeline-parallel-size=4", ", '--tensor_parallel_size 4'"):
        problems = checking.problems("kserve-model", box(text % split, four))
        assert not [each for each in problems if "GPUs" in each.message]
    assert f"{BOX}.image" in errors(box(text % ""))


def test_every_format_is_served_by_a_runtime_that_kserve_selects():
    named = {each.lower() for one in RUNTIMES.values() for each in one.formats} - {"openvino"}
    for name in named:
        assert serving(name)
        assert not serving(name).keys() & set(ONLY_BY_NAME)
