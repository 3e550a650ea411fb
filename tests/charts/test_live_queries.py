"""What KEDA and prometheus-adapter ask, asked of a real Prometheus that scrapes what a cluster exposes."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.charts import exposition, prometheus

from .exposition import Target, gpu, istio, pod_target, vllm
from .helm import Document, pick, render

HONOURED = {"honor_labels": True}
TARGETS = {
    "targetRequestRate": 10,
    "targetGPUUtilizationPercentage": 75,
    "targetQueueDepth": 4,
    "maxReplicaCount": 9,
}
LLM = {"modelFormat": {"name": "vllm"}, "storageUri": "hf://org/qwen"}
VALUES = {
    "autoscaling": TARGETS,
    "inferenceservice": {"predictor": {"model": LLM}},
    "resources": {"limitGPU": 1},
    "platform": {"monitorLabels": {"release": "kube-prometheus-stack"}},
}
CANARY = {"inferenceservice": {"predictor": {"model": {"newStorageUri": "hf://org/qwen-next"}}}}
LONG = "a-model-with-quite-a-long-name-of-its-own"

# Names as Kubernetes makes them: Deployment, hash of the ReplicaSet, five letters.
QWEN = ("qwen-predictor-7d9f8b6c5d-x2x4v", "qwen-predictor-7d9f8b6c5d-zzk8w")
PREFIXED = "qwen-predictor-predictor-6f7c9d5b4f-kq9cz"  # of a Deployment that is nobody's release
SECOND = "qwen-2-predictor-55c6d8f9bb-8hvtl"
PRIMARY = "chat-primary-predictor-5b9d7c8f64-mmt2r"
PRIMARY_TOO = "chat-primary-predictor-5b9d7c8f64-7tc4d"
CANARY_POD = "chat-canary-predictor-64c8f7d9b5-wq5xn"
SILENT = "silent-predictor-7c5ddbdf54-2j8ck"
CUT = f"{LONG}-predictor-66d7c9b5f8-"[:58] + "n8kxz"


def _sidecars() -> dict[str, Target]:
    """Pods, each with what its sidecar merges: Istio's counts as the destination, and vLLM's queue."""
    return {
        "qwen-1": pod_target(
            QWEN[0],
            istio("qwen-predictor", 20.0),
            istio("qwen-predictor", 3.0, caller="batch"),
            istio("qwen-predictor", 1.0, code="503"),
            istio("qwen-predictor", 500.0, code="403"),
            istio("qwen-predictor", 600.0, code="401"),
            istio("qwen-predictor", 700.0, code="429"),
            istio("elsewhere", 900.0, reporter="source", caller="qwen-predictor"),
            *vllm(5.0, engine=0),
            *vllm(2.0, engine=1),
        ),
        "qwen-2": pod_target(QWEN[1], istio("qwen-predictor", 6.0), *vllm(1.0)),
        "prefixed": pod_target(PREFIXED, istio("qwen-predictor-predictor", 40.0), *vllm(30.0)),
        "second": pod_target(SECOND, istio("qwen-2-predictor", 50.0), *vllm(20.0)),
        "primary": pod_target(PRIMARY, istio("chat-primary-predictor", 12.0), *vllm(3.0)),
        "canary": pod_target(CANARY_POD, istio("chat-canary-predictor", 4.0), *vllm(9.0)),
        "silent": pod_target(SILENT),
        "cut": pod_target(CUT, *vllm(6.0)),
        "elsewhere": pod_target(
            QWEN[0], istio("qwen-predictor", 800.0, namespace="other"), *vllm(90.0), namespace="other"
        ),
        # What callers report of the same requests.
        "gateway": pod_target(
            "istio-ingressgateway-7b8d5c4f9d-p6wvl",
            istio("qwen-predictor", 20.0, reporter="source"),
            istio("chat-primary-predictor", 12.0, reporter="source"),
            namespace="istio-system",
        ),
    }


# One exporter whose labels Prometheus honours, one whose labels it renames to exported_*.
HONOURED_GPUS = (
    gpu(QWEN[0], 90.0, number=0),
    gpu(QWEN[0], 70.0, number=1),
    gpu(QWEN[1], 30.0, number=2),
    gpu(PREFIXED, 99.0, number=3),
    gpu(QWEN[0], 97.0, number=4, namespace="other"),
    gpu("", 1.0, number=5),
)
RENAMED_GPUS = (
    gpu(PRIMARY, 64.0, number=0),
    gpu(CANARY_POD, 16.0, number=1),
    gpu("chat-primary-predictor-extra-5b9d7c8f64-mmt2r", 100.0, number=2),
    gpu("", 2.0, number=3),
    gpu(PRIMARY_TOO, 38.0, number=4),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[prometheus.Prometheus]:
    exporter = {
        "namespace": "gpu-operator",
        "pod": "nvidia-dcgm-exporter-9xk2v",
        "container": "nvidia-dcgm-exporter",
    }
    targets = {
        **_sidecars(),
        "dcgm-honoured": Target({}, HONOURED_GPUS),
        "dcgm-renamed": Target(exporter, RENAMED_GPUS),
    }
    with exposition.exposed(targets) as address:
        jobs = [_job(name, target, address) for name, target in targets.items()]
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [*jobs, _pod_monitor_job()],
        }
        with prometheus.running(tmp_path_factory.mktemp("prometheus"), configuration) as running:
            running.until(f"count(up == 1) == {len(targets)}")
            talking = [target for target in targets.values() if target.samples]
            running.until(f"count({exposition.CAUGHT_UP}) == {len(talking)}")
            yield running


def _job(name: str, target: Target, address: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "metrics_path": f"/{name}",
        "static_configs": [{"targets": [address], "labels": dict(target.labels)}],
        **(HONOURED if name == "dcgm-honoured" else {}),
    }


def _pod_monitor_job() -> dict[str, Any]:
    """The PodMonitor as the operator translates it, over what pods look like to Prometheus' discovery."""
    endpoint = pick(render("kserve-model", VALUES), "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    rules = [
        {re.sub(r"(?<!^)([A-Z])", r"_\1", key).lower(): value for key, value in rule.items()}
        for rule in endpoint["relabelings"]
    ]
    ports = [
        ("127.0.0.9", "kserve-container", ""),
        ("127.0.0.9", "istio-proxy", "http-envoy-prom"),
        ("127.0.0.9", "istio-proxy", "another"),
        ("fd00::9", "istio-proxy", "http-envoy-prom"),
        ("127.0.0.8", "kserve-container", ""),  # a pod outside the mesh
    ]
    found = [
        {
            "targets": [f"unused:{number}"],
            "labels": {
                "__meta_kubernetes_pod_ip": ip,
                "__meta_kubernetes_pod_container_name": container,
                "__meta_kubernetes_pod_container_port_name": port,
            },
        }
        for number, (ip, container, port) in enumerate(ports)
    ]
    return {
        "job_name": "pod-monitor",
        "metrics_path": endpoint["path"],
        "relabel_configs": rules,
        "static_configs": found,
    }


