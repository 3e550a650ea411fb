"""Find the values that each rendered object depends on.

The chart is rendered once without each value. If an object is missing or different then, it depends on that value.
The result therefore always matches the charts, and no list is kept by hand.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from extproc.onboarding import helm as runner
from extproc.onboarding.charts import defaults
from extproc.onboarding.comparing import Key, keyed
from extproc.onboarding.errors import HelmRefused, OnboardingError
from extproc.onboarding.layering import Path, layered, leaves, look, overlaid, spell, without

MAX_VALUES: Final = 200  # one rendering each
Objects = dict[Key, Mapping[str, Any]]
Removed = frozenset[Path]


@dataclass(frozen=True, slots=True)
class Explained:
    """Explain one rendered object.

    The object depends on the values in `because`: on each of them if `each_needed`, otherwise on any one of them.
    An empty list means that the object always exists. Values in `by_default` are in the chart's defaults or in
    lower layers, not in the file. The values in `shaped_by` change its content.
    """

    kind: str
    name: str
    because: list[str]
    shaped_by: list[str]
    each_needed: bool = True
    by_default: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Study:
    """Explain all objects.

    `idle` are values that change nothing, alone or together; of two values with the same effect, one is idle.
    `needed` are values that the chart requires, with the reason. `withheld` are values that suppress objects, with
    the names of these objects.
    """

    objects: list[Explained]
    idle: list[str]
    needed: dict[str, str]
    withheld: dict[str, list[str]] = field(default_factory=dict)


def explain(
    chart: str,
    values: Mapping[str, Any],
    release: str = "my-model",
    namespace: str = "default",
    helm: str | None = None,
) -> list[Explained]:
    """Explain each object, in the rendering's order. Raises as `helm.render` does."""
    return study(chart, values, release, namespace, helm).objects


def study(
    chart: str,
    values: Mapping[str, Any],
    release: str = "my-model",
    namespace: str = "default",
    helm: str | None = None,
    *,
    below: Mapping[str, Any] | None = None,
) -> Study:
    """Explain all objects and values. `below` are lower layers, such as the platform's values; they are not
    examined.

    Raises as `helm.render` does.
    """
    trials = _Trials(chart, values, below or {}, (release, namespace, helm))
    given = trials.given
    if len(given) > MAX_VALUES:
        raise OnboardingError(f"more than {MAX_VALUES} values: too many to try each")
    switches = _switches(layered(defaults(chart), overlaid(below or {}, values)), given)
    whole = trials.render(frozenset())
    singles = [frozenset({path}) for path in (*given, *switches)]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(trials.attempt, singles))
    at_work = _at_work(whole, trials, given)
    idle = [path for path in given if path not in at_work]
    objects = [_explained(key, whole, trials, at_work, switches) for key in whole]
    needed = {spell(path): why for path, removed in at_work.items() if (why := trials.refusals.get(removed))}
    withheld = {spell(path): names for path, removed in at_work.items() if (names := trials.adds(removed, whole))}
    return Study(objects, [spell(path) for path in idle], needed, withheld)


def _at_work(whole: Objects, trials: "_Trials", given: list[Path]) -> dict[Path, Removed]:
    """Return the values that have an effect, each with the values to remove to see it.

    If two values have the same effect, removing one changes nothing: the first is idle, and the second is examined
    without it.
    """
    found: dict[Path, Removed] = {}
    idle: list[Path] = []
    for path in given:
        alone, together = frozenset({path}), frozenset({*idle, path})
        if trials.attempt(alone) != whole:
            found[path] = alone
        elif trials.attempt(together) != whole:
            found[path] = together
        else:
            idle.append(path)
    return found


def _switches(values: Mapping[str, Any], given: list[Path]) -> list[Path]:
    """Return the values that are on by default and that the user did not set: each is tried switched off."""
    return [path for path in leaves(values) if path not in given and look(values, *path) is True]


class _Trials:
    """Render without some values, once for each selection."""

    def __init__(
        self, chart: str, values: Mapping[str, Any], below: Mapping[str, Any], where: tuple[str, str, str | None]
    ) -> None:
        self._chart = chart
        self._values = values
        self.given = list(leaves(values))
        self._below = below
        self._where = where
        self._known: dict[Removed, Objects | None] = {}
        self.refusals: dict[Removed, str] = {}

    def render(self, removed: Removed) -> Objects:
        values: Mapping[str, Any] = self._values
        for path in removed:
            if look(values, *path) is None and path not in leaves(values):
                values = overlaid(values, _nested(path, False))
            else:
                values = without(values, *path)
        text = runner.render(self._chart, overlaid(self._below, values), *self._where)
        return keyed(runner.objects(text))

    def attempt(self, removed: Removed) -> Objects | None:
        """Return the objects, or None if the chart refuses."""
        if removed not in self._known:
            try:
                self._known[removed] = self.render(removed)
            except HelmRefused as refusal:
                self.refusals[removed] = str(refusal)
                self._known[removed] = None
        return self._known[removed]

    def lacks(self, removed: Iterable[Path], key: Key) -> bool:
        """Return whether the object is missing without these values."""
        found = self.attempt(frozenset(removed))
        return found is not None and key not in found

    def adds(self, removed: Removed, whole: Objects) -> list[str]:
        """Return the objects that exist only without these values."""
        return [f"{key[1]}/{key[2].rpartition('/')[2]}" for key in self.attempt(removed) or () if key not in whole]


def _nested(path: Path, value: object) -> dict[str, Any]:
    for key in reversed(path):
        value = {str(key): value}
    return value if isinstance(value, dict) else {}


def _explained(
    key: Key, whole: Objects, trials: _Trials, at_work: Mapping[Path, Removed], switches: list[Path]
) -> Explained:
    single = [path for path in (*trials.given, *switches) if trials.lacks({path}, key)]
    shaped = [
        path for path, removed in at_work.items() if path not in single and _differs(key, whole, trials, removed)
    ]
    group = (
        []
        if single
        else _together(key, trials, [path for path in trials.given if path in shaped or path not in at_work])
    )
    because = single or group
    return Explained(
        kind=key[1],
        name=key[2].rpartition("/")[2],
        because=[spell(path) for path in because],
        shaped_by=[spell(path) for path in shaped if path not in because],
        each_needed=not group,
        by_default=[spell(path) for path in because if path in switches],
    )


def _differs(key: Key, whole: Objects, trials: _Trials, removed: Removed) -> bool:
    found = trials.attempt(removed)
    return found is not None and found.get(key) != whole[key]


def _together(key: Key, trials: _Trials, paths: list[Path]) -> list[Path]:
    """Return the fewest values whose removal together removes the object: any one of them is enough to have it."""
    if len(paths) < 2 or not trials.lacks(paths, key):  # noqa: PLR2004 - a single one was tried
        return []
    kept = list(paths)
    for path in paths:
        fewer = [each for each in kept if each != path]
        if fewer and trials.lacks(fewer, key):
            kept = fewer
    return kept
