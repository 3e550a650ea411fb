"""Interpret values as the charts do: server, protocol, GPUs, canary."""

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from typing import Any, Final

from extproc.onboarding.charts import WITH_CANARY, defaults
from extproc.onboarding.files import CANARY_KEYS
from extproc.onboarding.layering import Path, layered, look, spell

_LLM_IMAGES: Final = r"vllm|sglang|text-generation-inference|lmdeploy|llama[.-]?cpp|ollama|tensorrt-?llm"
_NO_VLLM_IMAGES: Final = r"sglang|text-generation-inference|lmdeploy|llama[.-]?cpp|ollama|tensorrt"
_BY_RUNTIME: Final = ("huggingface", "vllm", "mlserver", "triton", "torchserve", "tensorflow")
_BY_FORMAT: Final = {
    "huggingface": "huggingface",
    "vllm": "vllm",
    "onnx": "triton",
    "triton": "triton",
    "tensorrt": "triton",
    "mlflow": "mlserver",
    "pytorch": "torchserve",
    "tensorflow": "tensorflow",
    **dict.fromkeys(("sklearn", "xgboost", "lightgbm", "pmml", "paddle", "catboost", "autogluon"), "kserve"),
}
_POWERS: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** (index + 1) for index, unit in enumerate("kMGTP")},
    **{f"{unit}i": Decimal(1024) ** (index + 1) for index, unit in enumerate("KMGTP")},
}
_TARGETS: Final = (
    "targetCPUUtilizationPercentage",
    "targetMemoryUtilizationPercentage",
    "targetGPUUtilizationPercentage",
    "targetRequestRate",
    "targetQueueDepth",
)
MODEL: Final[Path] = ("inferenceservice", "predictor", "model")
CONTAINERS: Final[Path] = ("inferenceservice", "predictor", "containers")


