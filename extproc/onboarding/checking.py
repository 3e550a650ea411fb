"""Find the problems of a model's values, by the chart's schema and by rules that a schema can't express."""

from collections.abc import Mapping
from typing import Any

from extproc.onboarding import (
    rules_access,
    rules_rollout,
    rules_runtime,
    rules_scaling,
    rules_serving,
    schema_problems,
)
from extproc.onboarding.facts import Facts
from extproc.onboarding.problem import Level, Problem

__all__ = ["Level", "Problem", "problems"]

_RULES = (
    *rules_serving.RULES,
    *rules_runtime.RULES,
    *rules_rollout.RULES,
    *rules_scaling.RULES,
    *rules_access.RULES,
)


def problems(
    chart: str,
    values: Mapping[str, Any],
    release: str | None = None,
    namespace: str | None = None,
    *,
    partial: bool = False,
    elsewhere: bool = False,
) -> list[Problem]:
    """Return all problems, errors first. `values` are the user's, without the chart's defaults.

    With `release` and `namespace` the lengths of names are checked too. `partial`: the values are a patch, so
    missing values may be in its base. `elsewhere`: there are more values, for example the platform's. Raise
    `PartMissing`.
    """
    found = schema_problems.problems(chart, values)
    # The rules expect values that fit the schema, so they skip refused ones.
    wrong = {each.path for each in found}
    facts = Facts(chart, values, release, namespace, partial=partial, elsewhere=elsewhere)
    found += [each for rule in _RULES for each in rule(facts) if each.path not in wrong]
    return sorted(found, key=lambda each: each.level is Level.WARNING)
