"""CI runs what is there."""

import os
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands():
    for job in WORKFLOW["jobs"].values():
        yield from (step["run"].removeprefix("CI= ").split() for step in job["steps"] if "run" in step)


def test_every_command_of_the_workflow_is_there():
    found = list(commands())
    assert len(found) >= 4
    for program, *arguments in found:
        if program == "make":
            assert set(arguments) <= TARGETS
        else:
            assert os.access(ROOT / program, os.X_OK), program
    assert ["make", "test-containers"] in found
    assert [".ci/run", "test-all"] in found


def test_every_python_that_the_package_takes_is_tried():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    tried = {tuple(map(int, version.split("."))) for version in re.findall(r"\b3\.\d+\b", text)}
    assert tried == {(3, minor) for minor in range(11, 15)}
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
