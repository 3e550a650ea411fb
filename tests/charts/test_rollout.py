"""How a pod of a model ends and is replaced: every time follows from one value, and no stream is cut."""

import json
from typing import Any

import pytest

from tests.charts import schemas
from tests.sizes import sampled

from .helm import ChartError, Document, pick, render


def _values(name: str = "vllm", predictor: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": name}, "storageUri": "s3://models/x", **model}
    return {"inferenceservice": {"predictor": {"model": model, **(predictor or {})}}}


def _box(image: str = "a:1", predictor: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    return {
        "inferenceservice": {"predictor": {"containers": [{"image": image, **container}], **(predictor or {})}}
    }


GPU = {"resources": {"limitGPU": 1}}


def _service(*values: dict[str, Any]) -> Document:
    documents = render("kserve-model", *values)
    schemas.check(documents)
    return pick(documents, "InferenceService")


def _timeout(service: Document) -> list[str]:
    args = service["spec"]["predictor"]["model"].get("args", [])
    return [each for each in args if "shutdown" in each]


@pytest.mark.parametrize(
    ("grace", "pause", "drain"),
    sampled([(300, 15, 280), (7200, 15, 7180), (40, 10, 25), (8, 2, 1), (3, None, 0)], 4),
)
def test_every_time_follows_from_the_grace_period(grace: int, pause: int | None, drain: int) -> None:
    service = _service(_values(predictor={"terminationGracePeriodSeconds": grace}), GPU)
    predictor = service["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] == grace
    sleep = predictor["model"].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
    assert sleep == pause
    assert _timeout(service) == [f"--shutdown-timeout={drain}"]
    assert (pause or 0) + drain < grace
    metadata = json.loads(service["metadata"]["annotations"]["proxy.istio.io/config"])["proxyMetadata"]
    assert metadata == {
        "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true",
        "MINIMUM_DRAIN_DURATION": f"{pause or 1}s",
    }


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (_values(), True),
        (_values(image="vllm/vllm-openai:v0.17.9"), False),
        (_values(image="vllm/vllm-openai:v0.18.0"), True),
        (_values(image="vllm/vllm-openai:v0.20"), True),
        (_values(image="vllm/vllm-openai:v1.2.0"), True),
        (_values(image="r:5000/vllm/vllm-openai:v0.32.0@sha256:" + "a" * 64), True),
        (_values(image="vllm/vllm-openai:latest"), True),
        (_values(image="vllm/vllm-openai@sha256:" + "a" * 64), False),
        (_values(image="registry.corp/vllm:2026-11-cuda13"), False),
        (_values(image="registry.corp/vllm"), False),
        (_values("vLLM", runtime="kserve-vllmserver"), True),
        (_values("vLLM", runtime="ours-vllm"), False),
        (_values("huggingface"), False),
        ({"platform": {"runtimeImages": {"vllm": "vllm/vllm-openai:v0.10.0"}}} | _values(), False),
    ],
)
def test_vllm_is_told_how_long_streams_may_go_on_where_it_knows_the_argument(
    values: dict[str, Any], told: bool
) -> None:
    assert bool(_timeout(_service(values, GPU))) == told


def test_the_users_own_end_of_a_server_stays() -> None:
    own = _values(
        args=["--shutdown-timeout=60"],
        lifecycle={"preStop": {"exec": {"command": ["sleep", "5"]}}, "postStart": {"exec": {"command": ["true"]}}},
    )
    service = _service(own, GPU)
    assert _timeout(service) == ["--shutdown-timeout=60"]
    lifecycle = service["spec"]["predictor"]["model"]["lifecycle"]
    assert lifecycle == own["inferenceservice"]["predictor"]["model"]["lifecycle"]
    shorter = _service(_values(lifecycle={"preStop": {"sleep": {"seconds": 40}}}), GPU)
    assert _timeout(shorter) == ["--shutdown-timeout=255"]
    annotated = _values() | {}
    annotated["inferenceservice"]["annotations"] = {"proxy.istio.io/config": "{}"}
    assert _service(annotated)["metadata"]["annotations"]["proxy.istio.io/config"] == "{}"


def test_the_container_that_serves_waits_and_the_others_do_not() -> None:
    values = _box()
    values["inferenceservice"]["predictor"]["containers"].append({"name": "side", "image": "b:1"})
    values["inferenceservice"]["transformer"] = {"containers": [{"image": "t:1"}]}
    spec = _service(values)["spec"]
    serving, side = spec["predictor"]["containers"]
    assert serving["lifecycle"] == {"preStop": {"sleep": {"seconds": 15}}}
    assert "lifecycle" not in side
    assert spec["transformer"]["terminationGracePeriodSeconds"] == 300
    assert spec["transformer"]["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 15}}}
    given = _service(_box(lifecycle={"preStop": {"sleep": {"seconds": 10}}}))
    assert given["spec"]["predictor"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == 10


SCARCE = {"platform": {"gpu": {"surge": False}}}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((_values(), GPU), None),
        (
            (_values(), GPU, SCARCE),
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        ),
        ((_values(), SCARCE), None),
        ((_values(predictor={"deploymentStrategy": {"type": "Recreate"}}), GPU, SCARCE), {"type": "Recreate"}),
    ],
)
def test_where_gpus_are_scarce_the_old_pod_goes_first(values: Any, wanted: dict[str, Any] | None) -> None:
    assert _service(*values)["spec"]["predictor"].get("deploymentStrategy") == wanted


@pytest.mark.parametrize(
    ("predictor", "words"),
    [
        ({"deploymentStrategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}, "remove one"),
        ({"deploymentStrategy": {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": 0}}}, "raise one"),
        ({"deploymentStrategy": {"rollingUpdate": {"maxSurge": "lots"}}}, "maxSurge"),
        ({"terminationGracePeriodSeconds": 10, "model": {"lifecycle": {"preStop": {"sleep": {"seconds": 10}}}}}, "sleep.seconds is 10"),
        ({"podDisruptionBudget": {"maxUnavailable": "0%"}}, "maxUnavailable"),
    ],
)  # fmt: skip
def test_what_could_never_end_or_be_replaced_is_refused(predictor: dict[str, Any], words: str) -> None:
    values = _values()
    model = values["inferenceservice"]["predictor"]["model"] | predictor.pop("model", {})
    values["inferenceservice"]["predictor"] = {**predictor, "model": model}
    with pytest.raises(ChartError, match=words):
        render("kserve-model", values)


def test_each_variant_has_a_budget_that_selects_its_pods() -> None:
    documents = render("kserve-general", _values(newStorageUri="s3://models/y"))
    schemas.check(documents)
    budgets = {
        each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "PodDisruptionBudget"
    }
    assert set(budgets) == {"qwen-primary-predictor", "qwen-canary-predictor"}
    for name, spec in budgets.items():
        assert spec["selector"] == {"matchLabels": {"app": f"isvc.{name}"}}  # KServe's own label of these pods
        assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    given = {"podDisruptionBudget": {"maxUnavailable": "50%"}}
    assert (
        pick(render("kserve-model", _values(predictor=given)), "PodDisruptionBudget")["spec"]["maxUnavailable"]
        == "50%"
    )
    off = {"podDisruptionBudget": {"enabled": False}}
    assert not [
        each for each in render("kserve-model", _values(predictor=off)) if each["kind"] == "PodDisruptionBudget"
    ]
