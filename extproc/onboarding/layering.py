"""Merge values as Helm does, look them up, and name them by path."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

Path = tuple[str | int, ...]

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][\w-]*")


def layered(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chart's defaults with a user's values over them, as templates and the schema see them.

    Maps are merged; all other values are replaced. A null removes a default.
    """
    found: dict[str, Any] = {}
    for key, default in defaults.items():
        if key not in values:
            found[key] = default
        elif isinstance(default, Mapping) and isinstance(values[key], Mapping):
            found[key] = layered(default, values[key])
        elif values[key] is not None:
            found[key] = values[key]
    return found | {key: value for key, value in values.items() if key not in defaults}


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return one values file over another, as `helm -f base -f over` does. A null stays: it applies to the
    defaults.
    """
    found = dict(base)
    for key, value in over.items():
        below = found.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        found[key] = overlaid(below, value) if both and isinstance(below, Mapping) else value
    return found


def look(values: object, *path: str | int) -> Any:
    """Return the value at a path; None if there is none, whatever its parents are."""
    for key in path:
        if isinstance(key, int) and isinstance(values, list):
            values = values[key] if 0 <= key < len(values) else None
        else:
            values = values.get(key) if isinstance(values, Mapping) else None
    return values


def leaves(values: Mapping[str, Any], above: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values that are not maps with content; a list is one value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


def without(values: Mapping[str, Any], *path: str | int) -> dict[str, Any]:
    """Return a copy without the value at this path of map keys."""
    key, *rest = path
    found = {**values}
    if rest and isinstance(found.get(str(key)), Mapping):
        found[str(key)] = without(found[str(key)], *rest)
    else:
        found.pop(str(key), None)
    return found


def spell(path: Path) -> str:
    """Write a path as `predictor.containers[0].image`; a key that needs quotes gets them:
    `nodeSelector["a.b/c"]`.
    """
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _PLAIN_KEY.fullmatch(key):
            text += f".{key}" if text else key
        else:
            escaped = key.replace("\\", "\\\\").replace('"', '\\"')
            text += f'["{escaped}"]'
    return text


def unspell(text: str) -> Path:
    """Return the path that `spell` wrote."""
    found: list[str | int] = []
    for index, quoted, key in re.findall(r'\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]|([^.\[\]]+)', text):
        found.append(int(index) if index else key or re.sub(r"\\(.)", r"\1", quoted))
    return tuple(found)
