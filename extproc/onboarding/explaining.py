"""Which values each rendered object is there for.

Found by trying: the chart is rendered without each value in turn, and what vanishes or changes was that
value's. So it says what the charts do, and nothing is kept by hand.
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
    """One rendered object.

    It would not be there without the values of `because`: without any one of them where `each_needed`, otherwise
    without all of them together. Empty: it is always there. Those in `by_default` stand in the chart's
    defaults or in values beneath, not in the file. `shaped_by` change what it says.
    """

    kind: str
    name: str
    because: list[str]
    shaped_by: list[str]
    each_needed: bool = True
    by_default: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Study:
    """All objects.

    `idle`: values that change nothing, all of them together neither. Of two that say the same one is idle.
    `needed`: those that the chart needs, with why. `withheld`: those without which there would be more objects,
    with these.
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
    """Each object, in the rendering's order. Raises as `helm.render` does."""
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
    """The whole of it. `below` are values beneath, such as the platform's: they are not asked after.

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
    """The values that do something, each with what is taken away to see it.

    Two that say the same do nothing each: the first is idle then, and the second is seen without it.
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
    """What is on by default, and what the user did not say: it is tried switched off."""
    return [path for path in leaves(values) if path not in given and look(values, *path) is True]


class _Trials:
    """Renderings without some values, each made once."""

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
        """None where the chart refuses."""
        if removed not in self._known:
            try:
                self._known[removed] = self.render(removed)
            except HelmRefused as refusal:
                self.refusals[removed] = str(refusal)
                self._known[removed] = None
        return self._known[removed]

    def lacks(self, removed: Iterable[Path], key: Key) -> bool:
        """Whether the object is gone then."""
        found = self.attempt(frozenset(removed))
        return found is not None and key not in found

    def adds(self, removed: Removed, whole: Objects) -> list[str]:
        """The objects that are there then, and are not otherwise."""
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
    """The fewest values without all of which it is gone: any one of them is enough to have it."""
    if len(paths) < 2 or not trials.lacks(paths, key):  # noqa: PLR2004 - a single one was tried
        return []
    kept = list(paths)
    for path in paths:
        fewer = [each for each in kept if each != path]
        if fewer and trials.lacks(fewer, key):
            kept = fewer
    return kept
