"""Our tables against KServe's: its runtimes, letter by letter, and the fields of its API.

TOKENWEIR_KSERVE names one or more checkouts of KServe, or folders with its config/runtimes, parted by `:`; without it
this comparison is listed as not run. The comparison itself is tested on runtimes that are written by hand.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.missing import missing

from . import schemas
from .helm import CHARTS
from .tables import Release, differences, read, selected

VARIABLE = "TOKENWEIR_KSERVE"
FOLDERS = [Path(each) for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]


def runtime(name: str, *formats: dict[str, Any], **spec: Any) -> dict[str, Any]:
    container = {"name": "kserve-container", "image": "a:1", "args": spec.pop("args", ["--model_name={{.Name}}"])}
    return {
        "kind": "ClusterServingRuntime",
        "metadata": {"name": name},
        "spec": {"supportedModelFormats": list(formats), "containers": [container], **spec},
    }


SKLEARN = {"name": "sklearn", "version": "1", "autoSelect": True, "priority": 1}


def sklearn(*formats: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return runtime("kserve-sklearnserver", *(formats or (SKLEARN,)), **({"protocolVersions": ["v1", "v2"]} | spec))


def release(*runtimes: dict[str, Any]) -> Release:
    return Release(list(runtimes), {each["metadata"]["name"] for each in runtimes})


def test_what_is_as_the_tables_say_is_no_difference() -> None:
    assert differences(release(sklearn())) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (sklearn(SKLEARN | {"name": "SKLearn"}), "serves {'SKLearn'"),
        (sklearn(SKLEARN | {"version": "2"}), "serves {'sklearn': {'2'}}"),
        (sklearn(protocolVersions=["v2"]), "speaks ['v2']"),
        (sklearn(args=["--name={{.Name}}"]), "takes the model's name by {'--name'}"),
        (sklearn(annotations={"prometheus.kserve.io/port": "9090"}), "metrics on 9090; the chart scrapes 8080"),
        (runtime("kserve-newserver", SKLEARN), "runtimes.py does not know it"),
    ],
)
def test_a_change_of_kserves_is_seen(changed: dict[str, Any], words: str) -> None:
    assert any(words in each for each in differences(release(changed)))


def test_a_runtime_that_kserve_would_rather_select_is_seen() -> None:
    rival = runtime("kserve-openvino", SKLEARN | {"priority": 3}, protocolVersions=["v1"])
    found = differences(release(sklearn(), rival))
    assert any("sklearn: KServe selects kserve-openvino" in each for each in found)


def test_grpc_on_another_port_is_seen() -> None:
    formats = [
        ("tensorrt", "8"),
        ("tensorflow", "1"),
        ("tensorflow", "2"),
        ("onnx", "1"),
        ("pytorch", "1"),
        ("triton", "2"),
    ]
    listed = [{"name": name, "version": version, "autoSelect": name == "triton"} for name, version in formats]
    for port in ("9000", "9001"):
        triton = runtime(
            "kserve-tritonserver", *listed, args=[f"--grpc-port={port}"], protocolVersions=["v2", "grpc-v2"]
        )
        found = differences(release(triton))
        assert found == [] if port == "9000" else "has gRPC on 9001" in found[0]


def test_a_scheme_that_kserve_learns_is_seen() -> None:
    known = release(sklearn())
    known.storages = [{"metadata": {"name": "default"}, "spec": {"supportedUriFormats": [{"prefix": "new://"}]}}]
    assert differences(known) == ["default: fetches new://, which validate does not know"]


def test_kserves_choice_goes_by_protocol_and_priority() -> None:
    mlserver = runtime("b", SKLEARN | {"priority": 2}, protocolVersions=["v2"])
    plain = runtime("a", SKLEARN, protocolVersions=["v1", "v2"])
    off = runtime("c", SKLEARN | {"priority": 9}, protocolVersions=["v1", "v2"], disabled=True)
    assert selected([mlserver, plain, off], "sklearn", "v1") == "a"
    assert selected([mlserver, plain, off], "sklearn", "v2") == "b"
    assert selected([mlserver, plain, off], "SKLearn", "v2") is None


def test_a_folder_is_read_with_what_kserve_installs_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "runtimes"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(runtime(name, SKLEARN), sort_keys=True))
    images = [{"name": "x", "newName": "a/b", "newTag": "1"}]
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"kind": "Kustomization", "resources": ["one.yaml"], "images": images})
    )
    found = read(tmp_path)
    assert [each["metadata"]["name"] for each in found.runtimes] == ["one", "two"]
    assert (found.installed, found.images) == ({"one"}, {"x": "a/b:1"})
    with pytest.raises(ValueError, match="no ClusterServingRuntime"):
        read(tmp_path / "config" / "none")


@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda each: each.name if each else "none")
def test_our_tables_are_those_of_kserve(folder: Path | None) -> None:
    if folder is None:
        pytest.skip(f"no sources of KServe: set {VARIABLE} to a checkout, or to several parted by {os.pathsep}")
    found = read(folder)
    assert differences(found) == []
    images = yaml.safe_load((CHARTS / "kserve-model" / "values.yaml").read_text())["platform"]["runtimeImages"]
    for ours, theirs in {"triton": "kserve-tritonserver", "mlserver": "mlserver"}.items():
        if theirs in found.images:
            assert images[ours] == found.images[theirs]
    if "vllmserver" in found.images:
        assert images["vllm"].rpartition(":")[0].endswith(found.images["vllmserver"].rpartition(":")[0])


# The fields of KServe's API that values can't set. A field that is new in the next release is in none of these: decide
# whether the charts offer it.
MODEL_NOT_OFFERED = {
    "command", "confidential", "imagePullPolicy", "name", "resizePolicy", "restartPolicy", "restartPolicyRules",
    "runtimeVersion", "securityContext", "startupProbe", "stdin", "stdinOnce", "storage", "terminationMessagePath",
    "terminationMessagePolicy", "tty", "volumeDevices", "volumeMounts", "workingDir",
}  # fmt: skip
CONTAINER_NOT_OFFERED = {
    "resizePolicy", "restartPolicy", "restartPolicyRules", "stdin", "stdinOnce", "terminationMessagePath",
    "terminationMessagePolicy", "tty", "volumeDevices",
}  # fmt: skip
PREDICTOR_NOT_OFFERED = {
    "activeDeadlineSeconds", "annotations", "autoScaling", "automountServiceAccountToken", "batcher",
    "canaryTrafficPercent", "containerConcurrency", "dnsConfig", "dnsPolicy", "enableServiceLinks", "hostAliases",
    "hostIPC", "hostNetwork", "hostPID", "hostUsers", "hostname", "hostnameOverride", "huggingface", "initContainers",
    "labels", "lightgbm", "logger", "maxReplicas", "minReplicas", "name", "nodeName", "onnx", "os", "overhead", "paddle",
    "pmml", "preemptionPolicy", "priority", "pytorch", "readinessGates", "resourceClaims", "resources", "restartPolicy",
    "runtimeClassName", "scaleMetric", "scaleMetricType", "scaleTarget", "schedulerName", "schedulingGates",
    "securityContext", "serviceAccount", "setHostnameAsFQDN", "shareProcessNamespace", "sklearn", "storageContainerName",
    "storageUris", "subdomain", "tensorflow", "topologySpreadConstraints", "triton", "workerSpec", "xgboost",
}  # fmt: skip


def test_every_field_of_kserves_api_is_offered_or_known_not_to_be() -> None:
    path = schemas.FOLDER / "serving.kserve.io" / "InferenceService_v1beta1.json"
    if not path.is_file():
        missing(f"no CRD schemas at {schemas.FOLDER}: set TOKENWEIR_SCHEMAS")
    predictor = json.loads(path.read_text())["properties"]["spec"]["properties"]["predictor"]["properties"]
    ours = json.loads((CHARTS / "kserve-model" / "values.schema.json").read_text())
    values = ours["properties"]["inferenceservice"]["properties"]["predictor"]["properties"]
    container = ours["definitions"]["container"]["properties"]
    assert predictor.keys() - values.keys() == PREDICTOR_NOT_OFFERED
    assert predictor["model"]["properties"].keys() - values["model"]["properties"].keys() == MODEL_NOT_OFFERED
    assert predictor["containers"]["items"]["properties"].keys() - container.keys() == CONTAINER_NOT_OFFERED
