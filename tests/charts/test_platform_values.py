"""Whatever a value of charts/platform says: it stays a value."""

from typing import Any

import pytest

from tests.sizes import sampled

from .helm import pick
from .shapes import BENIGN, NASTY, made, made_once, shape, strings, taken

VALUES: dict[str, Any] = {
    "namespaces": {"names": ["models"], "labels": {BENIGN: "a"}},
    "mesh": {"telemetry": {"accessLog": "all", "metricsProvider": "a"}},
    "networkPolicy": {"enabled": True, "allowedNamespaces": ["infra"]},
    "resourceQuota": {BENIGN: "8"},
    "limitRange": [{"type": "Container", "default": {BENIGN: "8"}}],
    "gateway": {
        "create": True,
        "hosts": ["*.example.com"],
        "credentialName": "a",
        "monitor": True,
        "identityHeaders": ["x"],
        "jwt": {"claimHeaders": [{"header": "y", "claim": "a"}]},
    },
    "prometheusAdapter": {"enabled": True, "configMapName": "a"},
    "dcgm": {"enabled": True, "namespace": "a", "selector": {"app": "a", BENIGN: "a"}, "port": "a"},
    "messageDumper": {
        "enabled": True,
        "image": "a",
        "imagePullSecrets": ["a"],
        "settings": {"AWS_REGION": "a"},
        "existingSecret": "a",
        "serviceAccountAnnotations": {BENIGN: "a"},
        "monitor": True,
    },
    "platformValues": {"name": "a"},
    "platform": {
        "gateways": ["istio-ingress/models"],
        "gateway": {"namespace": "a", "selector": {BENIGN: "a"}, "principals": ["a"]},
        "exposures": {"b": {"domain": "a", "gateway": {"namespace": "b", "selector": {"istio": "a"}}}},
        "jwt": {"issuers": [{"issuer": "a", "jwks": "a", "audiences": ["a"]}]},
        "accessLogProvider": "a",
        "monitorLabels": {BENIGN: "a"},
    },
}
# Two names in one: see the test below. And a number.
PARTS = {("platform", "gateways", 0), ("resourceQuota", BENIGN)}
WANTED = {
    ("gateway", "credentialName"), ("platform", "gateway", "namespace"), ("platform", "accessLogProvider"),
    ("mesh", "telemetry", "metricsProvider"), ("messageDumper", "existingSecret"), ("dcgm", "port"),
}  # fmt: skip


@pytest.mark.parametrize("text", sampled(NASTY, 5))
def test_no_string_becomes_anything_but_a_string(text: str) -> None:
    documents, places = taken("platform", VALUES, set(strings(VALUES)) - PARTS, text)
    assert places >= WANTED
    assert shape(documents, text) == shape(made("platform", VALUES))


@pytest.mark.parametrize("text", ["true/123", "a/b\nevil: c", "a/{{ b }}"])
def test_a_gateways_name_is_two_strings(text: str) -> None:
    changed = {**VALUES, "platform": {**VALUES["platform"], "gateways": [text]}}
    assert shape(made("platform", changed)) == shape(made("platform", VALUES))


def test_a_namespace_and_a_release_may_be_called_by_a_number() -> None:
    assert shape(made("platform", VALUES, "1e3", "123")) == shape(made("platform", VALUES))


def test_a_label_that_the_chart_has_too_stands_there_once_and_as_it_was_given() -> None:
    level, name = "pod-security.kubernetes.io/enforce", "app.kubernetes.io/name"
    given = {level: "restricted", name: "mine", "istio-injection": "enabled"}
    documents = made_once(
        "platform",
        {
            **VALUES,
            "namespaces": {"labels": given},
            "platform": {**VALUES["platform"], "monitorLabels": {name: "mine"}},
        },
    )
    labels = pick(documents, "Namespace")["metadata"]["labels"]
    assert labels.items() >= given.items()
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"
    monitors = [each for each in documents if each["kind"].endswith("Monitor")]
    assert [each["metadata"]["labels"][name] for each in monitors] == ["mine"] * 4
