"""charts/platform: what a mesh needs before models."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts import schemas
from tests.missing import missing

from .helm import CHARTS, HELMS, ChartError, kinds, lint, pick, render

CI = sorted((CHARTS / "platform" / "ci").glob("*-values.yaml"))
EVERYTHING = CHARTS / "platform" / "ci" / "everything-values.yaml"
ISSUER = {"platform": {"jwt": {"issuers": [{"issuer": "https://issuer.example.com", "audiences": ["models"]}]}}}


def platform(*values: Any, helm: str = "helm") -> list[dict[str, Any]]:
    return render("platform", *values, release="platform", namespace="infra", helm=helm)


def mutations(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    extension = patch_of(documents)["value"]["typed_config"]["early_header_mutation_extensions"]
    return extension[0]["typed_config"]["mutations"]


def patch_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (patch,) = pick(documents, "EnvoyFilter", "platform-client-headers")["spec"]["configPatches"]
    assert patch["match"]["context"] == "GATEWAY"
    assert (patch["applyTo"], patch["patch"]["operation"]) == ("NETWORK_FILTER", "MERGE")
    return patch["patch"]


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("values", [None, *CI], ids=lambda path: path.stem if path else "defaults")
def test_every_object_fits_its_schema(values: Path | None, helm: str) -> None:
    given = (values,) if values else ()
    documents = platform(*given, helm=helm)
    assert documents
    schemas.check(documents)
    lint("platform", *given, helm=helm)


def test_the_two_helms_render_the_same() -> None:
    assert platform(EVERYTHING) == platform(EVERYTHING, helm="helm3")


def test_all_that_can_be_asked_for_is_made() -> None:
    assert kinds(platform(EVERYTHING)) == {
        "Namespace", "PeerAuthentication", "AuthorizationPolicy", "Telemetry", "NetworkPolicy", "ResourceQuota",
        "LimitRange", "ConfigMap", "Gateway", "EnvoyFilter", "RequestAuthentication", "PodMonitor", "ServiceMonitor",
        "ServiceAccount", "Service", "Deployment",
    }  # fmt: skip


def test_what_is_off_is_not_made() -> None:
    assert kinds(platform(CHARTS / "platform" / "ci" / "bare-values.yaml")) == {"Telemetry"}


def test_a_section_taken_out_takes_no_protection_away() -> None:
    documents = platform({"mesh": None, "gateway": None, "namespaces": {"podSecurity": None}})
    assert pick(documents, "PeerAuthentication")["spec"] == {"mtls": {"mode": "STRICT"}}
    assert pick(documents, "AuthorizationPolicy", "default-deny")["spec"] == {}
    assert {"remove": "oc_sa"} in mutations(documents)
    labels = pick(documents, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"


def test_every_namespace_gets_the_same() -> None:
    documents = platform(EVERYTHING)
    for name in ("models", "team-b"):
        inside = {(d["kind"], d["metadata"]["name"]) for d in documents if d["metadata"].get("namespace") == name}
        assert inside == {
            ("PeerAuthentication", "default"), ("AuthorizationPolicy", "default-deny"), ("Telemetry", "default"),
            ("NetworkPolicy", "default"), ("ResourceQuota", "default"), ("LimitRange", "default"),
            ("ConfigMap", "platform-values"),
        }  # fmt: skip


def test_a_namespace_outlives_the_release_and_injects_sidecars() -> None:
    metadata = pick(platform(), "Namespace", "models")["metadata"]
    assert metadata["annotations"]["helm.sh/resource-policy"] == "keep"
    assert metadata["labels"]["istio-injection"] == "enabled"
    revision = {"namespaces": {"labels": {"istio.io/rev": "stable"}}}
    labels = pick(platform(revision), "Namespace", "models")["metadata"]["labels"]
    assert labels["istio.io/rev"] == "stable"
    assert "istio-injection" not in labels  # Istio would let it win over the revision


def test_the_default_policy_allows_nothing_and_denies_nothing_that_others_allow() -> None:
    spec = pick(platform(), "AuthorizationPolicy", "default-deny")["spec"]
    # A DENY without rules would be an error of Istio's; one with an empty rule would refuse everything for good.
    assert spec == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"namespaces": None}, "namespaces.names"),
        ({"namespaces": {"names": ["infra"]}}, "install the chart into another"),
        ({"gateway": {"create": True}}, "gateway.hosts"),
        ({"gateway": {"create": True, "hosts": ["*"]}, "platform": {"gateways": ["models"]}}, "namespace/name"),
        ({"platform": {"gateway": {"selector": {"istio": None}}}}, "platform.gateway.selector"),
        (
            {
                "platform": {
                    "exposures": {"x": {"gateway": {"selector": {}}}},
                    "gateway": {"selector": {"istio": None}},
                }
            },
            "platform.gateway.selector",
        ),
        ({"gatway": {}}, "gatway"),
        ({"namespaces": {"names": ["Models"]}}, "names"),
        ({"messageDumper": {"settings": {"PATH": "/"}}}, "messageDumper/settings"),
    ],
)
def test_bad_values_are_refused_with_what_helps(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ChartError, match=message):
        platform(values)


def test_models_get_the_platforms_section_as_it_is() -> None:
    given = yaml.safe_load(EVERYTHING.read_text())["platform"]
    text = pick([d for d in platform(EVERYTHING) if d["metadata"].get("namespace") == "team-b"], "ConfigMap")
    assert text["metadata"]["labels"]["reconcile.fluxcd.io/watch"] == "Enabled"
    handed_on = yaml.safe_load(text["data"]["values.yaml"])
    assert set(handed_on) == {"platform"}
    for name, value in given.items():
        if isinstance(value, dict):
            assert handed_on["platform"][name].items() >= value.items()
        else:
            assert handed_on["platform"][name] == value


def test_the_platforms_section_has_the_same_keys_and_defaults_as_the_models() -> None:
    ours, theirs = (
        json.loads((CHARTS / chart / "values.schema.json").read_text(encoding="utf-8"))["properties"]["platform"]
        for chart in ("platform", "kserve-model")
    )
    assert ours == theirs, "make charts"


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_chart_of_models_takes_what_it_is_handed(values: Any) -> None:
    handed_on = next(d for d in platform(values) if d["metadata"]["name"] == "platform-values")
    render("kserve-model", yaml.safe_load(handed_on["data"]["values.yaml"]))


# -- metrics


def test_the_adapters_rules_count_what_they_should(tmp_path: Path) -> None:
    rules = yaml.safe_load(
        pick(platform(EVERYTHING), "ConfigMap", "prometheus-adapter-rules")["data"]["config.yaml"]
    )
    rate, exported, plain = rules["rules"]
    assert [rule["name"]["as"] for rule in rules["rules"]] == ["requests_per_second", *["gpu_utilization"] * 2]
    # What the caller's sidecar counted too, what was refused, and a series without a code.
    series = [
        ('istio_requests_total{reporter="destination",namespace="models",pod="a",response_code="200"}', "0+30x40"),
        ('istio_requests_total{reporter="destination",namespace="models",pod="a",response_code="429"}', "0+15x40"),
        ('istio_requests_total{reporter="source",namespace="models",pod="a",response_code="200"}', "0+300x40"),
        ('istio_requests_total{reporter="destination",namespace="models",pod="b"}', "0+150x40"),
        ('DCGM_FI_DEV_GPU_UTIL{namespace="gpu-operator",pod="dcgm-x",exported_namespace="models",exported_pod="a"}', "80x40"),
        ('DCGM_FI_DEV_GPU_UTIL{namespace="gpu-operator",pod="dcgm-x",exported_namespace="models",exported_pod="b"}', "10x40"),
        ('DCGM_FI_DEV_GPU_UTIL{namespace="models",pod="c",gpu="0"}', "60x40"),
        ('DCGM_FI_DEV_GPU_UTIL{namespace="models",pod="c",gpu="1"}', "40x40"),
        ('DCGM_FI_DEV_GPU_UTIL{gpu="2"}', "0x40"),
    ]  # fmt: skip
    expected = [
        (_query(rate, "models", "a|b"), {'{pod="a"}': 2, '{pod="b"}': 10}),
        (_query(exported, "models", "a|b"), {'{exported_pod="a"}': 80, '{exported_pod="b"}': 10}),
        (_query(plain, "models", "c"), {'{pod="c"}': 50}),
        # The exporter's own pod uses no GPU.
        (_query(plain, "gpu-operator", "dcgm-x"), {}),
        # What the adapter lists to find the pods.
        (f"count({rate['seriesQuery']})", {"{}": 3}),
        (f"count({exported['seriesQuery']})", {"{}": 2}),
        (f"count({plain['seriesQuery']})", {"{}": 2}),
    ]  # fmt: skip
    _promtool(tmp_path, series, expected)


def _query(rule: dict[str, Any], namespace: str, pods: str) -> str:
    """As the adapter fills it in for the pods of one HPA."""
    label = {each["resource"]: name for name, each in rule["resources"]["overrides"].items()}
    filled = {
        "Series": rule["name"]["matches"].strip("^$"),
        "LabelMatchers": f'{label["namespace"]}="{namespace}",{label["pod"]}=~"{pods}"',
        "GroupBy": label["pod"],
    }
    text = rule["metricsQuery"]
    for placeholder, value in filled.items():
        text = text.replace(f"<<.{placeholder}>>", value)
    assert "<<" not in text
    return text


def _promtool(folder: Path, series: list[tuple[str, str]], expected: list[tuple[str, dict[str, float]]]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        missing("promtool is missing: apt-get install prometheus")
    tests = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "8m",
                "exp_samples": [{"labels": k, "value": v} for k, v in samples.items()],
            }
            for query, samples in expected
        ],
    }
    (folder / "rules.yaml").write_text("groups: []\n", encoding="utf-8")
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [tests]}), encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_gpus_are_scraped_with_the_names_of_the_pods_that_use_them() -> None:
    documents = platform(EVERYTHING)
    monitor = pick(documents, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["gpu-operator"]}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    dropped = next(each["regex"] for each in endpoint["relabelings"] if each["action"] == "labeldrop")
    assert set(dropped.split("|")) == {"namespace", "pod", "container"}


# -- the message service


def test_models_reach_the_message_service_at_the_address_that_they_are_told() -> None:
    documents = platform(EVERYTHING)
    service = pick(documents, "Service", "message-dumper")
    told = yaml.safe_load(
        next(d for d in documents if d["metadata"]["name"] == "platform-values")["data"]["values.yaml"]
    )
    assert told["platform"]["messageDumper"] == (
        f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local/"
    )
    deployment = pick(documents, "Deployment", "message-dumper")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (service["spec"]["selector"], deployment["selector"]["matchLabels"]):
        assert labels.items() >= selector.items()
    (container,) = deployment["template"]["spec"]["containers"]
    names = {port["name"]: port["containerPort"] for port in container["ports"]}
    (port,) = service["spec"]["ports"]
    assert (port["port"], names[port["targetPort"]]) == (80, 8080)


def test_only_models_post_messages() -> None:
    documents = platform(EVERYTHING)
    spec = pick(documents, "AuthorizationPolicy", "message-dumper")["spec"]
    (post,) = spec["rules"]
    assert post["from"] == [{"source": {"namespaces": ["models", "team-b"]}}]
    assert post["to"] == [{"operation": {"methods": ["POST"], "ports": ["8080"]}}]
    assert pick(documents, "PeerAuthentication", "message-dumper")["spec"]["mtls"] == {"mode": "STRICT"}
    labels = pick(documents, "Deployment", "message-dumper")["spec"]["template"]["metadata"]["labels"]
    assert labels["sidecar.istio.io/inject"] == "true"
    assert labels.items() >= spec["selector"]["matchLabels"].items()


def test_metrics_of_the_message_service_come_through_its_sidecar() -> None:
    documents = platform(EVERYTHING)
    monitor = pick(documents, "PodMonitor", "message-dumper")["spec"]
    pod = pick(documents, "Deployment", "message-dumper")["spec"]["template"]
    assert pod["metadata"]["labels"].items() >= monitor["selector"]["matchLabels"].items()
    assert pod["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/metrics",
    }  # fmt: skip


def test_the_message_service_is_confined_and_finds_its_settings() -> None:
    from extproc.settings.dumper import load

    documents = platform(EVERYTHING)
    pod = pick(documents, "Deployment", "message-dumper")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    noun, verb, *options = container["args"]
    assert (noun, verb) == ("message-dumper", "serve")
    given = dict(option.removeprefix("--").split("=", 1) for option in options)
    settings = load({each["name"]: each["value"] for each in container["env"]}, given)
    assert (settings.listen, settings.sink, settings.s3_bucket) == ("0.0.0.0:8080", "s3", "model-messages")
    assert pod["terminationGracePeriodSeconds"] > settings.drain_s + 10


@pytest.mark.parametrize("sink", ["stdout", "s3", "mongo"])
def test_every_sink_can_be_chosen(sink: str) -> None:
    values = {"messageDumper": {"enabled": True, "sink": sink, "existingSecret": "dumper"}}
    (container,) = pick(platform(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert f"--sink={sink}" in container["args"]
    assert container["envFrom"] == [{"secretRef": {"name": "dumper"}}]
