"""Check a model against the runtime that is to serve it, and an LLM's server against its GPUs."""

import difflib
import re
from collections.abc import Iterator
from typing import Final

from extproc.onboarding.facts import CONTAINERS, MODEL, Facts, at
from extproc.onboarding.layering import look
from extproc.onboarding.problem import Problem, error, warning
from extproc.onboarding.rules_serving import Rule
from extproc.onboarding.runtimes import PREFIX, RUNTIMES, Runtime, serving

# vLLM's published image, in any registry: it computes on NVIDIA's GPUs alone.
_NEEDS_GPU: Final = re.compile(r"(^|/)vllm/vllm-openai([:@]|$)")
_SPLITS: Final = re.compile(r"(^|\s)(--(tensor|pipeline|data)[-_]parallel[-_]size|-tp|-pp|-dp)([=\s]|$)")


def runtime(facts: Facts) -> Iterator[Problem]:
    """Yield what KServe would refuse about a runtime of its own that is named."""
    name = facts.text(*MODEL, "runtime")
    if not name.startswith(PREFIX) or facts.kind != "model":
        return
    known = RUNTIMES.get(name)
    if known is None:
        near = difflib.get_close_matches(name, RUNTIMES, 1)
        yield warning(
            at(*MODEL, "runtime"),
            f"KServe 0.19 to 0.20 has no runtime {name}",
            f"{near[0]}?" if near else "the name of a ClusterServingRuntime, or leave it out",
        )
        return
    wanted = facts.text(*MODEL, "modelFormat", "name")
    if wanted and wanted.lower() not in map(str.lower, known.formats):
        others = " or ".join(serving(wanted)) or "leave it out"
        yield error(
            at(*MODEL, "runtime"),
            f"{name} serves {', '.join(known.formats)}, not {wanted}: KServe refuses the model",
            f"{others}, or modelFormat.name: {next(iter(known.formats))}",
        )
        return
    yield from _version(facts, {name: known})
    protocol = facts.text(*MODEL, "protocolVersion")
    if protocol and known.protocols and protocol not in known.protocols:
        yield error(
            at(*MODEL, "protocolVersion"),
            f"{name} speaks {', '.join(known.protocols)}, not {protocol}: KServe refuses the model",
            f"{known.protocols[0]}, or leave it out",
        )


def selected(facts: Facts) -> Iterator[Problem]:
    """Yield why KServe would find none of its runtimes for a format."""
    if facts.kind != "model" or facts.text(*MODEL, "runtime") or facts.server == "vllm":
        return
    name, protocol = facts.text(*MODEL, "modelFormat", "name"), facts.text(*MODEL, "protocolVersion")
    candidates = serving(name)
    if not name or not candidates:
        return
    speaking = {key: each for key, each in candidates.items() if protocol in ("", *each.protocols)}
    if speaking:
        yield from _version(facts, speaking)
        return
    spoken = sorted({each for one in candidates.values() for each in one.protocols})
    yield error(
        at(*MODEL, "protocolVersion"),
        f"no runtime of KServe for {name} speaks {protocol}",
        f"one of {', '.join(spoken)}; or model.runtime, where the cluster has a runtime that does",
    )


def _version(facts: Facts, candidates: dict[str, Runtime]) -> Iterator[Problem]:
    name, version = facts.text(*MODEL, "modelFormat", "name"), facts.text(*MODEL, "modelFormat", "version")
    versions = sorted(
        {
            version
            for each in candidates.values()
            for key, listed in each.formats.items()
            for version in listed
            if key.lower() == name.lower()
        }
    )
    if version and versions and version not in versions:
        yield error(
            at(*MODEL, "modelFormat", "version"),
            f"KServe compares it letter by letter, and {' and '.join(candidates)} know {', '.join(versions)}",
            f"{versions[-1]}, or leave it out",
        )


def grpc(facts: Facts) -> Iterator[Problem]:
    """Yield what keeps callers of gRPC from the server's port."""
    if facts.text(*MODEL, "protocolVersion") != "grpc-v2" or facts.kind != "model":
        return
    ports = facts.get(*MODEL, "ports")
    if not ports and facts.server == "other":
        yield error(
            at(*MODEL, "ports"),
            "with grpc-v2 callers reach the container's first port, and none is named",
            "[{name: h2c, containerPort: 9000}]",
        )
    first = look(facts.model, "ports", 0, "name")
    if ports and not re.search("grpc|h2c", str(first or "")):
        yield error(at(*MODEL, "ports", 0, "name"), "KServe and Istio take the port for HTTP/1.1", "h2c, for gRPC")


def gpus(facts: Facts) -> Iterator[Problem]:
    """Yield an LLM's server that does not use the GPUs it has, or has none that it needs."""
    if facts.partial:
        return
    where = (*CONTAINERS, 0, "image") if facts.containers else (*MODEL, "image")
    if _NEEDS_GPU.search(facts.image) and not facts.accelerated:
        yield error(
            at(*where),
            "this image of vLLM does not start without a GPU",
            "resources: {limitGPU: 1}; or vllm/vllm-openai-cpu for the CPU",
        )
    if not facts.containers or "vllm" not in facts.image.lower() or facts.gpu_count < 2:  # noqa: PLR2004 - several
        return
    words = [str(each) for key in ("command", "args") for each in facts.containers[0].get(key) or []]
    if not _SPLITS.search(" ".join(words)):
        yield warning(
            at(*CONTAINERS, 0, "args"),
            f"the pod has {facts.gpu_count} GPUs, and vLLM uses one unless told otherwise",
            f"--tensor-parallel-size={facts.gpu_count}",
        )


RULES: Final[tuple[Rule, ...]] = (runtime, selected, grpc, gpus)
