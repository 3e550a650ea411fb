"""The two forms of the tests: quick (`make test`) and thorough (`make test-all`, which runs pytest with `--thorough`).

A test of which only a sample is quick takes its number of rounds, seeds or examples from `sized`, or its list of cases
from `sampled`. A test that is rare as a whole has the marker `thorough`, and is deselected in the quick form.
"""

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import hypothesis
import pytest

T = TypeVar("T")


def is_thorough() -> bool:
    """Return True in the thorough form; `--thorough` sets the variable, and child processes inherit it."""
    return os.environ.get("TESTS_FORM", "quick") == "thorough"


def sized(quick: T, thorough: T) -> T:
    """Return the number for the form of this run."""
    return thorough if is_thorough() else quick


def examples(quick: int, thorough: int) -> hypothesis.settings:
    """Return settings of hypothesis with the number of examples for the form of this run."""
    return hypothesis.settings(max_examples=sized(quick, thorough), deadline=None)


def sampled(cases: Iterable[Any], quick: int) -> list[Any]:
    """Return all cases for `parametrize`; in the quick form, `quick` of them, evenly spread, are run.

    The others get the marker `thorough`. The choice depends on the number of cases and on nothing else. A case that is
    a tuple has the values of several names.
    """
    given = list(cases)
    if len(given) <= quick:
        return given
    kept = {index * len(given) // quick for index in range(quick)}
    return [case if index in kept else _thorough(case) for index, case in enumerate(given)]


def _thorough(case: Any) -> Any:
    if isinstance(case, type(pytest.param())):
        return pytest.param(*case.values, id=case.id, marks=(*case.marks, pytest.mark.thorough))
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.thorough)


def choose_form(*, thorough: bool) -> None:
    """Set the form of this process and of its children, with the profile of hypothesis that belongs to it.

    No example has a deadline: how long it takes says more about the machine than about the code.
    """
    if thorough:
        os.environ["TESTS_FORM"] = "thorough"
    form = "thorough" if is_thorough() else "quick"
    hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
    hypothesis.settings.register_profile("thorough", deadline=None, max_examples=200)
    hypothesis.settings.load_profile(form)
