"""Merge histograms of times, and read percentiles from them."""

from collections.abc import Iterable, Sequence

Histogram = Sequence[tuple[float, int]]
"""List pairs of microseconds and count, sorted by time."""


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return one histogram of all values."""
    counts: dict[float, int] = {}
    for histogram in histograms:
        for value, count in histogram:
            counts[value] = counts.get(value, 0) + count
    return sorted(counts.items())


def total(histogram: Histogram) -> int:
    """Return the number of values."""
    return sum(count for _, count in histogram)


def percentile(histogram: Histogram, percent: float) -> float | None:
    """Return the smallest value that at least `percent` of the values do not exceed; None without values."""
    wanted = total(histogram) * percent / 100
    seen = 0
    for value, count in histogram:
        seen += count
        if seen >= wanted:
            return value
    return None
