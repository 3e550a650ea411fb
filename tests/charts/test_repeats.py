"""What an API server refuses of values that repeat themselves, or that are no label, port or quantity."""

from typing import Any

import pytest
import yaml

from tests.sizes import sampled

from .helm import ChartError, Document, pick, render

GENERAL, MODEL, TOKENWEIR, PLATFORM = "kserve-general", "kserve-model", "tokenweir", "platform"
TRIAL = {"trial": {"enabled": True}}
ADMIN = {
    "admin": {"enabled": True},
    "redis": {"url": "redis://r:6379/0"},
    "mongo": {"existingSecret": {"name": "m"}},
}
GATEWAY_API = {"exposeModel": {"enabled": True, "api": "gateway-api"}}


def made(chart: str, *values: Any) -> list[Document]:
    place = {"release": "platform", "namespace": "infra"} if chart == PLATFORM else {}
    return render(chart, *values, **place)


def _predictor(**values: Any) -> dict[str, Any]:
    return {"inferenceservice": {"predictor": values}}


def _container(**values: Any) -> dict[str, Any]:
    return _predictor(containers=[{"image": "a:1", **values}])


VOLUME = {"name": "a", "emptyDir": {}}
MOUNT = {"name": "a", "mountPath": "/x"}
PORTS = [{"containerPort": 8000}, {"containerPort": 8000, "protocol": "TCP"}]
REFUSED: list[tuple[str, Any, str]] = [
    (MODEL, _predictor(volumes=[VOLUME, VOLUME]), "inferenceservice.predictor.volumes names a twice"),
    (MODEL, _predictor(volumeMounts=[MOUNT, MOUNT]), "predictor.volumeMounts names /x twice"),
    (
        MODEL,
        _predictor(volumeMounts=[MOUNT], containers=[{"image": "a:1", "volumeMounts": [MOUNT]}]),
        "containers[0].volumeMounts names /x twice",
    ),
    (MODEL, _predictor(model={"env": [{"name": "A"}, {"name": "A"}]}), "predictor.model.env names A twice"),
    (MODEL, _container(ports=PORTS), "containers[0].ports names 8000/TCP twice"),
    (
        MODEL,
        _container(ports=[{"containerPort": port, "name": "http"} for port in (1, 2)]),
        "ports names http twice",
    ),
    (
        MODEL,
        {"inferenceservice": {"transformer": {"containers": [{"image": "t:1", "ports": PORTS}]}}},
        "inferenceservice.transformer.containers[0].ports names 8000/TCP twice",
    ),
    *((MODEL, _container(ports=[{"containerPort": 1, "name": name}]), "ports/0/name") for name in ("HTTP", "a_b", "80")),
    (MODEL, _container(readinessProbe={"httpGet": {"port": "8000"}}), "readinessProbe/httpGet/port"),
    (MODEL, _predictor(model={"livenessProbe": {"tcpSocket": {}}}), "missing property 'port'"),
    *((MODEL, _predictor(idleTimeout=time), "idleTimeout") for time in ("0s", "0ms", "0.0001s")),
    (MODEL, [GATEWAY_API, {"exposeModel": {"paths": [f"/{n}" for n in range(65)]}}], "there may be 64 paths"),
    (MODEL, [GATEWAY_API, {"exposeModel": {"hosts": [f"h{n}.a" for n in range(17)]}}], "may have 16 hosts"),
    *((MODEL, [GATEWAY_API, {"exposeModel": {"paths": [path]}}], "exposeModel.paths") for path in ("/a/../b", "/a//b", "/a%2Fb")),
    (TOKENWEIR, [TRIAL, {"extraEnv": [{"name": "TOKENWEIR_CONFIG"}]}], "extraEnv: TOKENWEIR_CONFIG is there twice"),
    (TOKENWEIR, [ADMIN, {"extraEnv": [{"name": "TOKENWEIR_ADMIN__ADDRESS"}]}], "extraEnv: TOKENWEIR_ADMIN__ADDRESS"),
    (TOKENWEIR, [TRIAL, {"extraEnv": [{"name": "A"}, {"name": "A"}]}], "extraEnv: A is there twice"),
    (TOKENWEIR, [TRIAL, {"extraVolumes": [{"name": "config"}]}], "extraVolumes: config is there twice"),
    (
        TOKENWEIR,
        [TRIAL, {"extraVolumes": [VOLUME], "extraVolumeMounts": [{**MOUNT, "mountPath": "/etc/tokenweir/tokenweir.yaml"}]}],
        "extraVolumeMounts: /etc/tokenweir/tokenweir.yaml is there twice",
    ),
    (TOKENWEIR, [TRIAL, {"extraVolumeMounts": [MOUNT]}], 'there is no volume "a"'),
    (TOKENWEIR, [TRIAL, {"resources": {"requests": {"memory": "2 Gi"}}}], "resources/requests/memory"),
    (TOKENWEIR, [TRIAL, {"resources": {"request": {"memory": "2Gi"}}}], "'request' not allowed"),
    *((TOKENWEIR, [TRIAL, each], "does not match pattern") for each in (
        {"podLabels": {"a": "x y"}}, {"nodeSelector": {"a": "x y"}}, {"metrics": {"labels": {"a": "x y"}}},
        {"metrics": {"dashboardLabels": {"a": "x y"}}},
    )),
    (PLATFORM, {"namespaces": {"labels": {"a": "x y"}}}, "namespaces/labels/a"),
]  # fmt: skip