def _queries(document: Document) -> dict[str, str]:
    triggers = document["spec"]["triggers"]
    return {
        trigger["name"]: trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"
    }


def _asked(release: str, chart: str = "kserve-model", *more: Any, isvc: str | None = None) -> dict[str, str]:
    return _queries(
        pick(render(chart, VALUES, *more, release=release), "ScaledObject", f"{isvc or release}-scale")
    )


def test_the_request_rate_is_what_the_pods_of_the_release_were_asked(world: prometheus.Prometheus) -> None:
    # 20 + 3 + 1 on one pod, 6 on the other: no source's report, no refused request, no other release or namespace.
    assert world.query(_asked("qwen")["request-rate"]) == pytest.approx(30.0, rel=0.02)


def test_releases_whose_names_begin_alike_have_their_own_request_rate(world: prometheus.Prometheus) -> None:
    assert world.query(_asked("qwen-2")["request-rate"]) == pytest.approx(50.0, rel=0.02)


def test_no_requests_yet_are_a_rate_of_0_where_the_pods_are_seen(world: prometheus.Prometheus) -> None:
    assert world.query(_asked("silent")["request-rate"]) == 0.0


def test_where_prometheus_sees_nothing_no_query_says_0(world: prometheus.Prometheus) -> None:
    queries = _asked("unseen")
    assert set(queries) == {"request-rate", "gpu", "queue"}
    assert {name: world.query(query) for name, query in queries.items()} == dict.fromkeys(queries)


def test_gpu_utilisation_is_a_mean_of_a_pods_gpus_and_a_sum_of_its_pods(world: prometheus.Prometheus) -> None:
    # (90 + 70) / 2 on one pod, 30 on the other: at a target of 75 for each pod, KEDA wants ceil(110 / 75) = 2 pods.
    assert world.query(_asked("qwen")["gpu"]) == pytest.approx(110.0)


