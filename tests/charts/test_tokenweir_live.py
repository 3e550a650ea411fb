"""What the chart makes, running: its settings in a processor, its patches in an Envoy, its queries on a Prometheus."""

import contextlib
import http.client
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import httpx
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.core.request.buffers import MAX_BODY_BYTES
from extproc.local.ports import HOST, free_ports
from tests.missing import missing

from .helm import pick, render
from .patched_envoy import TYPE, bootstrap, cluster, connection_manager, patched
from .test_tokenweir_filters import PROCESSOR, binary
from .test_tokenweir_monitoring import groups, queries, recordings, rules

CHAT = "/v1/chat/completions"
VALUES = {
    "redis": {"url": "memory://"},
    "mongo": {"url": "memory://"},
    "replicaCount": 1,
    "config": {
        "identity": {"service_account_header": "oc_sa"},
        "limits": {
            "default": {
                "sa_limit": 5000,
                "limits": [
                    {"scope": "tenant", "window": "day", "amount": 5, "mode": "shadow", "shadows": "reserve"},
                    {"scope": "tenant", "window": "week", "amount": 1_000_000},
                ],
            }
        },
        "server": {"drain_s": 1},
        "metrics": {"limits_interval_s": 1},
        "models": [{"match": "m", "prices": {"input": 1, "cached_input": 1, "output": 1}}],
    },
    "filter": {"localReplies": True},
    "routes": [
        {
            "name": "llm",
            "limits": [{"scope": "service_account", "window": "day", "amount": 3, "unit": "requests"}],
        },
        {
            "name": "search",
            "meter": "requests",
            "limits": [{"scope": "client_ip", "window": "day", "amount": 2}],
        },
    ],
}


