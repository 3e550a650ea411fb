"""Charts as their users render them: `helm template`, `helm lint`, and what `helm install` would say."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.missing import missing

from . import rendered

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "charts"
TOOLS = ROOT / ".cache" / "tools"
# Helm 3 beside Helm 4 is for the thorough form; `test_helm_3_and_4_make_the_same` compares a sample in the quick one.
HELMS = ("helm", pytest.param("helm3", marks=pytest.mark.thorough))
Document = dict[str, Any]
Values = Mapping[str, Any] | Path


class ChartError(Exception):
    """Helm refused; the message is what it said."""


class Once(yaml.CSafeLoader):
    """Refuses a map that says a key twice. Helm lets the last one win; other readers don't."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        assert len(names) == len(set(names)), f"twice in line {node.start_mark.line}: {sorted(map(str, names))}"
        return super().construct_mapping(node, deep=deep)


@functools.cache
def tool(name: str) -> str:
    """The path of helm (4), helm3, kubectl. Missing: a failure in CI, elsewhere a skip that says how to get it."""
    path = TOOLS / name
    found = str(path) if path.exists() else None if name == "helm3" else shutil.which(name)
    if found is None:
        message = f"{name} is missing: python tests/charts/fetch_tools.py"
        missing(message)
    return found


def render(
    chart: str,
    *values: Values,
    release: str = "qwen",
    namespace: str = "models",
    helm: str = "helm",
    more: tuple[str, ...] = (),
) -> list[Document]:
    """The objects that `helm template` makes, in its order. Raises `ChartError`."""
    text = _run(helm, "template", release, str(CHARTS / chart), "-n", namespace, *more, values=values)
    return [document for document in yaml.load_all(text, Loader=Once) if document]


def lint(chart: str, *values: Values, helm: str = "helm") -> str:
    """What `helm lint --strict` says. Raises `ChartError` where it finds something."""
    return _run(helm, "lint", "--strict", str(CHARTS / chart), values=values)


def notes(chart: str, *values: Values, release: str = "qwen", namespace: str = "models") -> str:
    """NOTES.txt as an installation shows it. Helm 4 alone: Helm 3 asks a cluster even for a dry run."""
    dry = (
        "install",
        release,
        str(CHARTS / chart),
        "-n",
        namespace,
        "--dry-run=client",
        "--kubeconfig",
        os.devnull,
    )
    text = _run("helm", *dry, values=values)
    return text.partition("\nNOTES:\n")[2]


def _run(helm: str, *arguments: str, values: tuple[Values, ...]) -> str:
    texts = [each.read_text(encoding="utf-8") if isinstance(each, Path) else json.dumps(each) for each in values]
    return _said(helm, arguments, tuple(texts))


def _said(helm: str, arguments: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Return Helm's stdout for these values. The charts don't change while tests run: many ask for the same."""
    program = tool(helm)
    found = rendered.once(program, arguments, values, lambda: _asked(program, arguments, values))
    if found.code:
        raise ChartError(found.out * (arguments[0] == "lint") + found.err)
    return found.out


def _asked(program: str, arguments: tuple[str, ...], values: tuple[str, ...]) -> rendered.Answer:
    with tempfile.TemporaryDirectory() as folder:
        files: list[str] = []
        for number, text in enumerate(values):
            path = Path(folder) / f"{number}.yaml"
            path.write_text(text, encoding="utf-8")
            files += ["-f", str(path)]
        environment = {
            **os.environ,
            "HELM_CACHE_HOME": folder,
            "HELM_CONFIG_HOME": folder,
            "HELM_DATA_HOME": folder,
            "GOGC": "off",  # it ends before it needs any memory back: a third of its time
        }
        done = subprocess.run(
            [program, *arguments, *files], capture_output=True, text=True, env=environment, check=False
        )
    return rendered.Answer(done.returncode, done.stdout, done.stderr)


def pick(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The one object of this kind (and name)."""
    found = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    names = [f"{d['kind']}/{d['metadata']['name']}" for d in documents]
    assert len(found) == 1, f"{len(found)} of {kind}/{name or '*'} among {names}"
    return found[0]


def kinds(documents: list[Document]) -> set[str]:
    return {document["kind"] for document in documents}
