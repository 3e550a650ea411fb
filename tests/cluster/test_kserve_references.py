"""KServe reconciles each values file, and whatever our objects name or select is there."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.charts.helm import CHARTS

from . import made, models
from .cluster import Cluster, ClusterError

# Values files of other people: <folder>/charts/*.yaml. They are not part of the project.
CASES = Path(os.environ.get("TOKENWEIR_CASES") or Path(__file__).parents[3] / "shared" / "cases")
OWN = [
    (chart, path)
    for chart in ("kserve-model", "kserve-general")
    for path in sorted((CHARTS / chart / "ci").glob("*.yaml"))
]
THEIRS = [
    (chart, path)
    for path in sorted((CASES / "charts").glob("*.yaml"))
    for chart in ("kserve-model", "kserve-general")
]
REFUSED = ("values don't meet the specifications", "execution error at", "INSTALLATION FAILED: template")


def _name(case: Any) -> str:
    return case.stem if isinstance(case, Path) else str(case)


def _check(cluster: Cluster, chart: str, path: Path) -> None:
    with models.installed(cluster, chart, path) as release:
        assert models.faults(cluster, release) == []
        assert made.differences(cluster, release) == []


@pytest.mark.needs("kserve")
@pytest.mark.parametrize(("chart", "path"), OWN, ids=_name)
def test_what_our_objects_name_is_what_kserve_made(cluster: Cluster, chart: str, path: Path) -> None:
    _check(cluster, chart, path)


@pytest.mark.needs("kserve")
@pytest.mark.parametrize(("chart", "path"), THEIRS, ids=_name)
def test_the_same_holds_for_the_values_of_others(cluster: Cluster, chart: str, path: Path) -> None:
    try:
        _check(cluster, chart, path)
    except ClusterError as error:
        if any(each in str(error) for each in REFUSED):
            pytest.skip(f"{chart} refuses {path.stem}")
        raise
