"""Count and measure on the path of a request, where the client library's counters take a lock for each step.

The library's registry collects from these as from its own. One thread adds; any thread may collect.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from time import time
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class _Series:
    """Hold the count of one combination of labels."""

    __slots__ = ("created", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.created = time()


class Counts(Collector):
    """Count by the values of `labels`. Keeps each series."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self.labels: Final = labels
        self._name = name
        self._meaning = meaning
        self._series: dict[tuple[str, ...], _Series] = {}
        # Found by values as they are given: a member of an enumeration is another key than its text.
        self._found: dict[tuple[str, ...], _Series] = {}
        registry.register(self)

    def add(self, values: tuple[str, ...], amount: float = 1) -> None:
        """Add an amount (0 or more) to the series with these values; 0 has it begin."""
        series = self._found.get(values)
        if series is None:
            series = self._series.setdefault(tuple(map(str, values)), _Series())
            self._found[values] = series
        series.value += amount

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Yield the name, so that the registry knows it."""
        yield self._family()

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield all series."""
        family = self._family()
        for values, series in self._series.copy().items():
            family.add_metric(values, series.value, created=series.created)
        yield family

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._meaning, labels=self.labels)


class Distribution(Collector):
    """Measure how values are distributed: how many are at most each bound, and their sum."""

    labels: Final = ()

    def __init__(self, name: str, meaning: str, bounds: Sequence[float], *, registry: CollectorRegistry) -> None:
        """Take the bounds in ascending order."""
        self._name = name
        self._meaning = meaning
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._created = time()
        registry.register(self)

    def observe(self, value: float) -> None:
        """Take in a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Yield the name, so that the registry knows it."""
        yield HistogramMetricFamily(self._name, self._meaning)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the distribution."""
        buckets, values = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts.copy(), strict=True):
            values += count
            buckets.append((bound, float(values)))
        family = HistogramMetricFamily(self._name, self._meaning)
        family.add_metric([], buckets, self._sum)
        family.add_sample(f"{self._name}_created", {}, self._created)
        yield family
