"""deploy/flux as Flux sees it: folders built with kustomize, and the order in which they are applied."""

import functools
import graphlib
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.charts.helm import ROOT, Document, render, tool

FLUX = ROOT / "deploy" / "flux"
CLUSTERS = ("staging", "production")


def folders() -> list[Path]:
    """Every folder that can be built by itself: those of components are parts of others."""
    found = [path.parent for path in FLUX.rglob("kustomization.yaml")]
    return sorted(each for each in found if _kind(each) == "Kustomization")


def _kind(folder: Path) -> str:
    return str(yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["kind"])


@functools.cache
def _built(folder: Path) -> str:
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder: Path) -> list[Document]:
    return [each for each in yaml.load_all(_built(folder), Loader=yaml.CSafeLoader) if each]


@functools.cache
def _steps(cluster: str) -> str:
    entry = build(FLUX / "clusters" / cluster)
    found = {name: each["spec"] for (_, name), each in named(entry, "Kustomization").items()}
    order = graphlib.TopologicalSorter({n: {d["name"] for d in s.get("dependsOn", ())} for n, s in found.items()})
    applied = {name: build(ROOT / found[name]["path"]) for name in order.static_order()}
    return yaml.safe_dump({"clusters": entry, **applied}, sort_keys=False)


def steps(cluster: str) -> dict[str, list[Document]]:
    """What a cluster's Kustomizations apply, each under its name, in the order in which they do."""
    return dict(yaml.load(_steps(cluster), Loader=yaml.CSafeLoader))


def objects(cluster: str) -> list[Document]:
    return [each for step in steps(cluster).values() for each in step]


def named(documents: list[Document], kind: str) -> dict[tuple[str, str], Document]:
    """Objects of a kind by namespace and name."""
    found = [each for each in documents if each["kind"] == kind]
    keys = [(each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found]
    assert len(set(keys)) == len(keys), f"a {kind} is there twice: {keys}"
    return dict(zip(keys, found, strict=True))


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values as Helm and Flux merge them: maps key by key, anything else as a whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def rendered(
    chart: str, values: dict[str, Any], release: str, namespace: str, *apis: str, helm: str = "helm"
) -> list[Document]:
    """As `render`, on a cluster that serves `apis` beside Kubernetes' own; the same twice costs once."""
    text = json.dumps([chart, values, release, namespace, apis, helm])
    return list(json.loads(_rendered(text)))


@functools.cache
def _rendered(text: str) -> str:
    chart, values, release, namespace, apis, helm = json.loads(text)
    more = tuple(f"--api-versions={each}" for each in apis)
    return json.dumps(render(chart, values, release=release, namespace=namespace, helm=helm, more=more))