@pytest.mark.parametrize(("variant", "expected"), [("primary", 64.0 + 38.0), ("canary", 16.0)])
def test_gpu_utilisation_is_found_under_exported_labels_too(
    world: prometheus.Prometheus, variant: str, expected: float
) -> None:
    queries = _asked("chat", "kserve-general", CANARY, isvc=f"chat-{variant}")
    assert world.query(queries["gpu"]) == pytest.approx(expected)


@pytest.mark.parametrize(("variant", "rate", "queue"), [("primary", 12.0, 3.0), ("canary", 4.0, 9.0)])
def test_a_canary_scales_on_its_own_load(
    world: prometheus.Prometheus, variant: str, rate: float, queue: float
) -> None:
    queries = _asked("chat", "kserve-general", CANARY, isvc=f"chat-{variant}")
    assert world.query(queries["request-rate"]) == pytest.approx(rate, rel=0.02)
    assert world.query(queries["queue"]) == queue


def test_the_queue_is_that_of_all_engines_of_all_pods(world: prometheus.Prometheus) -> None:
    assert world.query(_asked("qwen")["queue"]) == 8.0


def test_pods_whose_names_kubernetes_cut_are_found(world: prometheus.Prometheus) -> None:
    assert len(CUT) == 63
    assert world.query(_asked(LONG)["queue"]) == 6.0


def test_the_pod_monitor_scrapes_each_sidecar_once_at_the_port_of_merged_metrics(
    world: prometheus.Prometheus,
) -> None:
    targets = world.get("targets", state="active")["activeTargets"]
    urls = sorted(each["scrapeUrl"] for each in targets if each["scrapePool"] == "pod-monitor")
    assert urls == ["http://127.0.0.9:15020/stats/prometheus", "http://[fd00::9]:15020/stats/prometheus"]


def _rules() -> list[dict[str, Any]]:
    documents = render("platform", {"prometheusAdapter": {"enabled": True}}, release="platform", namespace="infra")
    config = next(each for each in documents if "rules:" in str(each.get("data", {}).get("config.yaml")))
    rules: list[dict[str, Any]] = yaml.safe_load(config["data"]["config.yaml"])["rules"]
    return rules


def _adapted(rule: dict[str, Any], namespace: str, pods: tuple[str, ...]) -> str:
    """The query that prometheus-adapter makes of a rule, for the pods that an HPA asks for."""
    labels = {each["resource"]: label for label, each in rule["resources"]["overrides"].items()}
    matchers = f'{labels["namespace"]}="{namespace}",{labels["pod"]}=~"{"|".join(pods)}"'
    series = re.match(r"\w+", rule["seriesQuery"])
    assert series
    query: str = rule["metricsQuery"]
    for placeholder, text in {"Series": series[0], "LabelMatchers": matchers, "GroupBy": labels["pod"]}.items():
        query = query.replace(f"<<.{placeholder}>>", text)
    return query


def _by_pod(world: prometheus.Prometheus, metric: str, pods: tuple[str, ...]) -> list[dict[str, float]]:
    """Per rule of this metric that finds any series: the value of each pod."""
    found = []
    for rule in _rules():
        if rule["name"]["as"] == metric:
            series = world.series(_adapted(rule, "models", pods))
            found.append({next(iter(each["metric"].values())): float(each["value"][1]) for each in series})
    return [each for each in found if each]


def test_each_metric_of_the_hpa_has_a_rule_in_the_platform_chart() -> None:
    values = {"autoscaling": {**TARGETS, "engine": "hpa", "targetQueueDepth": None}}
    metrics = pick(render("kserve-model", VALUES, values), "HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = {each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods"}
    assert asked == {"requests_per_second", "gpu_utilization"} <= {rule["name"]["as"] for rule in _rules()}


def test_the_adapters_request_rate_is_each_pods_own(world: prometheus.Prometheus) -> None:
    (found,) = _by_pod(world, "requests_per_second", (PRIMARY, CANARY_POD))
    assert found == {PRIMARY: pytest.approx(12.0, rel=0.02), CANARY_POD: pytest.approx(4.0, rel=0.02)}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [(QWEN, {QWEN[0]: 80.0, QWEN[1]: 30.0}), ((PRIMARY, CANARY_POD), {PRIMARY: 64.0, CANARY_POD: 16.0})],
)
def test_the_adapters_gpu_utilisation_is_found_in_both_label_shapes(
    world: prometheus.Prometheus, pods: tuple[str, ...], expected: dict[str, float]
) -> None:
    assert _by_pod(world, "gpu_utilization", pods) == [pytest.approx(expected)]
