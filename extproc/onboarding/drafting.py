"""Turn answers into the text of a values file with short comments."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final

from extproc.core.quota.limits import Scope
from extproc.onboarding import canary
from extproc.onboarding.charts import WITH_CANARY, chart_path, schema, schema_of
from extproc.onboarding.dumping import inline
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.facts import quantity
from extproc.onboarding.layering import Path
from extproc.onboarding.problem import Level
from extproc.onboarding.rules_serving import storage_problems


class Kind(StrEnum):
    """List the ways to serve the model: KServe's formats, or an image."""

    HUGGINGFACE = "huggingface"
    VLLM = "vllm"
    SKLEARN = "sklearn"
    XGBOOST = "xgboost"
    LIGHTGBM = "lightgbm"
    PYTORCH = "pytorch"
    TENSORFLOW = "tensorflow"
    ONNX = "onnx"
    TRITON = "triton"
    MLFLOW = "mlflow"
    IMAGE = "image"


# The value that each number becomes; its schema gives the bounds.
_NUMBERS: Final[Mapping[str, Path]] = {
    "replicas": ("replicaCount",),
    "max_replicas": ("autoscaling", "maxReplicaCount"),
    "target_cpu": ("autoscaling", "targetCPUUtilizationPercentage"),
    "target_memory": ("autoscaling", "targetMemoryUtilizationPercentage"),
    "target_gpu": ("autoscaling", "targetGPUUtilizationPercentage"),
    "target_rate": ("autoscaling", "targetRequestRate"),
    "target_queue": ("autoscaling", "targetQueueDepth"),
    "requests_per_ip": ("ratelimitIPPerMinute",),
    "requests_per_sa": ("ratelimitEachSAPerMinute",),
    "primary_load": ("primaryLoad",),
}
LLMS: Final = frozenset({Kind.HUGGINGFACE, Kind.VLLM})
_INDENT: Final = "  "
_PRIMARY_LOAD: Final = 90
_MOST: Final = 1_000_000_000  # if the schema has no bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Hold the answers of the wizard, the flags or the form; None: not wanted. `questions.QUESTIONS` uses these
    names.

    `token_limits` are texts such as service_account:200000/day or tenant:1000000/month:output_tokens.
    """

    name: str
    namespace: str = "default"
    chart: str = WITH_CANARY
    kind: Kind = Kind.HUGGINGFACE
    storage: str | None = None
    image: str | None = None
    gpus: int = 0
    cpu: str | None = None
    memory: str | None = None
    replicas: int = 1
    max_replicas: int | None = None
    target_cpu: int | None = None
    target_memory: int | None = None
    target_gpu: int | None = None
    target_rate: float | None = None
    target_queue: float | None = None
    publish: bool = False
    audiences: tuple[str, ...] = ()
    requests_per_ip: int | None = None
    requests_per_sa: int | None = None
    token_limits: tuple[str, ...] = ()
    canary_storage: str | None = None
    canary_image: str | None = None
    primary_load: int = _PRIMARY_LOAD


def answers_from(given: Mapping[str, Any]) -> Answers:
    """Return answers from plain data. Empty values and None count as not given. Raise `OnboardingError`."""
    known = {each.name for each in fields(Answers)}
    for name in given:
        if name not in known:
            raise OnboardingError(f"there is no answer '{name}'")
    found = {name: value for name, value in given.items() if value not in (None, "", (), [])}
    if not found.get("name"):
        raise OnboardingError("the model needs a name")
    kind = found.get("kind") or _kind_of(found)
    try:
        found["kind"] = Kind(kind)
    except ValueError:
        raise OnboardingError(f"the kind is one of {', '.join(Kind)}, not '{kind}'") from None
    for name in ("audiences", "token_limits"):
        if name in found:
            found[name] = tuple(found[name])
    return Answers(**found)


def _kind_of(given: Mapping[str, Any]) -> str:
    if given.get("image") and not given.get("storage"):
        return Kind.IMAGE
    if str(given.get("storage", "")).startswith("hf://"):
        return Kind.HUGGINGFACE
    raise OnboardingError(f"what kind of model is it? One of {', '.join(Kind)}")


def draft(answers: Answers) -> str:
    """Return the text of values.yaml. Raise `OnboardingError` if the answers contradict each other."""
    place = "" if answers.namespace == "default" else f" (namespace {answers.namespace})"
    head = f"# Values of the model {answers.name}{place} for the chart {answers.chart}.\n"
    return head + "\n".join(_body(answers)) + "\n"


def draft_helmrelease(answers: Answers) -> str:
    """Return the text of a Flux HelmRelease with the same values, in the form of deploy/flux."""
    values = "\n".join(f"    {line}" if line else "" for line in _body(answers))
    return f"""# The model {answers.name}. The platform's values (domain, gateways, issuers) come from a ConfigMap.
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata:
  name: {answers.name}
  namespace: {answers.namespace}
