"""Compare Tokenweir with what stands beside it, round by round."""

from dataclasses import dataclass
from typing import Final

from benchmarks.figures import (
    Samples,
    Spread,
    above,
    all_cpu_us,
    chunk_cpu_us,
    cpu_us,
    per_second,
    ratio,
    time_us,
)
from benchmarks.forms import RATE_KEY, Phase

_TALK: Final = "talk-redis"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Hold one comparison. `better`: "less" or "more" is."""

    variant: str
    what: str
    spread: Spread
    better: str


def ratios(samples: Samples, variant: str) -> list[Ratio]:
    """Return the comparisons of a variant that the run allows."""
    found = [
        ("processor CPU a request, to a no-op on grpc.aio", _cpu(samples, variant, "noop-grpc"), "less"),
        (
            "processor CPU a request, to a no-op on the own transport",
            _cpu(samples, variant, "noop-native"),
            "less",
        ),
        ("requests/s, to Envoy alone", _speed(samples, variant, "envoy"), "more"),
        ("requests/s, to the talk's design on Redis", _speed(samples, variant, _TALK), "more"),
        ("requests/s, to the talk's design in memory", _speed(samples, variant, "talk-memory"), "more"),
        ("requests/s, to a no-op on grpc.aio", _speed(samples, variant, "noop-grpc"), "more"),
        ("requests/s, to a no-op on the own transport", _speed(samples, variant, "noop-native"), "more"),
        ("p50 at 200/s above Envoy alone, to the talk's design on Redis", _added(samples, variant), "less"),
        ("chunk, processor CPU, to a no-op on grpc.aio", _chunk(samples, variant, "noop-grpc"), "less"),
        ("chunk, processor CPU, to a no-op on the own transport", _chunk(samples, variant, "noop-native"), "less"),
        ("requests a core, processor alone, to LiteLLM's proxy", _per_core(samples, variant), "more"),
        ("requests a core, all processes of both sides, to LiteLLM", _per_core_all(samples, variant), "more"),
    ]
    return [Ratio(variant, what, each, better) for what, each, better in found if each is not None]


def _cpu(samples: Samples, variant: str, other: str) -> Spread | None:
    use = cpu_us("processor")
    return ratio(samples.rounds(variant, Phase.PEAK, use), samples.rounds(other, Phase.PEAK, use))


def _speed(samples: Samples, variant: str, other: str) -> Spread | None:
    return ratio(samples.rounds(variant, Phase.PEAK, per_second), samples.rounds(other, Phase.PEAK, per_second))


def _added(samples: Samples, variant: str) -> Spread | None:
    middle = time_us("latency", 50)
    alone = samples.rounds("envoy", RATE_KEY, middle)
    own = above(samples.rounds(variant, RATE_KEY, middle), alone)
    return ratio(own, above(samples.rounds(_TALK, RATE_KEY, middle), alone))


def _chunk(samples: Samples, variant: str, other: str) -> Spread | None:
    return ratio(chunk_cpu_us(samples, variant, "processor"), chunk_cpu_us(samples, other, "processor"))


def _per_core(samples: Samples, variant: str) -> Spread | None:
    own = samples.rounds(variant, Phase.PEAK, cpu_us("processor"))
    return ratio(samples.rounds("litellm", Phase.PEAK, cpu_us("proxy")), own)


def _per_core_all(samples: Samples, variant: str) -> Spread | None:
    return ratio(
        samples.rounds("litellm", Phase.PEAK, all_cpu_us), samples.rounds(variant, Phase.PEAK, all_cpu_us)
    )
