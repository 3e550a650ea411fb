"""Compare what the charts and `tokenweir model validate` know of KServe's runtimes with the runtimes of one release."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from extproc.onboarding.facts import Facts
from extproc.onboarding.rules_serving import SCHEMES
from extproc.onboarding.runtimes import RUNTIMES, Runtime

from .helm import Document, pick, render

# MLServer serves its metrics on 8082, whatever the annotation of KServe's runtime says.
OWN_METRICS_PORT = {"kserve-mlserver"}
# The charts have no word for this server: it gets the InferenceService's name, not `servedModelName`.
UNNAMED = {"kserve-openvino"}
DEFAULT_PROTOCOL = "v1"  # what KServe takes where the InferenceService names none


@dataclass
class Release:
    """Hold the runtimes of one release of KServe. `installed` names those that KServe's own manifests install."""

    runtimes: list[Document]
    installed: set[str]
    storages: list[Document] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)


def read(folder: Path) -> Release:
    """Return the release in a checkout of KServe, or in any folder with its config/runtimes.

    Raise `ValueError` where the folder has no ClusterServingRuntime.
    """
    documents: list[tuple[Path, Document]] = []
    for path in sorted(folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^kind: (ClusterServingRuntime|ClusterStorageContainer|Kustomization)$", text, re.MULTILINE):
            documents += [(path, each) for each in yaml.safe_load_all(text) if each]
    runtimes = [(path, each) for path, each in documents if each["kind"] == "ClusterServingRuntime"]
    if not runtimes:
        raise ValueError(f"{folder} has no ClusterServingRuntime")
    here = {path.parent for path, _ in runtimes}
    lists = [each for path, each in documents if each["kind"] == "Kustomization" and path.parent in here]
    listed = {name for each in lists for name in each["resources"]}
    return Release(
        runtimes=[each for _, each in runtimes],
        installed={each["metadata"]["name"] for path, each in runtimes if not listed or path.name in listed},
        storages=[each for _, each in documents if each["kind"] == "ClusterStorageContainer"],
        images={
            each["name"]: f"{each['newName']}:{each['newTag']}" for one in lists for each in one.get("images", ())
        },
    )


def differences(release: Release) -> list[str]:
    """Return where our tables and the release differ; each entry names the runtime and both sides."""
    found: list[str] = []
    for each in release.runtimes:
        name = each["metadata"]["name"]
        if name not in RUNTIMES:
            found.append(f"{name}: extproc/onboarding/runtimes.py does not know it")
            continue
        found += [f"{name}: {text}" for text in _one(name, each["spec"], RUNTIMES[name])]
    found += _selection(release)
    for storage in release.storages:
        for form in storage["spec"]["supportedUriFormats"]:
            scheme = form.get("prefix", "").partition("://")[0]
            if scheme and scheme not in SCHEMES:
                found.append(f"{storage['metadata']['name']}: fetches {scheme}://, which validate does not know")
    return found


def _one(name: str, spec: dict[str, Any], ours: Runtime) -> Iterator[str]:
    formats: dict[str, set[str]] = {}
    for each in spec["supportedModelFormats"]:
        formats.setdefault(each["name"], set()).update([str(each["version"])] if each.get("version") else [])
    if formats != {key: set(each) for key, each in ours.formats.items()}:
        yield f"serves {formats}; here {dict(ours.formats)}"
    if set(spec.get("protocolVersions") or ()) != set(ours.protocols):
        yield f"speaks {spec.get('protocolVersions')}; here {ours.protocols}"
    values = _values(next(iter(ours.formats)), name)
    if Facts("kserve-model", values).server != ours.server:
        yield f"its server is {ours.server} here, and {Facts('kserve-model', values).server} by its name"
    service = pick(render("kserve-model", values), "InferenceService")
    model = service["spec"]["predictor"]["model"]
    if model["modelFormat"]["name"] not in formats:
        yield f"the chart asks it for {model['modelFormat']['name']}, which it does not serve"
    container = next(each for each in spec["containers"] if each["name"] == "kserve-container")
    words = " ".join([*container.get("command", ()), *container.get("args", ())])
    named = set(re.findall(r"(--\S+?)[= ]\{\{\.Name\}\}", words))
    told = {each.partition("=")[0] for each in model.get("args", ()) if each.endswith("=qwen")}
    if named != told and name not in UNNAMED:
        yield f"takes the model's name by {named or 'no argument'}; the chart gives it by {told or 'none'}"
    theirs = (spec.get("annotations") or {}).get("prometheus.kserve.io/port")
    port = service["metadata"]["annotations"]["prometheus.io/port"]
    if theirs and theirs != port and name not in OWN_METRICS_PORT:
        yield f"has its metrics on {theirs}; the chart scrapes {port}"
    listens = re.search(r"--grpc[-_]port=(\d+)", words)
    if "grpc-v2" in ours.protocols and listens:
        yield from _grpc(values, listens[1])


def _grpc(values: dict[str, Any], port: str) -> Iterator[str]:
    values["inferenceservice"]["predictor"]["model"]["protocolVersion"] = "grpc-v2"
    model = pick(render("kserve-model", values), "InferenceService")["spec"]["predictor"]["model"]
    if [str(each["containerPort"]) for each in model["ports"]] != [port]:
        yield f"has gRPC on {port}; the chart leads to {model['ports']}"


def _selection(release: Release) -> Iterator[str]:
    """Yield the formats for which KServe selects another server than the charts expect."""
    available = [each for each in release.runtimes if each["metadata"]["name"] in release.installed]
    names = {
        each["name"].lower()
        for one in available
        for each in one["spec"]["supportedModelFormats"]
        if each.get("autoSelect")
    }
    for name in sorted(names - {"vllm"}):  # for this one the chart makes a runtime
        values = _values(name)
        model = pick(render("kserve-model", values), "InferenceService")["spec"]["predictor"]["model"]
        chosen = model.get("runtime") or selected(
            available, model["modelFormat"]["name"], model.get("protocolVersion", DEFAULT_PROTOCOL)
        )
        expected = Facts("kserve-model", values).server
        served = RUNTIMES[chosen].server if chosen in RUNTIMES else chosen
        if served != expected:
            yield f"{name}: KServe selects {chosen}, whose server is {served}; the charts expect {expected}"


def selected(runtimes: list[Document], name: str, protocol: str) -> str | None:
    """Return the runtime that KServe selects for a format and a protocol, by priority; None where there is none."""
    best: tuple[int, str] | None = None
    for each in sorted(runtimes, key=lambda one: str(one["metadata"]["name"])):
        spec = each["spec"]
        formats = [one for one in spec["supportedModelFormats"] if one["name"] == name and one.get("autoSelect")]
        spoken = spec.get("protocolVersions")
        if not formats or (spoken and protocol not in spoken) or spec.get("workerSpec") or spec.get("disabled"):
            continue
        priority = max(one.get("priority") or 0 for one in formats)
        if best is None or priority > best[0]:
            best = (priority, each["metadata"]["name"])
    return best[1] if best else None


def _values(name: str, runtime: str = "") -> dict[str, Any]:
    model: dict[str, Any] = {"modelFormat": {"name": name}, "storageUri": "s3://models/x"}
    if runtime:
        model["runtime"] = runtime
    return {"inferenceservice": {"predictor": {"model": model}}}
