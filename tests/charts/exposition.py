"""A server of metrics with the label shapes of what a cluster has: Istio's sidecars, the DCGM exporter, vLLM.

One path is one scrape target. Samples carry timestamps, one each 15 s from three minutes before the first scrape until
now, and each scrape has them all: one is enough for a rate over minutes. Counters grow with that time, so the rate is
known.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Labels = Mapping[str, str]
HISTORY_S = 180.0
STEP_S = 15.0
# The targets whose newest samples are those of now.
SAMPLED = 'timestamp({__name__=~"istio_requests_total|DCGM_FI_DEV_GPU_UTIL|vllm:num_requests_running"})'
CAUGHT_UP = f"max by (job) ({SAMPLED}) > time() - {STEP_S + 1}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One series: a value at the start, and so much more each second."""

    name: str
    labels: Labels
    value: float = 0.0
    per_second: float = 0.0

    def line(self, age_s: float, at_ms: int) -> str:
        inside = ",".join(f'{key}="{value}"' for key, value in self.labels.items())
        return f"{self.name}{{{inside}}} {self.value + self.per_second * age_s} {at_ms}"


@dataclass(frozen=True, slots=True)
class Target:
    """What is scraped at one address, and what the scraper itself says of it."""

    labels: Labels
    samples: tuple[Sample, ...]


def istio(
    workload: str,
    per_second: float,
    *,
    namespace: str = "models",
    reporter: str = "destination",
    code: str = "200",
    caller: str = "istio-ingressgateway",
) -> Sample:
    """`istio_requests_total` as a sidecar of `workload` (or, as source, one of its caller's) reports it."""
    labels = {
        "reporter": reporter,
        "source_workload": caller,
        "source_canonical_service": caller,
        "source_canonical_revision": "latest",
        "source_workload_namespace": "istio-system",
        "source_principal": f"spiffe://cluster.local/ns/istio-system/sa/{caller}",
        "source_app": caller,
        "source_version": "unknown",
        "source_cluster": "Kubernetes",
        "destination_workload": workload,
        "destination_workload_namespace": namespace,
        "destination_principal": f"spiffe://cluster.local/ns/{namespace}/sa/{workload}",
        "destination_app": f"isvc.{workload}",
        "destination_version": "unknown",
        "destination_service": f"{workload}.{namespace}.svc.cluster.local",
        "destination_canonical_service": f"isvc.{workload}",
        "destination_canonical_revision": "latest",
        "destination_service_name": workload,
        "destination_service_namespace": namespace,
        "destination_cluster": "Kubernetes",
        "request_protocol": "http",
        "response_code": code,
        "grpc_response_status": "",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls" if reporter == "destination" else "unknown",
    }
    return Sample("istio_requests_total", labels, 1000.0, per_second)


def gpu(pod: str, value: float, *, number: int = 0, namespace: str = "models") -> Sample:
    """`DCGM_FI_DEV_GPU_UTIL` as gpu-operator's exporter reports it; an idle GPU has empty labels."""
    labels = {
        "gpu": str(number),
        "UUID": f"GPU-{pod or 'idle'}-{number}",
        "pci_bus_id": "00000000:00:1E.0",
        "device": f"nvidia{number}",
        "modelName": "NVIDIA A10G",
        "Hostname": "ip-10-0-0-1.ec2.internal",
        "DCGM_FI_DRIVER_VERSION": "580.95.05",
        "container": "kserve-container" if pod else "",
        "namespace": namespace if pod else "",
        "pod": pod,
    }
    return Sample("DCGM_FI_DEV_GPU_UTIL", labels, value)


def vllm(waiting: float, *, model: str = "qwen", engine: int = 0) -> tuple[Sample, ...]:
    """Queue metrics of one engine of vLLM: it says nothing of pod and namespace."""
    labels = {"engine": str(engine), "model_name": model}
    reasons = (("capacity", waiting), ("deferred", 0.0))
    return (
        Sample("vllm:num_requests_running", labels, 8.0),
        Sample("vllm:num_requests_waiting", labels, waiting),
        *(
            Sample("vllm:num_requests_waiting_by_reason", {**labels, "reason": reason}, count)
            for reason, count in reasons
        ),
        Sample("vllm:kv_cache_usage_perc", labels, 0.5),
    )


def pod_target(pod: str, *samples: Sample, namespace: str = "models") -> Target:
    """A pod as a PodMonitor or the scrape annotations find it."""
    return Target({"namespace": namespace, "pod": pod}, samples)


@contextmanager
def exposed(targets: Mapping[str, Target]) -> Iterator[str]:
    """Serves each target's samples at /<its key>; gives host:port."""
    began: dict[str, float] = {}  # each target's first scrape

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, now = self.path.strip("/"), time.time()
            target = targets.get(name)
            start = began.setdefault(name, now) - HISTORY_S
            ages = [step * STEP_S for step in range(int((now - start) // STEP_S) + 1)]
            samples = target.samples if target else ()
            lines = [sample.line(age_s, int((start + age_s) * 1000)) for sample in samples for age_s in ages]
            body = "\n".join([*lines, ""]).encode()
            self.send_response(200 if target else 404)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are no news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
