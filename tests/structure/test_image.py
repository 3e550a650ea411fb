"""The image has no local stack: the command works without it, and says so."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, pkgutil, extproc
for module in pkgutil.walk_packages(extproc.__path__, "extproc."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def left_out(path, rules):
    """Whether the rules of .dockerignore, of which the last one that fits counts, leave a path out."""
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        if any(each.match(pattern) for each in (path, *path.parents) if each != Path()):
            out = not rule.startswith("!")
    return out


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A copy of what the image is built from, by .dockerignore."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copy = tmp_path_factory.mktemp("context")
    for path in (ROOT / "extproc").rglob("*"):
        relative = path.relative_to(ROOT)
        if path.is_file() and not left_out(relative, rules):
            (copy / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / relative)
    return copy


def run(context, *command):
    return subprocess.run(
        [sys.executable, *command], cwd=context, env={"PYTHONPATH": str(context)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_local_stack_is_not_in_the_image_and_everything_else_is(context):
    package = {path.relative_to(ROOT) for path in (ROOT / "extproc").rglob("*.py")}
    missing = {path for path in package if not (context / path).exists()}
    assert missing == {path for path in package if path.is_relative_to("extproc/local")} != set()


def test_no_other_module_imports_the_local_stack(context):
    done = run(context, "-c", IMPORT_ALL)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_works_without_the_local_stack(context):
    assert run(context, "-m", "extproc", "--version").returncode == 0
    assert "up" in run(context, "-m", "extproc", "local", "--help").stdout
    assert run(context, "-m", "extproc", "config", "show").returncode == 0


def test_the_local_command_says_that_the_stack_is_not_installed(context):
    done = run(context, "-m", "extproc", "local", "up")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "tokenweir: the local stack is not installed here; the image leaves it out. "
        "On a machine of your own: pip install 'tokenweir[local]'\n"
    )
