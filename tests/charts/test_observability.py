"""Logs and metrics: where they are, who reads them, and what is switched on by which value."""

from typing import Any

import pytest

from tests.sizes import sampled

from .helm import HELMS, ChartError, Document, kinds, pick, render
from .schemas import check

MONITORED = {"platform": {"monitorLabels": {"release": "kube-prometheus-stack"}}}
SCRAPING = "serving.kserve.io/enable-prometheus-scraping"


def _annotations(*values: Any) -> dict[str, str]:
    annotations: dict[str, str] = pick(render("kserve-model", *values), "InferenceService")["metadata"][
        "annotations"
    ]
    return annotations


def _model(name: str, **more: Any) -> dict[str, Any]:
    return {
        "inferenceservice": {
            "predictor": {"model": {"modelFormat": {"name": name}, "storageUri": "s3://a/b"} | more}
        }
    }


def _many(server: str) -> dict[str, Any]:
    predictor = {"model": {"storageUri": "s3://a/b"}}
    return {"inferenceservice": {"multiModel": {"enabled": True, "server": server}, "predictor": predictor}}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_what_is_made_is_valid(chart: str, helm: str) -> None:
    logged = {"logger": {"enabled": True}, "accessLog": {"enabled": False}}
    for values in (MONITORED, logged):
        documents = render(chart, values, helm=helm)
        check([each for each in documents if each["kind"] in {"PodMonitor", "Telemetry", "InferenceService"}])


@pytest.mark.parametrize(
    ("values", "port"),
    sampled(
        [
            ({}, "8080"),
            (_model("sklearn"), "8080"),
            (_model("sklearn", protocolVersion="v2"), "8082"),
            (_model("huggingface"), "8080"),
            (_model("vllm"), "8080"),
            (_model("mlflow"), "8082"),
            (_model("tensorflow"), "8080"),
            (_model("pytorch"), "8082"),
            (_model("onnx"), "8002"),
            (_model("triton"), "8002"),
            (_model("tensorflow", runtime="kserve-tritonserver"), "8002"),
            (_model("onnx", runtime="our-onnx-runtime"), "8080"),
            (_many("triton"), "8002"),
            (_many("mlserver"), "8082"),
            ({"inferenceservice": {"predictor": {"containers": [{"image": "a/b:1"}]}}}, "8080"),
            (
                {
                    "inferenceservice": {
                        "predictor": {"containers": [{"image": "a", "ports": [{"containerPort": 8000}]}]}
                    }
                },
                "8000",
            ),
        ],
        9,
    ),
)
def test_metrics_are_where_the_runtime_really_serves_them(values: dict[str, Any], port: str) -> None:
    found = _annotations(values)
    assert found["prometheus.io/port"] == found["prometheus.kserve.io/port"] == port
    assert _annotations(values, {"metrics": {"port": 9100}})["prometheus.io/port"] == "9100"


def test_the_talks_annotations_are_there() -> None:
    found = _annotations({"metrics": {"enabled": True, "port": 8082, "path": "/q/metrics"}})
    names = ("prometheus.io/scrape", "prometheus.io/port", "prometheus.io/path")
    assert [found[name] for name in names] == ["true", "8082", "/q/metrics"]


def test_kserve_never_puts_knatives_port_in_place_of_the_models() -> None:
    # Its webhook would, where this is true: by this annotation, or by its configuration where there is none.
    assert _annotations()[SCRAPING] == _annotations({"metrics": {"enabled": False}})[SCRAPING] == "false"


def test_metrics_that_are_off_are_not_announced() -> None:
    assert not [name for name in _annotations({"metrics": {"enabled": False}}) if name.startswith("prometheus.")]


@pytest.mark.parametrize("metrics", sampled([None, {}, {"enabled": None}, {"port": None, "path": None}], 2))
def test_metrics_that_nobody_turned_off_are_on(metrics: Any) -> None:
    assert _annotations({"metrics": metrics})["prometheus.io/path"] == "/metrics"


