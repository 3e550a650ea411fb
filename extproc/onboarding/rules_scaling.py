"""Check the resources of pods and their number."""

from collections.abc import Iterator
from typing import Final

from extproc.onboarding.facts import CONTAINERS, MODEL, Facts, at, quantity
from extproc.onboarding.layering import look, spell
from extproc.onboarding.problem import Problem, error, warning
from extproc.onboarding.rules_serving import Rule


def gpu(facts: Facts) -> Iterator[Problem]:
    if facts.number("autoscaling", "targetGPUUtilizationPercentage") is not None and not facts.gpus:
        yield error(
            at("autoscaling", "targetGPUUtilizationPercentage"),
            "a target for GPUs, and the model has none",
            "resources: {requestGPU: 1, limitGPU: 1}, or another target",
        )
    for path, section in facts.sections:
        requested, limit = section.get("requestGPU"), section.get("limitGPU")
        if requested is not None and limit is not None and str(requested) != str(limit):
            yield error(
                spell((*path, "limitGPU")),
                f"{limit} GPUs at the most and {requested} asked for: the two are one in Kubernetes",
                f"requestGPU and limitGPU both {limit}",
            )
    if facts.kind != "example" and facts.protocol == "openai" and not facts.gpus and not facts.partial:
        yield warning(
            "resources", "an LLM without a GPU: it runs on the CPU, slowly", "requestGPU: 1, limitGPU: 1"
        )


def amounts(facts: Facts) -> Iterator[Problem]:
    for name, short in (("cpu", "CPU"), ("memory", "Memory")):
        requested, limit = facts.resource("request", name), facts.resource("limit", name)
        low, high = quantity(requested), quantity(limit)
        if low is not None and high is not None and low > high:
            yield error(
                _place(facts, f"limit{short}"),
                f"the limit {limit} is below the request {requested}",
                f"limit{short}: {requested}, or more",
            )
    memory = quantity(facts.resource("request", "memory"))
    if memory is not None and 0 < memory < 2**20:
        yield warning(_place(facts, "requestMemory"), "less than a megabyte", "a unit: such as 8Gi")


def utilisation(facts: Facts) -> Iterator[Problem]:
    for name, short in (("cpu", "CPU"), ("memory", "Memory")):
        target = f"target{short}UtilizationPercentage"
        if facts.number("autoscaling", target) is None or facts.partial:
            continue
        if facts.resource("request", name) is None and facts.resource("limit", name) is None:
            yield warning(
                at("autoscaling", target),
                f"percent of what? No {name} is requested: KServe's own default counts",
                f"resources.request{short}",
            )


def replicas(facts: Facts) -> Iterator[Problem]:
    starts = [facts.number("replicaCount") or 1]
    starts += [facts.number("canary", "replicaCount") or 1] if facts.canary_runs else []
    fewest, most = max(starts), facts.number("autoscaling", "maxReplicaCount")
    path = at("autoscaling", "maxReplicaCount")
    if facts.targets and most is not None and most < fewest:
        yield error(path, f"{most:g} pods at the most, and never fewer than {fewest:g}", f"{fewest:g} or more")
    if facts.has("autoscaling", "maxReplicaCount") and not facts.targets and not facts.partial:
        yield warning(path, "nothing scales: no target is set", "a target such as autoscaling.targetRequestRate")


def queue(facts: Facts) -> Iterator[Problem]:
    path = at("autoscaling", "targetQueueDepth")
    if facts.number("autoscaling", "targetQueueDepth") is None:
        return
    if not facts.has_vllm and not facts.partial:
        yield error(path, "the queue is vLLM's, and this model is not served by it", "targetRequestRate")
    if facts.get("metrics", "enabled") is False:
        yield error(path, "the queue is read from the model's metrics, and they are off", "metrics.enabled: true")
    if facts.text("autoscaling", "engine") == "hpa":
        yield error(
            path, "prometheus-adapter has no rule for it", "autoscaling.engine: keda, or targetRequestRate"
        )


def _place(facts: Facts, key: str) -> str:
    """Return the file's place of this resource; the last one counts."""
    places = [spell((*path, key)) for path, _ in facts.sections if look(facts.given, *path, key) is not None]
    top = (*CONTAINERS, 0, "resources") if facts.containers else (*MODEL, "resources")
    return places[-1] if places else spell(top)


RULES: Final[tuple[Rule, ...]] = (gpu, amounts, utilisation, replicas, queue)
