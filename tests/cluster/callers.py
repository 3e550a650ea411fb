"""Callers of a release inside the mesh, while it changes: who serves them at each moment, and whether ever nobody does."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.charts.helm import Document, tool

from .cluster import Cluster


class Callers:
    """Callers of `<release>-predictor`: without a sidecar they go where the Service leads, with one where the routes lead."""

    def __init__(self, cluster: Cluster, release: str, namespace: str) -> None:
        self._cluster = cluster
        self._service = f"{release}-predictor"
        self._route = f"{release}-mesh"
        self._namespace = namespace
        self._slices: dict[str, tuple[str, int]] = {}
        self.gaps: list[str] = []
        self.changes = 0

    def ready(self, service: str) -> int:
        """Return the number of endpoints of a Service that are ready."""
        return sum(ready for owner, ready in self._slices.values() if owner == service)

    @contextmanager
    def calling(self) -> Iterator["Callers"]:
        """Look at every change of endpoints as long as the block runs. The release must be served at its beginning."""
        command = ("get", "endpointslices", "-n", self._namespace, "-w", "--output-watch-events", "-o", "json")
        watch = subprocess.Popen(
            [tool("kubectl"), f"--kubeconfig={self._cluster.kubeconfig}", *command],
            stdout=subprocess.PIPE,
            text=True,
        )
        thread = threading.Thread(target=self._look, args=(watch,), daemon=True)
        thread.start()
        try:
            self._cluster.until(self._served, f"nobody serves {self._service}")
            self.gaps.clear()
            yield self
            time.sleep(1)  # what the last step of the block changes
        finally:
            watch.terminate()
            watch.wait()
            thread.join(10)

    def _look(self, watch: "subprocess.Popen[str]") -> None:
        assert watch.stdout
        with watch.stdout as lines:
            for line in lines:
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        found: Document = event["object"]
        name = found["metadata"]["name"]
        if event["type"] == "DELETED":
            self._slices.pop(name, None)
        else:
            owner = found["metadata"].get("labels", {}).get("kubernetes.io/service-name", "")
            ready = sum(bool(each.get("conditions", {}).get("ready")) for each in found.get("endpoints") or ())
            self._slices[name] = (owner, ready)
        self.changes += 1
        if not self._served():
            self.gaps.append(f"{self._service} or one of {self._routed()} leads to nobody: {self._slices}")

    def _served(self) -> bool:
        return all(self.ready(service) for service in {self._service, *self._routed()})

    def _routed(self) -> set[str]:
        """Return the Services that sidecars send requests to. Asked anew: a route may have changed just before."""
        (route,) = self._cluster.get("virtualservice", self._route, self._namespace)["spec"]["http"]
        return {each["destination"]["host"] for each in route["route"] if each["weight"]}