class Upstream(BaseHTTPRequestHandler):
    """A model server. One called silent reports no usage; all say which headers they got."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self._answer(json.loads(self._body() or "{}"))

    def _body(self):
        """A body that a filter has looked at comes chunked."""
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def do_GET(self):
        self._answer({})

    def _answer(self, body):
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "model": body.get("model"), "choices": [choice]}
        if body.get("model") != "silent":
            answer["usage"] = usage
        content = json.dumps(answer | {"headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Live:
    def __init__(self, folder):
        names = ("envoy", "admin", "grpc", "metrics", "prometheus", "upstream")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.folder = folder
        self.documents = render("tokenweir", VALUES, release="tokenweir", namespace="tw")
        self.issuer = _issuer()

    def url(self, name):
        return f"http://{HOST}:{self.ports[name]}"

    def ask(self, route, account=None, model="m", path=CHAT, headers=None, **more):
        """A request to the route, with the token of `account`."""
        sent = {"host": f"{route}.test", "x-forwarded-for": "10.9.8.7"} | (headers or {})
        if account is not None:
            sent["authorization"] = f"Bearer {self.issuer.issue(account, tenant='team')}"
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20} | more
        return httpx.post(self.url("envoy") + path, json=body, headers=sent, trust_env=False, timeout=30)

    def query(self, text):
        answer = httpx.get(self.url("prometheus") + "/api/v1/query", params={"query": text}, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["result"]


def _issuer():
    from extproc.local.issuer import TokenIssuer  # only with the extra `local`

    return TokenIssuer()


def _envoy_config(live):
    """Three routes as a gateway of Istio has them, behind its check of tokens; two of them metered."""
    hosts = [
        {
            "name": name,
            "domains": [f"{name}.test"],
            "routes": [{"name": name, "match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
        }
        for name in ("llm", "search", "free")
    ]
    manager = connection_manager()
    manager["typed_config"]["route_config"]["virtual_hosts"] = hosts
    provider = {
        "issuer": live.issuer.issuer,
        "local_jwks": {"inline_string": live.issuer.jwks_json()},
        "payload_in_metadata": "payload",
    }
    allowed = {"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}}
    checked = {
        "@type": f"{TYPE}.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"p": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": allowed}],
    }
    manager["typed_config"]["http_filters"].insert(
        0, {"name": "envoy.filters.http.jwt_authn", "typed_config": checked}
    )
    filters = [each for each in live.documents if each["kind"] == "EnvoyFilter"]
    clusters = [
        cluster("upstream", live.ports["upstream"]),
        cluster(PROCESSOR, live.ports["grpc"], http2=True),
    ]
    ports = {"port": live.ports["envoy"], "admin_port": live.ports["admin"]}
    return bootstrap(patched(manager, filters, "GATEWAY"), *clusters, **ports)


@contextlib.contextmanager
def _running(live, name, *command, environment=None):
    log = live.folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=live.folder)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


def _answers(url, seconds=20):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        assert time.monotonic() < end, f"{url} does not answer"
        time.sleep(0.05)


def _processor(live):
    (live.folder / "tokenweir.yaml").write_text(
        pick(live.documents, "ConfigMap", "tokenweir")["data"]["tokenweir.yaml"]
    )
    (container,) = pick(live.documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    named = {each["name"]: each["value"].replace("/etc/tokenweir", str(live.folder)) for each in container["env"]}
    variables = named | {
        "TOKENWEIR_SERVER__ADDRESS": f"{HOST}:{live.ports['grpc']}",
        "TOKENWEIR_METRICS__ADDRESS": f"{HOST}:{live.ports['metrics']}",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWEIR_")}
    return _running(
        live, "processor", sys.executable, "-m", "extproc", *container["args"], environment=kept | variables
    )


def _prometheus(live):
    if (found := shutil.which("prometheus")) is None:
        message = "prometheus is missing: apt-get install prometheus"
        missing(message)
    target = {"targets": [f"{HOST}:{live.ports['metrics']}"], "labels": {"namespace": "tw", "pod": "tokenweir-0"}}
    scraped = {"job_name": "tokenweir", "scrape_interval": "250ms", "scrape_timeout": "250ms"}
    config = {
        "scrape_configs": [scraped | {"static_configs": [target]}],
        "rule_files": [str(live.folder / "rules.yaml")],
    }
    (live.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    every = [{**group, "interval": "1s"} for group in groups()]
    (live.folder / "rules.yaml").write_text(yaml.safe_dump({"groups": every}))
    options = {
        "config.file": live.folder / "prometheus.yaml",
        "storage.tsdb.path": live.folder / "data",
        "web.listen-address": f"{HOST}:{live.ports['prometheus']}",
        "log.level": "error",
    }
    return _running(live, "prometheus", found, *(f"--{name}={value}" for name, value in options.items()))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    live = Live(tmp_path_factory.mktemp("live"))
    (live.folder / "envoy.json").write_text(json.dumps(_envoy_config(live)))
    server = ThreadingHTTPServer((HOST, live.ports["upstream"]), Upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    command = [binary(), "-c", str(live.folder / "envoy.json"), "--log-level", "error", "--disable-hot-restart"]
    try:
        with _processor(live), _prometheus(live), _running(live, "envoy", *command, "--concurrency", "1"):
            _answers(live.url("admin") + "/ready")
            _answers(live.url("metrics"))
            _answers(live.url("prometheus") + "/-/ready")
            _serves(live)
            yield live
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _serves(live):
    """As the readiness probe asks, with the service that it names."""
    (container,) = pick(live.documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    asked = [container[name]["grpc"].get("service", "") for name in ("readinessProbe", "livenessProbe")]
    with grpc.insecure_channel(f"{HOST}:{live.ports['grpc']}") as channel:
        for service in asked:
            request = health_pb2.HealthCheckRequest(service=service)
            told = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20, wait_for_ready=True)
            assert told.status == health_pb2.HealthCheckResponse.SERVING


# ---- filters -------------------------------------------------------------------------------------------------


def test_a_metered_route_is_counted_and_its_own_limit_binds(live):
    answers = [live.ask("llm", "ann") for _ in range(4)]
    assert [each.status_code for each in answers] == [200, 200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "5000"
    assert answers[0].json()["usage"]["total_tokens"] == 7
    assert "error" in answers[3].json()
    assert live.ask("llm", "bob").status_code == 200, "another service account has a limit of its own"


def test_another_route_is_not_looked_at(live):
    for account in ("carl", None):
        answer = live.ask("free", account)
        assert answer.status_code == 200
        assert not any("ratelimit" in name for name in answer.headers)
    assert live.ask("free", path="/anything").status_code == 200


def test_a_tenants_token_limit_binds_on_a_metered_route(live):
    answer = live.ask("llm", "greedy", max_tokens=9000)
    assert answer.status_code == 429
    assert answer.json()["error"]["message"].startswith("Usage over limit")


def test_requests_to_what_is_no_model_are_limited_too(live):
    answers = [live.ask("search", "dora", path="/find") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[2].json()["error"]


def test_a_client_can_not_say_who_it_is(live):
    """The trusted header is the mesh's. Without a token, a client that sends it is as anonymous as before."""
    seen = live.ask("free", headers={"oc_sa": "admin", "OC_SA": "root"}).json()["headers"]
    assert "oc_sa" not in {name.lower() for name in seen}
    counted = [live.ask("llm", headers={"oc_sa": f"user-{i}"}).status_code for i in range(4)]
    assert counted == [200, 200, 200, 429], "each name had a limit of its own"


