"""Turn samples into figures: each a median over the rounds, with the smallest and the largest."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.forms import RATE_KEY, Phase
from benchmarks.histogram import merged, percentile, total
from benchmarks.measuring import Sample

_MEASURED: Final = ("envoy", "processor", "service", "proxy", "redis")
"""Roles whose cost counts. The store is a sink that stands for MongoDB, except in the row that says so."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Hold the middle of some rounds' values, with the smallest and the largest."""

    low: float
    middle: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {"min": self.low, "median": self.middle, "max": self.high}


_PERCENT: Final = 100
Rounds = dict[int, float]
"""Map a round to its value."""


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread; None without values."""
    found = sorted(values)
    return Spread(found[0], statistics.median(found), found[-1]) if found else None


class Samples:
    """Find the samples of a run by variant and measurement.

    `lenient`: those too that do not count by the variant's design, if all answers were right.
    """

    def __init__(self, samples: Sequence[Sample], *, lenient: bool = False) -> None:
        self.all = samples
        self._lenient = lenient

    def of(self, variant: str, step: str) -> list[Sample]:
        """Return the samples of a measurement that count."""
        found = [s for s in self.all if (s.variant, s.step) == (variant, step) and s.load]
        return [s for s in found if not s.problems or (self._lenient and s.expected)]

    def problems(self, variant: str) -> list[str]:
        """Return why figures of a variant do not count, each reason once."""
        return list(
            dict.fromkeys(f"{s.step}: {why}" for s in self.all if s.variant == variant for why in s.problems)
        )

    def rounds(self, variant: str, step: str, value: Callable[[Sample], float | None]) -> Rounds:
        """Return a value of each round that counts."""
        found = {sample.round: value(sample) for sample in self.of(variant, step)}
        return {number: each for number, each in found.items() if each is not None}


def per_second(sample: Sample) -> float | None:
    """Return the answers a second."""
    return float(sample.load["ok"]) / float(sample.load["seconds"]) if sample.load["ok"] else None


def chunks_per_second(sample: Sample) -> float | None:
    """Return the chunks a second."""
    return float(sample.load["chunks"]) / float(sample.load["seconds"]) if sample.load["chunks"] else None


def cpu_us(role: str) -> Callable[[Sample], float | None]:
    """Return the processor time of a request, in microseconds, of one role."""

    def value(sample: Sample) -> float | None:
        if role not in sample.used or not sample.load["ok"]:
            return None
        return sample.used[role].cpu_s * 1e6 / float(sample.load["ok"])

    return value


def all_cpu_us(sample: Sample) -> float | None:
    """Return the processor time of a request, in microseconds, of all processes that count."""
    parts = [cpu_us(role)(sample) for role in _MEASURED]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def messages_a_request(sample: Sample) -> float | None:
    """Return the messages of a request between Envoy and the processor, both ways together."""
    return sample.messages / float(sample.load["ok"]) if sample.messages and sample.load["ok"] else None


def messages_a_chunk(sample: Sample) -> float | None:
    """Return the messages of a chunk of a stream, those of its request included."""
    return sample.messages / float(sample.load["chunks"]) if sample.messages and sample.load["chunks"] else None


def switches(role: str) -> Callable[[Sample], float | None]:
    """Return the context switches of a request."""

    def value(sample: Sample) -> float | None:
        if role not in sample.used or not sample.load["ok"]:
            return None
        return (sample.used[role].voluntary + sample.used[role].involuntary) / float(sample.load["ok"])

    return value


def memory_kb(role: str) -> Callable[[Sample], float | None]:
    """Return the memory of an open stream, in KB."""

    def value(sample: Sample) -> float | None:
        if role not in sample.used or not sample.load["open_most"]:
            return None
        return sample.used[role].rss_bytes / 1024 / float(sample.load["open_most"])

    return value


def time_us(histogram: str, percent: float) -> Callable[[Sample], float | None]:
    """Return a percentile of a round, in microseconds."""
    return lambda sample: percentile(sample.load[histogram], percent)


def pooled_us(samples: Samples, variant: str, step: str, histogram: str, percent: float) -> float | None:
    """Return a percentile over all rounds that count, in microseconds; None if too few values make it up."""
    values = merged(s.load[histogram] for s in samples.of(variant, step))
    return percentile(values, percent) if total(values) * (100 - percent) >= _PERCENT else None


def chunk_cpu_us(samples: Samples, variant: str, role: str, step: str = Phase.STREAM) -> Rounds:
    """Return the processor time of a chunk, in microseconds, by round.

    The streams' requests are taken out, each as costly as one at the fixed rate (or at most speed) of that round.
    """
    requests = samples.rounds(variant, RATE_KEY, cpu_us(role)) or samples.rounds(variant, Phase.PEAK, cpu_us(role))
    found: Rounds = {}
    for sample in samples.of(variant, step):
        request = requests.get(sample.round)
        if request is None or role not in sample.used or not sample.load["chunks"]:
            continue
        whole = sample.used[role].cpu_s * 1e6 - request * float(sample.load["ok"])
        found[sample.round] = max(whole, 0.0) / float(sample.load["chunks"])
    return found


def ratio(of: Rounds, to: Rounds) -> Spread | None:
    """Return the spread of the ratios of the rounds that both have."""
    return spread(of[number] / to[number] for number in of if to.get(number))


def above(of: Rounds, base: Rounds) -> Rounds:
    """Return the differences of the rounds that both have."""
    return {number: of[number] - base[number] for number in of if number in base}
