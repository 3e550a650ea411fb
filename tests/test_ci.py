"""CI runs what is there."""

import os
import re
import subprocess
import sys
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


def test_a_cluster_is_asked_only_when_it_is_named():
    unnamed = {
        k: v for k, v in os.environ.items() if k not in {"TOKENWEIR_CLUSTER", "ISTIOD_ADDRESS", "KUBECONFIG"}
    }
    for environment, code in ((unnamed, 5), ({**unnamed, "TOKENWEIR_CLUSTER": "/nowhere"}, 0)):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/cluster"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
    done = subprocess.run(
        ["make", "-o", ".venv/.dev", "-o", ".cache/tools/.fetched", "cluster"],
        cwd=ROOT,
        env=unnamed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "make cluster KUBECONFIG=FILE" in done.stderr