@pytest.mark.parametrize(("chart", "values", "message"), sampled(REFUSED, 14))
def test_what_the_server_would_refuse_is_refused_with_the_values_name(
    chart: str, values: Any, message: str
) -> None:
    with pytest.raises(ChartError) as caught:
        made(chart, *(values if isinstance(values, list) else [values]))
    assert message in " ".join(str(caught.value).split())


TAKEN = [
    (MODEL, _predictor(volumes=[VOLUME], volumeMounts=[MOUNT, {**MOUNT, "mountPath": "/y"}])),
    (MODEL, _container(ports=[{"containerPort": 53, "protocol": each} for each in ("TCP", "UDP")])),
    (
        MODEL,
        _container(ports=[{"containerPort": 1, "name": "8080-tcp"}, {"containerPort": 2, "name": "http-metrics"}]),
    ),
    (
        MODEL,
        _container(readinessProbe={"httpGet": {"port": "http"}}, livenessProbe={"exec": {"command": ["true"]}}),
    ),
    *((MODEL, _predictor(idleTimeout=time)) for time in ("", "1ms", "0.001s", "1.5h", "10s")),
    (TOKENWEIR, {**TRIAL, "extraEnv": [{"name": "A"}], "extraVolumes": [VOLUME], "extraVolumeMounts": [MOUNT]}),
    (TOKENWEIR, {**TRIAL, "resources": {"requests": {"cpu": 1}, "limits": {"cpu": 2, "memory": "2Gi"}}}),
]


@pytest.mark.parametrize(("chart", "values"), sampled(TAKEN, 6))
def test_what_only_looks_like_it_is_taken(chart: str, values: Any) -> None:
    assert made(chart, values)


def _pod(document: Document) -> dict[str, Any]:
    return dict(document["spec"]["template"]["spec"])


def test_a_secret_that_is_named_twice_is_named_once() -> None:
    twice = ["a", "b", "a"]
    once = [{"name": "a"}, {"name": "b"}]
    model = made(MODEL, _predictor(imagePullSecrets=twice, serviceAccountSecrets=twice))
    account = pick(model, "ServiceAccount")
    assert (account["secrets"], account["imagePullSecrets"]) == (once, once)
    assert pick(model, "InferenceService")["spec"]["predictor"]["imagePullSecrets"] == once
    processor = made(TOKENWEIR, ADMIN, {"image": {"pullSecrets": twice}})
    for name in ("qwen-tokenweir", "qwen-tokenweir-admin"):
        assert _pod(pick(processor, "Deployment", name))["imagePullSecrets"] == once
    dumper = made(PLATFORM, {"messageDumper": {"enabled": True, "imagePullSecrets": twice}})
    assert _pod(pick(dumper, "Deployment"))["imagePullSecrets"] == once


def test_a_processor_may_have_a_limit_of_cpu_and_amounts_may_be_numbers() -> None:
    values = yaml.safe_load("{resources: {requests: {cpu: 1}, limits: {cpu: 2}}}")
    (container,) = _pod(pick(made(TOKENWEIR, TRIAL, values), "Deployment", "qwen-tokenweir"))["containers"]
    assert container["resources"] == {
        "requests": {"cpu": 1, "memory": "256Mi"},
        "limits": {"cpu": 2, "memory": "1Gi"},
    }
