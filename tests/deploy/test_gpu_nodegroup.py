"""deploy/terragrunt/gpu-nodegroup: parses, and makes nodes that the charts' GPU pods find."""

import re
from typing import Any

import hcl2
import pytest
import yaml
from hcl2 import SerializationOptions

from tests.charts.helm import CHARTS, ROOT, pick, render

FOLDER = ROOT / "deploy" / "terragrunt" / "gpu-nodegroup"
EFFECTS = {"NO_SCHEDULE": "NoSchedule", "NO_EXECUTE": "NoExecute", "PREFER_NO_SCHEDULE": "PreferNoSchedule"}


@pytest.fixture(scope="module")
def unit() -> dict[str, Any]:
    options = SerializationOptions(with_comments=False, strip_string_quotes=True, explicit_blocks=False)
    with (FOLDER / "terragrunt.hcl").open(encoding="utf-8") as file:
        return hcl2.load(file, serialization_options=options)


@pytest.fixture(scope="module")
def inputs(unit: dict[str, Any]) -> dict[str, Any]:
    return {name.strip('"'): value for name, value in unit["inputs"].items()}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The predictor of a model with a GPU, on the charts' defaults."""
    values = {"resources": {"limitGPU": 1}, "inferenceservice": {"predictor": {"model": {
        "modelFormat": {"name": "huggingface"}, "storageUri": "hf://a/b"}}}}  # fmt: skip
    return pick(render("kserve-model", values), "InferenceService")["spec"]["predictor"]


def test_the_node_has_the_image_whose_driver_gpu_operator_leaves_alone(inputs: dict[str, Any]) -> None:
    assert inputs["ami_type"] == "AL2023_x86_64_NVIDIA"
    path = ROOT / "deploy" / "flux" / "controllers" / "base" / "gpu-operator.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["values"]
    assert (values["driver"], values["toolkit"]) == ({"enabled": False}, {"enabled": False})
    (taint,) = inputs["taints"].values()
    (toleration,) = values["daemonsets"]["tolerations"]
    assert (toleration["key"], toleration["effect"]) == (taint["key"], EFFECTS[taint["effect"]])


def test_label_and_taint_are_those_of_the_platforms_defaults(inputs: dict[str, Any]) -> None:
    gpu = yaml.safe_load((CHARTS / "kserve-model" / "values.yaml").read_text(encoding="utf-8"))["platform"]["gpu"]
    labels = {name.strip('"'): value for name, value in inputs["labels"].items()}
    assert labels == {gpu["nodeLabel"]: gpu["nodeLabelValue"]}
    (taint,) = inputs["taints"].values()
    assert taint == {"key": gpu["taintKey"], "value": "true", "effect": "NO_SCHEDULE"}


def test_a_gpu_pod_is_let_onto_such_a_node_and_nowhere_else(inputs: dict[str, Any], pod: dict[str, Any]) -> None:
    (taint,) = inputs["taints"].values()
    tolerated = [each for each in pod["tolerations"] if each["key"] == taint["key"]]
    assert [each.get("effect", "NoSchedule") for each in tolerated] == [EFFECTS[taint["effect"]]]
    assert tolerated[0]["operator"] == "Exists" or tolerated[0]["value"] == taint["value"]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    labels = {name.strip('"'): value for name, value in inputs["labels"].items()}
    for term in terms:
        for expression in term["matchExpressions"]:
            assert expression["operator"] == "In"
            assert labels[expression["key"]] in expression["values"]


def test_the_groups_name_is_the_one_of_the_talks_eks_label(inputs: dict[str, Any]) -> None:
    assert inputs["name"] == "${dependency.eks.outputs.cluster_name}-gpu"
    assert inputs["use_name_prefix"] is False


def test_nodes_scale_within_bounds_have_room_for_models_and_keep_their_credentials(inputs: dict[str, Any]) -> None:
    assert 0 <= inputs["min_size"] <= inputs["desired_size"] <= inputs["max_size"] <= 16
    metadata = inputs["metadata_options"]
    assert (metadata["http_tokens"], metadata["http_put_response_hop_limit"]) == ("required", 1)
    (disk,) = inputs["block_device_mappings"].values()
    assert disk["ebs"]["volume_size"] >= 200
    assert disk["ebs"]["encrypted"] is True


def test_the_module_is_version_21_with_the_names_of_that_version(
    unit: dict[str, Any], inputs: dict[str, Any]
) -> None:
    (terraform,) = unit["terraform"]
    assert re.fullmatch(
        r"tfr:///terraform-aws-modules/eks/aws//modules/eks-managed-node-group\?version=21\.\d+\.\d+",
        terraform["source"],
    )
    assert "kubernetes_version" in inputs  # cluster_version before 21
    assert {"cluster_version", "cluster_service_ipv4_cidr", "platform", "disk_size"}.isdisjoint(inputs)


def test_every_output_that_is_read_has_a_mock_for_a_plan_without_the_others(unit: dict[str, Any]) -> None:
    text = (FOLDER / "terragrunt.hcl").read_text(encoding="utf-8")
    read = set(re.findall(r"dependency\.(\w+)\.outputs\.(\w+)", text))
    mocked = {
        (name.strip('"'), output)
        for block in unit["dependency"]
        for name, body in block.items()
        for output in body["mock_outputs"]
    }
    assert read == mocked
