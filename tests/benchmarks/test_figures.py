import random

import pytest

from benchmarks.accounting import Used
from benchmarks.counts import Wire
from benchmarks.figures import (
    Samples,
    above,
    all_cpu_us,
    chunk_cpu_us,
    cpu_us,
    memory_kb,
    per_second,
    pooled_us,
    ratio,
    spread,
)
from benchmarks.forms import RATE_KEY, Phase
from benchmarks.histogram import merged, percentile, total
from benchmarks.measuring import Sample
from benchmarks.ratios import ratios


def sample(variant="v", number=0, step=Phase.PEAK, *, ok=100, chunks=0, cpu=0.0, problems=(), **further):
    load = {"ok": ok, "seconds": 1.0, "chunks": chunks, "open_most": ok, "latency": further.pop("latency", [])}
    used = {"processor": Used(cpu, 0, 0, 0)}
    return Sample(variant, number, step, load, used, problems=list(problems), **further)


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed():
    histogram = [(1.0, 50), (2.0, 49), (100.0, 1)]
    assert [percentile(histogram, p) for p in (0, 50, 50.1, 99, 99.5, 100)] == [1, 1, 2, 2, 100, 100]
    assert percentile([], 50) is None


def test_percentiles_are_those_of_the_sorted_values():
    values = sorted(random.Random(1).choices(range(1000), k=2000))
    histogram = merged([[(float(value), 1) for value in values]])
    for percent in (1, 10, 50, 90, 99):
        assert percentile(histogram, percent) == values[-(-len(values) * percent // 100) - 1]


def test_histograms_of_rounds_become_one():
    assert merged([[(1.0, 2), (3.0, 1)], [(2.0, 5), (3.0, 4)]]) == [(1.0, 2), (2.0, 5), (3.0, 5)]
    assert total([(1.0, 2), (3.0, 1)]) == 3


def test_a_spread_has_the_smallest_the_middle_and_the_largest_round():
    assert spread([3, 1, 2]).as_json() == {"min": 1, "median": 2, "max": 3}
    assert spread([]) is None


def test_ratios_are_taken_round_by_round():
    # Both double in the second round: the machine was twice as fast, and nothing else.
    assert ratio({0: 100.0, 1: 200.0}, {0: 50.0, 1: 100.0}).as_json() == {"min": 2, "median": 2, "max": 2}
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert above({0: 5.0, 1: 7.0}, {0: 2.0}) == {0: 3.0}


def test_cpu_a_request_is_that_of_the_role():
    found = sample(ok=200, cpu=0.1)
    found.used["redis"] = Used(0.02, 0, 0, 0)
    assert cpu_us("processor")(found) == pytest.approx(500)
    assert all_cpu_us(found) == pytest.approx(600)
    assert cpu_us("envoy")(found) is None


def test_the_sink_is_no_cost():
    found = sample(ok=100, cpu=0.1)
    found.used["store"] = Used(5.0, 0, 0, 0)
    assert all_cpu_us(found) == pytest.approx(1000)


def test_cpu_a_chunk_is_without_that_of_the_requests():
    requests = sample(step=RATE_KEY, ok=100, cpu=0.1)  # 1 ms each
    streams = sample(
        step=Phase.STREAM, ok=10, chunks=1000, cpu=0.11
    )  # 10 ms for 10 requests, 100 ms for 1000 chunks
    assert chunk_cpu_us(Samples([requests, streams]), "v", "processor") == {0: pytest.approx(100)}


def test_memory_is_that_of_one_open_stream():
    found = sample(ok=100)
    found.used["processor"] = Used(0, 100 * 32 * 1024, 0, 0)
    assert memory_kb("processor")(found) == 32


def test_what_has_a_problem_does_not_count():
    good, bad = sample(number=0, ok=100), sample(number=1, ok=999, problems=["3 answers were wrong"])
    samples = Samples([good, bad])
    assert samples.rounds("v", Phase.PEAK, per_second) == {0: 100}
    assert samples.problems("v") == ["peak: 3 answers were wrong"]
    assert ratios(Samples([bad, sample("envoy", 1)]), "v") == []


def test_what_a_design_can_not_have_is_seen_only_by_the_lenient():
    known = sample(problems=["no tokens of a stream"], expected=True)
    assert Samples([known]).of("v", Phase.PEAK) == []
    assert Samples([known], lenient=True).of("v", Phase.PEAK) == [known]
    wrong = sample(problems=["3 answers were wrong"])
    assert Samples([wrong], lenient=True).of("v", Phase.PEAK) == []


def test_percentiles_of_a_run_are_those_of_all_its_rounds():
    rounds = [sample(number=n, step=RATE_KEY, latency=[(float(n), 10)]) for n in range(3)]
    assert pooled_us(Samples(rounds), "v", RATE_KEY, "latency", 50) == 1
    # One of a hundred needs a hundred values.
    assert pooled_us(Samples(rounds), "v", RATE_KEY, "latency", 99) is None


def test_added_latency_is_compared_above_envoy_alone():
    samples = [
        sample("envoy", step=RATE_KEY, latency=[(500.0, 1)]),
        sample("talk-redis", step=RATE_KEY, latency=[(1000.0, 1)]),
        sample("v", step=RATE_KEY, latency=[(1500.0, 1)]),
    ]
    (found,) = [each for each in ratios(Samples(samples), "v") if each.what.startswith("p50")]
    assert found.spread.middle == 2


def test_redis_counts_are_differences():
    before, after = Wire(1, 2, 3, 4, 0.5), Wire(11, 22, 33, 44, 1.5)
    assert after.since(before) == Wire(10, 20, 30, 40, 1.0)
