"""Who is answered by the form's server, how it ends, and what it keeps to itself."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from extproc.onboarding.ui.latest import Latest

from .served import ROOT, SlowHelm, serve, until

WRITTEN = "http11.receive_response_headers.started"
DRAFT = {"chart": "kserve-model", "release": "iris", "namespace": "models", "values": {}}


@pytest.fixture
def caller(blank):
    headers = {"authorization": f"Bearer {blank.key}"}
    with httpx.Client(base_url=blank.url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


def test_the_page_itself_is_answered_with_the_rights_that_it_needs_and_no_more(blank, caller):
    for path in ("/", "/main.js", "/base.css", "/mark.svg"):
        answer = caller.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
    assert blank.key not in caller.get("/").text


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/form"])
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1.evil.example:{port}", "0.0.0.0:{port}", ""]
)
def test_another_host_name_is_refused(blank, caller, host, path):
    answer = caller.get(path, headers={"host": host.format(port=blank.port)})
    assert answer.status_code in {400, 421}
    assert "sections" not in answer.text


def test_the_own_host_names_are_answered(blank, caller):
    for host in ("127.0.0.1", "localhost"):
        assert caller.get("/api/form", headers={"host": f"{host}:{blank.port}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "https://127.0.0.1:{port}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_page_is_refused(blank, caller, headers):
    headers = {name: value.format(port=blank.port) for name, value in headers.items()}
    assert caller.post("/api/preview", json=DRAFT, headers=headers).status_code == 403
    assert caller.get("/api/form", headers=headers).status_code == 403
    own = {"origin": blank.url.rstrip("/"), "sec-fetch-site": "same-origin"}
    assert caller.post("/api/preview", json=DRAFT, headers=own).status_code in {200, 409}


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", "Basic x", "Bearer é"])
def test_nothing_is_told_without_the_key(blank, key):
    headers = {"authorization": key.encode()} if key else {}
    for method, path in (
        ("GET", "/api/form"),
        ("POST", "/api/preview"),
        ("POST", "/api/file/values"),
        ("GET", "/api/x"),
    ):
        assert httpx.request(method, blank.url + path[1:], headers=headers, trust_env=False).status_code == 401
    # Not in the address either: it would be in logs and in a Referer.
    assert httpx.get(f"{blank.url}api/form?key={blank.key}", trust_env=False).status_code == 401


@pytest.fixture(scope="module")
def without_helm():
    served = serve(helm="/nowhere/helm")
    yield served
    served.end()


def test_each_start_has_a_key_of_its_own(blank, without_helm):
    assert len(blank.key) >= 32
    assert without_helm.key != blank.key


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/%2e%2e/server.py",
        "/static/index.html",
        "/..%2fserver.py",
        "//etc/passwd",
        "/api/../main.js",
        "/index.html",
    ],
)
def test_no_path_leads_to_another_file(blank, path):
    with socket.create_connection(("127.0.0.1", blank.port), timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{blank.port}\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in {b"401", b"404"}


@pytest.mark.parametrize("what", ["values.yaml", "../values", "%2e%2e", "passwd"])
def test_there_are_four_files_and_no_other(caller, what):
    assert caller.post(f"/api/file/{what}", json=DRAFT).status_code in {404, 422}


def test_other_methods_and_types_are_refused(caller):
    assert caller.put("/api/preview", json=DRAFT).status_code == 405
    assert caller.post("/api/preview", content=b"a=b", headers={"content-type": "text/plain"}).status_code == 415
    assert (
        caller.post("/api/preview", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    )
    assert caller.post("/api/preview", json={**DRAFT, "more": 1}).status_code == 400
    assert caller.post("/api/preview", json={**DRAFT, "chart": "../../etc"}).status_code == 422
    assert caller.get("/api/form", params={"chart": "tokenweir"}).status_code == 422


def test_a_body_has_bounds_said_or_not(caller):
    body = b" " * (1024 * 1024 + 1)
    json = {"content-type": "application/json"}
    assert caller.post("/api/preview", content=body, headers=json).status_code == 413
    chunks = (body[:65536] for _ in range(17))
    assert caller.post("/api/preview", content=chunks, headers=json).status_code == 413
    deep = b'{"chart":"kserve-model","release":"a","namespace":"a","values":{"a":' + b"[" * 400_000
    assert caller.post("/api/preview", content=deep, headers=json).status_code in {400, 422}


def test_names_are_no_options_of_helm(caller):
    for name in ("--debug", "-n", "a b", "A", "", "a" * 80, "../x"):
        found = caller.post("/api/preview", json={**DRAFT, "release": name}).json()
        assert found["problems"][0]["path"] == "$release"
        assert (found["rendered"], found["refused"]) == ("", "")  # helm was not even asked


def test_it_listens_on_the_loopback_address_alone(blank):
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    ours = [each for each in listening if int(each.partition(":")[2], 16) == blank.port]
    assert [each.partition(":")[0] for each in ours] == ["0100007F"]


def test_ctrl_c_ends_it_cleanly_and_it_says_nothing_of_the_values():
    served = serve()
    secret = "hunter2-in-the-values"
    headers = {"authorization": f"Bearer {served.key}"}
    draft = {**DRAFT, "values": {"env": secret, "nonsense": {"password": secret}}}
    assert (
        secret
        in httpx.post(f"{served.url}api/preview", json=draft, headers=headers, trust_env=False, timeout=30).text
    )
    code, said = served.end()
    assert code == 0
    assert secret not in said
    assert said.strip() == "It gives files and changes nothing. Ctrl-C ends it."


@pytest.mark.thorough
def test_a_taken_port_and_a_wrong_file_end_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AssertionError, match="can't listen on"):
            serve("--port", str(taken.getsockname()[1]))
    file = tmp_path / "values.yaml"
    file.write_text("kind: Pod\napiVersion: v1\n")
    with pytest.raises(AssertionError, match="neither values nor a Flux HelmRelease") as told:
        serve(str(file))
    assert "Traceback" not in str(told.value)


def test_who_types_fast_is_rendered_one_at_a_time(tmp_path, form):
    helm = SlowHelm(tmp_path)
    served = form(helm=helm.path)
    headers = {"authorization": f"Bearer {served.key}"}

    sent = []  # of each request that was written as a whole

    def ask(number):
        draft = {**DRAFT, "values": {"replicaCount": number}}
        trace = {"trace": lambda name, _: sent.append(number) if name == WRITTEN else None}
        return client.post("api/preview", json=draft, extensions=trace)

    with (
        httpx.Client(base_url=served.url, headers=headers, trust_env=False, timeout=60) as client,
        ThreadPoolExecutor(10) as pool,
    ):
        asked = [pool.submit(ask, 1)]
        until(lambda: helm.log() == ["begin"])
        asked += [pool.submit(ask, number) for number in range(2, 11)]
        until(lambda: len(sent) == 10)
        client.get("api/form").raise_for_status()  # the server has read what came before
        helm.go_on()
        answers = [each.result().status_code for each in asked]
    assert helm.log() == ["begin", "end"] * answers.count(200)
    assert answers.count(409) >= 5
    assert answers.count(200) + answers.count(409) == 10


async def test_of_those_that_wait_the_newest_is_done():
    latest, first_may_end = Latest(), threading.Event()
    first = asyncio.create_task(latest.run(first_may_end.wait))
    await asyncio.sleep(0)
    more = [asyncio.create_task(latest.run(lambda number=number: number)) for number in range(5)]
    await asyncio.sleep(0)
    first_may_end.set()
    assert await asyncio.gather(first, *more) == [True, None, None, None, None, 4]


def test_without_helm_the_values_and_the_checks_are_still_there(without_helm):
    served = without_helm
    headers = {"authorization": f"Bearer {served.key}"}
    draft = {**DRAFT, "values": {"replicaCount": 0}}
    found = httpx.post(f"{served.url}api/preview", json=draft, headers=headers, trust_env=False, timeout=30).json()
    assert found["helm_missing"]
    assert "helm" in found["refused"]
    assert "replicaCount: 0" in found["values_text"]
    assert "replicaCount" in [each["path"] for each in found["problems"]]


def test_the_page_asks_for_nothing_from_elsewhere():
    static = ROOT / "extproc" / "onboarding" / "ui" / "static"
    for each in static.iterdir():
        text = each.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, each.name
        assert "https:" not in text, each.name
        assert "innerHTML" not in text, each.name
    assert "<style" not in (static / "index.html").read_text()
    assert " style=" not in (static / "index.html").read_text()
