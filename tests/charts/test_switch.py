"""What a chart refuses because of what a cluster has; tests/cluster follows the steps of the change on a real API server."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .api_server import serving
from .helm import CHARTS, HELMS, ROOT, Document, pick, render, tool

MODEL, GENERAL = "kserve-model", "kserve-general"
NAMESPACE, RELEASE = "models", "qwen"
PAGE = ROOT / "docs" / "onboarding.md"
HEADING = "From one chart to the other"


def isvc(name: str, *, ready: bool = True, **metadata: Any) -> Document:
    status = {
        "conditions": [{"type": "PredictorReady", "status": "True"}, {"type": "Ready", "status": str(ready)}]
    }
    named = {"name": name, "namespace": NAMESPACE, "labels": {"tokenweir.io/release": RELEASE}, **metadata}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": named,
        "status": status,
    }


def service(*, owner: str = "", **annotations: str) -> Document:
    metadata: Document = {"name": f"{RELEASE}-predictor", "namespace": NAMESPACE, "annotations": annotations}
    if owner:
        metadata["ownerReferences"] = [{"kind": "InferenceService", "name": owner}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata}


def installed(chart: str) -> Document:
    """Return the object by which a chart recognizes what the release was installed with."""
    labels = {"tokenweir.io/release": RELEASE, "app.kubernetes.io/name": chart}
    metadata = {"name": f"{RELEASE}-mesh", "namespace": NAMESPACE, "labels": labels}
    return {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata}


KEPT = service(**{"helm.sh/resource-policy": "keep"})
STRANGE = {"labels": {}}
ANOTHERS = {"annotations": {"meta.helm.sh/release-name": "other"}}
TAKEN: dict[str, tuple[str, tuple[Document, ...]]] = {
    "nothing is there": (GENERAL, ()),
    "nothing is there for the other chart": (MODEL, ()),
    "the same chart": (GENERAL, (installed(GENERAL), isvc("qwen-primary"), service())),
    "the same other chart": (MODEL, (installed(MODEL), isvc("qwen"), service(owner="qwen"))),
    "all steps to kserve-general": (GENERAL, (installed(MODEL), isvc("qwen-primary"), service())),
    "all steps to kserve-model": (MODEL, (installed(GENERAL), isvc("qwen"), isvc("qwen-primary"), KEPT)),
    "one that is not ready is upgraded": (
        GENERAL,
        (installed(GENERAL), isvc("qwen-primary", ready=False), service()),
    ),
}
REFUSED: dict[str, tuple[str, tuple[Document, ...], str]] = {
    "to kserve-general": (GENERAL, (installed(MODEL), isvc("qwen"), service(owner="qwen")), "would delete the Service qwen-predictor together"),
    "beside the old one": (GENERAL, (installed(MODEL), isvc("qwen"), isvc("qwen-primary")), "would delete the Service qwen-predictor together"),
    "new pods that are not ready": (GENERAL, (installed(MODEL), isvc("qwen-primary", ready=False), service()), "the InferenceService qwen-primary is not there, or not ready"),
    "a Service that goes": (GENERAL, (service(owner="qwen"),), "wait until it is gone"),
    "another's name": (GENERAL, (isvc("qwen", **STRANGE),), "there is an InferenceService qwen, and KServe makes the Service qwen-predictor"),
    "another release's": (GENERAL, (isvc("qwen-primary", **ANOTHERS),), "belongs to the release other"),
    "to kserve-model": (MODEL, (installed(GENERAL), isvc("qwen-primary"), service()), "the InferenceService qwen is not there, or not ready"),
    "a Service that is not kept": (MODEL, (installed(GENERAL), isvc("qwen"), service()), "Helm would delete the Service qwen-predictor"),
}  # fmt: skip


# What Helm does next when all is rendered. The server here has not all that it takes.
_NEXT = "unable to build kubernetes objects from release manifest"


def asked(chart: str, folder: Path, *objects: Document, helm: str = "helm", without: tuple[str, ...] = ()) -> str:
    """Return what Helm says to the chart where the cluster has these objects; empty where it takes it."""
    with serving(folder, *objects, without=without) as kubeconfig:
        command = [tool(helm), "template", RELEASE, str(CHARTS / chart), "-n", NAMESPACE, "--dry-run=server"]
        if helm == "helm3":  # else it asks for objects, and does not ask which kinds there are
            command += ["--validate", "--disable-openapi-validation"]
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "HOME": str(folder),
            "HELM_CACHE_HOME": str(folder),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return "" if done.returncode == 0 or _NEXT in done.stderr else done.stderr


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("case", TAKEN)
def test_a_release_is_upgraded_where_nothing_would_be_lost(case: str, helm: str, tmp_path: Path) -> None:
    chart, objects = TAKEN[case]
    assert asked(chart, tmp_path, *objects, helm=helm) == ""


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("case", REFUSED)
def test_an_upgrade_that_would_lose_something_is_refused(case: str, helm: str, tmp_path: Path) -> None:
    chart, objects, why = REFUSED[case]
    assert why in asked(chart, tmp_path, *objects, helm=helm)


@pytest.mark.parametrize("chart", [MODEL, GENERAL])
def test_a_release_has_the_object_that_says_its_chart(chart: str) -> None:
    found = pick(render(chart, {}, release=RELEASE, namespace=NAMESPACE), "VirtualService", f"{RELEASE}-mesh")
    wanted = installed(chart)
    assert found["apiVersion"] == wanted["apiVersion"]
    assert wanted["metadata"]["labels"].items() <= found["metadata"]["labels"].items()


def test_a_cluster_without_the_kinds_is_not_asked_for_them(tmp_path: Path) -> None:
    without = ("networking.istio.io/v1", "serving.kserve.io/v1beta1")
    assert [asked(chart, tmp_path, without=without) for chart in (MODEL, GENERAL)] == ["", ""]


def test_a_refusal_names_the_steps_that_there_are(tmp_path: Path) -> None:
    said = asked(MODEL, tmp_path, installed(GENERAL))
    assert f'docs/onboarding.md, "{HEADING}"' in said
    section = PAGE.read_text(encoding="utf-8").partition(f"## {HEADING}\n")[2].partition("\n## ")[0]
    steps = re.findall(r"```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(steps) == 3
    for each in steps:
        subprocess.run(["bash", "-n", "-c", each], check=True)
    for chart, template in re.findall(r"(charts/kserve-\w+).*?--show-only (\S+)", section):
        assert (ROOT / chart / template).exists()
