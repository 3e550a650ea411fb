"""Draw the figures as SVG: bars only, with words that a reader can select."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from benchmarks import figures
from benchmarks.figures import Samples, spread
from benchmarks.forms import RATE_KEY, Phase
from benchmarks.report import Results
from benchmarks.variants import Variant

_LABEL: Final = 400
_BARS: Final = 420
_NUMBER: Final = 90
_ROW: Final = 22
_HEAD: Final = 54
_GAP: Final = 26
_COLOURS: Final = {"envoy": "#4a6fa5", "server": "#c8553d", "redis": "#8a9a5b"}
_STYLE: Final = (
    "text{font:13px sans-serif;fill:#222}.title{font-weight:bold}.small{font-size:11px;fill:#555}"
    "@media (prefers-color-scheme:dark){text{fill:#eee}.small{fill:#aaa}}"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """Describe one bar: its label, its parts in order, and its number as text."""

    label: str
    parts: Sequence[tuple[str, float]]
    number: str

    @property
    def length(self) -> float:
        return sum(value for _, value in self.parts)


@dataclass(frozen=True, slots=True)
class Panel:
    """Describe one group of bars on a common scale."""

    title: str
    legend: Sequence[tuple[str, str]]
    bars: Sequence[Bar]


def picture(results: Results) -> str:
    """Return the figures that count as SVG."""
    samples = Samples(results.samples)
    panels = [_speed(results, samples), _cost(results, samples), _latency(results, samples)]
    return svg([panel for panel in panels if panel.bars])


def svg(panels: Sequence[Panel]) -> str:
    """Return panels, one below the other."""
    width = _LABEL + _BARS + _NUMBER
    parts: list[str] = []
    top = 0
    for panel in panels:
        parts.append(_panel(panel, top))
        top += _HEAD + _ROW * len(panel.bars) + _GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}"'
    return f'{head} role="img">\n<style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"


def _panel(panel: Panel, top: int) -> str:
    longest = max(bar.length for bar in panel.bars) or 1.0
    lines = [f'<text class="title" x="8" y="{top + 22}">{escape(panel.title)}</text>']
    x = 8
    for colour, name in panel.legend:
        lines.append(f'<rect x="{x}" y="{top + 32}" width="10" height="10" fill="{colour}"/>')
        lines.append(f'<text class="small" x="{x + 14}" y="{top + 41}">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    for index, bar in enumerate(panel.bars):
        y = top + _HEAD + _ROW * index
        lines.append(f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>')
        left = float(_LABEL)
        for colour, value in bar.parts:
            length = value / longest * _BARS
            lines.append(
                f'<rect x="{left:.1f}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 6}" fill="{colour}"/>'
            )
            left += length
        lines.append(f'<text x="{left + 6:.1f}" y="{y + 14}">{escape(bar.number)}</text>')
    return "\n".join(lines)


def _speed(results: Results, samples: Samples) -> Panel:
    bars = []
    for variant in results.variants:
        found = spread(samples.rounds(variant.name, Phase.PEAK, figures.per_second).values())
        if found is not None:
            bars.append(Bar(variant.title, [(_COLOURS["envoy"], found.middle)], f"{found.middle:,.0f}"))
    return Panel("Requests a second, 64 connections (more is better)", (), bars)


def _cost(results: Results, samples: Samples) -> Panel:
    bars = []
    for variant in results.variants:
        parts = _cpu_parts(samples, variant)
        if parts:
            bars.append(Bar(variant.title, parts, f"{sum(value for _, value in parts):,.0f}"))
    legend = [
        (_COLOURS["envoy"], "Envoy"),
        (_COLOURS["server"], "processor, service or proxy"),
        (_COLOURS["redis"], "Redis"),
    ]
    return Panel("Processor time of a request, microseconds (less is better)", legend, bars)


def _cpu_parts(samples: Samples, variant: Variant) -> list[tuple[str, float]]:
    roles = {"envoy": "envoy", "processor": "server", "service": "server", "proxy": "server", "redis": "redis"}
    parts = []
    for role, colour in roles.items():
        found = spread(samples.rounds(variant.name, Phase.PEAK, figures.cpu_us(role)).values())
        if found is not None:
            parts.append((_COLOURS[colour], found.middle))
    return parts


def _latency(results: Results, samples: Samples) -> Panel:
    bars = []
    for variant in results.variants:
        middle = figures.pooled_us(samples, variant.name, RATE_KEY, "latency", 50)
        high = figures.pooled_us(samples, variant.name, RATE_KEY, "latency", 99)
        if middle is not None and high is not None:
            parts = [(_COLOURS["envoy"], middle), (_COLOURS["redis"], max(high - middle, 0.0))]
            bars.append(Bar(variant.title, parts, f"{middle / 1000:.2f} / {high / 1000:.2f}"))
    legend = [(_COLOURS["envoy"], "p50"), (_COLOURS["redis"], "p99")]
    return Panel("Latency at 200 requests a second, milliseconds, p50 / p99 (less is better)", legend, bars)
