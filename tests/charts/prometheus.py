"""A real Prometheus for tests (Debian's package `prometheus`)."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.missing import missing

READY_S = 60.0


class Prometheus:
    """One that runs; ended with its context."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of the API's answer; an error of Prometheus fails with its words."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30.0, trust_env=False)
        said = answer.json()
        assert said["status"] == "success", f"{parameters}: {said}"
        return said["data"]

    def series(self, query: str) -> list[dict[str, Any]]:
        """The instant vector: [{metric, value}]."""
        result: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return result

    def query(self, query: str) -> float | None:
        """What KEDA makes of a query: the one value; None where there is none. More than one it refuses."""
        found = self.series(query)
        assert len(found) < 2, f"{len(found)} series, KEDA takes one: {query}\n{found}"
        return float(found[0]["value"][1]) if found else None

    def until(self, query: str, *, timeout_s: float = READY_S) -> None:
        """Waits until the query has a result."""
        deadline = time.monotonic() + timeout_s
        while not self.series(query):
            assert time.monotonic() < deadline, f"nothing after {timeout_s} s: {query}"
            time.sleep(0.1)


def program(name: str = "prometheus") -> str:
    """Its path. Missing: a failure in CI, elsewhere a skip."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is missing: apt-get install prometheus")
    return found


@contextlib.contextmanager
def running(folder: Path, configuration: dict[str, Any]) -> Iterator[Prometheus]:
    """Starts one on a free port of 127.0.0.1, waits until it is ready, ends it."""
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "prometheus.log"
    command = [
        program(),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        _wait(prometheus, process, log)
        yield prometheus
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"prometheus ended:\n{log.read_text()}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{prometheus.url}/-/ready", timeout=1.0, trust_env=False).is_success:
                return
        time.sleep(0.05)
    pytest.fail(f"prometheus isn't ready after {READY_S} s:\n{log.read_text()}")
