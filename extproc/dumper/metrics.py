"""Count and measure in a registry of the dumper's own. No model, namespace or id is a label."""

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
            "tokenweir_dumper_messages", "Messages by outcome.", ("outcome",), registry=self.registry
        )
        self._failures = Counter(
            "tokenweir_dumper_write_failures", "Failed attempts to write.", registry=self.registry
        )
        self._seconds = Histogram(
            "tokenweir_dumper_write_seconds", "Time of one write.", buckets=_SECONDS, registry=self.registry
        )
        waiting = Gauge(
            "tokenweir_dumper_queue_messages", "Messages that wait to be written.", registry=self.registry
        )
        waiting.set_function(lambda: len(holding))
        used = Gauge(
            "tokenweir_dumper_queue_used_bytes",
            "Bytes used by messages that wait or are being received.",
            registry=self.registry,
        )
        used.set_function(lambda: holding.used_bytes)
        # Present from the start: to Prometheus the step from absent to 1 is no increase.
        for outcome in (Written.STORED, Written.REPEATED, Written.REFUSED, *REFUSALS, LOST):
            self._messages.labels(outcome)

    def counted(self, outcome: str, messages: int = 1) -> None:
        self._messages.labels(outcome).inc(messages)

    def write_failed(self) -> None:
        self._failures.inc()

    def wrote(self, seconds: float) -> None:
        self._seconds.observe(seconds)
