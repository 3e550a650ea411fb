"""Who scales a model's pods, on what, and between which numbers."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sizes import sampled, sized

from .helm import HELMS, ChartError, Document, kinds, pick, render
from .schemas import check

CLASS = "serving.kserve.io/autoscalerClass"
TALK = {
    "replicaCount": 1,
    "autoscaling": {
        "maxReplicaCount": 10,
        "targetCPUUtilizationPercentage": 80,
        "targetMemoryUtilizationPercentage": 70,
        "targetGPUUtilizationPercentage": 75,
        "targetRequestRate": 100,
    },
}
GPU = {"resources": {"requestGPU": 1, "limitGPU": 1}}
HPA = {"autoscaling": {"engine": "hpa"}}
VLLM = {"inferenceservice": {"predictor": {"model": {"modelFormat": {"name": "vllm"}, "storageUri": "hf://a/b"}}}}
QUEUE = {"autoscaling": {"targetQueueDepth": 4}}
CANARY = {
    "inferenceservice": {
        "predictor": {
            "model": {"modelFormat": {"name": "vllm"}, "storageUri": "hf://a/b", "newStorageUri": "hf://a/c"}
        }
    }
}
MODELS = {"kserve-model": VLLM, "kserve-general": CANARY}
SCALERS = ("ScaledObject", "HorizontalPodAutoscaler")


def _scalers(documents: list[Document]) -> dict[str, Document]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] in SCALERS}


def _triggers(*values: Any, chart: str = "kserve-model", **more: Any) -> dict[str, Document]:
    """Triggers of the one ScaledObject by their name, else their type."""
    spec = pick(render(chart, *values, **more), "ScaledObject")["spec"]
    return {each.get("name", each["type"]): each for each in spec["triggers"]}


def _metrics(*values: Any) -> list[Document]:
    metrics: list[Document] = pick(render("kserve-model", *values, HPA), "HorizontalPodAutoscaler")["spec"][
        "metrics"
    ]
    return metrics


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("engine", ["keda", "hpa"])
@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_the_talks_targets_make_one_valid_scaler_for_each_variant(chart: str, engine: str, helm: str) -> None:
    documents = render(chart, MODELS[chart], TALK, GPU, {"autoscaling": {"engine": engine}}, helm=helm)
    found = _scalers(documents)
    expected = {"qwen-scale"} if chart == "kserve-model" else {"qwen-primary-scale", "qwen-canary-scale"}
    assert set(found) == expected
    check(list(found.values()))
    services = {each["metadata"]["name"] for each in documents if each["kind"] == "InferenceService"}
    targets = {each["spec"]["scaleTargetRef"]["name"] for each in found.values()}
    assert targets == {f"{service}-predictor" for service in services}


def test_without_a_target_there_is_no_scaler_and_kserve_keeps_replica_count_pods() -> None:
    documents = render("kserve-model", {"replicaCount": 3})
    assert not _scalers(documents)
    service = pick(documents, "InferenceService")
    assert service["metadata"]["annotations"][CLASS] == "none"
    assert service["spec"]["predictor"]["minReplicas"] == 3


@pytest.mark.parametrize("engine", ["keda", "hpa"])
def test_with_a_target_kserve_leaves_the_number_of_pods_alone(engine: str) -> None:
    documents = render("kserve-model", TALK, {"autoscaling": {"engine": engine}})
    assert pick(documents, "InferenceService")["metadata"]["annotations"][CLASS] == "external"


def test_a_transformers_pods_are_kept_by_kserve_while_the_models_scale() -> None:
    transformer = {"inferenceservice": {"transformer": {"containers": [{"image": "a/b:1"}], "replicas": 2}}}
    service = pick(render("kserve-model", TALK, transformer), "InferenceService")
    assert service["spec"]["transformer"]["annotations"][CLASS] == "none"
    assert service["spec"]["transformer"]["minReplicas"] == 2


def test_keda_measures_cpu_and_memory_of_the_models_container_alone() -> None:
    triggers = _triggers(TALK)
    for resource, value in {"cpu": "80", "memory": "70"}.items():
        assert triggers[resource] == {
            "type": resource,
            "metricType": "Utilization",
            "metadata": {"containerName": "kserve-container", "value": value},
        }


def test_the_hpa_measures_cpu_and_memory_of_the_models_container_alone() -> None:
    resources = [each["containerResource"] for each in _metrics(TALK) if each["type"] == "ContainerResource"]
    assert resources == [
        {
            "name": name,
            "container": "kserve-container",
            "target": {"type": "Utilization", "averageUtilization": value},
        }
        for name, value in (("cpu", 80), ("memory", 70))
    ]


def test_every_query_is_a_sum_that_the_target_of_one_pod_divides() -> None:
    triggers = _triggers(VLLM, TALK, GPU, QUEUE)
    asked = {name: each for name, each in triggers.items() if each["type"] == "prometheus"}
    assert {name: each["metadata"]["threshold"] for name, each in asked.items()} == {
        "request-rate": "100",
        "gpu": "75",
        "queue": "4",
    }
    for trigger in asked.values():
        assert trigger["metricType"] == "AverageValue"
        assert trigger["metadata"]["query"].startswith("sum(")


def test_the_hpa_asks_for_an_average_of_the_pods() -> None:
    pods = [each["pods"] for each in _metrics(TALK, GPU) if each["type"] == "Pods"]
    assert {each["metric"]["name"]: each["target"] for each in pods} == {
        "requests_per_second": {"type": "AverageValue", "averageValue": "100"},
        "gpu_utilization": {"type": "AverageValue", "averageValue": "75"},
    }


@pytest.mark.parametrize(
    ("rate", "threshold", "quantity"),
    sampled(
        [
            (0.5, "0.5", "500m"),
            (2.25, "2.25", "2250m"),
            (1_000_000, "1000000", "1000000"),
            (0.0001, "0.0001", "1m"),
        ],
        2,
    ),
)
def test_a_request_rate_of_any_size_is_written_as_each_engine_reads_it(
    rate: float, threshold: str, quantity: str
) -> None:
    values = {"autoscaling": {"targetRequestRate": rate}}
    assert _triggers(values)["request-rate"]["metadata"]["threshold"] == threshold
    assert _metrics(values)[0]["pods"]["target"]["averageValue"] == quantity


def test_while_prometheus_has_no_answer_nothing_scales_down() -> None:
    triggers = _triggers(VLLM, TALK, GPU, QUEUE)
    assert {each["metadata"].get("ignoreNullValues", "false") for each in triggers.values()} == {"false"}
    assert "vector(0)" not in str(triggers)


@pytest.mark.parametrize("engine", ["keda", "hpa"])
def test_a_gpu_target_without_a_gpu_is_left_out(engine: str) -> None:
    spec = next(iter(_scalers(render("kserve-model", TALK, {"autoscaling": {"engine": engine}})).values()))["spec"]
    assert "GPU" not in str(spec)
    assert "gpu" not in str(spec)
    alone = {"autoscaling": {"targetGPUUtilizationPercentage": 75, "engine": engine}}
    assert not _scalers(render("kserve-model", alone))


@pytest.mark.parametrize(
    "gpu",
    [
        {"resources": {"limitGPU": 1}},
        {"inferenceservice": {"predictor": {"model": {"resources": {"requestGPU": 1}}}}},
    ],
)
def test_a_gpu_counts_wherever_the_talk_asks_for_it(gpu: dict[str, Any]) -> None:
    assert "gpu" in _triggers(VLLM, TALK, gpu)


def test_a_canary_begins_with_pods_of_its_own() -> None:
    values = {"replicaCount": 4, "canary": {"replicaCount": 2}}
    found = _scalers(render("kserve-general", TALK, values, CANARY))
    fewest = {name: each["spec"]["minReplicaCount"] for name, each in found.items()}
    assert fewest == {"qwen-primary-scale": 4, "qwen-canary-scale": 2}


@pytest.mark.parametrize("engine", ["keda", "hpa"])
def test_a_maximum_below_what_it_starts_with_says_what_to_change(engine: str) -> None:
    values = {"replicaCount": 5, "autoscaling": {"targetRequestRate": 1, "maxReplicaCount": 4, "engine": engine}}
    with pytest.raises(
        ChartError, match=r"autoscaling\.maxReplicaCount \(4\) is less than the 5 pods.*replicaCount"
    ):
        render("kserve-model", values)


def test_a_maximum_below_the_canarys_own_says_so() -> None:
    values = {"canary": {"replicaCount": 11}}
    with pytest.raises(ChartError, match=r"11 pods that qwen-canary starts with.*canary\.replicaCount"):
        render("kserve-general", TALK, values, CANARY)


def test_a_maximum_does_not_matter_where_nothing_scales() -> None:
    assert render("kserve-model", {"replicaCount": 5, "autoscaling": {"maxReplicaCount": 4}})


def test_the_queue_needs_keda() -> None:
    with pytest.raises(ChartError, match=r"autoscaling\.targetQueueDepth needs autoscaling\.engine: keda"):
        render("kserve-model", VLLM, QUEUE, HPA)


@pytest.mark.parametrize(
    "predictor",
    [
        {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://a/b"}},
        {
            "model": {
                "modelFormat": {"name": "huggingface"},
                "storageUri": "hf://a/b",
                "args": ["--backend=huggingface"],
            }
        },
        {"containers": [{"image": "lmsysorg/sglang:v1"}]},
        {"containers": [{"image": "registry/anything:1"}]},
    ],
)
def test_a_queue_that_is_not_vllms_is_refused(predictor: dict[str, Any]) -> None:
    with pytest.raises(ChartError, match=r"targetQueueDepth is vLLM's queue.*targetRequestRate instead"):
        render("kserve-model", {"inferenceservice": {"predictor": predictor}}, QUEUE)


@pytest.mark.parametrize(
    "service",
    [
        {"predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://a/b"}}},
        {"predictor": {"containers": [{"image": "vllm/vllm-openai:v1"}]}},
        {"predictor": {"containers": [{"image": "registry/our-own:1"}]}, "protocol": "openai"},
    ],
)
def test_vllm_is_known_by_format_image_or_protocol(service: dict[str, Any]) -> None:
    assert "queue" in _triggers({"inferenceservice": service}, QUEUE)


def test_a_queue_needs_the_models_own_metrics() -> None:
    with pytest.raises(ChartError, match=r"metrics\.enabled must not be false"):
        render("kserve-model", VLLM, QUEUE, {"metrics": {"enabled": False}})


@pytest.mark.parametrize(("given", "seconds"), [(0, 0), (60, 60), (None, 300)])
def test_a_lower_need_must_last_as_long_as_said(given: int | None, seconds: int) -> None:
    values = {"autoscaling": {"targetRequestRate": 5, "scaleDownStabilizationSeconds": given}}
    keda = pick(render("kserve-model", values), "ScaledObject")["spec"]["advanced"][
        "horizontalPodAutoscalerConfig"
    ]
    hpa = pick(render("kserve-model", values, HPA), "HorizontalPodAutoscaler")["spec"]
    for spec in (keda, hpa):
        assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == seconds


@pytest.mark.parametrize("section", ["autoscaling", "metrics", "logger", "accessLog", "resources", "platform"])
def test_a_section_that_is_null_is_as_good_as_absent(section: str) -> None:
    values = {} if section == "autoscaling" else {"autoscaling": {"targetRequestRate": 5}}
    documents = render("kserve-model", values, {section: None})
    check([each for each in documents if each["kind"] in (*SCALERS, "Telemetry")])
    assert bool(_scalers(documents)) == (section != "autoscaling")


def test_changing_the_engine_leaves_no_name_to_two_owners() -> None:
    scaled = pick(render("kserve-model", TALK), "ScaledObject")
    hpa = pick(render("kserve-model", TALK, HPA), "HorizontalPodAutoscaler")
    made_by_keda = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["name"]
    assert made_by_keda not in {hpa["metadata"]["name"], "qwen-predictor"}
    # KEDA's webhook refuses a ScaledObject beside an HPA of another owner, unless that one says this.
    assert hpa["metadata"]["annotations"]["validations.keda.sh/hpa-ownership"] == "false"


def test_only_one_engine_scales() -> None:
    assert "HorizontalPodAutoscaler" not in kinds(render("kserve-model", TALK))
    assert "ScaledObject" not in kinds(render("kserve-model", TALK, HPA))


NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@settings(max_examples=sized(6, 12), deadline=None, derandomize=True)
@given(
    release=st.one_of(NAMES, NAMES.map("{}-predictors".format), NAMES.map("{}-scale".format)),
    chart=st.sampled_from(["kserve-model", "kserve-general"]),
    engine=st.sampled_from(["keda", "hpa"]),
    fewest=st.integers(1, 20),
    more=st.integers(0, 20),
)
def test_no_name_is_kserves_and_every_bound_holds(
    release: str, chart: str, engine: str, fewest: int, more: int
) -> None:
    scaling = {"engine": engine, "targetRequestRate": 7, "maxReplicaCount": fewest + more}
    documents = render(chart, MODELS[chart], {"replicaCount": fewest, "autoscaling": scaling}, release=release)
    found = _scalers(documents)
    services = {each["metadata"]["name"] for each in documents if each["kind"] == "InferenceService"}
    assert {each["spec"]["scaleTargetRef"]["name"] for each in found.values()} == {
        f"{s}-predictor" for s in services
    }
    for name, each in found.items():
        spec = each["spec"]
        made = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("name", name)
        for one in (name, made):
            assert not one.endswith("-predictor")
            assert len(one) <= 63
        low, high = ("minReplicaCount", "maxReplicaCount") if engine == "keda" else ("minReplicas", "maxReplicas")
        assert (spec[low], spec[high]) == (fewest, fewest + more)


# The letters that Kubernetes draws names from.
LETTERS = st.text("bcdfghjklmnpqrstvwxz2456789", min_size=5, max_size=5)
HASH = st.text("bcdfghjklmnpqrstvwxz2456789", min_size=6, max_size=10)
LONG = "a-model-with-quite-a-long-name-of-its-own"


@pytest.mark.parametrize("release", ["m", "qwen", LONG[:37], LONG, f"{LONG}-too"])
def test_the_pattern_of_pods_fits_all_of_the_variants_and_no_others(release: str) -> None:
    query = _triggers(VLLM, QUEUE, release=release)["queue"]["metadata"]["query"]
    match = re.search(r'pod=~"([^"]+)"', query)
    assert match
    pattern = re.compile(match[1])

    @settings(max_examples=sized(50, 200), deadline=None, derandomize=True)
    @given(hashed=HASH, drawn=LETTERS, other=NAMES)
    def holds(hashed: str, drawn: str, other: str) -> None:
        def pod(deployment: str) -> str:
            return f"{deployment}-{hashed}-"[:58] + drawn

        assert pattern.fullmatch(pod(f"{release}-predictor"))
        neighbours = [f"{other}-predictor", f"{release}-{other}-predictor"]
        if len(release) < 37:  # of a longer name's hash too little is left to tell it from a neighbour's name
            neighbours.append(f"{release}-predictor-{other}")
        for deployment in neighbours:
            if deployment != f"{release}-predictor":
                assert not pattern.fullmatch(pod(deployment))

    holds()
