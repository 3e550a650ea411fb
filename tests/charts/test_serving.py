"""What a model's server is given: its image as it stands, its GPUs, and the port of its gRPC."""

from typing import Any

import pytest

from tests.charts import schemas
from tests.sizes import sampled

from .helm import Document, kinds, pick, render


def _values(name: str, more: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": name}, "storageUri": "s3://models/x", **model}
    return {"inferenceservice": {"predictor": {"model": model}}, **(more or {})}


def _gpus(count: int) -> dict[str, Any]:
    return {"resources": {"limitGPU": count}}


def _model(documents: list[Document], name: str | None = None) -> dict[str, Any]:
    schemas.check(documents)
    model: dict[str, Any] = pick(documents, "InferenceService", name)["spec"]["predictor"]["model"]
    return model


@pytest.mark.parametrize(
    ("given", "runtime", "written"),
    [
        ("vLLM", "kserve-vllmserver", "vLLM"),
        ("vllm", "kserve-vllmserver", "vLLM"),
        ("VLLM", "ours", "VLLM"),
        ("vLLM", "", "vllm"),
        ("SKLearn", "", "sklearn"),
        ("Triton", "kserve-tritonserver", "triton"),
    ],
)
def test_a_format_is_written_as_the_runtime_spells_it(given: str, runtime: str, written: str) -> None:
    documents = render("kserve-model", _values(given, **({"runtime": runtime} if runtime else {})))
    assert _model(documents)["modelFormat"]["name"] == written
    for each in documents:
        if each["kind"] == "ServingRuntime":
            assert written in [one["name"] for one in each["spec"]["supportedModelFormats"]]


def test_kservess_server_of_pmml_is_not_taken_for_mlserver() -> None:
    documents = render("kserve-model", _values("pmml", runtime="kserve-pmmlserver"))
    assert _model(documents)["args"] == ["--model_name=qwen"]
    assert pick(documents, "InferenceService")["metadata"]["annotations"]["prometheus.io/port"] == "8080"


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("registry.corp/kserve/huggingfaceserver:2026-11-cuda13", "2026-11-cuda13"),
        ("registry.corp:5000/kserve/huggingfaceserver", None),
        ("registry.corp:5000/h:1.2_b", "1.2_b"),
        ("registry.corp/h:1@sha256:" + "a" * 64, None),
    ],
)
def test_kserve_leaves_the_image_that_was_given_alone(image: str, version: str | None) -> None:
    """Without a runtimeVersion it makes `:2026-11-cuda13-gpu` of `:2026-11-cuda13`."""
    model = _model(render("kserve-model", _values("huggingface", _gpus(1), image=image)))
    assert (model["image"], model.get("runtimeVersion")) == (image, version)


def test_each_variant_has_the_tag_of_its_own_image() -> None:
    values = _values("pytorch", _gpus(1), image="a/torchserve:1", newImageTag="2")
    documents = render("kserve-general", values)
    assert _model(documents, "qwen-primary")["runtimeVersion"] == "1"
    assert _model(documents, "qwen-canary")["runtimeVersion"] == "2"
    assert "runtimeVersion" not in _model(render("kserve-model", _values("pytorch", _gpus(1))))


@pytest.mark.parametrize(
    ("name", "count", "more", "args"),
    [
        ("vllm", 4, {}, ["--tensor-parallel-size=4"]),
        ("vllm", 1, {}, []),
        ("huggingface", 2, {}, ["--tensor-parallel-size=2"]),
        ("vllm", 2, {"runtime": "kserve-vllmserver"}, ["--tensor-parallel-size=2"]),
        ("vllm", 2, {"args": ["--pipeline-parallel-size", "2"]}, ["--pipeline-parallel-size", "2"]),
        ("vllm", 4, {"args": ["-tp=2"]}, ["-tp=2"]),
        ("huggingface", 2, {"args": ["--backend=huggingface"]}, ["--backend=huggingface"]),
        ("huggingface", 2, {"runtime": "kserve-huggingfaceserver-multinode"}, []),
        ("pytorch", 2, {}, None),
    ],
)
def test_a_model_uses_all_gpus_of_its_pod(
    name: str, count: int, more: dict[str, Any], args: list[str] | None
) -> None:
    model = _model(render("kserve-model", _values(name, _gpus(count), **more)))
    given = [each for each in model.get("args", []) if "name=qwen" not in each and "timeout" not in each]
    assert given == (args or [])


@pytest.mark.parametrize(
    ("resources", "images", "wanted"),
    sampled(
        [
            ({"limitGPU": 1}, {}, "docker.io/vllm/vllm-openai:v0.32.0"),
            ({}, {}, "docker.io/vllm/vllm-openai-cpu:v0.32.0"),
            ({"limits": {"amd.com/gpu": 1}}, {}, "docker.io/vllm/vllm-openai:v0.32.0"),
            ({}, {"vllm": "r:5000/vllm"}, "r:5000/vllm-cpu"),
            ({}, {"vllm": "r/vllm-cpu:1"}, "r/vllm-cpu:1"),
            ({}, {"vllm": "r/v@sha256:abc"}, "r/v@sha256:abc"),
            ({}, {"vllm": "r/v:1", "vllmCPU": "r/own:2"}, "r/own:2"),
        ],
        5,
    ),
)
def test_vllm_without_a_gpu_has_the_image_for_the_cpu(
    resources: dict[str, Any], images: dict[str, Any], wanted: str
) -> None:
    documents = render(
        "kserve-model", _values("vllm", {"resources": resources, "platform": {"runtimeImages": images}})
    )
    assert pick(documents, "ServingRuntime")["spec"]["containers"][0]["image"] == wanted


@pytest.mark.parametrize(
    ("values", "port"),
    [
        (_values("triton", protocolVersion="grpc-v2"), 9000),
        (_values("pytorch", protocolVersion="grpc-v2"), 7070),
        (
            _values(
                "triton",
                protocolVersion="grpc-v2",
                ports=[{"containerPort": 9500, "name": "h2c", "protocol": "TCP"}],
            ),
            9500,
        ),
        (
            {
                "inferenceservice": {
                    "protocol": "v2",
                    "predictor": {
                        "containers": [{"image": "a:1", "ports": [{"containerPort": 9600, "name": "grpc"}]}]
                    },
                }
            },
            9600,
        ),
    ],
)
def test_callers_of_grpc_reach_its_port_and_istio_knows_what_it_speaks(values: dict[str, Any], port: int) -> None:
    documents = render("kserve-general", values, {"exposeModel": {"enabled": True}})
    schemas.check(documents)
    predictor = pick(documents, "InferenceService")["spec"]["predictor"]
    container = predictor.get("model") or predictor["containers"][0]
    assert container["ports"][0]["containerPort"] == port
    assert any(word in container["ports"][0]["name"] for word in ("grpc", "h2c"))
    (service,) = pick(documents, "Service")["spec"]["ports"]
    assert (service["port"], service["targetPort"]) == (80, port)
    assert (service["name"], service["appProtocol"]) == ("h2c", "kubernetes.io/h2c")
    routes = pick(documents, "VirtualService", "qwen-predictor")["spec"]["http"]
    assert {"uri": {"exact": "/inference.GRPCInferenceService/ModelInfer"}} in routes[-1]["match"]


def test_without_grpc_nothing_says_so() -> None:
    documents = render("kserve-general", _values("triton"))
    (port,) = pick(documents, "Service")["spec"]["ports"]
    assert port == {"name": "http", "port": 80, "targetPort": 8080}
    assert "ports" not in _model(documents)
    assert "ServingRuntime" not in kinds(documents)
