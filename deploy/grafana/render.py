"""Draw dashboards as pictures (SVG), from a Prometheus that runs or from answers that were kept.

    python deploy/grafana/render.py --prometheus http://127.0.0.1:9090 --seconds 600 --into docs/dashboards
    python deploy/grafana/render.py --answers answers.json --into docs/dashboards tokenweir-tenants

Panels on service accounts need --admin-api, and its token in TOKENWEIR_ADMIN_TOKEN. --keep keeps the answers.
Grafana draws the same panels in more detail: this is for pages, and for machines without Grafana.
"""

import argparse
import html
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from answers import Answers, Json, Shown, ask
from drawing import (
    BACK,
    COLOURS,
    DIM,
    FONT,
    LINE,
    NAMED,
    PANEL,
    TEXT,
    Box,
    cell,
    colour_of,
    cut,
    form,
    placing,
    round_up,
    text_at,
    width_of,
)

DASHBOARDS: Final = Path(__file__).parents[2] / "charts/tokenweir/dashboards"
_COLUMN, _ROW, _GAP, _HEAD = 50, 30, 8, 34
_TICKS: Final = 4


def main(arguments: list[str]) -> int:
    given = _parser().parse_args(arguments)
    names = given.names or sorted(path.stem for path in DASHBOARDS.glob("*.json"))
    given.into.mkdir(parents=True, exist_ok=True)
    for name in names:
        dashboard = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
        if given.answers is not None:
            answers = Answers.read(given.answers.read_text(encoding="utf-8"))
        else:
            shown = Shown(time.time(), given.seconds, given.rate, given.namespace, given.tenant, given.points)
            token = os.environ.get("TOKENWEIR_ADMIN_TOKEN", "")
            answers = ask(dashboard, shown, given.prometheus, given.admin_api, token)
        if given.keep is not None:
            given.keep.mkdir(parents=True, exist_ok=True)
            (given.keep / f"{name}.json").write_text(answers.text(), encoding="utf-8")
        (given.into / f"{name}.svg").write_text(drawn(dashboard, answers), encoding="utf-8")
        print(f"written: {given.into / name}.svg")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="dashboards; all, if none is named")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prometheus", metavar="URL")
    source.add_argument("--answers", type=Path, metavar="FILE", help="answers that --keep has written")
    parser.add_argument("--admin-api", metavar="URL")
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=3600.0, help="the time that is shown (3600)")
    parser.add_argument("--rate", type=float, default=60.0, help="seconds over which rates are taken (60)")
    parser.add_argument("--points", type=int, default=120, help="points of a curve (120)")
    parser.add_argument("--namespace", default=".*")
    parser.add_argument("--tenant", default=".*")
    return parser


# ---- a dashboard


def drawn(dashboard: Json, answers: Answers) -> str:
    """Return a dashboard as SVG."""
    panels = dashboard["panels"]
    height = _HEAD + _ROW * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + _GAP
    width = 24 * _COLUMN + _GAP
    sizes = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {sizes} font-family="{FONT}" font-size="12">',
        f"<title>{html.escape(dashboard['title'])}</title>",
        f'<rect width="{width}" height="{height}" fill="{BACK}"/>',
        text_at(_GAP + 4, 23, dashboard["title"], size=16, bold=True),
        text_at(width - _GAP, 23, _period(answers), colour=DIM, anchor="end"),
    ]
    for panel in panels:
        parts += _panel(panel, answers)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _period(answers: Answers) -> str:
    begin, end = (datetime.fromtimestamp(each, UTC) for each in (answers.at - answers.seconds, answers.at))
    return f"{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"


def _panel(panel: Json, answers: Answers) -> list[str]:
    at = panel["gridPos"]
    x, y = _GAP + at["x"] * _COLUMN, _HEAD + at["y"] * _ROW
    width, height = at["w"] * _COLUMN - _GAP, at["h"] * _ROW - _GAP
    if panel["type"] == "row":
        return [text_at(x + 4, y + 18, panel["title"], size=13, bold=True)]
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{PANEL}" stroke="{LINE}"/>'
    title = text_at(x + 10, y + 19, cut(panel["title"], width - 20), bold=True)
    inner = Box(x + 10, y + 30, width - 20, height - 38)
    return ["<g>", frame, title, *_DRAW[panel["type"]](panel, answers, inner), "</g>"]


# ---- kinds of panels


@dataclass(frozen=True, slots=True)
class _Curve:
    name: str
    points: list[tuple[float, float]]


