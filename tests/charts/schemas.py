"""Objects against the schemas of Kubernetes and of the CRDs that they belong to."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest

from tests.missing import missing

KUBERNETES = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.33.0-local-strict"
# The schemas of CRDs are not part of the project: TOKENWEIR_SCHEMAS names the folder that has them, as
# <group>/<Kind>_<version>.json. With `none` there are none, in CI too: tests that need one are listed as not run.
FOLDER = Path(os.environ.get("TOKENWEIR_SCHEMAS") or Path(__file__).parents[3] / "shared" / "schemas")
# KServe's graph has no schema there; tests of its own look at it.
WITHOUT_SCHEMA = {("serving.kserve.io", "v1alpha1", "InferenceGraph")}


def problems(document: dict[str, Any]) -> list[str]:
    """What its schema has against the object; empty where nothing."""
    group, _, version = document["apiVersion"].rpartition("/")
    name = f"{document['kind']}/{document.get('metadata', {}).get('name')}"
    if "." not in group or (group.endswith(".k8s.io") and not (FOLDER / group).is_dir()):
        found = _kubernetes(group.partition(".")[0], version, document["kind"]).iter_errors(document)
        return [f"{name}: {'.'.join(map(str, each.instance_path))}: {each.message}" for each in found]
    if (group, version, document["kind"]) in WITHOUT_SCHEMA:
        return []
    found = _crd(group, version, document["kind"]).iter_errors(document)
    return [f"{name}: {'.'.join(map(str, each.instance_path))}: {each.message}" for each in found]


def check(documents: list[dict[str, Any]]) -> None:
    found = [problem for document in documents for problem in problems(document)]
    assert not found, "\n".join(found)


@functools.cache
def _kubernetes(group: str, version: str, kind: str) -> Any:
    """Return the validator of one of Kubernetes' own kinds, which refuses fields that Kubernetes does not know.

    The package's own `validate` reads 1.5 MB of definitions for each object.
    """
    path = KUBERNETES / f"{kind}-{group}{'-' * bool(group)}{version}.json".lower()
    assert path.exists(), f"Kubernetes has no {group}/{version} {kind}"
    schema = json.loads(path.read_text(encoding="utf-8"))
    return jsonschema_rs.validator_for({**schema, "$id": f"kubernetes:///{path.name}"}, retriever=_definitions)


@functools.cache
def _definitions(uri: str) -> Any:
    return json.loads((KUBERNETES / uri.rpartition("/")[2]).read_text(encoding="utf-8"))


@functools.cache
def _crd(group: str, version: str, kind: str) -> Any:
    if str(FOLDER) == "none":
        pytest.skip("no CRD schemas: TOKENWEIR_SCHEMAS is none")
    if not FOLDER.is_dir():
        missing(f"no CRD schemas at {FOLDER}: set TOKENWEIR_SCHEMAS")
    path = FOLDER / group / f"{kind}_{version}.json"
    assert path.exists(), f"no schema of {group}/{version} {kind}: is this version served?"
    return jsonschema_rs.validator_for(json.loads(path.read_text(encoding="utf-8")))