spec:
  interval: 10m
  releaseName: {answers.name}
  chart:
    spec:
      chart: ./charts/{answers.chart}
      reconcileStrategy: Revision
      sourceRef:
        kind: GitRepository
        name: tokenweir
        namespace: flux-system
  valuesFrom:
    - kind: ConfigMap
      name: platform-values
      optional: true
  values:
{values}
"""


def _body(answers: Answers) -> list[str]:
    chart_path(answers.chart)
    _bounded(answers)
    _sensible(answers)
    answers = _scaled(answers)
    parts = (_pods, _model, _scaling, _callers, _limits, _canary)
    return [line for part in parts for line in part(answers)]


def check_answer(name: str, text: str) -> None:
    """Check one answer alone, so that it can be asked again. Raise `OnboardingError`."""
    shown = f"'{text[:80]}'"
    if name == "name" and not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", text):
        raise OnboardingError(f"the name {shown} must be small letters, digits and '-', a letter first")
    if name == "namespace" and not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", text):
        raise OnboardingError(f"the namespace {shown} must be small letters, digits and '-'")
    if name in {"storage", "canary_storage"}:
        for each in storage_problems("", text):
            if each.level is Level.ERROR:
                raise OnboardingError(f"{each.message}: {each.fix}")
    if name in {"image", "canary_image"} and not canary.is_image(text):
        raise OnboardingError(f"{shown} is no image, such as registry.example.com/qwen:v2")
    if name in {"cpu", "memory"} and quantity(text) is None:
        raise OnboardingError(f"{shown} is no amount, such as {'4 or 500m' if name == 'cpu' else '24Gi'}")
    if name == "token_limits":
        token_limit(text)


def check_number(name: str, value: float) -> None:
    """Check one number alone. Raise `OnboardingError`."""
    bounds = schema_of(WITH_CANARY, _NUMBERS.get(name, ()))
    most, over = bounds.get("maximum", _MOST), bounds.get("exclusiveMinimum")
    least = bounds.get("minimum", 0)
    if over is not None and not over < value <= most:
        raise OnboardingError(f"{value:g} is out of bounds: more than {_number(over)}, at most {_number(most)}")
    if over is None and not least <= value <= most:
        raise OnboardingError(f"{value:g} is out of bounds: {_number(least)} to {_number(most)}")


def _sensible(answers: Answers) -> None:
    for name in ("name", "namespace", "storage", "canary_storage", "image", "canary_image", "cpu", "memory"):
        text = getattr(answers, name)
        if text is not None:
            check_answer(name, text)
    if answers.kind is Kind.IMAGE and not answers.image:
        raise OnboardingError("an image of your own: which one? Give the image")
    if answers.kind is not Kind.IMAGE and not answers.storage:
        raise OnboardingError("where is the model? Give the storage, such as hf://org/model or s3://bucket/path")
    if answers.kind is Kind.IMAGE and answers.storage:
        raise OnboardingError("an image of your own brings its model: give the image or the storage")
    if answers.audiences and not answers.publish:
        raise OnboardingError("audiences are those of callers outside: publish the model too")
    canaried = answers.canary_storage or answers.canary_image
    if answers.primary_load != _PRIMARY_LOAD and not canaried:
        raise OnboardingError("a load of the primary, and no canary: give the canary's storage or image too")
    if canaried and answers.chart != WITH_CANARY:
        raise OnboardingError(f"a canary needs the chart {WITH_CANARY}")


def _bounded(answers: Answers) -> None:
    for name in (*_NUMBERS, "gpus"):
        number = getattr(answers, name)
        if number is None:
            continue
        try:
            check_number(name, number)
        except OnboardingError as wrong:
            raise OnboardingError(f"{name.replace('_', ' ')}: {wrong}") from None


def _scaled(answers: Answers) -> Answers:
    """Add a scaling target if only a maximum of pods is given: without a target no pod would be added."""
    if answers.max_replicas is None or any(_targets(answers)):
        return answers
    return replace(answers, target_queue=4) if answers.kind in LLMS else replace(answers, target_cpu=80)


def _targets(answers: Answers) -> tuple[float | None, ...]:
    return (
        answers.target_cpu,
        answers.target_memory,
        answers.target_gpu,
        answers.target_rate,
        answers.target_queue,
    )


def _pods(answers: Answers) -> Iterator[str]:
    yield f"replicaCount: {answers.replicas}"
    amounts = {"CPU": answers.cpu, "Memory": answers.memory}
    if any(amounts.values()) or answers.gpus:
        yield "resources:"
    if answers.cpu:
        yield f"{_INDENT}requestCPU: {_quantity(answers.cpu)}"
    if answers.memory:
        yield f"{_INDENT}requestMemory: {_quantity(answers.memory)}"
    if answers.gpus:
        yield f"{_INDENT}limitGPU: {answers.gpus}  # brings the toleration and the affinity of GPU nodes along"
    yield ""


def _model(answers: Answers) -> Iterator[str]:
    yield "inferenceservice:"
    yield "  predictor:"
    if answers.kind is Kind.IMAGE:
        yield "    containers:"
        yield "      - name: kserve-container  # listens on 8080, or on the port that `ports` names"
        yield f"        image: {inline(answers.image or '')}"
        if answers.canary_image:
            yield f"        newImage: {inline(answers.canary_image)}"
        yield ""
        return
    yield "    model:"
    yield "      modelFormat:"
    yield f"        name: {answers.kind}"
    yield f"      storageUri: {inline(answers.storage or '')}"
    if answers.canary_storage:
        yield f"      newStorageUri: {inline(answers.canary_storage)}"
    if answers.image:
        yield f"      image: {inline(answers.image)}"
    if answers.canary_image:
        yield f"      newImage: {inline(answers.canary_image)}"
    if answers.kind in LLMS:
        yield "      # args: [--max-model-len=8192]"
    yield ""


def _scaling(answers: Answers) -> Iterator[str]:
    if answers.max_replicas is None and not any(_targets(answers)):
        return
    yield "autoscaling:"
    if answers.max_replicas is not None:
        yield f"{_INDENT}maxReplicaCount: {answers.max_replicas}"
    for key, value, comment in (
        ("targetCPUUtilizationPercentage", answers.target_cpu, ""),
        ("targetMemoryUtilizationPercentage", answers.target_memory, ""),
        ("targetGPUUtilizationPercentage", answers.target_gpu, ""),
        ("targetRequestRate", answers.target_rate, "  # a second and pod"),
        ("targetQueueDepth", answers.target_queue, "  # requests that wait, per pod"),
    ):
        if value is not None:
            yield f"{_INDENT}{key}: {_number(value)}{comment}"
    yield ""


def _callers(answers: Answers) -> Iterator[str]:
    if not answers.publish:
        return
    yield "exposeModel:"
    yield "  enabled: true"
    if answers.audiences:
        yield "  jwtVerify:"
        yield f"    Audiences: {inline(list(answers.audiences))}"
    yield ""


def _limits(answers: Answers) -> Iterator[str]:
    if answers.requests_per_sa is not None:
        yield f"ratelimitEachSAPerMinute: {answers.requests_per_sa}"
    if answers.requests_per_ip is not None:
        yield f"ratelimitIPPerMinute: {answers.requests_per_ip}"
    if answers.token_limits:
        yield "# Beside the tenants' own (`tokenweir tenant set`); a canary shares them with its primary."
        yield "tokenLimit:"
        yield "  limits:"
        for text in answers.token_limits:
            limit = token_limit(text, answers.chart)
            yield f"    - {{{', '.join(f'{key}: {value}' for key, value in limit.items())}}}"
    if answers.requests_per_sa is not None or answers.requests_per_ip is not None or answers.token_limits:
        yield ""


def _canary(answers: Answers) -> Iterator[str]:
    if answers.canary_storage or answers.canary_image:
        yield f"primaryLoad: {answers.primary_load}  # percent; the canary gets the rest"
    elif answers.chart == WITH_CANARY:
        yield "# A canary: tokenweir model canary start FILE --storage ... (or --image, --tag)"


def token_limit(text: str, chart: str = WITH_CANARY) -> dict[str, str | int]:
    """Return `scope:amount/window[:unit]` as an item of `tokenLimit.limits`. Raise `OnboardingError`.

    The parts of a scope may have any order; the item has the one in which limits are stored.
    """
    found = re.fullmatch(r"([a-z_+]+):([0-9_]{1,16})/([a-z]+)(?::([a-z_]+))?", text)
    accepted = schema(chart)["definitions"]["routeLimit"]["properties"]
    scopes, windows, units = (accepted[key]["enum"] for key in ("scope", "window", "unit"))
    form = "a token limit is SCOPE:AMOUNT/WINDOW or SCOPE:AMOUNT/WINDOW:UNIT, such as service_account:200000/day"
    if found is None:
        raise OnboardingError(f"{form}, not '{text[:80]}'")
    limit = {"scope": found[1], "unit": found[4] or "tokens", "window": found[3]}
    for key, allowed in (("scope", scopes), ("window", windows), ("unit", units)):
        if limit[key] not in allowed:
            raise OnboardingError(f"{form}: the {key} is one of {', '.join(allowed)}, not '{limit[key]}'")
    return {**limit, "scope": Scope(found[1]).value, "amount": int(found[2].replace("_", ""))}


def _quantity(text: str) -> str:
    return text if text.isdecimal() else inline(text)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
