"""Draw what all kinds of panels consist of: places, colours, figures as people read them, and texts."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from answers import Json

COLOURS: Final = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0"),
    *("#37872d", "#fade2a", "#447ebc", "#c15c17", "#890f02", "#0a437c", "#6d1f62", "#584477"),
)
NAMED: Final = {"green": "#73bf69", "red": "#f2495c", "orange": "#ff9830"}
TEXT, DIM, PANEL, BACK, LINE = "#ccccdc", "#8e8e9c", "#181b1f", "#111217", "#2f3338"
FONT: Final = "Inter, Helvetica, Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Box:
    x: float
    y: float
    width: float
    height: float


def placing(
    begin: float, end: float, low: float, high: float, box: Box
) -> Callable[[float, float], tuple[float, float]]:
    def place(at: float, value: float) -> tuple[float, float]:
        x = box.x + box.width * (at - begin) / ((end - begin) or 1.0)
        return x, box.y + box.height * (1 - (value - low) / ((high - low) or 1.0))

    return place


def round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def colour_of(defaults: Json, value: float) -> str | None:
    steps = defaults.get("thresholds", {}).get("steps", ())
    fitting = [each["color"] for each in steps if each["value"] is None or value >= each["value"]]
    return NAMED[fitting[-1]] if fitting else None


def cell(value: Any, unit: str) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else form(value, unit)


def form(value: float, unit: str) -> str:
    """Return a figure as people read it in its unit."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %" if abs(value) < 9.995 else f"{value * 100:.0f} %"
    if unit == "s":
        return _duration(value)
    for size, letter in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")) if unit == "bytes" else ():
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}B"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if unit != "bytes" else ():
        if abs(value) >= size * 10 or (abs(value) >= size and unit != "none"):
            return f"{value / size:.3g}{letter}" + _after(unit)
    return f"{value:.3g}" + _after(unit) if abs(value) < 1000 else f"{value:.0f}" + _after(unit)


def _after(unit: str) -> str:
    return {"reqps": "/s", "bytes": " B"}.get(unit, "")


def _duration(seconds: float) -> str:
    size = abs(seconds)
    if size < 0.001:
        return f"{seconds * 1e6:.3g} µs" if size else "0"
    if size < 1:
        return f"{seconds * 1e3:.3g} ms"
    for length, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if size >= length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.3g} s"


def width_of(text: str) -> float:
    return 6.2 * len(text)


def cut(text: str, width: float) -> str:
    at_most = max(3, int(width / 6.2))
    return text if len(text) <= at_most else text[: at_most - 1] + "…"


def text_at(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    colour: str = TEXT,
    anchor: str = "start",
    bold: bool = False,
) -> str:
    # A control character is not allowed in XML.
    clean = "".join(character if character.isprintable() else "?" for character in text)
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"{weight}>'
        f"{html.escape(clean)}</text>"
    )