class Facts:
    """Derive facts from one model's values. Safe for any shape: a value of the wrong type reads as unset."""

    def __init__(
        self,
        chart: str,
        given: Mapping[str, Any],
        release: str | None = None,
        namespace: str | None = None,
        *,
        partial: bool = False,
        elsewhere: bool = False,
    ) -> None:
        self.elsewhere = elsewhere or partial
        self.chart = chart
        self.given = given
        self.release = release
        self.namespace = namespace
        self.partial = partial
        self.values = layered(defaults(chart), given)

    def get(self, *path: str | int) -> Any:
        """Return the value in effect."""
        return look(self.values, *path)

    def has(self, *path: str | int) -> bool:
        """Return whether the user set it to something."""
        return look(self.given, *path) not in (None, "", [], {})

    def text(self, *path: str | int) -> str:
        """Return the value in effect if it is text."""
        found = self.get(*path)
        return found if isinstance(found, str) else ""

    def number(self, *path: str | int) -> float | None:
        """Return the value in effect if it is a number."""
        found = self.get(*path)
        return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None

    @cached_property
    def containers(self) -> list[Mapping[str, Any]]:
        found = self.get(*CONTAINERS)
        return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []

    @cached_property
    def model(self) -> Mapping[str, Any]:
        found = self.get(*MODEL)
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def kind(self) -> str:
        """Return containers, multiModel, model, or example (nothing was given, so the chart serves its own
        example).
        """
        if self.containers:
            return "containers"
        if self.get("inferenceservice", "multiModel", "enabled") is True:
            return "multiModel"
        named = (
            look(self.model, "modelFormat", "name"),
            *(self.model.get(key) for key in ("storageUri", "image")),
        )
        return "model" if any((*named, self.model.get("runtime"))) else "example"

    @cached_property
    def server(self) -> str:
        """Return KServe's server for a `model`, as the charts select it; `other` if they know none."""
        runtime = self.text(*MODEL, "runtime").lower()
        if self.kind == "multiModel":
            return self.text("inferenceservice", "multiModel", "server") or "triton"
        if runtime:
            if re.match("kserve-(sklearn|xgb|lgb|pmml|paddle|predictive|catboost|autogluon)", runtime):
                return "kserve"  # before the words: kserve-pmmlserver is no MLServer
            return next((each for each in _BY_RUNTIME if each in runtime), "other")
        name = "sklearn" if self.kind == "example" else self.text(*MODEL, "modelFormat", "name").lower()
        v2 = self.text(*MODEL, "protocolVersion") == "v2"
        return "mlserver" if v2 and name in {"sklearn", "xgboost", "lightgbm"} else _BY_FORMAT.get(name, "other")

    @cached_property
    def protocol(self) -> str:
        """Return openai, v1, v2 or other."""
        named = self.text("inferenceservice", "protocol")
        if named:
            return named
        if self.kind == "containers":
            return "openai" if re.search(_LLM_IMAGES, self.image.lower()) else "other"
        if self.server in {"huggingface", "vllm"}:
            return "openai"
        version = self.text(*MODEL, "protocolVersion")
        if version.endswith("v2") or (not version and self.server in {"triton", "mlserver"}):
            return "v2"
        return "other" if self.server == "other" else "v1"

    @cached_property
    def image(self) -> str:
        """Return the image that serves; empty: the runtime's own."""
        holder = self.containers[0] if self.containers else self.model
        found = holder.get("image")
        return found if isinstance(found, str) else ""

    @cached_property
    def has_vllm(self) -> bool:
        """Return whether there are vLLM metrics to scale on."""
        image = self.image.lower()
        if "vllm" in image:
            return True
        if self.kind == "containers":
            return self.protocol == "openai" and not re.search(_NO_VLLM_IMAGES, image)
        words = self.model.get("args")
        line = " ".join(str(each) for each in words) if isinstance(words, list) else ""
        return self.server in {"vllm", "huggingface"} and not re.search("--backend[= ]huggingface", line)

    @cached_property
    def metered(self) -> bool:
        """Return whether Tokenweir counts tokens."""
        wanted = self.get("tokenLimit", "enabled")
        on = wanted if isinstance(wanted, bool) else self.protocol == "openai"
        return on and self.tokenweir

    @property
    def tokenweir(self) -> bool:
        return self.get("platform", "tokenweir", "enabled") is not False

    @property
    def exposed(self) -> bool:
        return self.get("exposeModel", "enabled") is True

    @cached_property
    def targets(self) -> list[str]:
        """Return the scaling targets that are set."""
        return [each for each in _TARGETS if self.number("autoscaling", each) is not None]

    @cached_property
    def sections(self) -> list[tuple[Path, Mapping[str, Any]]]:
        """Return the places of the serving pod's resources: the top level, then the model's or the containers'."""
        paths: list[Path] = [("resources",)]
        if self.containers:
            keys = ("var_resource", "var_resources", "resources")
            paths += [(*CONTAINERS, index, key) for index in range(len(self.containers)) for key in keys]
        else:
            paths.append((*MODEL, "resources"))
        found = [(path, self.get(*path)) for path in paths]
        return [(path, section) for path, section in found if isinstance(section, Mapping)]

    def resource(self, kind: str, name: str) -> str | None:
        """Return the serving container's value; `kind` is request or limit, `name` is cpu, memory or the GPU's
        resource.
        """
        short = {"cpu": "CPU", "memory": "Memory", self.gpu_resource: "GPU"}[name]
        found = None
        for path, section in self.sections:
            if len(path) > len(CONTAINERS) and path[: len(CONTAINERS)] == CONTAINERS and path[-2] != 0:
                continue
            for value in (section.get(f"{kind}{short}"), look(section, f"{kind}s", name)):
                found = found if value in (None, "") else str(value)
        return found

    @property
    def gpu_resource(self) -> str:
        return self.text("platform", "gpu", "resourceName") or "nvidia.com/gpu"

    @cached_property
    def gpus(self) -> bool:
        """Return whether a container of the serving pod has a GPU."""
        for _, section in self.sections:
            maps = (section.get("requests"), section.get("limits"))
            further = [look(each, self.gpu_resource) for each in maps]
            amounts = [section.get("requestGPU"), section.get("limitGPU"), *further]
            if any(str(each).isdigit() and int(each) > 0 for each in amounts if each is not None):
                return True
            if any(
                str(key).startswith("nvidia.com/") for each in maps if isinstance(each, Mapping) for key in each
            ):
                return True
        return False

    @cached_property
    def gpu_count(self) -> int:
        """Return the number of whole GPUs of the serving container."""
        found = self.resource("limit", self.gpu_resource) or self.resource("request", self.gpu_resource) or ""
        return int(found) if found.isdecimal() else 0

    @cached_property
    def accelerated(self) -> bool:
        """Return whether the serving container has a device: a resource with a domain, such as amd.com/gpu."""
        maps = [look(section, kind) for _, section in self.sections for kind in ("requests", "limits")]
        named = [(key, value) for each in maps if isinstance(each, Mapping) for key, value in each.items()]
        return self.gpus or any("/" in str(key) and str(value) != "0" for key, value in named)

    @cached_property
    def canary(self) -> list[Path]:
        """Return the paths of the values that start a canary; empty: there is no canary."""
        holders = [MODEL, *((*CONTAINERS, index) for index in range(len(self.containers)))]
        return [(*holder, key) for holder in holders for key in CANARY_KEYS if self.get(*holder, key)]

    @property
    def canary_runs(self) -> bool:
        return self.chart == WITH_CANARY and bool(self.canary)


def quantity(text: str | None) -> Decimal | None:
    """Return a Kubernetes quantity as a number; None if the text is no quantity."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|[KMGTP]i)?", text or "")
    if found is None:
        return None
    return Decimal(found[1]) * _POWERS[found[2] or ""]


def at(*path: str | int) -> str:
    """Return a path in the form that problems use."""
    return spell(path)