def test_a_pod_monitor_is_made_where_prometheus_operator_is() -> None:
    assert "PodMonitor" not in kinds(render("kserve-model"))
    assert "PodMonitor" in kinds(render("kserve-model", MONITORED))
    served = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor")
    assert "PodMonitor" in kinds(render("kserve-model", more=served))


def test_a_pod_monitor_has_the_labels_that_prometheus_selects_by() -> None:
    labels = pick(render("kserve-model", MONITORED), "PodMonitor")["metadata"]["labels"]
    assert labels["release"] == "kube-prometheus-stack"


@pytest.mark.parametrize("kind", ["PodMonitor", "Telemetry"])
def test_both_variants_are_seen_by_one_object(kind: str) -> None:
    canary = {"inferenceservice": {"predictor": {"model": {"newStorageUri": "s3://a/c"}}}}
    documents = render("kserve-general", _model("sklearn"), canary, MONITORED)
    selector = pick(documents, kind)["spec"]["selector"]["matchLabels"]
    services = [each for each in documents if each["kind"] == "InferenceService"]
    assert len(services) == 2
    for service in services:  # KServe gives its labels to the pods
        assert selector.items() <= service["metadata"]["labels"].items()


def test_the_pod_monitor_needs_no_certificate_and_no_policy() -> None:
    """Merged metrics are served by Istio's agent, past the sidecar's listener: mTLS and policies hold for requests."""
    (endpoint,) = pick(render("kserve-model", MONITORED), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["path"] == "/stats/prometheus"
    assert "tlsConfig" not in endpoint
    assert {
        rule["replacement"].rpartition(":")[2] for rule in endpoint["relabelings"] if "replacement" in rule
    } == {"15020"}


def _log(*values: Any) -> list[Document]:
    log: list[Document] = pick(render("kserve-model", *values), "Telemetry")["spec"]["accessLogging"]
    return log


@pytest.mark.parametrize("values", sampled([{}, {"accessLog": None}, {"accessLog": {"enabled": None}}], 1))
def test_requests_to_the_pods_are_logged(values: dict[str, Any]) -> None:
    assert _log(values) == [{"match": {"mode": "SERVER"}, "providers": [{"name": "envoy"}]}]


def test_the_mesh_says_how_requests_are_logged() -> None:
    assert _log({"platform": {"accessLogProvider": "otel"}})[0]["providers"] == [{"name": "otel"}]


def test_an_access_log_that_is_off_is_off_even_where_the_namespace_logs() -> None:
    assert _log({"accessLog": {"enabled": False}}) == [{"disabled": True}]


def _logger(*values: Any) -> Any:
    return pick(render("kserve-model", *values), "InferenceService")["spec"]["predictor"].get("logger")


def test_bodies_are_logged_only_where_it_is_asked_for() -> None:
    assert _logger() is None
    assert _logger({"logger": None}) is None
    assert _logger({"logger": {"enabled": True}}) == {
        "mode": "all",
        "url": "http://message-dumper.infra.svc.cluster.local/",
    }
    given = {"logger": {"enabled": True, "mode": "request", "url": "http://message-dumper.default/"}}
    assert _logger(given) == {"mode": "request", "url": "http://message-dumper.default/"}


def test_both_variants_log_alike() -> None:
    canary = {"inferenceservice": {"predictor": {"model": {"newStorageUri": "s3://a/c"}}}}
    documents = render("kserve-general", _model("sklearn"), canary, {"logger": {"enabled": True}})
    loggers = [each["spec"]["predictor"]["logger"] for each in documents if each["kind"] == "InferenceService"]
    assert len(loggers) == 2
    assert loggers[0] == loggers[1]


def test_a_logger_without_a_place_to_send_to_says_which_values_would_tell() -> None:
    with pytest.raises(ChartError, match=r"logger\.url nor platform\.messageDumper"):
        render("kserve-model", {"logger": {"enabled": True}, "platform": {"messageDumper": None}})
