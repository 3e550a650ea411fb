"""The dumper's metrics, on a registry of its own. No model, namespace or id is a label."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from extproc.dumper.holding import Holding
from extproc.dumper.sinks import Written

_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)
REFUSALS: Final = ("invalid", "too_large", "full")
LOST: Final = "lost"


class DumperMetrics:
    def __init__(self, holding: Holding) -> None:
        self.registry = CollectorRegistry()
        self._messages = Counter(
            "tokenweir_dumper_messages", "Messages by what became of them.", ("outcome",), registry=self.registry
        )
        self._failures = Counter(
            "tokenweir_dumper_write_failures", "Tries to write that failed.", registry=self.registry
        )
        self._seconds = Histogram(
            "tokenweir_dumper_write_seconds", "Time of one write.", buckets=_SECONDS, registry=self.registry
        )
        waiting = Gauge("tokenweir_dumper_queue_messages", "Messages that wait.", registry=self.registry)
        waiting.set_function(lambda: len(holding))
        used = Gauge("tokenweir_dumper_queue_used_bytes", "Memory that is taken.", registry=self.registry)
        used.set_function(lambda: holding.used_bytes)
        # There from the start: the step from nothing to 1 is no increase to Prometheus.
        for outcome in (Written.STORED, Written.REPEATED, Written.REFUSED, *REFUSALS, LOST):
            self._messages.labels(outcome)

    def counted(self, outcome: str, messages: int = 1) -> None:
        self._messages.labels(outcome).inc(messages)

    def write_failed(self) -> None:
        self._failures.inc()

    def wrote(self, seconds: float) -> None:
        self._seconds.observe(seconds)