def _curves(panel: Json, answers: Answers) -> list[_Curve]:
    curves = []
    for target in panel["targets"]:
        for found in answers.of(target):
            values = found.get("values") or [found["value"]]
            points = [(float(at), float(value)) for at, value in values]
            finite = [(at, value) for at, value in points if math.isfinite(value)]
            if finite:
                curves.append(_Curve(_named(target, found["metric"]), finite))
    return sorted(curves, key=lambda curve: curve.name)


def _named(target: Json, labels: dict[str, str]) -> str:
    legend: str = target.get("legendFormat", "")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend)


def _stat(panel: Json, answers: Answers, box: Box) -> list[str]:
    curves = _curves(panel, answers)
    if not curves:
        return _nothing(panel, box)
    defaults = panel["fieldConfig"]["defaults"]
    value = curves[0].points[-1][1]
    colour = colour_of(defaults, value) or NAMED["green"]
    text = form(value, defaults["unit"])
    return [
        *_area(curves[0].points, Box(box.x, box.y + box.height * 0.55, box.width, box.height * 0.45), colour),
        text_at(box.x + box.width / 2, box.y + 34, text, size=28, colour=colour, anchor="middle", bold=True),
    ]


def _area(points: Sequence[tuple[float, float]], box: Box, colour: str) -> list[str]:
    top = max(value for _, value in points)
    if len(points) < 2 or top <= 0:
        return []
    place = placing(points[0][0], points[-1][0], 0.0, top, box)
    line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
    corners = f"{box.x + box.width:.1f},{box.y + box.height:.1f} {box.x:.1f},{box.y + box.height:.1f}"
    return [f'<polygon points="{line} {corners}" fill="{colour}" fill-opacity="0.15"/>']


def _time_series(panel: Json, answers: Answers, box: Box) -> list[str]:
    curves = _curves(panel, answers)
    if not curves:
        return _nothing(panel, box)
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    legend = _legend([curve.name for curve in curves], box)
    plot = Box(box.x + 52, box.y + 6, box.width - 58, box.height - 40)
    heights = _stacked(curves) if stacked else [curve.points for curve in curves]
    top = round_up(max(value for points in heights for _, value in points))
    begin, end = answers.at - answers.seconds, answers.at
    place = placing(begin, end, 0.0, top, plot)
    parts = _axes(plot, top, defaults["unit"], begin, end)
    for number, points in reversed([*enumerate(heights)]):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        if stacked:
            last, first = place(points[-1][0], 0.0), place(points[0][0], 0.0)
            corners = "{:.1f},{:.1f} {:.1f},{:.1f}".format(*last, *first)
            parts.append(f'<polygon points="{line} {corners}" fill="{colour}" fill-opacity="0.35"/>')
        if len(points) == 1:
            px, py = place(*points[0])
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2" fill="{colour}"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts + legend


def _stacked(curves: Sequence[_Curve]) -> list[list[tuple[float, float]]]:
    """Return the curves, each on top of those before it."""
    below: dict[float, float] = {}
    found = []
    for curve in curves:
        for at, value in curve.points:
            below[at] = below.get(at, 0.0) + value
        found.append([(at, below[at]) for at, _ in curve.points])
    return found


def _axes(plot: Box, top: float, unit: str, begin: float, end: float) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        y = plot.y + plot.height * (1 - tick / _TICKS)
        parts.append(f'<path d="M{plot.x:.1f} {y:.1f}h{plot.width:.1f}" stroke="{LINE}"/>')
        parts.append(
            text_at(plot.x - 6, y + 4, form(top * tick / _TICKS, unit), colour=DIM, anchor="end", size=10)
        )
        at = datetime.fromtimestamp(begin + (end - begin) * tick / _TICKS, UTC)
        x = plot.x + plot.width * tick / _TICKS
        anchor = "end" if tick == _TICKS else "middle"
        parts.append(text_at(x, plot.y + plot.height + 13, f"{at:%H:%M:%S}", colour=DIM, anchor=anchor, size=10))
    return parts


def _legend(names: Sequence[str], box: Box) -> list[str]:
    parts: list[str] = []
    x, y = box.x, box.y + box.height - 2
    for number, name in enumerate(names):
        width = 22 + width_of(name)
        if x + width > box.x + box.width - 30:
            parts.append(text_at(x + 4, y, f"+{len(names) - number}", colour=DIM, size=11))
            break
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="{y - 6:.1f}" width="12" height="3" fill="{colour}"/>')
        parts.append(text_at(x + 16, y, name, size=11))
        x += width + 6
    return parts


