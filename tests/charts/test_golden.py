"""What a handful of values files make, as it was last agreed on: tests/charts/golden/.

GOLDEN=write pytest tests/charts/test_golden.py     after a change that is meant
"""

import os
from pathlib import Path

import pytest
import yaml

from .helm import CHARTS, render

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    ("kserve-model", "slide-gpu"),
    ("kserve-model", "full-llm"),
    ("kserve-model", "sample-qwen-container"),
    ("kserve-model", "transformer-explainer"),
    ("kserve-model", "sidecar"),
    ("kserve-general", "slide-canary"),
    ("kserve-general", "full-llm-canary"),
]


@pytest.mark.parametrize(("chart", "name"), CASES)
def test_what_is_made_is_what_was_agreed_on(chart: str, name: str) -> None:
    documents = render(chart, CHARTS / chart / "ci" / f"{name}.yaml")
    made = yaml.safe_dump_all(documents, sort_keys=True, width=110)
    path = GOLDEN / f"{chart}-{name}.yaml"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(made, encoding="utf-8")
    agreed = path.read_text(encoding="utf-8") if path.exists() else ""
    assert made == agreed, f"{path.name} is out of date: GOLDEN=write pytest {__file__}"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {f"{chart}-{name}" for chart, name in CASES}
