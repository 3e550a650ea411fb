"""The layers of pyproject.toml refuse the imports that would undo them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each of these was there once, or is what a hurried change would do.
ILLEGAL = {
    "extproc.metering.rebuild": "extproc.stores.redis",
    "extproc.settings.model": "extproc.stores.redis",
    "extproc.settings.types": "extproc.metering.prompt_tokenizer",
    "extproc.metering.delivery_queue": "extproc.metering.service",
    "extproc.metering.ledger_writer": "extproc.metering.settler",
    "extproc.envoy.servicer": "extproc.settings.model",
    "extproc.dumper.service": "extproc.settings.dumper",
    "extproc.alerts.alerts": "extproc.stores.spool",
    "extproc.stores.spool": "extproc.stores.mongo",
    "extproc.admin.service": "extproc.onboarding.files",
    "extproc.observe.metrics": "extproc.metering.settler",
    "extproc.ports.base": "extproc.observe.metrics",
    "extproc.core.events": "extproc.ports.base",
    "extproc.core.request.body": "extproc.core.answer.reader",
    "extproc.core.quota.costs": "extproc.core.rejections",
    "extproc.local.stack": "extproc.cli.root",
    "extproc.app": "extproc.serve",
}


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    """What import-linter says of a copy of the package with all illegal imports, and a module in no layer."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "extproc", copy / "extproc", ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for importer, imported in ILLEGAL.items():
        with (copy / importer.replace(".", "/")).with_suffix(".py").open("a", encoding="utf-8") as file:
            file.write(f"\nimport {imported}\n")
    (copy / "extproc" / "helpers.py").write_text('"""Belong nowhere."""\n', encoding="utf-8")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(
        command, cwd=copy, env={"PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
    )


def test_the_copy_is_refused(verdict):
    assert verdict.returncode == 1, verdict.stdout + verdict.stderr


@pytest.mark.parametrize(("importer", "imported"), ILLEGAL.items())
def test_an_illegal_import_is_refused_by_name(verdict, importer, imported):
    assert f"{importer} -> {imported}" in verdict.stdout


def test_a_module_in_no_layer_is_refused(verdict):
    assert "helpers" in verdict.stdout


def test_the_root_of_the_package_holds_only_what_starts_and_assembles():
    assert {path.name for path in (ROOT / "extproc").glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "admin_app.py",
        "app.py",
        "serve.py",
    }


def test_no_module_is_longer_than_400_lines():
    modules = [path for path in (ROOT / "extproc").rglob("*.py") if "_pb2" not in path.name]
    assert {
        str(p.relative_to(ROOT)) for p in modules if len(p.read_text(encoding="utf-8").splitlines()) > 400
    } == set()
