"""`tokenweir admin`: tokens, the OpenAPI document, and the API as a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest

from extproc.admin.api.openapi import openapi
from extproc.admin.api.operations import OPERATIONS
from extproc.local.ports import free_ports
from tests.security.certificates import Authority, dns

pytestmark = pytest.mark.system


def issued(run, *args):
    done = run("admin", "token", "issue", "--json", *args)
    assert done.code == 0, done.err
    return done.json


def test_the_document_is_printed_without_any_store(run):
    done = run("admin", "openapi")
    assert done.code == 0
    assert done.json == openapi(OPERATIONS)


def test_a_token_is_printed_once_listed_without_it_and_revoked(run, database):
    done = run("admin", "token", "issue", "--name", "ci", "--role", "viewer", "--expires", "12h", "--note", "why")
    assert done.code == 0
    text = done.out.strip()
    assert text.startswith("twa_")
    assert "shown this once" in done.err
    (stored,) = database.admin_tokens.find()
    assert text not in str(stored)
    listed = run("admin", "token", "list")
    assert stored["_id"] in listed.out
    assert text not in listed.out
    assert stored["digest"] not in listed.out
    assert run("admin", "token", "revoke", stored["_id"]).out == f"Revoked the token '{stored['_id']}'.\n"
    assert run("admin", "token", "revoke", stored["_id"]).code == 3
    (row,) = run("admin", "token", "list", "--json").json["rows"]
    assert row["revoked_at"] is not None
    actions = [(each["action"], each.get("note")) for each in database.admin_audit.find().sort("at", 1)]
    assert actions == [("token.issue", "why"), ("token.revoke", None)]


def test_tenants_of_a_token_may_be_repeated_or_a_list(run, database):
    token = issued(run, "--name", "a", "--role", "team-lead", "--tenants", "b, a", "--tenant", "c")
    assert token["tenants"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--role", "team-lead"), "name its 'tenants'"),
        (("--role", "admin", "--tenant", "a"), "is for all tenants"),
        (("--role", "viewer", "--expires", "soon"), "must be a time such as 90d"),
        (("--role", "viewer", "--expires", "400d"), "1 minute to 366 days"),
        (("--role", "boss"), "'boss' is not one of"),
    ],
)
def test_a_token_that_can_not_be_is_refused(run, database, args, said):
    done = run("admin", "token", "issue", "--name", "x", *args)
    assert done.code == 2
    assert said in done.err
    assert database.admin_tokens.count_documents({}) == 0


@contextmanager
def serving(tmp_path, scheme="http", **variables):
    """The API as a process; gives its URL and the process."""
    (port,) = free_ports(1)
    env = os.environ | {"TOKENWEIR_ADMIN__ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-P", "-m", "extproc", "admin", "serve"]
    log = (tmp_path / "log").open("w+b")
    process = subprocess.Popen(argv, env=env | variables, cwd=tmp_path, stderr=log, stdout=log)
    url = f"{scheme}://127.0.0.1:{port}"
    try:
        for _ in range(400):
            try:
                if httpx.get(f"{url}/readyz", verify=False, trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
        yield url, process, tmp_path / "log"
    finally:
        process.kill()
        process.wait()
        log.close()


def test_the_five_minutes_of_the_documentation_and_a_proper_end(run, database, tmp_path):
    token = issued(run, "--name", "me", "--role", "admin")["token"]
    with serving(tmp_path) as (url, process, log):
        client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, trust_env=False)
        made = client.put("/v1/tenants/tenant01", json={"sa_limit": 12000}, headers={"if-none-match": "*"})
        assert (made.status_code, made.headers["etag"]) == (200, '"1"')
        limit = {"scope": "tenant", "window": "month", "amount": 5_000_000}
        assert (
            client.post("/v1/tenants/tenant01/limits", json=limit, headers={"if-match": '"1"'}).status_code == 200
        )
        why = client.get("/v1/tenants/tenant01/explain", params={"service_account": "a"}).json()
        assert [(each["scope"], each["used"]) for each in why["limits"]] == [("service_account", 0), ("tenant", 0)]
        top_up = {"amount": 50, "until": f"{time.gmtime().tm_year + 1}-01-01T00:00:00Z"}
        headers = {"if-match": "*", "idempotency-key": "order-7"}
        for _ in range(2):
            answer = client.post("/v1/tenants/tenant01/top-ups", json=top_up, headers=headers)
            assert answer.status_code == 200, answer.text
        assert len(client.get("/v1/tenants/tenant01/top-ups").json()["rows"]) == 1
        assert client.get("/v1/usage/top").json()["rows"] == []
        proposal = {"tenants": [{"tenant_id": "tenant01", "sa_limit": 1}]}
        assert client.post("/v1/simulate", json=proposal).json()["denied"] == 0
        actions = [
            each["action"] for each in client.get("/v1/audit", params={"tenant": "tenant01"}).json()["rows"]
        ]
        assert actions == ["tenant.top_up", "limit.add", "tenant.apply"]
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert token not in log.read_text()
        assert all(json.loads(line) for line in log.read_text().splitlines())
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)


def test_ten_megabytes_are_refused_quickly_and_a_client_that_only_writes_gets_the_answer(run, database, tmp_path):
    token = issued(run, "--name", "me", "--role", "admin")["token"]
    with serving(tmp_path) as (url, _, _):
        headers = {"authorization": f"Bearer {token}", "if-none-match": "*", "content-type": "application/json"}
        began = time.monotonic()
        answer = httpx.put(f"{url}/v1/tenants/a", content=b" " * 10_000_000, headers=headers, trust_env=False)
        assert answer.status_code == 413
        assert time.monotonic() - began < 5
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            head = f"PUT /v1/tenants/a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
            raw.sendall(f"{head}content-type: application/json\r\ncontent-length: 10000000\r\n\r\n".encode())
            raw.settimeout(20)  # nothing of the body is ever sent
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_with_a_certificate_it_speaks_tls_only(run, database, tmp_path):
    certificate, key = Authority().sign(dns("localhost")).written(tmp_path, "admin")
    files = {"TOKENWEIR_ADMIN__TLS__CERTIFICATE_FILE": certificate, "TOKENWEIR_ADMIN__TLS__KEY_FILE": key}
    (port,) = free_ports(1)
    files["TOKENWEIR_ADMIN__METRICS_ADDRESS"] = f"127.0.0.1:{port}"
    with serving(tmp_path, "https", **files) as (url, _, _):
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        ends = re.search(r'_expiry_timestamp_seconds{setting="admin.tls.certificate_file"} (\S+)', metrics)
        assert abs(float(ends[1]) - time.time() - 86400) < 3600
        assert httpx.get(f"{url}/healthz", verify=False, trust_env=False).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url.replace('https', 'http')}/healthz", trust_env=False)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TOKENWEIR_ADMIN__ADDRESS": "0.0.0.0:0"}, "admin.address: 0.0.0.0:0 is open to others, in plaintext"),
        ({"TOKENWEIR_ADMIN__TLS__KEY_FILE": "/nowhere"}, "set certificate_file and key_file"),
        (
            {"TOKENWEIR_ADMIN__TLS__KEY_FILE": "/nowhere", "TOKENWEIR_ADMIN__TLS__CERTIFICATE_FILE": "/nowhere"},
            "no certificate with its key",
        ),
        ({"TOKENWEIR_ADMIN__JWT__ISSUER": "https://x"}, "set audience and jwks_file or jwks_url too"),
        ({"TOKENWEIR_ADMIN__JWT__ALGORITHMS": "[HS256]"}, "admin.jwt.algorithms"),
        ({"TOKENWEIR_ADMIN__JWT__ALGORITHMS": "[none]"}, "admin.jwt.algorithms"),
        ({"TOKENWEIR_MONGO__URL": "memory://"}, "mongo.url: memory:// is inside the serving process"),
    ],
)
def test_it_does_not_start_on_what_would_be_open_or_can_not_work(run, database, environment, variables, said):
    environment.setenv("TOKENWEIR_ADMIN__ADDRESS", "127.0.0.1:0")
    for name, value in variables.items():
        environment.setenv(name, value)
    done = run("admin", "serve")
    assert done.code in {1, 2}
    assert said in done.err


def test_an_address_of_metrics_that_is_taken_is_named(run, database, environment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment.setenv("TOKENWEIR_ADMIN__ADDRESS", "127.0.0.1:0")
        environment.setenv("TOKENWEIR_ADMIN__METRICS_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        done = run("admin", "serve")
    assert done.code == 1
    assert "admin.metrics_address: can't listen on" in done.err


def test_an_address_that_is_taken_is_named(run, database, environment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment.setenv("TOKENWEIR_ADMIN__ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        done = run("admin", "serve")
    assert done.code == 1
    assert "admin.address: can't listen on" in done.err
