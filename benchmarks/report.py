"""Write the results: JSON with everything, Markdown with the figures that a reader needs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from benchmarks import figures
from benchmarks.counts import Wire
from benchmarks.figures import Rounds, Samples, Spread, spread
from benchmarks.forms import RATE_KEY, Form, Phase
from benchmarks.histogram import percentile
from benchmarks.machine import Machine
from benchmarks.measuring import Sample
from benchmarks.ratios import Ratio, ratios
from benchmarks.variants import Kind, Variant

_NONE: Final = "-"
_HISTOGRAMS: Final = ("latency", "first_token", "way", "gap", "lag")
_PERCENTS: Final = (50, 90, 99)
_US_A_MS: Final = 1000
_DISTURBED_CORES: Final = 0.1


@dataclass(frozen=True, slots=True)
class Results:
    """Hold a whole run."""

    command: str
    form: Form
    machine: Machine
    variants: Sequence[Variant]
    left_out: dict[str, str]
    samples: Sequence[Sample]
    idle: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def foreign_cores(self) -> float:
        """Return the cores' worth of time that other programs took: the middle of all measurements."""
        found = spread(sample.foreign_cores for sample in self.samples if sample.load)
        return found.middle if found is not None else 0.0

    @property
    def disturbed(self) -> bool:
        """Return whether other programs took so much that the figures are worth little."""
        return self.foreign_cores > _DISTURBED_CORES

    @property
    def counts(self) -> bool:
        """Return whether every figure counts that the variants can have."""
        return not any(sample.problems and not sample.expected for sample in self.samples)


def as_json(results: Results) -> dict[str, Any]:
    """Return everything that was measured. Histograms become percentiles."""
    return {
        "command": results.command,
        "form": results.form.name,
        "machine": results.machine.as_json(),
        "foreign_cores": results.foreign_cores,
        "disturbed": results.disturbed,
        "variants": {each.name: each.title for each in results.variants},
        "not_run": results.left_out,
        "idle_cores": results.idle,
        "samples": [_sample_json(each) for each in results.samples],
        "ratios": [
            {"variant": each.variant, "what": each.what, "better": each.better, **each.spread.as_json()}
            for each in _all_ratios(results)
        ],
    }


def _sample_json(sample: Sample) -> dict[str, Any]:
    load = {name: value for name, value in sample.load.items() if name not in _HISTOGRAMS}
    times = {
        name: {f"p{percent}_us": percentile(sample.load[name], percent) for percent in _PERCENTS}
        for name in _HISTOGRAMS
        if sample.load.get(name)
    }
    return {
        "variant": sample.variant,
        "round": sample.round,
        "step": sample.step,
        "counts": not sample.problems,
        "problems": sample.problems,
        "load": load,
        "times": times,
        "used": {role: asdict(each) for role, each in sample.used.items()},
        "redis": asdict(sample.redis) if sample.redis is not None else None,
        "store_operations": sample.operations,
        "processor_messages": sample.messages,
        "foreign_cores": sample.foreign_cores,
    }


def markdown(results: Results) -> str:
    """Return the tables."""
    samples = Samples(results.samples)
    parts = [
        _about(results),
        "### Requests\n\n" + _table(_REQUESTS, results, samples),
        "### Streams\n\n" + _table(_STREAMS, results, samples),
        "### Stores\n\n" + _table(_STORES, _only_metering(results), samples),
        "### Ratios within a round: median (smallest to largest)\n\n" + _ratio_table(results),
    ]
    if columns := _rates(results.form):
        parts.insert(2, "### Latency at other rates\n\n" + _table(columns, results, samples))
    if notes := _notes(results, samples):
        parts.append("### Figures that do not count (in brackets), and variants that were not run\n\n" + notes)
    return "\n\n".join(parts) + "\n"


Column = tuple[str, Callable[[Samples, Variant], str]]


def _middle(step: str, value: Callable[[Sample], float | None], digits: int = 0, scale: float = 1.0) -> Any:
    def cell(samples: Samples, variant: Variant) -> str:
        return _number(spread(samples.rounds(variant.name, step, value).values()), digits, scale)

    return cell


def _number(found: Spread | None, digits: int, scale: float = 1.0) -> str:
    return _NONE if found is None else f"{found.middle / scale:,.{digits}f}"


def _pooled(step: str, histogram: str, percent: float) -> Any:
    def cell(samples: Samples, variant: Variant) -> str:
        value = figures.pooled_us(samples, variant.name, step, histogram, percent)
        return _NONE if value is None else f"{value / _US_A_MS:.2f}"

    return cell


