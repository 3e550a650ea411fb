from enum import StrEnum

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from extproc.observe.counting import Counts, Distribution


class Colour(StrEnum):
    RED = "red"


def lines(registry):
    """What a scraper reads, but for when a series began."""
    text = generate_latest(registry).decode()
    return [line for line in text.splitlines() if "_created" not in line or line.startswith("#")]


def test_counts_are_exported_as_those_of_the_library():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts("seen", "What was seen.", ("colour", "size"), registry=ours)
    counter = Counter("seen", "What was seen.", ("colour", "size"), registry=theirs)
    for colour, size, amount in (("red", "s", 1), (Colour.RED, "s", 2), ('"blue"\n', "", 0), ("red", "l", 3.5)):
        counts.add((colour, size), amount)
        counter.labels(colour, size).inc(amount)
    assert lines(ours) == lines(theirs)
    assert ours.get_sample_value("seen_total", {"colour": "red", "size": "s"}) == 3


def test_a_distribution_is_exported_as_that_of_the_library():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution("took", "How long it took.", (0.0005, 0.1, 2.0), registry=ours)
    histogram = Histogram("took", "How long it took.", buckets=(0.0005, 0.1, 2.0), registry=theirs)
    assert lines(ours) == lines(theirs)
    for value in (0.0001, 0.0005, 0.00051, 0.1, 2, 2.5, 7):
        distribution.observe(value)
        histogram.observe(value)
    assert lines(ours) == lines(theirs)


@pytest.mark.parametrize("metric", [Counts, Distribution])
def test_series_tell_when_they_began_and_no_name_is_given_twice(metric):
    registry = CollectorRegistry()
    made = metric("name", "Meaning.", (), registry=registry)
    if isinstance(made, Counts):
        made.add(())
    assert registry.get_sample_value("name_created") > 1e9
    with pytest.raises(ValueError, match="name"):
        metric("name", "Meaning.", (), registry=registry)
