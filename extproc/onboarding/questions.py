"""Define the questions to a model owner as data, for both the wizard and the form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from extproc.onboarding.drafting import LLMS, Kind

KINDS: Final = {
    Kind.HUGGINGFACE: "an LLM or other model of Hugging Face, by KServe's server (vLLM inside)",
    Kind.VLLM: "an LLM, by vLLM itself",
    Kind.SKLEARN: "scikit-learn",
    Kind.XGBOOST: "XGBoost",
    Kind.LIGHTGBM: "LightGBM",
    Kind.PYTORCH: "PyTorch, by TorchServe",
    Kind.TENSORFLOW: "TensorFlow",
    Kind.ONNX: "ONNX, by Triton",
    Kind.TRITON: "Triton's own repository",
    Kind.MLFLOW: "MLflow",
    Kind.IMAGE: "an image of your own",
}
_STORED: Final = tuple(each.value for each in Kind if each is not Kind.IMAGE)
_LLMS: Final = tuple(each.value for each in Kind if each in LLMS)
_IMAGE: Final = (Kind.IMAGE.value,)
_LOAD: Final = "Percentage of requests that stay with the primary"


@dataclass(frozen=True, slots=True)
class Question:
    """Describe one question. `name` is the field of `drafting.Answers`.

    `type` is one of text, choice, integer, number, yes_no, list. `about` is its topic. The question is asked if
    all answers of `only_if` are set and, where values are listed there, equal one of them.
    """

    name: str
    about: str
    text: str
    type: str = "text"
    help: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    default: object = None
    default_for: Mapping[str, object] = field(default_factory=dict)  # by kind
    only_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    required: bool = False

    def is_asked(self, answers: Mapping[str, object]) -> bool:
        """Return whether the question applies after these answers."""
        return all(
            answers.get(name) in allowed if allowed else bool(answers.get(name))
            for name, allowed in self.only_if.items()
        )

    def suggestion(self, answers: Mapping[str, object]) -> object:
        """Return the default after these answers."""
        return self.default_for.get(str(answers.get("kind")), self.default)


def _for_llms(value: object) -> dict[str, object]:
    return dict.fromkeys(_LLMS, value)


QUESTIONS: Final[tuple[Question, ...]] = (
    Question("name", "model", "Name of the model", help="small letters, digits, '-'", required=True),
    Question("namespace", "model", "Namespace", default="default", required=True),
    Question(
        "kind",
        "model",
        "What is it?",
        "choice",
        choices={each.value: about for each, about in KINDS.items()},
        default=Kind.HUGGINGFACE.value,
        required=True,
    ),
    Question(
        "storage",
        "model",
        "Where is it?",
        help="hf://org/model, s3://, gs://, pvc://claim/path, oci://, https://",
        only_if={"kind": _STORED},
        required=True,
    ),
    Question("image", "model", "Its image, with a tag", only_if={"kind": _IMAGE}, required=True),
    Question("gpus", "pods", "GPUs per pod", "integer", default=0, default_for=_for_llms(1), required=True),
    Question("cpu", "pods", "CPU per pod", help="such as 4 or 500m", default="1", default_for=_for_llms("4")),
    Question(
        "memory", "pods", "Memory per pod", help="such as 24Gi", default="2Gi", default_for=_for_llms("24Gi")
    ),
    Question("replicas", "pods", "Pods, the fewest", "integer", default=1, required=True),
    Question("max_replicas", "scaling", "Pods, the most", "integer", help="none: no scaling"),
    Question(
        "target_queue",
        "scaling",
        "Requests that may wait in vLLM's queue, per pod",
        "number",
        default=4,
        only_if={"max_replicas": (), "kind": _LLMS},
    ),
    Question("target_rate", "scaling", "Requests per second and pod", "number", only_if={"max_replicas": ()}),
    Question(
        "target_cpu",
        "scaling",
        "CPU, percent of what is asked for",
        "integer",
        default=80,
        default_for=_for_llms(None),
        only_if={"max_replicas": ()},
    ),
    Question(
        "target_memory", "scaling", "Memory, percent of what is asked for", "integer", only_if={"max_replicas": ()}
    ),
    Question(
        "target_gpu", "scaling", "GPU utilisation, percent", "integer", only_if={"max_replicas": (), "gpus": ()}
    ),
    Question(
        "publish", "callers", "Publish it to callers outside the mesh?", "yes_no", default=True, required=True
    ),
    Question(
        "audiences", "callers", "Audiences, of which their tokens must have one", "list", only_if={"publish": ()}
    ),
    Question("requests_per_sa", "limits", "Requests a minute per service account", "integer"),
    Question("requests_per_ip", "limits", "Requests a minute per client IP", "integer"),
    Question(
        "token_limits",
        "limits",
        "Token limits of this model, beside the tenants'",
        "list",
        help="such as service_account:200000/day",
        only_if={"kind": _LLMS},
    ),
    Question(
        "canary_storage", "canary", "A canary's model", help="where the next one is", only_if={"kind": _STORED}
    ),
    Question("canary_image", "canary", "A canary's image", only_if={"kind": _IMAGE}),
    Question(
        "primary_load", "canary", _LOAD, "integer", default=90, only_if={"canary_storage": ()}, required=True
    ),
    Question("primary_load", "canary", _LOAD, "integer", default=90, only_if={"canary_image": ()}, required=True),
)