def _server_role(variant: Variant) -> str:
    match variant.kind:
        case Kind.TALK:
            return "service"
        case Kind.LITELLM:
            return "proxy"
        case _:
            return "processor"


def _server_cpu(samples: Samples, variant: Variant) -> str:
    value = figures.cpu_us(_server_role(variant))
    return _number(spread(samples.rounds(variant.name, Phase.PEAK, value).values()), 0)


def _server_switches(samples: Samples, variant: Variant) -> str:
    value = figures.switches(_server_role(variant))
    return _number(spread(samples.rounds(variant.name, Phase.PEAK, value).values()), 1)


def _generators_cpu(samples: Samples, variant: Variant) -> str:
    def value(sample: Sample) -> float | None:
        parts = [figures.cpu_us(role)(sample) for role in ("load", "upstream")]
        return sum(part for part in parts if part is not None) or None

    return _number(spread(samples.rounds(variant.name, Phase.PEAK, value).values()), 0)


def _chunk_cpu(role: str | None) -> Any:
    def cell(samples: Samples, variant: Variant) -> str:
        found: Rounds = figures.chunk_cpu_us(samples, variant.name, role or _server_role(variant))
        return _number(spread(found.values()), 0)

    return cell


def _flood_cpu(samples: Samples, variant: Variant) -> str:
    found = figures.chunk_cpu_us(samples, variant.name, _server_role(variant), Phase.FLOOD)
    return _number(spread(found.values()), 0)


def _server_memory(samples: Samples, variant: Variant) -> str:
    value = figures.memory_kb(_server_role(variant))
    return _number(spread(samples.rounds(variant.name, Phase.OPEN, value).values()), 1)


def _wire(value: Callable[[Wire], float]) -> Callable[[Sample], float | None]:
    def of(sample: Sample) -> float | None:
        return value(sample.redis) / float(sample.load["ok"]) if sample.redis and sample.load["ok"] else None

    return of


def _operations(sample: Sample) -> float | None:
    if sample.operations is None or not sample.load["ok"]:
        return None
    return sample.operations / float(sample.load["ok"])


_REQUESTS: Final[list[Column]] = [
    ("requests/s", _middle(Phase.PEAK, figures.per_second)),
    ("Envoy, us", _middle(Phase.PEAK, figures.cpu_us("envoy"))),
    ("processor or service, us", _server_cpu),
    ("Redis, us", _middle(Phase.PEAK, figures.cpu_us("redis"))),
    ("p50 at 200/s, ms", _pooled(RATE_KEY, "latency", 50)),
    ("p90", _pooled(RATE_KEY, "latency", 90)),
    ("p99", _pooled(RATE_KEY, "latency", 99)),
    ("messages", _middle(Phase.PEAK, figures.messages_a_request, 1)),
    ("context switches of the processor", _server_switches),
    ("load and upstream, us", _generators_cpu),
]
_STREAMS: Final[list[Column]] = [
    ("first token, p50, ms", _pooled(Phase.STREAM, "first_token", 50)),
    ("p99", _pooled(Phase.STREAM, "first_token", 99)),
    ("a chunk's way, p50, ms", _pooled(Phase.STREAM, "way", 50)),
    ("p99 ", _pooled(Phase.STREAM, "way", 99)),
    ("between tokens (40 ms at the upstream), p99, ms", _pooled(Phase.STREAM, "gap", 99)),
    ("Envoy, us a chunk", _chunk_cpu("envoy")),
    ("processor, us a chunk", _chunk_cpu(None)),
    ("chunks/s in a flood", _middle(Phase.FLOOD, figures.chunks_per_second)),
    ("processor, us a chunk in a flood", _flood_cpu),
    ("messages a chunk in a flood", _middle(Phase.FLOOD, figures.messages_a_chunk, 2)),
    ("Envoy, KB an open stream", _middle(Phase.OPEN, figures.memory_kb("envoy"), 1)),
    ("processor, KB an open stream", _server_memory),
]
_STORES: Final[list[Column]] = [
    ("Redis, us", _middle(Phase.PEAK, figures.cpu_us("redis"))),
    ("of them in scripts", _middle(Phase.PEAK, _wire(lambda wire: wire.command_s * 1e6))),
    ("scripts", _middle(Phase.PEAK, _wire(lambda wire: wire.scripts), 2)),
    ("round trips (reads of a socket)", _middle(Phase.PEAK, _wire(lambda wire: wire.reads), 2)),
    ("round trips at 200/s", _middle(RATE_KEY, _wire(lambda wire: wire.reads), 2)),
    ("bytes to Redis", _middle(Phase.PEAK, _wire(lambda wire: wire.bytes_in))),
    ("bytes from Redis", _middle(Phase.PEAK, _wire(lambda wire: wire.bytes_out))),
    ("MongoDB operations", _middle(Phase.PEAK, _operations, 3)),
    ("MongoDB operations at 200/s", _middle(RATE_KEY, _operations, 3)),
]


