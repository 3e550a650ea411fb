"""Select the fields that a model owner needs first, and some starting points.

This is only a selection: the schema defines the fields, and a field that the chart does not have is left out.
"""

from typing import Any, Final

import msgspec

from extproc.onboarding.drafting import Kind

_MODEL: Final = "inferenceservice.predictor.model."
_SCALING: Final = "autoscaling."


class Essential(msgspec.Struct, frozen=True):
    """Select one field, with the label to show here."""

    path: str
    label: str


class Topic(msgspec.Struct, frozen=True, omit_defaults=True):
    """Group related fields. `more` are fields that are folded at first."""

    name: str
    label: str
    help: str
    fields: tuple[Essential, ...]
    more: tuple[Essential, ...] = ()
    more_label: str = ""
    canary: bool = False


class Starter(msgspec.Struct, frozen=True):
    """Offer values to begin with."""

    name: str
    label: str
    help: str
    values: dict[str, Any]


def _some(*pairs: tuple[str, str]) -> tuple[Essential, ...]:
    return tuple(Essential(*pair) for pair in pairs)


TOPICS: Final = (
    Topic(
        "model",
        "Model",
        "What is served, and where it is stored.",
        _some(
            (f"{_MODEL}modelFormat.name", "Kind of model"),
            (f"{_MODEL}storageUri", "Where it is stored"),
            ("inferenceservice.servedModelName", "Name that callers use"),
        ),
        _some(
            (f"{_MODEL}storageKey", "Secret of the storage"),
            ("inferenceservice.predictor.serviceAccountAnnotations", "Annotations of its service account"),
            (f"{_MODEL}image", "Image instead of the runtime's"),
            (f"{_MODEL}args", "Arguments of the runtime"),
            (f"{_MODEL}env", "Environment"),
            ("inferenceservice.predictor.containers", "Containers of your own instead"),
        ),
        "Storage access, image, arguments, a container of your own",
    ),
    Topic(
        "gpu",
        "GPU and resources",
        "Of one pod. GPUs bring toleration and node affinity along.",
        _some(
            ("resources.limitGPU", "GPUs"),
            ("resources.requestCPU", "CPU, requested"),
            ("resources.requestMemory", "Memory, requested"),
            ("resources.limitCPU", "CPU, at most"),
            ("resources.limitMemory", "Memory, at most"),
        ),
    ),
    Topic(
        "replicas",
        "Replicas",
        "With a target the number of pods follows the load.",
        _some(
            ("replicaCount", "Pods, at least"),
            (f"{_SCALING}maxReplicaCount", "Pods, at most"),
            (f"{_SCALING}targetRequestRate", "Target: requests a second"),
            (f"{_SCALING}targetQueueDepth", "Target: queue of vLLM"),
            (f"{_SCALING}targetGPUUtilizationPercentage", "Target: GPU in percent"),
            (f"{_SCALING}targetCPUUtilizationPercentage", "Target: CPU in percent"),
            (f"{_SCALING}targetMemoryUtilizationPercentage", "Target: memory in percent"),
        ),
    ),
    Topic(
        "publish",
        "Publish",
        "To callers outside the mesh, who then need a token.",
        _some(
            ("exposeModel.enabled", "Published"),
            ("exposeModel.jwtVerify.Audiences", "Audiences of the token"),
            ("exposeModel.type", "Way of publishing"),
        ),
    ),
    Topic(
        "limits",
        "Limits",
        "Beside those that each tenant has.",
        _some(
            ("ratelimitEachSAPerMinute", "Requests a minute, per service account"),
            ("ratelimitIPPerMinute", "Requests a minute, per client IP"),
            ("tokenLimit.limits", "Limits of this model"),
        ),
    ),
    Topic(
        "canary",
        "Canary",
        "A second version beside the first, with a share of the traffic and the same quota.",
        _some(
            (f"{_MODEL}newStorageUri", "The new version's storage"),
            (f"{_MODEL}newImageTag", "Or: the new version's image tag"),
            ("primaryLoad", "Traffic to the present version"),
        ),
        _some((f"{_MODEL}newImage", "Or: the new version's image"), ("canary.replicaCount", "Pods of the canary")),
        "Image, pods",
        canary=True,
    ),
)

SUGGESTIONS: Final = {
    f"{_MODEL}modelFormat.name": tuple(kind.value for kind in Kind if kind is not Kind.IMAGE),
    f"{_MODEL}storageUri": ("hf://", "s3://", "gs://", "pvc://", "oci://", "https://"),
    f"{_MODEL}newStorageUri": ("hf://", "s3://", "gs://", "pvc://", "oci://", "https://"),
}

STARTERS: Final = (
    Starter(
        "llm",
        "LLM on a GPU",
        "Served by KServe's Hugging Face runtime (vLLM)",
        {
            "inferenceservice": {
                "predictor": {
                    "model": {
                        "modelFormat": {"name": "huggingface"},
                        "storageUri": "hf://Qwen/Qwen2.5-0.5B-Instruct",
                    }
                }
            },
            "resources": {"limitGPU": 1, "requestCPU": 4, "requestMemory": "16Gi", "limitMemory": "16Gi"},
        },
    ),
    Starter(
        "predictive",
        "Predictive model",
        "scikit-learn, XGBoost, ONNX and others",
        {
            "inferenceservice": {
                "predictor": {
                    "model": {
                        "modelFormat": {"name": "sklearn"},
                        "storageUri": "gs://kfserving-examples/models/sklearn/1.0/model",
                    }
                }
            },
            "resources": {"requestCPU": 1, "requestMemory": "1Gi", "limitMemory": "1Gi"},
        },
    ),
    Starter(
        "container",
        "Container of your own",
        "Any server that speaks HTTP",
        {
            "inferenceservice": {
                "protocol": "other",
                "predictor": {
                    "containers": [{"name": "kserve-container", "image": "registry.example.com/model:1.0"}]
                },
            },
            "resources": {"requestCPU": 1, "requestMemory": "1Gi", "limitMemory": "1Gi"},
        },
    ),
)
