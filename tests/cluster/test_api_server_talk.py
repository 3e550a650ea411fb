"""The talk's values files, and files from reports, on an API server: by each chart that takes them.

They are not part of the project. TOKENWEIR_FIXTURES names a folder; the files are in `cases/charts` beside it.
"""

import os
from pathlib import Path

import pytest

from tests.charts.helm import ROOT, ChartError, render

from .asked import told
from .cluster import Cluster

FOLDER = Path(os.environ.get("TOKENWEIR_FIXTURES", ROOT.parent / "shared/fixtures")).parent / "cases/charts"
FILES = sorted(FOLDER.glob("*.yaml"))
CHARTS = ("kserve-model", "kserve-general", "platform", "tokenweir")
# Values that we say no to, in the chart's own words, are no case for the server.
REFUSED = ("don't meet the specifications", "execution error at")


@pytest.mark.skipif(
    not FILES, reason=f"no values files at {FOLDER}: TOKENWEIR_FIXTURES names a folder beside cases/charts"
)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_server_takes_what_a_chart_makes_of_the_file(cluster: Cluster, namespace: str, path: Path) -> None:
    taken, refused = {}, ""
    for chart in CHARTS:
        release, home = ("platform", "infra") if chart == "platform" else ("qwen", "models")
        try:
            taken[chart] = render(chart, path, release=release, namespace=home)
        except ChartError as error:
            refused = str(error)
            assert any(each in refused for each in REFUSED), refused
    if not taken:
        pytest.skip(f"no chart takes {path.name}")
    said = {chart: told(cluster, documents, namespace) for chart, documents in taken.items()}
    assert {chart: each for chart, each in said.items() if each} == {}