def _table(columns: list[Column], results: Results, samples: Samples) -> str:
    lenient = Samples(samples.all, lenient=True)
    rows = [[_cell(cell, samples, lenient, variant) for _, cell in columns] for variant in results.variants]
    # A column in which nothing was measured says nothing.
    kept = [index for index in range(len(columns)) if any(row[index] != _NONE for row in rows)]
    lines = [
        "| variant | " + " | ".join(columns[index][0].strip() for index in kept) + " |",
        "|---|" + "---|" * len(kept),
    ]
    for variant, row in zip(results.variants, rows, strict=True):
        lines.append(f"| {variant.title} | " + " | ".join(row[index] for index in kept) + " |")
    return "\n".join(lines)


def _cell(cell: Any, samples: Samples, lenient: Samples, variant: Variant) -> str:
    """Return a figure; in brackets if it does not count."""
    value: str = cell(samples, variant)
    if value != _NONE:
        return value
    bracketed: str = cell(lenient, variant)
    return _NONE if bracketed == _NONE else f"({bracketed})"


def _only_metering(results: Results) -> Results:
    metering = [each for each in results.variants if each.kind in {Kind.TOKENWEIR, Kind.TALK, Kind.LITELLM}]
    return Results(results.command, results.form, results.machine, metering, {}, results.samples)


def _all_ratios(results: Results) -> list[Ratio]:
    samples = Samples(results.samples)
    own = [each.name for each in results.variants if each.kind is Kind.TOKENWEIR]
    return [found for name in own for found in ratios(samples, name)]


def _ratio_table(results: Results) -> str:
    """Return a row for each comparison, a column for each variant that the quick form has too."""
    columns = [each for each in results.variants if each.kind is Kind.TOKENWEIR and (each.quick or _few(results))]
    found = {(each.what, each.variant): each for each in _all_ratios(results)}
    rows = dict.fromkeys((each.what, each.better) for each in found.values())
    lines = [
        "| ratio | better | " + " | ".join(each.title for each in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for what, better in rows:
        cells = [_ratio(found.get((what, each.name))) for each in columns]
        lines.append(f"| {what} | {better} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _few(results: Results) -> bool:
    return not any(each.quick for each in results.variants if each.kind is Kind.TOKENWEIR)


def _ratio(found: Ratio | None) -> str:
    if found is None:
        return _NONE
    return f"{found.spread.middle:.2f} ({found.spread.low:.2f} to {found.spread.high:.2f})"


def _rates(form: Form) -> list[Column]:
    """Return the columns of latency at the rates that the first table does not have."""
    columns: list[Column] = []
    for step in form.steps:
        if step.phase is Phase.RATE and step.key != RATE_KEY:
            columns += [
                (f"p{percent} at {step.rate:g}/s, ms", _pooled(step.key, "latency", percent))
                for percent in (50, 99)
            ]
    return columns


def _about(results: Results) -> str:
    machine, form = results.machine, results.form
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    disturbed = " **Too much for figures that are compared with others.**" if results.disturbed else ""
    foreign = f" Other programs took {results.foreign_cores:.2f} of the cores meanwhile.{disturbed}"
    return (
        f"Made by `{results.command}`: the {form.name} form, {form.rounds} rounds, on {machine.cores} cores of "
        f"{machine.processor}, Linux {machine.kernel}, Python {machine.python}, {versions}.{foreign}"
    )


def _notes(results: Results, samples: Samples) -> str:
    by_problems: dict[tuple[str, ...], list[str]] = {}
    for variant in results.variants:
        if problems := samples.problems(variant.name):
            by_problems.setdefault(tuple(problems), []).append(variant.title)
    lines = [f"- {'; '.join(problems)}. {' | '.join(titles)}" for problems, titles in by_problems.items()]
    for why, names in by_reason(results.left_out).items():
        lines.append(f"- Not run ({why}): {', '.join(f'`{name}`' for name in names)}.")
    return "\n".join(lines)


def by_reason(left_out: dict[str, str]) -> dict[str, list[str]]:
    """Return the names of what was left out, by the reason."""
    found: dict[str, list[str]] = {}
    for name, why in left_out.items():
        found.setdefault(why, []).append(name)
    return found
