"""Turn the form's input into the smallest values that express it."""

import copy
from collections.abc import Mapping
from typing import Any

from extproc.onboarding.dumping import means, same
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.problem import Problem, error

_ABSENT = object()


def combined(values: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the values with the free-form ones (given as YAML) in place, and the unreadable inputs.

    An empty text removes the value.
    """
    found = copy.deepcopy(dict(values))
    problems = []
    for path, text in texts.items():
        try:
            value = means(text)
        except OnboardingError as wrong:
            message = str(wrong).removeprefix("the text: ").removeprefix("not valid YAML at ")
            problems.append(error(path, f"YAML that can't be read: {message}", "see the line that it names"))
            value = None
        _put(found, path.split("."), value)
    return found, problems


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    *above, last = path
    for key in above:
        inner = values.get(key)
        if not isinstance(inner, dict):
            if value is None:
                return
            inner = values[key] = {}
        values = inner
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def smallest(values: Mapping[str, Any], file: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without those equal to the chart's defaults. Values of the file stay."""
    found = {}
    for key, value in values.items():
        was, default = file.get(key, _ABSENT), defaults.get(key, _ABSENT)
        if was is not _ABSENT and same(value, was):
            found[key] = value
        elif isinstance(value, dict) and (value or isinstance(default, dict)):
            inner = smallest(value, *(each if isinstance(each, dict) else {} for each in (was, default)))
            if inner:
                found[key] = inner
        elif default is _ABSENT or not same(value, default):
            found[key] = value
    return found


def in_order(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the order of the chart's own values.yaml."""
    places = {key: place for place, key in enumerate(defaults)}
    found = {}
    for key in sorted(values, key=lambda key: places.get(key, len(places))):
        value, default = values[key], defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value = in_order(value, default)
        found[key] = value
    return found
