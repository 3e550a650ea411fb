"""What is installed by pip: the package with its page, its scripts and the charts that `tokenweir model` renders."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.charts.helm import tool

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed" / "extproc"


@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_a_models_chart_in_the_wheel_renders(wheel, chart):
    done = subprocess.run(
        [tool("helm"), "template", "qwen", wheel / "charts" / chart], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "kind: InferenceService" in done.stdout


def test_what_is_no_module_is_in_the_wheel_too(wheel):
    for inside in (
        "py.typed",
        "stores/redis/lua/reserve.lua",
        "local/envoy.yaml",
        "onboarding/ui/static/index.html",
    ):
        assert (wheel / inside).is_file(), inside


def test_the_installed_command_finds_the_charts_that_came_with_it(wheel, tmp_path):
    values = tmp_path / "values.yaml"
    shutil.copy(ROOT / "charts/kserve-model/ci/sample-model.yaml", values)
    environment = {**os.environ, "PYTHONPATH": str(wheel.parent), "TOKENWEIR_HELM": tool("helm")}
    command = [sys.executable, "-m", "extproc", "model", "render", values, "--chart", "kserve-model"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kind: InferenceService" in done.stdout