def test_a_body_that_is_too_large_is_refused_in_openais_words(live):
    answer = live.ask("llm", "eve", padding="x" * MAX_BODY_BYTES)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(("route", "status"), [("llm", 426), ("free", 200)])
def test_a_websocket_is_refused_where_tokens_are_metered_and_nowhere_else(live, route, status):
    """Its body has no end: the buffer would wait for it for good."""
    client = http.client.HTTPConnection(HOST, live.ports["envoy"], timeout=30)
    headers = {"host": f"{route}.test", "upgrade": "websocket", "connection": "upgrade"}
    client.request("GET", CHAT, headers=headers | {"sec-websocket-version": "13", "sec-websocket-key": "a"})
    assert client.getresponse().status == status
    client.close()


def test_nothing_passes_where_the_processor_is_not_known(live, tmp_path):
    """No Service, or hidden from the gateway: then Envoy has no such cluster."""
    (port, admin) = free_ports(2)
    text = json.dumps(_envoy_config(live)).replace(f'"{PROCESSOR}"', '"outbound|50051||gone"', 2)
    config = json.loads(text)
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    config["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = port
    config["static_resources"]["clusters"].pop()
    (tmp_path / "envoy.json").write_text(json.dumps(config))
    command = [binary(), "-c", str(tmp_path / "envoy.json"), "--log-level", "critical", "--disable-hot-restart"]
    with _running(live, "alone", *command, "--concurrency", "1"):
        _answers(f"http://{HOST}:{admin}/ready")
        for route, code in (("llm", 503), ("search", 503), ("free", 200)):
            answer = httpx.post(
                f"http://{HOST}:{port}{CHAT}", json={}, headers={"host": f"{route}.test"}, trust_env=False
            )
            assert answer.status_code == code, route


# ---- metrics -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy(live):
    """Everything that the dashboards show has happened, before and after a scrape."""
    used = 0
    for i in range(2):
        live.ask("llm", f"user-{i}-a")
        live.ask("llm", f"user-{i}-b", model="silent")
        live.ask("llm", f"user-{i}-c", max_tokens=9000)
        live.ask("llm", f"user-{i}-d", messages="none")
        live.ask("llm", f"user-{i}-e", max_tokens=4700, messages=[{"role": "user", "content": "x" * 400}])
        _scraped(live)
        used = _shown_use(live, used)
    return live


def _shown_use(live, before):
    """Waits until the processor shows more use of the tenant's limit than before."""
    end = time.monotonic() + 60
    while not (found := live.query(f'tokenweir_limit_used{{scope="tenant"}} > {before}')):
        assert time.monotonic() < end, live.query("tokenweir_limit_used")
        time.sleep(0.1)
    _scraped(live)
    return float(found[0]["value"][1])


def _scraped(live):
    """Until what has happened by now is in Prometheus, twice."""

    def scrapes():
        found = live.query("count_over_time(tokenweir_ready[5m])")
        return int(found[0]["value"][1]) if found else 0

    wanted, end = scrapes() + 2, time.monotonic() + 60
    while scrapes() < wanted:
        assert time.monotonic() < end, "nothing is scraped"
        time.sleep(0.1)


def test_every_query_of_the_dashboards_gives_data(busy):
    for title, query in queries():
        found = busy.query(query)
        assert found, f"{title}: no data from {query}"
        assert any(math.isfinite(float(each["value"][1])) for each in found), f"{title}: {found}"


# Models that report no usage, requests that are denied, and a limit that is used up: all of that happened here.
EARNED = {
    *("TokenweirUsageEstimated", "TokenweirUsageMissing", "TokenweirMostRequestsDenied", "TokenweirTenantDenied"),
    *("TokenweirNearLimit", "TokenweirLimitRunsOut"),
}


def test_the_alerts_are_evaluated_and_none_fires_for_nothing(busy):
    answer = httpx.get(busy.url("prometheus") + "/api/v1/rules", trust_env=False).json()
    named = {each["name"] for group in answer["data"]["groups"] for each in group["rules"]}
    assert named == {rule["alert"] for rule in rules()} | set(recordings())
    for rule in rules():
        found = busy.query(rule["expr"])
        if rule["alert"] not in EARNED:
            assert found == [], rule["alert"]


def test_what_the_dashboard_counts_is_what_happened(busy):
    def count(query):
        return sum(float(each["value"][1]) for each in busy.query(query))

    assert count('sum(tokenweir_reservations_closed_total{outcome="estimated"})') >= 2
    assert count('sum(tokenweir_rejections_total{reason="malformed"})') >= 2
    assert count("sum(tokenweir_ready)") == 1