def _bar_gauge(panel: Json, answers: Answers, box: Box) -> list[str]:
    curves = sorted(_curves(panel, answers), key=lambda curve: -curve.points[-1][1])
    if not curves:
        return _nothing(panel, box)
    defaults = panel["fieldConfig"]["defaults"]
    most = defaults.get("max") or max(curve.points[-1][1] for curve in curves) or 1.0
    named = min(box.width * 0.45, max(width_of(curve.name) for curve in curves) + 12)
    height = min(26.0, box.height / len(curves))
    parts = []
    for number, curve in enumerate(curves[: int(box.height // height)]):
        value, y = curve.points[-1][1], box.y + number * height
        room = box.width - named - 64
        colour = colour_of(defaults, value) or COLOURS[2]
        length = room * max(0.0, min(1.0, value / most))
        parts += [
            text_at(box.x + named - 8, y + height / 2 + 4, cut(curve.name, named - 10), anchor="end", size=11),
            _bar(Box(box.x + named, y + 3, room, height - 6), LINE),
            _bar(Box(box.x + named, y + 3, length, height - 6), colour),
            text_at(
                box.x + box.width, y + height / 2 + 4, form(value, defaults["unit"]), colour=colour, anchor="end"
            ),
        ]
    return parts


def _bar(box: Box, colour: str) -> str:
    sizes = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    return f'<rect {sizes} fill="{colour}"/>'


def _table(panel: Json, answers: Answers, box: Box) -> list[str]:
    headings, rows = (_listed if "expr" not in panel["targets"][0] else _joined)(panel, answers)
    if not rows:
        return _nothing(panel, box)
    units = {
        each["matcher"]["options"]: each["properties"][0]["value"] for each in panel["fieldConfig"]["overrides"]
    }
    shown = [
        [cell(value, units.get(heading, "short")) for heading, value in zip(headings, each, strict=True)]
        for each in rows
    ]
    widest = [
        max(map(width_of, (heading, *column))) + 18
        for heading, column in zip(headings, zip(*shown, strict=True), strict=True)
    ]
    scale = box.width / sum(widest)
    parts, y = [], box.y + 12
    room = int(box.height // 22) - 1
    if len(shown) > room:
        parts.append(text_at(box.x, box.y + box.height + 2, f"+{len(shown) - room + 1} rows", colour=DIM, size=10))
        shown = shown[: room - 1]
    for number, cells in enumerate([headings, *shown]):
        x = box.x
        for text, width in zip(cells, widest, strict=True):
            parts.append(
                text_at(x, y, cut(text, width * scale - 6), bold=not number, colour=DIM if not number else TEXT)
            )
            x += width * scale
        parts.append(f'<path d="M{box.x:.1f} {y + 7:.1f}h{box.width:.1f}" stroke="{LINE}"/>')
        y += 22
    return parts


def _joined(panel: Json, answers: Answers) -> tuple[list[str], list[list[Any]]]:
    """Return the headings and rows of instant queries that are joined by their labels."""
    renamed: dict[str, str] = panel["transformations"][1]["options"]["renameByName"]
    labels = [name for name in renamed if not name.startswith("Value")]
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    alone = len(panel["targets"]) == 1
    for target in panel["targets"]:
        for found in answers.of(target):
            key = tuple(found["metric"].get(label, "") for label in labels)
            value = float(found["value"][1])
            rows.setdefault(key, {})["Value" if alone else f"Value #{target['refId']}"] = value
    values = [name for name in renamed if name not in labels and (name != "Value" or alone)]
    headings = [renamed[name] for name in [*labels, *values]]
    return headings, [[*key, *(each.get(name) for name in values)] for key, each in sorted(rows.items())]


def _listed(panel: Json, answers: Answers) -> tuple[list[str], list[list[Any]]]:
    """Return the headings and rows of an answer of the admin API. A number may come as text: a price is exact."""
    (target,) = panel["targets"]
    columns = target["columns"]
    rows = [
        [_of_column(row.get(each["selector"]), each["type"]) for each in columns] for row in answers.of(target)
    ]
    return [each["text"] for each in columns], rows


def _of_column(value: Any, kind: str) -> Any:
    return float(value) if kind == "number" and value is not None else value


def _nothing(panel: Json, box: Box) -> list[str]:
    why = "No data" if "expr" in panel["targets"][0] else "Asked of the admin API, which was not there"
    return [text_at(box.x + box.width / 2, box.y + box.height / 2, why, colour=DIM, anchor="middle")]


_DRAW: Final[dict[str, Callable[[Json, Answers, Box], list[str]]]] = {
    "stat": _stat,
    "timeseries": _time_series,
    "bargauge": _bar_gauge,
    "table": _table,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
