"""Find the charts that come with Tokenweir, and read their schemas and defaults."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from extproc.onboarding.errors import OnboardingError

PLAIN: Final = "kserve-model"
WITH_CANARY: Final = "kserve-general"
MODEL_CHARTS: Final = (PLAIN, WITH_CANARY)


@functools.cache
def charts_folder() -> Path:
    """Return the repository's charts/ in a checkout, otherwise the copy in the installed package."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "charts", package / "charts"):
        if (folder / PLAIN / "Chart.yaml").is_file():
            return folder
    raise OnboardingError("the charts are missing: this installation of tokenweir is not complete")


def chart_path(chart: str) -> Path:
    """Return the folder of one of the model charts. Raise `OnboardingError` for another name."""
    if chart not in MODEL_CHARTS:
        raise OnboardingError(f"there is no chart '{chart}' for models: it is one of {', '.join(MODEL_CHARTS)}")
    return charts_folder() / chart


@functools.cache
def schema(chart: str) -> dict[str, Any]:
    """Return values.schema.json (draft 7). Shared: do not change it."""
    found: dict[str, Any] = json.loads((chart_path(chart) / "values.schema.json").read_text(encoding="utf-8"))
    return found


def schema_of(chart: str, path: Iterable[str | int]) -> dict[str, Any]:
    """Return the schema of one value, with references resolved; empty if the value is free-form."""
    whole = schema(chart)
    found = whole
    for key in path:
        below = found.get("items") if isinstance(key, int) else found.get("properties", {}).get(key)
        found = _followed(below if isinstance(below, dict) else {}, whole["definitions"])
    return found


def _followed(found: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for each in found.get("allOf", ()):
        name = str(each.get("$ref", "")).removeprefix("#/definitions/")
        found = _followed(definitions.get(name, {}), definitions) | found
    return found


@functools.cache
def defaults(chart: str) -> dict[str, Any]:
    """Return values.yaml as data. Shared: do not change it."""
    found: dict[str, Any] = yaml.safe_load((chart_path(chart) / "values.yaml").read_text(encoding="utf-8"))
    return found


@functools.cache
def version(chart: str) -> str:
    """Return the chart's version."""
    about = yaml.safe_load((chart_path(chart) / "Chart.yaml").read_text(encoding="utf-8"))
    return str(about["version"])
