"""Name KServe's own serving runtimes and what each of them serves, letter by letter as KServe compares it.

The table is that of KServe 0.19 to 0.20. A test compares it with the runtimes of a checkout of KServe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "kserve-"


@dataclass(frozen=True, slots=True)
class Runtime:
    """Describe one ClusterServingRuntime of KServe.

    `server` is the word that the charts use for the program. `formats` maps each format to its versions; KServe
    refuses another version. An empty `protocols` means any protocol.
    """

    server: str
    formats: Mapping[str, tuple[str, ...]]
    protocols: tuple[str, ...] = ("v1", "v2")


RUNTIMES: Final[Mapping[str, Runtime]] = {
    "kserve-autogluonserver": Runtime("kserve", {"autogluon": ("1",)}),
    "kserve-huggingfaceserver": Runtime("huggingface", {"huggingface": ("1",)}),
    "kserve-huggingfaceserver-multinode": Runtime("huggingface", {"huggingface": ("1",)}),
    "kserve-lgbserver": Runtime("kserve", {"lightgbm": ("4",)}),
    "kserve-mlserver": Runtime(
        "mlserver",
        {"sklearn": ("0", "1"), "xgboost": ("1", "2"), "lightgbm": ("3", "4"), "mlflow": ("1", "2")},
        ("v2",),
    ),
    "kserve-openvino": Runtime(
        "other",
        {"openvino": ("10",), "onnx": ("1",), "tensorflow": ("1",), "huggingface": ()},
        ("v1", "v2", "grpc-v2"),
    ),
    "kserve-paddleserver": Runtime("kserve", {"paddle": ("2",)}),
    "kserve-pmmlserver": Runtime("kserve", {"pmml": ("3", "4")}),
    "kserve-predictiveserver": Runtime("kserve", {"sklearn": ("1",), "xgboost": ("2",), "lightgbm": ("4",)}),
    "kserve-sklearnserver": Runtime("kserve", {"sklearn": ("1",)}),
    "kserve-tensorflow-serving": Runtime("tensorflow", {"tensorflow": ("1", "2")}, ("v1", "grpc-v1")),
    "kserve-torchserve": Runtime("torchserve", {"pytorch": ("1",)}, ("v1", "v2", "grpc-v2")),
    "kserve-tritonserver": Runtime(
        "triton",
        {"tensorrt": ("8",), "tensorflow": ("1", "2"), "onnx": ("1",), "pytorch": ("1",), "triton": ("2",)},
        ("v2", "grpc-v2"),
    ),
    "kserve-vllmserver": Runtime("vllm", {"vLLM": ("1",)}, ()),
    "kserve-xgbserver": Runtime("kserve", {"xgboost": ("2",)}),
}
# KServe does not select these by itself: they belong to several machines, or another one is meant by the format.
ONLY_BY_NAME: Final = ("kserve-huggingfaceserver-multinode", "kserve-openvino", "kserve-predictiveserver")


def serving(name: str) -> dict[str, Runtime]:
    """Return KServe's runtimes that may be selected for a format; the case of its letters does not count."""
    return {
        key: each
        for key, each in RUNTIMES.items()
        if key not in ONLY_BY_NAME and name.lower() in map(str.lower, each.formats)
    }
