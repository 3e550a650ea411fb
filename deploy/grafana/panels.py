"""Make Grafana's JSON from few words: panels that find their places by themselves, and dashboards around them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

PROMETHEUS: Final = {"type": "prometheus", "uid": "${datasource}"}
ADMIN_API: Final = {"type": "yesoreyeram-infinity-datasource", "uid": "${admin_api}"}
OURS: Final = 'namespace=~"$namespace"'
_WIDTH: Final = 24
_LEGEND: Final = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
_LAST: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}


@dataclass(frozen=True, slots=True)
class Panel:
    """Describe a panel of `width` columns, out of 24, and `height` rows. A `row` takes a line of its own."""

    kind: str
    title: str
    about: str = ""
    width: int = 12
    height: int = 8
    targets: tuple[Json, ...] = ()
    unit: str = "short"
    more: Json = field(default_factory=dict)


def metric(text: str) -> str:
    """Return a query with the selector of the release's namespace in each pair of empty braces.

    `name{}` and `name{,a="b"}` are the forms; a metric without braces is left alone.
    """
    return text.replace("{}", "{" + OURS + "}").replace("{,", "{" + OURS + ",")


def query(text: str, legend: str = "", *, instant: bool = False) -> Json:
    """Return a query to Prometheus: over the time shown, or of its end (`instant`, for tables and bars)."""
    target: Json = {"expr": metric(text), "legendFormat": legend, "datasource": PROMETHEUS}
    if instant:
        target |= {"instant": True, "range": False, "format": "table" if not legend else "time_series"}
    return target


def asked(path: str, parameters: dict[str, str], columns: dict[str, str]) -> Json:
    """Return a query to the admin API. `columns`: field of a row -> heading."""
    return {
        "datasource": ADMIN_API,
        "type": "json",
        "source": "url",
        "format": "table",
        "parser": "backend",
        "root_selector": "rows",
        "url": path,
        "url_options": {
            "method": "GET",
            "data": "",
            "params": [{"key": key, "value": value} for key, value in parameters.items()],
        },
        "columns": [
            {"selector": name, "text": text, "type": "string" if name in _TEXTS else "number"}
            for name, text in columns.items()
        ],
        "computed_columns": [],
        "filters": [],
    }


_TEXTS: Final = frozenset({"period", "name", "tenant", "currency"})


def row(title: str) -> Panel:
    """Return the heading of the panels below it."""
    return Panel("row", title, width=_WIDTH, height=1)


def stat(
    title: str, text: str, unit: str = "short", about: str = "", *, bad: float | None = None, width: int = 4
) -> Panel:
    """Return one number. It is red from `bad` on; below -`bad`, if that is negative."""
    more: Json = {}
    if bad is not None:
        first, then = ("green", "red") if bad > 0 else ("red", "green")
        steps = [{"color": first, "value": None}, {"color": then, "value": abs(bad)}]
        more = {"thresholds": {"mode": "absolute", "steps": steps}}
    return Panel("stat", title, about, width, 4, (query(text),), unit, more)


def series(
    title: str,
    *targets: Json,
    unit: str = "short",
    about: str = "",
    width: int = 12,
    stacked: bool = False,
    most: float | None = None,
) -> Panel:
    """Return curves over time; `most` is the end of the scale."""
    custom = {
        "fillOpacity": 10,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    more: Json = {"custom": custom} | ({"min": 0, "max": most} if most is not None else {})
    return Panel("timeseries", title, about, width, 8, targets, unit, more)


def bars(title: str, target: Json, unit: str = "short", about: str = "", *, most: float | None = None) -> Panel:
    """Return a bar for each series of an instant query."""
    more: Json = {"min": 0}
    if most is not None:
        steps = [
            {"color": "green", "value": None},
            {"color": "orange", "value": 0.8},
            {"color": "red", "value": 0.95},
        ]
        more |= {"max": most, "thresholds": {"mode": "absolute", "steps": steps}}
    return Panel("bargauge", title, about, 12, 8, (target,), unit, more)


def table(
    title: str,
    columns: dict[str, Json],
    *,
    about: str = "",
    names: dict[str, str] | None = None,
    units: dict[str, str] | None = None,
    width: int = _WIDTH,
) -> Panel:
    """Return a table of instant queries that are joined by their labels.

    `columns`: heading -> query. `names`: label -> heading, in the order of the columns. `units`: heading -> unit.
    """
    letters = [chr(ord("A") + number) for number in range(len(columns))]
    named = {**(names or {}), **{f"Value #{letter}": text for letter, text in zip(letters, columns, strict=True)}}
    if len(columns) == 1:
        named["Value"] = next(iter(columns))
    arranged = {
        "excludeByName": {"Time": True},
        "indexByName": {name: place for place, name in enumerate(named)},
        "renameByName": named,
    }
    more: Json = {
        "transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": arranged}],
        "overrides": overrides(units or {}),
    }
    return Panel("table", title, about, width, 9, tuple(columns.values()), "short", more)


def listed(title: str, target: Json, *, about: str = "", width: int = 12) -> Panel:
    """Return a table of what the admin API answers."""
    return Panel("table", title, about, width, 8, (target,))


def overrides(units: dict[str, str]) -> list[Json]:
    """Return the units of single columns."""
    return [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in units.items()
    ]


def variable(name: str, label: str, values: str, *, multi: bool = True) -> Json:
    """Return a variable whose values are those of a label, as Prometheus knows them: several of them, or one."""
    every: Json = {"current": {"text": ["All"], "value": ["$__all"]}, "includeAll": True, "allValue": ".*"}
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": values, "refId": name},
        "hide": 0,
        "refresh": 2,
        "sort": 1,
        "regex": "",
        "multi": multi,
        **(every if multi else {"includeAll": False}),
    }


def data_source(name: str, label: str, kind: str) -> Json:
    """Return a variable that selects a data source of a kind."""
    return {
        "name": name,
        "label": label,
        "type": "datasource",
        "query": kind,
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
    }


def dashboard(
    uid: str,
    title: str,
    about: str,
    panels: Sequence[Panel],
    *,
    variables: Sequence[Json] = (),
    since: str = "now-3h",
) -> Json:
    """Return a dashboard, with its panels from left to right and from top to bottom."""
    namespace = variable("namespace", "Namespace", "label_values(tokenweir_ready, namespace)")
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["tokenweir", "llm"],
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": since, "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_other_dashboards()],
        "templating": {"list": [data_source("datasource", "Prometheus", "prometheus"), namespace, *variables]},
        "panels": _placed(panels),
    }


def _other_dashboards() -> Json:
    return {
        "type": "dashboards",
        "title": "Tokenweir",
        "tags": ["tokenweir"],
        "asDropdown": True,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


def _placed(panels: Sequence[Panel]) -> list[Json]:
    placed: list[Json] = []
    x = y = tallest = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _WIDTH:
            x, y, tallest = 0, y + tallest, 0
        placed.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": panel.height}))
        x, tallest = x + panel.width, max(tallest, panel.height)
    return placed


def _panel(number: int, panel: Panel, place: Json) -> Json:
    made: Json = {"id": number, "type": panel.kind, "title": panel.title, "gridPos": place}
    if panel.kind == "row":
        return made | {"collapsed": False, "panels": []}
    more = dict(panel.more)
    changed, steps = more.pop("overrides", []), more.pop("transformations", None)
    made |= {
        "description": panel.about,
        "datasource": panel.targets[0]["datasource"],
        "fieldConfig": {"defaults": {"unit": panel.unit, **more}, "overrides": changed},
        "options": _OPTIONS[panel.kind],
        "targets": [{"refId": chr(ord("A") + place), **each} for place, each in enumerate(panel.targets)],
    }
    return made | ({"transformations": steps} if steps else {})


_OPTIONS: Final[dict[str, Json]] = {
    "stat": {
        "reduceOptions": _LAST,
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    },
    "timeseries": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "bargauge": {
        "reduceOptions": _LAST,
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
        "namePlacement": "auto",
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 16,
        "maxVizHeight": 300,
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}
