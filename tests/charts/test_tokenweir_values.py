"""Whatever a value of charts/tokenweir says: it stays a value."""

import itertools

import pytest

from tests.sizes import sampled

from .shapes import BENIGN, NASTY, made, made_once, shape, strings, taken

LIMIT = {"scope": "client_ip", "window": "minute", "amount": 9, "unit": "requests"}
COMMON = {
    "image": {"repository": "a", "tag": "a", "pullSecrets": ["a"]},
    "clusterDomain": "a",
    "serviceAccount": {"create": True, "name": "a", "annotations": {BENIGN: "a"}},
    "priorityClassName": "a",
    "podLabels": {BENIGN: "a"},
    "podAnnotations": {BENIGN: "a"},
    "nodeSelector": {BENIGN: "a"},
    "tolerations": [{"key": "a"}],
    "extraEnv": [{"name": "A", "value": "a"}],
    "networkPolicy": {"metricsNamespace": "a", "extraEgress": [{"to": [{"podSelector": {"matchLabels": {BENIGN: "a"}}}]}]},
    "metrics": {"labels": {BENIGN: "a"}, "dashboardNamespace": "a", "dashboardLabels": {BENIGN: "a"}},
    "config": {
        "identity": {
            "service_account_header": "x", "tenant_header": "y", "service_account_claim": "a", "tenant_claim": "a",
            "jwt_namespace": "a", "jwt_payload_key": "a",
        },
        "models": [{"match": "a"}],
    },
}  # fmt: skip
SECRETS = {
    "redis": {"existingSecret": {"name": "a", "key": "a"}, "ca": {"secret": "a", "key": "a"}},
    "mongo": {"existingSecret": {"name": "a", "key": "a"}, "ca": {"configMap": "a", "key": "a"}},
    "webhook": {"existingSecret": {"name": "a", "key": "a", "urlKey": "a"}},
}
ROUTES = [
    {"name": "a", "key": "k", "limits": [LIMIT]},
    {"name": "b", "key": "k", "meter": "requests", "limits": [LIMIT]},
]
CASES = {
    "gateway": {
        **COMMON,
        **SECRETS,
        "gateway": {"namespace": "a", "selector": {BENIGN: "a"}, "principals": ["a"]},
        "filter": {"stripHeaders": ["z"], "stripHeaderPrefixes": ["z-"], "localReplies": True},
        "routes": ROUTES,
        "admin": {
            "enabled": True,
            "host": "a",
            "gateways": ["a"],
            "principals": ["b"],
            "serviceAccount": {"name": "a"},
            "from": [{"podSelector": {"matchLabels": {BENIGN: "a"}}}],
        },
    },
    "sidecar": {
        **COMMON,
        **SECRETS,
        "placement": "sidecar",
        "sidecar": {"rootNamespace": "a", "namespaces": ["a"]},
        "routes": [{**each, "namespace": "a", "selector": {"app": each["name"], BENIGN: "a"}} for each in ROUTES],
    },
    "trial": {
        "trial": {"enabled": True, "valkeyImage": "a", "mongoImage": "a", "storage": "1Gi", "storageClass": "a"},
    },
}
# Two routes of one name are refused, so each keeps its own.
NAMES = {("routes", place, "name") for place in (0, 1)}


@pytest.mark.parametrize(("case", "text"), sampled(itertools.product(CASES, NASTY), 10))
def test_no_string_becomes_anything_but_a_string(case, text):
    values = CASES[case]
    documents, places = taken("tokenweir", values, set(strings(values)) - NAMES, text)
    assert len(places) >= len(list(strings(values))) / 2
    assert shape(documents, text) == shape(made("tokenweir", values))


def test_a_namespace_and_a_release_may_be_called_by_a_number():
    wanted = shape(made("tokenweir", CASES["trial"]))
    assert shape(made("tokenweir", CASES["trial"], "1e3", "123")) == wanted
    assert shape(made("tokenweir", {**CASES["trial"], "fullnameOverride": "true"})) == wanted


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_said_twice(case):
    name = {"app.kubernetes.io/name": "mine"}
    metrics = {"scrape": "annotations", "labels": name, "dashboardLabels": name}
    annotations = {"checksum/config": "mine", "prometheus.io/port": "1", "proxy.istio.io/config": "{}"}
    made_once("tokenweir", {**CASES[case], "podLabels": name, "podAnnotations": annotations, "metrics": metrics})
