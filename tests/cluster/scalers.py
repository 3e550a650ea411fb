"""What scales Deployments on a cluster, and what KEDA should make of a ScaledObject."""

import contextlib
import http.server
import json
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tests.charts.helm import Document

from .cluster import Cluster, ClusterError

HPAS = "horizontalpodautoscalers.autoscaling"
SCALED = "scaledobjects.keda.sh"
# Kubernetes looks at an HPA every 15 s; more on a busy machine.
_SECONDS = 60


def conditions(document: Document) -> dict[str, tuple[str, str]]:
    """Return the conditions of an object: type to (status, reason)."""
    found = document.get("status", {}).get("conditions") or ()
    return {each["type"]: (each["status"], each.get("reason", "")) for each in found}


def ready(cluster: Cluster, name: str, namespace: str, *, answered: bool) -> Document:
    """Wait until KEDA calls a ScaledObject ready; return it. Raises `ClusterError` with what KEDA says of it instead.

    Where no Prometheus answers (`answered`), KEDA takes a ScaledObject, makes its HPA and calls it ready until it has
    asked: then it says TriggerError. That is accepted of one that has such a trigger, and nothing else.
    """
    end = time.monotonic() + _SECONDS
    while True:
        found = cluster.get(SCALED, name, namespace)
        status, told = found.get("status", {}), conditions(found).get("Ready", ("", ""))
        asks = any(each["type"] == "prometheus" for each in found["spec"]["triggers"])
        excused = told == ("False", "TriggerError") and asks and not answered
        if (told[0] == "True" or excused) and status.get("hpaName"):
            return found
        if time.monotonic() > end:
            raise ClusterError(f"{name} is not ready after {_SECONDS} s: {status.get('conditions')}")
        time.sleep(0.5)


def metrics(scaled: Document) -> list[Document]:
    """Return the metrics that the HPA of a ScaledObject should have, in no certain order."""
    return [_metric(number, trigger, scaled) for number, trigger in enumerate(scaled["spec"]["triggers"])]


def _metric(number: int, trigger: dict[str, Any], scaled: Document) -> Document:
    given = trigger["metadata"]
    if trigger["type"] in {"cpu", "memory"}:
        target = {"type": trigger["metricType"], "averageUtilization": int(given["value"])}
        resource = {"name": trigger["type"], "container": given["containerName"], "target": target}
        return {"type": "ContainerResource", "containerResource": resource}
    # The names under which KEDA's metrics server answers: the place of the trigger, and its type.
    named = {"scaledobject.keda.sh/name": scaled["metadata"]["name"]}
    metric = {"name": f"s{number}-{trigger['type']}", "selector": {"matchLabels": named}}
    target = {"type": trigger["metricType"], "averageValue": Decimal(given["threshold"])}
    return {"type": "External", "external": {"metric": metric, "target": target}}


def seen(metric: Document) -> Document:
    """Return a metric of an HPA with its quantities as numbers."""
    part = next(key for key in metric if key != "type")
    target = metric[part]["target"]
    if "averageValue" in target:
        target = {**target, "averageValue": quantity(target["averageValue"])}
    return {**metric, part: {**metric[part], "target": target}}


def quantity(text: str) -> Decimal:
    """Return the number that a quantity of Kubernetes stands for (`m` and `k` to `G`)."""
    powers = {"m": -3, "k": 3, "M": 6, "G": 9}
    return Decimal(text[:-1]).scaleb(powers[text[-1]]) if text[-1] in powers else Decimal(text)


def targets(cluster: Cluster, namespace: str) -> Counter[str]:
    """Return which Deployments are scaled by how many HPAs."""
    found = [each["spec"]["scaleTargetRef"] for each in cluster.all_of(HPAS, namespace)]
    return Counter(f"{each['kind']}/{each['name']}" for each in found)


def judged(cluster: Cluster, name: str, namespace: str) -> dict[str, tuple[str, str]]:
    """Wait until Kubernetes has looked at an HPA; return its conditions."""

    def told() -> dict[str, tuple[str, str]]:
        found = conditions(cluster.get(HPAS, name, namespace))
        return found if "ScalingActive" in found else {}

    return cluster.until(told, f"Kubernetes has not looked at the HPA {name}", _SECONDS)


def webhook(cluster: Cluster) -> bool:
    """Return whether KEDA's admission webhook judges ScaledObjects here."""
    found = cluster.all_of("validatingwebhookconfigurations")
    rules = [rule for each in found for hook in each.get("webhooks", ()) for rule in hook.get("rules", ())]
    return any("keda.sh" in each["apiGroups"] and "scaledobjects" in each["resources"] for each in rules)


class Prometheus:
    """Answers every query with one value, or with none; remembers what was asked. It listens at 127.0.0.1."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.value: str | None = "1"
        self.url = ""

    def _answer(self, path: str) -> bytes:
        question = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)
        self.asked |= set(question.get("query", ()))
        result = [{"metric": {}, "value": [time.time(), self.value]}] if self.value is not None else []
        data = {"resultType": "vector", "result": result}
        return json.dumps({"status": "success", "data": data}).encode()

    @contextlib.contextmanager
    def running(self) -> Iterator["Prometheus"]:
        """Answer until the block ends."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer._answer(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
